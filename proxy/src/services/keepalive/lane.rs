//! One upstream keep-alive stream, shared: it asks for each lease once at a time and hands the answer to all who wait.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::LeaseKeepAliveRequest;
use h2::SendStream;
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep_until,
};

use super::{Answer, ID, TTL, kept::Kept};
use crate::{
    metrics::Metrics,
    rules::{
        caller::Caller,
        framing::{self, Decoder},
        status::{self, Status},
        wire,
    },
    upstream::{
        self, Upstream,
        endpoint::{Endpoint, State},
        incoming::{Heard, Incoming},
    },
};

const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// A client's wish to have a lease renewed.
pub struct Ask {
    pub lease: i64,
    pub answer: oneshot::Sender<Answer>,
}

/// The handle of a lane; when it is dropped the lane ends.
pub struct Lane(mpsc::UnboundedSender<Ask>);

impl Lane {
    pub fn start(upstream: Upstream, caller: Caller, metrics: Arc<Metrics>) -> Self {
        // Bounded by what each session may have unanswered.
        let (asks, received) = mpsc::unbounded_channel();
        let kept = Kept::new(metrics.leases_kept_alive.clone());
        let (waiting, sent) = (HashMap::new(), VecDeque::new());
        let task = Task { upstream, caller, metrics, asks: received, waiting, sent, kept, has_fresh_pass: false };
        tokio::spawn(task.run());
        Self(asks)
    }

    pub fn ask(&self, ask: Ask) {
        // The task lives as long as this handle.
        let _ = self.0.send(ask);
    }
}

struct Task {
    upstream: Upstream,
    caller: Caller,
    metrics: Arc<Metrics>,
    asks: mpsc::UnboundedReceiver<Ask>,
    /// Who waits for which lease.
    waiting: HashMap<i64, Vec<oneshot::Sender<Answer>>>,
    /// The leases that etcd has been asked for, in the order in which it answers.
    sent: VecDeque<i64>,
    kept: Kept,
    /// Whether the stream's pass follows one that etcd did not take, with nothing renewed since.
    has_fresh_pass: bool,
}

/// How a stream came to its end.
enum StreamEnd {
    Done,
    /// etcd does not take the stream's pass any more: whatever is unanswered is asked again under a fresh one.
    Refused,
    /// The connection broke: whatever is unanswered is asked again elsewhere.
    Broken(Arc<Endpoint>),
    /// etcd ended it with a status, which is what it has to say to the first that is unanswered.
    Status(Status),
}

impl Task {
    async fn run(mut self) {
        let mut avoid: Vec<Arc<Endpoint>> = Vec::new();
        loop {
            while self.waiting.is_empty() {
                tokio::select! {
                    ask = self.asks.recv() => match ask {
                        Some(ask) => {
                            self.note(ask);
                        }
                        None => return,
                    },
                    () = sleep_until(self.kept.next_sweep()), if !self.kept.is_empty() => self.kept.sweep(),
                }
            }
            let duplex = match self.upstream.open(&self.caller, LEASE_KEEP_ALIVE, &avoid).await {
                Ok(duplex) => duplex,
                Err(status) => {
                    avoid.clear();
                    self.answer_all(&status);
                    continue;
                }
            };
            match self.serve(duplex, &mut avoid).await {
                StreamEnd::Done => return,
                StreamEnd::Refused => (),
                StreamEnd::Broken(endpoint) => avoid.push(endpoint),
                StreamEnd::Status(status) => self.answer_first(&status),
            }
        }
    }

    fn note(&mut self, ask: Ask) -> bool {
        let waiting = self.waiting.entry(ask.lease).or_default();
        let is_first = waiting.is_empty();
        waiting.push(ask.answer);
        if is_first {
            self.sent.push_back(ask.lease);
        }
        is_first
    }

    async fn serve(&mut self, duplex: upstream::Duplex, avoid: &mut Vec<Arc<Endpoint>>) -> StreamEnd {
        let endpoint = duplex.endpoint.clone();
        let mut endpoint_state = endpoint.watch_state();
        let pass = duplex.pass.clone();
        let (mut send, answer) = duplex.split();
        let mut incoming = Incoming::new(answer);
        let mut decoder = Decoder::new(self.upstream.limits().max_answer);
        for lease in &self.sent {
            self.metrics.keepalives_sent.inc();
            renew(&mut send, *lease);
        }
        loop {
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => {
                        let lease = ask.lease;
                        if self.note(ask) {
                            self.metrics.keepalives_sent.inc();
                            renew(&mut send, lease);
                        }
                    }
                    None => return StreamEnd::Done,
                },
                heard = incoming.next() => match heard {
                    Heard::Data(data) => {
                        avoid.clear();
                        self.has_fresh_pass = false;
                        decoder.push(&data);
                        loop {
                            match decoder.next() {
                                Ok(Some(message)) => self.hand_out(&message.bytes),
                                Ok(None) => break,
                                Err(error) => return StreamEnd::Status(status::unreadable_answer(error)),
                            }
                        }
                    }
                    Heard::Ended(status) => {
                        let is_refused = pass.is_some_and(|pass| pass.is_refused(status.message()));
                        if is_refused && !std::mem::replace(&mut self.has_fresh_pass, true) {
                            return StreamEnd::Refused;
                        }
                        return StreamEnd::Status(status);
                    }
                    Heard::Broken(_) => return StreamEnd::Broken(endpoint),
                },
                () = sleep_until(self.kept.next_sweep()), if !self.kept.is_empty() => self.kept.sweep(),
                changed = endpoint_state.changed() => {
                    let state = *endpoint_state.borrow_and_update();
                    if changed.is_err() || matches!(state, State::Removed | State::Unreachable) {
                        return StreamEnd::Broken(endpoint);
                    }
                }
            }
        }
    }

    fn hand_out(&mut self, message: &[u8]) {
        let lease = wire::last_int64(message, ID).unwrap_or_default();
        if let Some(index) = self.sent.iter().position(|sent| *sent == lease) {
            self.sent.remove(index);
        }
        self.kept.note(lease, wire::last_int64(message, TTL).unwrap_or_default());
        let framed = framing::frame(message);
        for answer in self.waiting.remove(&lease).unwrap_or_default() {
            tell(answer, Ok(framed.clone()));
        }
    }

    fn answer_first(&mut self, status: &Status) {
        let first = self.sent.pop_front();
        for answer in first.and_then(|lease| self.waiting.remove(&lease)).unwrap_or_default() {
            tell(answer, Err(status.clone()));
        }
    }

    fn answer_all(&mut self, status: &Status) {
        while !self.sent.is_empty() {
            self.answer_first(status);
        }
    }
}

/// A session that has ended does not wait for its answers any more.
fn tell(to: oneshot::Sender<Answer>, answer: Answer) {
    let _ = to.send(answer);
}

/// Requests are small and few are under way, so h2 may queue them; an error shows in the answer.
fn renew(send: &mut SendStream<Bytes>, lease: i64) {
    let _ = send.send_data(framing::frame(&LeaseKeepAliveRequest { id: lease }.encode_to_vec()), false);
}
