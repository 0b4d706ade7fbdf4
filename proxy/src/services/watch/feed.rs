//! One upstream Watch stream: it opens, probes, resumes and closes upstream watches, and hands each event to its log.
//!
//! A feed belongs to one set of credentials, since etcd judges a watch by the stream that creates it. When its stream
//! breaks it goes to another member and takes every log up at its next revision; readers notice nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{
    ResponseHeader, WatchCancelRequest, WatchProgressRequest, watch_request::RequestUnion,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep},
};

mod stream;

use stream::{Pending, Response, Stream};

use super::{
    inbox::Inbox,
    log::{End, Log, Opened, Refused},
};
use crate::{
    metrics::Metrics,
    rules::{
        caller::Caller,
        keys::KeyRange,
        status::{self, Code, Status},
    },
    upstream::{
        Answer, Body, Upstream,
        endpoint::{Endpoint, State},
    },
};

pub const WATCH: &str = "/etcdserverpb.Watch/Watch";

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
    Open(Upward),
    /// Create a watch on this range and cancel it at once: its answer tells whether the caller may watch here, and
    /// where the store stands now.
    Probe { range: KeyRange, answer: oneshot::Sender<Opened> },
    /// Tell the session when everything that etcd has now has been handed to the logs.
    Progress(Arc<Inbox>),
    /// Nobody reads this log any more.
    Close(Arc<Log>),
}

/// An upstream watch as it is asked for.
#[derive(Clone)]
pub struct Upward {
    pub log: Arc<Log>,
    pub range: KeyRange,
    pub prev_kv: bool,
    /// Zero is from now.
    pub start_revision: i64,
}

/// What a feed is for.
#[derive(Clone)]
pub enum Duty {
    /// Any number of logs from now on, for as long as there are sessions.
    Live,
    /// One log that catches up with another, at the pace of its one reader. Few may do so at a time.
    CatchUp { live: Arc<Log>, gate: Arc<Semaphore> },
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
            parts,
            duty,
            commands: received,
            failure,
            open: Vec::new(),
            probes: HashMap::new(),
            progress: Progress::default(),
        };
        tokio::spawn(task.run());
        Self { commands, failed }
    }

    pub fn send(&self, command: Command) {
        // A feed that has failed drops what it is asked, and whoever waits for an answer sees that it is gone.
        let _ = self.commands.send(command);
    }

    /// Whether the feed has ended by itself.
    pub fn has_failed(&self) -> bool {
        self.failed.borrow().is_some() || self.commands.is_closed()
    }

    /// Returns with the status that etcd ended every attempt with.
    pub async fn failed(&mut self) -> Status {
        match self.failed.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_else(status::draining),
            Err(_) => status::draining(),
        }
    }
}

/// What every feed works with.
#[derive(Clone)]
pub struct Parts {
    pub upstream: Upstream,
    pub caller: Caller,
    pub metrics: Arc<Metrics>,
}

struct Task {
    parts: Parts,
    duty: Duty,
    commands: mpsc::UnboundedReceiver<Command>,
    failure: watch::Sender<Option<Status>>,
    /// Every log to fill, whatever becomes of the stream.
    open: Vec<Upward>,
    probes: HashMap<KeyRange, Probes>,
    progress: Progress,
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
            Duty::CatchUp { gate, .. } => gate.clone().acquire_owned().await.ok(),
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
                    let (send, answer) = duplex.split();
                    let mut stream = Stream::new(send, endpoint.clone(), &self.parts);
                    (self.serve(&mut stream, answer).await, Some((endpoint, stream.was_useful)))
                }
                Err(status) => (StreamEnd::Broken(status), None),
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
        for upward in &self.open {
            upward.log.end(End::Closed);
        }
    }

    /// Takes in a command while there is no stream.
    fn note(&mut self, command: Command) {
        match command {
            Command::Open(upward) => self.open.push(upward),
            Command::Probe { range, answer } => self.probes.entry(range).or_default().next.push(answer),
            Command::Progress(inbox) => self.progress.next.push(inbox),
            Command::Close(log) => self.close(&log),
        }
    }

    fn close(&mut self, log: &Arc<Log>) {
        self.open.retain(|upward| !Arc::ptr_eq(&upward.log, log));
        log.end(End::Closed);
    }

    /// Runs one stream until it ends.
    async fn serve(&mut self, stream: &mut Stream, answer: impl Future<Output = Result<Answer, Status>>) -> StreamEnd {
        self.take_up(stream);
        tokio::pin!(answer);
        let mut endpoint_state = stream.endpoint.watch_state();
        let mut body: Option<Body> = None;
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
                answered = &mut answer, if body.is_none() => match answered {
                    Ok(answer) if answer.code().is_some() => return self.judge_end(&answer.headers),
                    Ok(answer) => body = Some(answer.body),
                    Err(status) => return StreamEnd::Broken(status),
                },
                data = read(&mut body), if body.is_some() && full.is_none() => match data {
                    Some(Ok(data)) => {
                        stream.was_useful = true;
                        if let Err(end) = self.take_in(stream, &data) {
                            return end;
                        }
                        if self.is_level() {
                            return StreamEnd::Done;
                        }
                    }
                    Some(Err(status)) => return StreamEnd::Broken(status),
                    None => return self.judge_trailers(&mut body).await,
                },
                room = wait_for_room(full.as_ref()), if full.is_some() => if !room {
                    return self.park();
                },
                () = &mut ask_at, if full.is_none() => {
                    ask_at.as_mut().reset(Instant::now() + asks);
                    self.ask_progress(stream);
                }
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
        for upward in &self.open {
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
            Command::Open(upward) => {
                stream.create(&upward);
                self.open.push(upward);
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
                let stale = self.progress.asked.is_none_or(|asked| asked.elapsed() > PROGRESS_PATIENCE);
                if stale {
                    self.progress.under_way.push(inbox);
                    self.ask_progress(stream);
                } else {
                    self.progress.next.push(inbox);
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
            stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        }
    }

    /// Hands what etcd sent to the logs and to those who wait.
    fn take_in(&mut self, stream: &mut Stream, data: &Bytes) -> Result<(), StreamEnd> {
        stream.decoder.push(data);
        loop {
            let message = stream.decoder.next().map_err(|error| StreamEnd::Broken(status::unreadable_answer(error)))?;
            let Some(message) = message else { return Ok(()) };
            if message.compressed {
                return Err(StreamEnd::Broken(status::unreadable_answer("it is compressed, which was not asked for")));
            }
            let response =
                Response::parse(&message.bytes).map_err(|error| StreamEnd::Broken(status::unreadable_answer(error)))?;
            self.hand_out(stream, response);
        }
    }

    fn hand_out(&mut self, stream: &mut Stream, response: Response<'_>) {
        if response.created {
            return self.hand_out_created(stream, response);
        }
        if response.watch_id == -1 && response.events.is_empty() {
            return self.hand_out_progress(stream, response.header);
        }
        let Some(open) = stream.watches.get_mut(&response.watch_id) else { return };
        if response.canceled {
            let log = open.log.clone();
            // A watch that etcd ended for a compaction still counts as one that lags, and while there is one, no
            // progress is reported to anyone on the stream.
            stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: response.watch_id }));
            stream.forget(response.watch_id);
            self.open.retain(|upward| !Arc::ptr_eq(&upward.log, &log));
            let Response { header, compact_revision, cancel_reason, .. } = response;
            return log.end(End::Canceled { header, compact_revision, reason: cancel_reason.to_owned() });
        }
        if response.events.is_empty() && open.builder.is_empty() {
            return open.log.append_progress(response.header);
        }
        self.parts.metrics.watch_events_received.inc_by(response.events.len() as u64);
        for event in &response.events {
            if let Err(broken) = open.builder.push(self.parts.caller.namespace(), event) {
                tracing::error!(%broken, "withheld an event of etcd that does not keep to the namespace");
            }
        }
        let batch = if response.fragment {
            open.builder.finish_whole_revisions(response.header)
        } else {
            open.builder.finish(response.header)
        };
        if let Some(batch) = batch {
            open.log.append(batch);
        }
    }

    fn hand_out_created(&mut self, stream: &mut Stream, response: Response<'_>) {
        let Some(pending) = stream.pending.pop_front() else { return };
        let refused = response.canceled;
        let opened: Opened = if refused {
            Err(Refused { header: response.header, reason: response.cancel_reason.to_owned() })
        } else {
            Ok(response.header)
        };
        match pending {
            Pending::Probe(range) => {
                if !refused {
                    stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: response.watch_id }));
                }
                self.hand_out_probe(stream, range, &opened);
            }
            Pending::Log { log, from_now } => {
                let wanted = self.open.iter().any(|upward| Arc::ptr_eq(&upward.log, &log));
                match &opened {
                    Ok(_) if wanted => stream.remember(response.watch_id, log.clone()),
                    Ok(_) => {
                        stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: response.watch_id }))
                    }
                    Err(_) => self.open.retain(|upward| !Arc::ptr_eq(&upward.log, &log)),
                }
                log.note_opened(opened, from_now);
            }
        }
    }

    fn hand_out_probe(&mut self, stream: &mut Stream, range: KeyRange, opened: &Opened) {
        let Some(probes) = self.probes.get_mut(&range) else { return };
        for answer in probes.under_way.drain(..) {
            // Whoever asked may have left.
            let _ = answer.send(opened.clone());
        }
        if probes.next.is_empty() {
            self.probes.remove(&range);
        } else {
            probes.under_way.append(&mut probes.next);
            stream.probe(&range);
        }
    }

    fn hand_out_progress(&mut self, stream: &mut Stream, header: ResponseHeader) {
        for open in stream.watches.values() {
            open.log.cover(header.revision);
        }
        for inbox in self.progress.under_way.drain(..) {
            inbox.progress(header);
        }
        self.progress.asked = None;
        if !self.progress.next.is_empty() {
            self.progress.under_way.append(&mut self.progress.next);
            self.ask_progress(stream);
        }
    }

    /// The log of a catch-up that must wait for its reader.
    fn full_catch_up(&self) -> Option<Arc<Log>> {
        match (&self.duty, self.open.first()) {
            (Duty::CatchUp { .. }, Some(upward)) if upward.log.is_full() => Some(upward.log.clone()),
            _ => None,
        }
    }

    /// Ends a catch-up whose log reaches up to what the shared one holds.
    fn is_level(&mut self) -> bool {
        let Duty::CatchUp { live, .. } = &self.duty else { return false };
        let Some(upward) = self.open.first() else { return true };
        let next_revision = upward.log.resume_revision();
        if next_revision < live.covered_from() {
            return false;
        }
        upward.log.end(End::Continue { next_revision });
        true
    }

    /// Ends a catch-up whose reader does not read; it goes on from there when it does.
    fn park(&mut self) -> StreamEnd {
        for upward in &self.open {
            upward.log.end(End::Continue { next_revision: upward.log.resume_revision() });
        }
        StreamEnd::Done
    }

    fn judge_end(&self, headers: &http::HeaderMap) -> StreamEnd {
        let status = status::of_trailers(headers).unwrap_or_else(|| status::broken("EOF"));
        match status.code() {
            Code::Unavailable
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
            | Code::Ok
            | Code::DeadlineExceeded => StreamEnd::Broken(status),
            _ => StreamEnd::Refused(status),
        }
    }

    async fn judge_trailers(&self, body: &mut Option<Body>) -> StreamEnd {
        match body.as_mut() {
            Some(body) => match body.trailers().await {
                Ok(Some(trailers)) => self.judge_end(&trailers),
                Ok(None) => StreamEnd::Broken(status::broken("EOF")),
                Err(status) => StreamEnd::Broken(status),
            },
            None => StreamEnd::Broken(status::broken("EOF")),
        }
    }
}

impl Progress {
    fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.next.is_empty()
    }
}

async fn read(body: &mut Option<Body>) -> Option<Result<Bytes, Status>> {
    match body {
        Some(body) => body.data().await,
        None => std::future::pending().await,
    }
}

async fn wait_for_room(log: Option<&Arc<Log>>) -> bool {
    match log {
        Some(log) => tokio::time::timeout(READER_PATIENCE, log.room()).await.is_ok(),
        None => std::future::pending().await,
    }
}
