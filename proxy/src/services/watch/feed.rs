//! One upstream Watch stream: it opens, probes, resumes and closes upstream watches, and hands each event to its log.
//!
//! A feed belongs to one set of credentials, since etcd judges a watch by the stream that creates it. When its stream
//! breaks it goes to another member and takes every log up at its next revision; readers notice nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use etcd_proxy_proto::etcdserverpb::{WatchProgressRequest, watch_request::RequestUnion};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};

mod answers;
mod lineage;
mod rights;
mod stream;

use lineage::Lineage;
use rights::Rights;
use stream::Stream;

use super::{
    directory::Opening,
    inbox::Inbox,
    log::{End, Log, LogId, Opened},
    seen::Seen,
};
use crate::{
    admission::shares::Places,
    metrics::Metrics,
    rules::{
        caller::Caller,
        keys::KeyRange,
        methods::WATCH,
        status::{self, Code, Status},
    },
    upstream::{
        Upstream,
        endpoint::{Endpoint, State},
        incoming::{Heard, Incoming},
    },
};

/// The waits between attempts to reach etcd.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// How often a quiet stream is asked how far it is, so that a watch that has had no event for long can be resumed
/// after a compaction. It must be well within the time that compactions leave, which is minutes.
const COVER_INTERVAL: Duration = Duration::from_secs(10);
/// etcd leaves a progress request unanswered while a watch is not level; one that is older than this is repeated.
const PROGRESS_PATIENCE: Duration = Duration::from_millis(100);
/// How often a catch-up asks whether it is level.
const CATCH_UP_ASKS: Duration = Duration::from_millis(20);

/// How long a full catch-up waits for its reader before it gives its place up to another's.
const READER_PATIENCE: Duration = Duration::from_secs(1);

/// What is asked of a feed.
pub enum Command {
    /// Open an upstream watch that fills this log.
    Open(Opening),
    /// Create a watch on this range and cancel it at once: its answer tells whether the caller may watch here, and
    /// where the store stands now.
    Probe { range: KeyRange, answer: oneshot::Sender<Opened> },
    /// Tell the session when everything that etcd has now has been handed to the logs.
    Progress(Arc<Inbox>),
    /// Learn how far the logs are.
    Cover,
    /// Nobody reads this log any more.
    Close(Arc<Log>),
}

/// What a feed is for.
#[derive(Clone)]
pub enum Duty {
    /// Any number of logs from now on, for as long as there are sessions.
    Live,
    /// One log that catches up with another, at the pace of its one reader. Few may do so at a time.
    CatchUp { live: Arc<Log>, gate: Places },
}

/// The handle of a running feed. When the last clone is dropped the feed ends.
#[derive(Clone)]
pub struct Feed {
    commands: mpsc::UnboundedSender<Command>,
    failed: watch::Receiver<Option<Status>>,
}

impl Feed {
    pub fn start(parts: Parts, duty: Duty) -> Self {
        // Bounded by what sessions may ask at a time, and each of those is bounded by flow control on its stream.
        let (commands, received) = mpsc::unbounded_channel();
        let (failure, failed) = watch::channel(None);
        let task = Task {
            rights: Rights::new(parts.rights_interval),
            parts,
            duty,
            commands: received,
            failure,
            open: HashMap::new(),
            probes: HashMap::new(),
            progress: Progress::default(),
            has_fresh_pass: false,
            lineage: Lineage::default(),
        };
        tokio::spawn(task.run());
        Self { commands, failed }
    }

    /// A feed that a test plays, by what it is asked.
    #[cfg(test)]
    pub fn played() -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, received) = mpsc::unbounded_channel();
        let (_, failed) = watch::channel(None);
        (Self { commands, failed }, received)
    }

    pub fn send(&self, command: Command) {
        // A feed that has failed drops what it is asked, and whoever waits for an answer sees that it is gone.
        let _ = self.commands.send(command);
    }

    /// Whether the feed has ended by itself.
    pub fn has_failed(&self) -> bool {
        self.failed.borrow().is_some() || self.commands.is_closed()
    }

    /// Returns with the status that etcd ended every attempt with. It does not keep the feed.
    pub fn failed(&self) -> impl Future<Output = Status> + Send + use<> {
        let mut failed = self.failed.clone();
        async move {
            match failed.wait_for(Option::is_some).await {
                Ok(status) => status.clone().unwrap_or_else(status::draining),
                Err(_) => status::draining(),
            }
        }
    }
}

/// What every feed works with.
#[derive(Clone)]
pub struct Parts {
    pub upstream: Upstream,
    pub caller: Caller,
    pub metrics: Arc<Metrics>,
    /// Within which time etcd is asked about each watch whether the caller may still have it, if it is.
    pub rights_interval: Option<Duration>,
    /// What clients were shown of the store.
    pub seen: Arc<Seen>,
}

struct Task {
    parts: Parts,
    duty: Duty,
    commands: mpsc::UnboundedReceiver<Command>,
    failure: watch::Sender<Option<Status>>,
    /// Every log to fill, whatever becomes of the stream.
    open: HashMap<LogId, Opening>,
    probes: HashMap<KeyRange, Probes>,
    progress: Progress,
    /// Whether the pass of this stream follows one that etcd did not take, with nothing opened since.
    has_fresh_pass: bool,
    rights: Rights,
    lineage: Lineage,
}

/// Those who wait for a probe of one range. Whoever asks while one is under way waits for the next, since "now" must
/// not be before the asking.
#[derive(Default)]
struct Probes {
    under_way: Vec<oneshot::Sender<Opened>>,
    next: Vec<oneshot::Sender<Opened>>,
}

#[derive(Default)]
struct Progress {
    under_way: Vec<Arc<Inbox>>,
    next: Vec<Arc<Inbox>>,
    asked: Option<Instant>,
}

/// How a stream came to its end.
enum StreamEnd {
    /// All handles are gone, or the catch-up is done.
    Done,
    /// It broke, or the member is not one to stay with; another may serve.
    Broken(Status),
    /// etcd refused the stream as such.
    Refused(Status),
}

impl Task {
    async fn run(mut self) {
        let _place = match &self.duty {
            Duty::Live => None,
            Duty::CatchUp { gate, .. } => Some(gate.take().await),
        };
        let mut backoff = FIRST_BACKOFF;
        let mut avoid: Vec<Arc<Endpoint>> = Vec::new();
        let mut no_leader = None;
        loop {
            while self.is_idle() {
                match self.commands.recv().await {
                    Some(command) => self.note(command),
                    None => return,
                }
            }
            let opened = self.parts.upstream.open(&self.parts.caller, WATCH, &avoid).await;
            let (end, endpoint) = match opened {
                Ok(duplex) => {
                    let endpoint = duplex.endpoint.clone();
                    let pass = duplex.pass.clone();
                    let (send, answer) = duplex.split();
                    let mut stream = Stream::new(send, endpoint.clone(), pass, &self.parts);
                    (self.serve(&mut stream, Incoming::new(answer)).await, Some((endpoint, stream.was_useful)))
                }
                Err(status) => (judge(status), None),
            };
            if self.commands.is_closed() {
                return;
            }
            let status = match end {
                StreamEnd::Done => return,
                StreamEnd::Refused(status) => return self.fail(status),
                StreamEnd::Broken(status) => status,
            };
            self.parts.metrics.watch_resumes.inc();
            if let Some((endpoint, true)) = &endpoint {
                tracing::debug!(endpoint = %endpoint.name, %status, "watch stream broke, resuming");
                backoff = FIRST_BACKOFF;
                avoid.clear();
                no_leader = None;
            }
            if status.message() == status::no_leader().message() {
                no_leader = Some(status);
            }
            // The member that just failed is tried last; without one, no member could be reached at all.
            let all_failed = endpoint.is_none();
            avoid.extend(endpoint.map(|(endpoint, _)| endpoint));
            if all_failed || avoid.len() >= self.parts.upstream.endpoints().list().len() {
                if let Some(status) = no_leader.take().filter(|_| self.parts.caller.credentials().require_leader) {
                    return self.fail(status);
                }
                avoid.clear();
                sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.open.is_empty() && self.probes.is_empty() && self.progress.is_empty()
    }

    fn fail(self, status: Status) {
        self.failure.send_replace(Some(status));
        for upward in self.open.values() {
            upward.log.end(End::Closed);
        }
    }

    /// Takes in a command while there is no stream.
    fn note(&mut self, command: Command) {
        match command {
            Command::Open(opening) => {
                self.open.insert(opening.log.id(), opening);
            }
            Command::Probe { range, answer } => self.probes.entry(range).or_default().next.push(answer),
            Command::Progress(inbox) => self.progress.next.push(inbox),
            // A stream that is taken up says by itself how far it is, and whoever wants to know asks again.
            Command::Cover => (),
            Command::Close(log) => self.close(&log),
        }
    }

    fn close(&mut self, log: &Arc<Log>) {
        self.open.remove(&log.id());
        log.end(End::Closed);
    }

    /// Runs one stream until it ends.
    async fn serve(&mut self, stream: &mut Stream, mut incoming: Incoming) -> StreamEnd {
        self.take_up(stream);
        let mut endpoint_state = stream.endpoint.watch_state();
        let require_leader = self.parts.caller.credentials().require_leader;
        let asks = if matches!(self.duty, Duty::Live) { COVER_INTERVAL } else { CATCH_UP_ASKS };
        let ask_at = sleep(asks);
        tokio::pin!(ask_at);
        loop {
            let full = self.full_catch_up();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(stream, command),
                    None => return StreamEnd::Done,
                },
                heard = incoming.next(), if full.is_none() => match heard {
                    Heard::Data(data) => {
                        stream.was_useful = true;
                        if let Err(end) = self.take_in(stream, &data) {
                            return end;
                        }
                        if self.is_level() {
                            return StreamEnd::Done;
                        }
                    }
                    Heard::Ended(status) => return judge(status),
                    Heard::Broken(status) => return StreamEnd::Broken(status),
                },
                room = wait_for_room(full.as_ref()), if full.is_some() => if !room {
                    return self.park();
                },
                () = &mut ask_at, if full.is_none() => {
                    ask_at.as_mut().reset(Instant::now() + asks);
                    self.ask_progress(stream);
                }
                has_gone_back = self.lineage.resolved() => if has_gone_back {
                    return self.gone_back();
                },
                () = self.rights.due(), if full.is_none() => self.rights.ask(&self.open, stream),
                changed = endpoint_state.changed() => {
                    let state = *endpoint_state.borrow_and_update();
                    let leave = match state {
                        State::Removed | State::Unreachable => true,
                        State::NoLeader => require_leader,
                        _ => false,
                    };
                    if leave || changed.is_err() {
                        return StreamEnd::Broken(status::broken(format!("endpoint {} is {}", stream.endpoint.name, state.name())));
                    }
                }
            }
        }
    }

    /// Asks a fresh stream for everything that is open or awaited.
    fn take_up(&mut self, stream: &mut Stream) {
        for upward in self.open.values() {
            stream.create(upward);
        }
        for (range, probes) in &mut self.probes {
            probes.under_way.append(&mut probes.next);
            stream.probe(range);
        }
        self.progress.under_way.append(&mut self.progress.next);
        self.progress.asked = None;
        if !self.progress.under_way.is_empty() {
            self.ask_progress(stream);
        }
    }

    fn obey(&mut self, stream: &mut Stream, command: Command) {
        match command {
            Command::Open(opening) => {
                stream.create(&opening);
                self.open.insert(opening.log.id(), opening);
            }
            Command::Probe { range, answer } => {
                let probes = self.probes.entry(range.clone()).or_default();
                if probes.under_way.is_empty() {
                    probes.under_way.push(answer);
                    stream.probe(&range);
                } else {
                    probes.next.push(answer);
                }
            }
            Command::Progress(inbox) => {
                if self.progress.is_stale() {
                    self.progress.under_way.push(inbox);
                    self.ask_progress(stream);
                } else {
                    self.progress.next.push(inbox);
                }
            }
            Command::Cover => {
                if self.progress.is_stale() {
                    self.ask_progress(stream);
                }
            }
            Command::Close(log) => {
                stream.cancel(&log);
                self.close(&log);
            }
        }
    }

    fn ask_progress(&mut self, stream: &mut Stream) {
        if !self.open.is_empty() {
            self.progress.asked = Some(Instant::now());
            stream.progress_requests += 1;
            stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        }
    }

    /// The log of a catch-up that must wait for its reader.
    fn full_catch_up(&self) -> Option<Arc<Log>> {
        match (&self.duty, self.open.values().next()) {
            (Duty::CatchUp { .. }, Some(upward)) if upward.log.is_full() => Some(upward.log.clone()),
            _ => None,
        }
    }

    /// Ends a catch-up whose log reaches up to what the shared one holds.
    fn is_level(&mut self) -> bool {
        let Duty::CatchUp { live, .. } = &self.duty else { return false };
        let Some(upward) = self.open.values().next() else { return true };
        let next_revision = upward.log.resume_revision();
        // If the shared log has ended, the reader looks for another one, once etcd has said that it may watch at all: that
        // may be why the shared one has ended.
        let is_over = live.has_ended() && upward.log.is_opened();
        if next_revision < live.covered_from() && !is_over {
            return false;
        }
        upward.log.end(End::Continue { next_revision });
        true
    }

    /// Ends a catch-up whose reader does not read; it goes on from there when it does.
    fn park(&mut self) -> StreamEnd {
        for upward in self.open.values() {
            upward.log.end(End::Continue { next_revision: upward.log.resume_revision() });
        }
        StreamEnd::Done
    }
}

/// What it means that etcd ended the stream with this status.
fn judge(status: Status) -> StreamEnd {
    match status.code() {
        Code::Unavailable | Code::Internal | Code::Unknown | Code::Cancelled | Code::Ok | Code::DeadlineExceeded => {
            StreamEnd::Broken(status)
        }
        _ => StreamEnd::Refused(status),
    }
}

impl Progress {
    fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.next.is_empty()
    }

    /// Whether etcd may be asked anew, since no answer is on its way, or not any more.
    fn is_stale(&self) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() > PROGRESS_PATIENCE)
    }
}

async fn wait_for_room(log: Option<&Arc<Log>>) -> bool {
    match log {
        Some(log) => tokio::time::timeout(READER_PATIENCE, log.room()).await.is_ok(),
        None => std::future::pending().await,
    }
}
