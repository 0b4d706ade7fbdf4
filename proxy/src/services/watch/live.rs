//! The live feed of one set of credentials with the logs that it fills, and a watch's hold on one of them.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use etcd_proxy_proto::etcdserverpb::RangeRequest;
use prometheus::IntGauge;
use tokio::sync::oneshot;

use super::{
    directory::{Directory, Opening},
    feed::{Command, Duty, Feed, Parts},
    hub::{JoinError, Wanted},
    inbox::Inbox,
    log::{Budget, Log, Opened, Seat, Subscriber},
    sessions::Sessions,
};
use crate::{
    admission::shares::Places,
    drain::Observer,
    rules::{
        keys::KeyRange,
        status::{self, Status},
    },
};

/// What all feeds of a hub have in common.
#[derive(Clone)]
pub struct Settings {
    pub max_log_bytes: usize,
    /// How many logs may stand below one prefix before one is opened for them all; 0 is any number.
    pub coalesce_threshold: usize,
    pub budget: Arc<Budget>,
    /// For catch-ups; each is a stream of its own at etcd.
    pub catch_ups: Places,
}

impl Settings {
    /// The same for the feeds of another tenant, which has shares of its own.
    pub fn for_another(&self) -> Self {
        Self { budget: self.budget.for_another(), catch_ups: self.catch_ups.for_another(), ..self.clone() }
    }
}

/// A feed and the logs that it fills, for all sessions with the same credentials.
pub struct LiveFeed {
    feed: Feed,
    parts: Parts,
    settings: Settings,
    directory: Mutex<Directory>,
    pub sessions: Sessions,
    past: tokio::sync::Mutex<Past>,
}

/// How long a watch of the past waits to hear what etcd still has of it.
const PAST_PATIENCE: Duration = Duration::from_secs(1);

/// What is known of the past that etcd still has: when it was asked last, and of what revision it had not lost sight.
#[derive(Default)]
struct Past {
    asked: Option<Instant>,
    revision: i64,
}

/// A watch's hold on a shared log. When the last one is dropped the upstream watch is closed.
pub struct LogUse {
    used: Arc<Used>,
    prev_kv: bool,
    /// The part of the log that the watch is on, without the namespace; `None` is all of it.
    pub part: Option<Arc<KeyRange>>,
}

/// What all uses of one log have in common; it is there once, since they are many.
pub struct Used {
    feed: Arc<LiveFeed>,
    /// Of the whole log, with the namespace.
    range: Arc<KeyRange>,
    pub log: Arc<Log>,
}

/// A reader's own way to what the shared log no longer holds.
pub struct CatchUp {
    pub log: Arc<Log>,
    pub seat: Seat,
    /// It ends with its last handle.
    _feed: Feed,
    catching_up: IntGauge,
}

impl LiveFeed {
    pub fn start(parts: Parts, settings: Settings, drain: Observer) -> Arc<Self> {
        let feed = Feed::start(parts.clone(), Duty::Live);
        let failed = feed.failed();
        let live = Self::with(feed, parts, settings);
        tokio::spawn(end_sessions(Arc::downgrade(&live), failed, drain));
        live
    }

    /// The logs that a feed fills which runs already.
    pub fn with(feed: Feed, parts: Parts, settings: Settings) -> Arc<Self> {
        let (directory, sessions, past) = Default::default();
        Arc::new(Self { feed, parts, settings, directory, sessions, past })
    }

    /// What the feeds of its tenant have in common.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn has_failed(&self) -> bool {
        self.feed.has_failed()
    }

    /// Asks etcd to say, once everything that it has now is in the logs, how far that is.
    pub fn ask_progress(&self, inbox: &Arc<Inbox>) {
        self.feed.send(Command::Progress(inbox.clone()));
    }

    /// Asks etcd whether a range may be watched, and where the store stands.
    pub async fn probe(&self, range: &KeyRange) -> Result<Opened, JoinError> {
        let (answer, answered) = oneshot::channel();
        self.feed.send(Command::Probe { range: range.clone(), answer });
        answered.await.map_err(|_| JoinError::Lost)
    }

    /// Whether etcd has lost to a compaction what a watch of the past wants and this log still holds: an event, or what
    /// was before it. A log hears only of compactions that pass this way, so etcd is asked, once for all who want no
    /// more than the one for whom it was asked after they came.
    pub async fn has_lost(&self, log: &Log, wanted: &Wanted) -> bool {
        if log.covered_from() > wanted.start_revision {
            return false;
        }
        let came = Instant::now();
        let mut past = self.past.lock().await;
        let is_known = past.asked.is_some_and(|asked| asked >= came) && past.revision <= wanted.start_revision;
        if is_known {
            return false;
        }
        let asked = Instant::now();
        let answer = self.parts.ask(RangeRequest {
            key: wanted.range.key().clone(),
            revision: (wanted.start_revision - 1).max(1),
            count_only: true,
            serializable: true,
            ..RangeRequest::default()
        });
        // Without an answer the log is believed.
        let answer = tokio::time::timeout(PAST_PATIENCE, answer).await;
        let has_lost = matches!(answer, Ok(Err(status)) if status.message() == status::COMPACTED_REASON);
        if !has_lost {
            *past = Past { asked: Some(asked), revision: wanted.start_revision };
        }
        has_lost
    }

    /// The log that serves a watch, and whether it is just being opened for it. Unless `contained` is true it is one of
    /// the very range.
    ///
    /// A log that others may join always begins now, whatever the caller wants to see before or after. etcd may answer
    /// a request for progress that was sent before a create after that create's answer: only of a watch from now is
    /// such an answer true all the same. And etcd reports no progress at all on a stream that has a watch of the
    /// future, or one that has not reached the present. So the past is asked for only where nobody else is on the
    /// stream yet, and only up to `newest`, a revision that is known to be.
    pub fn log(self: &Arc<Self>, wanted: &Wanted, newest: i64, contained: bool) -> (LogUse, bool) {
        let Wanted { range, start_revision, prev_kv } = wanted;
        let mut directory = self.lock();
        let prev_kv = *prev_kv;
        let using = |range, log| Arc::new(Used { feed: self.clone(), range, log });
        if let Some(used) = directory.join(range, prev_kv, contained, using) {
            let part = (*used.range != *range).then(|| Arc::new(self.parts.caller.namespace().strip_range(range)));
            if part.is_some() {
                self.parts.metrics.watches_contained.inc();
            }
            return (LogUse { used, prev_kv, part }, false);
        }
        let is_past = directory.is_empty() && (1..=newest).contains(start_revision);
        let start_revision = if is_past { *start_revision } else { 0 };
        let opening = Opening { range: range.clone(), prev_kv, log: self.new_log(), start_revision };
        let used = directory.add(&opening, using);
        let prefix = self.parts.caller.namespace().prefix();
        let crowded = directory.crowded(range, prev_kv, prefix, self.settings.coalesce_threshold);
        self.open(opening);
        if let Some(wide) = crowded {
            tracing::debug!(prefix = %String::from_utf8_lossy(wide.key()), "one watch is opened for many");
            self.parts.metrics.watches_gathered.inc();
            let opening = Opening { range: wide, prev_kv, log: self.new_log(), start_revision: 0 };
            directory.make(&opening);
            self.open(opening);
        }
        (LogUse { used, prev_kv, part: None }, true)
    }

    fn new_log(&self) -> Arc<Log> {
        Log::shared(self.settings.max_log_bytes, &self.settings.budget)
    }

    fn open(&self, opening: Opening) {
        self.feed.send(Command::Open(opening));
    }

    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.lock().logs()
    }

    /// Closes what has become needless, as far as that can be done now; `weighs` also looks for what is wasteful.
    pub fn settle(&self, weighs: bool) {
        let mut directory = self.lock();
        if weighs {
            directory.weigh();
        }
        if !directory.is_unsettled {
            return;
        }
        let settled = directory.settle(|range| self.parts.caller.namespace().prefix_range(range), || self.new_log());
        drop(directory);
        settled.open.into_iter().for_each(|opening| self.open(opening));
        settled.close.into_iter().for_each(|log| self.feed.send(Command::Close(log)));
        if settled.wants_progress {
            self.feed.send(Command::Cover);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Directory> {
        self.directory.lock().expect("nothing panics while it holds the logs")
    }
}

/// Ends all sessions of a feed when the drain begins or etcd has refused the feed for good.
async fn end_sessions(live: Weak<LiveFeed>, failed: impl Future<Output = Status>, mut drain: Observer) {
    let why = tokio::select! {
        () = drain.signaled() => status::draining(),
        why = failed => why,
    };
    if let Some(live) = live.upgrade() {
        live.sessions.end(why);
    }
}

impl LogUse {
    /// The log that serves the same watch now, if this one does not any more.
    pub fn look_again(&mut self) {
        if self.log.has_sent_away(self.part.is_some()) {
            self.look_elsewhere();
        }
    }

    /// The same for one who catches up with the log and does not read it: whatever has ended it was said to others only.
    pub fn look_again_from_outside(&mut self) {
        if self.log.has_ended() {
            self.look_elsewhere();
        }
    }

    fn look_elsewhere(&mut self) {
        let wanted = Wanted { range: self.range(), start_revision: 0, prev_kv: self.prev_kv };
        let (live, _) = self.feed.clone().log(&wanted, 0, true);
        self.feed.parts.metrics.watch_moves.inc();
        *self = live;
    }

    /// What the watch is on, with the namespace.
    fn range(&self) -> KeyRange {
        match &self.part {
            None => KeyRange::clone(&self.range),
            Some(part) => self.feed.parts.caller.namespace().prefix_range(part),
        }
    }

    /// Notes that etcd refused the log, which was opened for more than this watch asked for.
    pub fn note_refused(&self) {
        self.feed.lock().note_unfit(&self.range);
    }

    /// Begins to read from etcd what the shared log does not hold, for one reader.
    pub fn catch_up(&self, next_revision: i64, subscriber: Subscriber) -> CatchUp {
        let LiveFeed { parts, settings, .. } = &*self.feed;
        parts.metrics.watch_catch_ups.inc();
        parts.metrics.watches_catching_up.inc();
        let log = Log::catching_up(settings.max_log_bytes, next_revision);
        let seat = log.subscribe(next_revision, Subscriber { part: None, ..subscriber });
        let seat = seat.expect("the log begins at this revision, and nobody has put anything into it yet");
        let duty = Duty::CatchUp { live: self.log.clone(), gate: settings.catch_ups.clone() };
        let feed = Feed::start(parts.clone(), duty);
        let (range, prev_kv) = (self.range(), self.prev_kv);
        feed.send(Command::Open(Opening { range, prev_kv, log: log.clone(), start_revision: next_revision }));
        CatchUp { log, seat, _feed: feed, catching_up: parts.metrics.watches_catching_up.clone() }
    }
}

impl Drop for LogUse {
    fn drop(&mut self) {
        if self.part.is_some() {
            self.feed.parts.metrics.watches_contained.dec();
        }
        if self.feed.lock().release(&self.range, &self.log) {
            self.feed.feed.send(Command::Close(self.log.clone()));
        }
    }
}

impl Deref for LogUse {
    type Target = Used;

    fn deref(&self) -> &Used {
        &self.used
    }
}

impl Drop for CatchUp {
    fn drop(&mut self) {
        self.catching_up.dec();
    }
}
