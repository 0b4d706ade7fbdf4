//! LeaseKeepAlive: each request is answered by a renewal at etcd, and nothing is renewed that no client asked for.
//!
//! Clients with the same credentials share a few upstream streams. A request for a lease whose renewal is under way
//! shares its answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::LeaseKeepAliveRequest;
use futures_util::{FutureExt, StreamExt, stream::FuturesOrdered};
use prost::Message as _;
use tokio::sync::oneshot;

use crate::{
    drain::Observer,
    exchange::{Outcome, Replies, Requests, passed},
    metrics::Metrics,
    rules::{
        caller::{Caller, Credentials},
        framing,
        status::{self, Code, Status},
        wire,
    },
    upstream::Upstream,
};

mod kept;
mod lane;

use lane::{Ask, Lane};

/// Requests of one client that wait for their answers; further ones are left unread until then.
const MAX_UNANSWERED: usize = 1024;
/// Upstream streams of one set of credentials. etcd serves the requests of one stream one after the other, and a
/// follower asks the leader for each, so that a single stream would renew about a thousand leases a second.
const LANES: usize = 8;

pub struct KeepAlives {
    upstream: Upstream,
    metrics: Arc<Metrics>,
    drain: Observer,
    by_credentials: Mutex<HashMap<Credentials, Weak<Lanes>>>,
}

/// Fields of a `LeaseKeepAliveResponse`.
const ID: u32 = 2;
const TTL: u32 = 3;

/// The upstream streams of one set of credentials; each opens when it is first needed.
struct Lanes([Lane; LANES]);

impl KeepAlives {
    pub fn new(upstream: Upstream, metrics: Arc<Metrics>, drain: Observer) -> Self {
        Self { upstream, metrics, drain, by_credentials: Mutex::default() }
    }

    /// Serves one client stream to its end.
    pub async fn serve(
        &self,
        caller: &Caller,
        requests: Requests,
        replies: Replies,
        deadline: Option<Instant>,
    ) -> Outcome {
        self.metrics.keepalive_streams.inc();
        let outcome = self.exchange(caller, requests, replies, deadline).await;
        self.metrics.keepalive_streams.dec();
        outcome
    }

    async fn exchange(
        &self,
        caller: &Caller,
        mut requests: Requests,
        mut replies: Replies,
        deadline: Option<Instant>,
    ) -> Outcome {
        let lanes = self.lanes(caller);
        let block = caller.namespace().leases();
        let mut drain = self.drain.clone();
        // etcd answers one stream's requests in their order, although ours take several lanes.
        let mut asked = FuturesOrdered::new();
        let mut half_closed = false;
        let late = passed(deadline);
        tokio::pin!(late);
        loop {
            tokio::select! {
                gone = replies.gone() => return Err(gone),
                () = drain.signaled() => return Ok(end(replies, &status::draining())),
                () = &mut late => return Ok(end(replies, &status::deadline_exceeded())),
                request = requests.next(), if !half_closed && asked.len() < MAX_UNANSWERED => match request {
                    Some(Ok(message)) => match LeaseKeepAliveRequest::decode(message) {
                        Ok(request) => {
                            self.metrics.keepalives_received.inc();
                            let (answer, answered) = oneshot::channel();
                            let lease = block.map_or(request.id, |block| block.as_asked(request.id));
                            lanes.of(lease).ask(Ask { lease, answer });
                            let heard_of = (lease != request.id).then_some(request.id);
                            asked.push_back(answered.map(move |answer| (answer, heard_of)));
                        }
                        Err(error) => return Ok(end(replies, &status::malformed(error))),
                    },
                    Some(Err(status)) => return Ok(end(replies, &status)),
                    None => half_closed = true,
                },
                Some(answer) = asked.next() => {
                    let mut out = BytesMut::new();
                    let mut next = Some(answer);
                    let mut refused = None;
                    while let Some((answer, heard_of)) = next {
                        let answer = answer.unwrap_or_else(|_| Err(status::draining()));
                        match answer.and_then(|framed| about(framed, heard_of)) {
                            Ok(framed) => out.extend_from_slice(&framed),
                            Err(status) => {
                                refused = Some(status);
                                break;
                            }
                        }
                        next = asked.next().now_or_never().flatten();
                    }
                    if !out.is_empty() {
                        if !replies.has_begun() {
                            replies.begin(http::HeaderMap::new())?;
                        }
                        replies.data(out.freeze()).await?;
                    }
                    if let Some(status) = refused {
                        return Ok(end(replies, &status));
                    }
                }
            }
            // etcd answers all that was asked before the client closed its half, and then ends well.
            if half_closed && asked.is_empty() {
                replies.succeed();
                return Ok(Code::Ok);
            }
        }
    }

    fn lanes(&self, caller: &Caller) -> Arc<Lanes> {
        let credentials = caller.credentials();
        let mut by_credentials = self.by_credentials.lock().expect("nothing panics while it holds this map");
        if let Some(lanes) = by_credentials.get(&credentials).and_then(Weak::upgrade) {
            return lanes;
        }
        by_credentials.retain(|_, lanes| lanes.strong_count() > 0);
        let caller = Caller { connection: caller.connection.clone(), metadata: credentials.metadata() };
        let start = |_| Lane::start(self.upstream.clone(), caller.clone(), self.metrics.clone());
        let lanes = Arc::new(Lanes(std::array::from_fn(start)));
        by_credentials.insert(credentials, Arc::downgrade(&lanes));
        lanes
    }
}

impl Lanes {
    /// Requests for one lease always take the same lane, where they meet.
    fn of(&self, lease: i64) -> &Lane {
        &self.0[lease.rem_euclid(LANES as i64) as usize]
    }
}

/// An answer as it is for the client: about the lease that it asked for, if etcd was asked for another in its place.
fn about(framed: Bytes, lease: Option<i64>) -> Answer {
    let Some(lease) = lease else { return Ok(framed) };
    let answer = framed.get(framing::PREFIX_LEN..).unwrap_or_default();
    wire::with_int64(answer, ID, lease).map(|answer| framing::frame(&answer)).map_err(status::unreadable_answer)
}

/// What a request is answered with: a framed response, or the status that ends the client's stream.
type Answer = Result<Bytes, Status>;

fn end(replies: Replies, status: &Status) -> Code {
    replies.fail(status);
    status.code()
}
