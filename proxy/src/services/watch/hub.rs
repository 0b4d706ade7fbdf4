//! Which log serves which watch: one upstream watch for all who ask for the same range with the same rights.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use tokio::sync::{Semaphore, oneshot};

use super::{
    feed::{Command, Duty, Feed, Parts, Upward},
    log::{Budget, Log, Opened, Refused},
};
use crate::{
    drain::Observer,
    metrics::Metrics,
    rules::{
        caller::{Caller, Credentials},
        keys::KeyRange,
        status::{self, Status},
    },
    upstream::Upstream,
};

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of events that one shared watch holds for those who lag.
    pub max_log_bytes: usize,
}

/// Catch-ups that run at a time; each is a stream of its own at etcd, which reads old revisions for it from disk.
const MAX_CATCH_UPS: usize = 64;
/// How long a revision that some client was shown counts as "now" although the member that is asked is behind it. A
/// member that lags longer is sick, and a store that was restored from a backup must not be waited for.
const SEEN_WINDOW: Duration = Duration::from_secs(5);

/// What the logs of all ranges hold together at most, or soon after: 64 of them full at the default bound of one.
const MAX_SHARED_LOG_BYTES: usize = 256 << 20;
/// How often that is looked at. In this time etcd sends some tens of MiB on a fast network.
const BUDGET_INTERVAL: Duration = Duration::from_millis(200);

pub struct Hub {
    upstream: Upstream,
    pub metrics: Arc<Metrics>,
    config: Config,
    drain: Observer,
    seen: Seen,
    /// The live feed of each set of credentials that has sessions.
    feeds: Mutex<HashMap<Credentials, Weak<LiveFeed>>>,
    catch_ups: Arc<Semaphore>,
    budget: Arc<Budget>,
}

/// The newest revisions that clients were shown, in this window of time and the one before.
#[derive(Default)]
struct Seen {
    current: AtomicI64,
    before: AtomicI64,
}

/// A feed and the logs that it fills, for all sessions with the same credentials.
pub struct LiveFeed {
    feed: Feed,
    parts: Parts,
    logs: Mutex<HashMap<LogKey, Shared>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LogKey {
    range: KeyRange,
    prev_kv: bool,
}

struct Shared {
    log: Arc<Log>,
    uses: usize,
}

/// A watch's hold on a shared log. When the last one is dropped the upstream watch is closed.
pub struct LogUse {
    feed: Arc<LiveFeed>,
    key: LogKey,
    pub log: Arc<Log>,
}

/// A client's watch as etcd would be asked for it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// With the namespace.
    pub range: KeyRange,
    /// Zero is from now.
    pub start_revision: i64,
    pub prev_kv: bool,
}

/// A watch that etcd allows.
pub struct Joined {
    /// Of the created response.
    pub header: ResponseHeader,
    pub next_revision: i64,
    pub live: LogUse,
}

/// Why there is no watch.
pub enum JoinError {
    Refused(Refused),
    /// The feed has ended; its own failure says why.
    Lost,
}

/// A reader's own way to what the shared log no longer holds.
pub struct CatchUp {
    pub log: Arc<Log>,
    _feed: Feed,
}

impl Hub {
    pub fn new(upstream: Upstream, metrics: Arc<Metrics>, config: Config, drain: Observer) -> Arc<Self> {
        let hub = Arc::new(Self {
            upstream,
            metrics,
            config,
            drain,
            seen: Seen::default(),
            feeds: Mutex::default(),
            catch_ups: Arc::new(Semaphore::new(MAX_CATCH_UPS)),
            budget: Budget::new(MAX_SHARED_LOG_BYTES),
        });
        tokio::spawn(forget_what_was_seen(Arc::downgrade(&hub)));
        tokio::spawn(keep_within_budget(Arc::downgrade(&hub)));
        hub
    }

    pub fn drain(&self) -> Observer {
        self.drain.clone()
    }

    /// Notes a revision that some client has been shown.
    pub fn saw(&self, revision: i64) {
        self.seen.current.fetch_max(revision, Ordering::Relaxed);
    }

    /// The newest revision that any client was shown lately.
    pub fn seen(&self) -> i64 {
        self.seen.current.load(Ordering::Relaxed).max(self.seen.before.load(Ordering::Relaxed))
    }

    /// Notes that everything before `revision` is compacted: no watch may begin there any more.
    pub fn compacted(&self, revision: i64) {
        let feeds: Vec<_> = self.lock_feeds().values().filter_map(Weak::upgrade).collect();
        for feed in feeds {
            for shared in feed.lock().values() {
                shared.log.compacted(revision);
            }
        }
    }

    /// The feed for a caller's credentials.
    pub fn feed(&self, caller: &Caller) -> Arc<LiveFeed> {
        let credentials = caller.credentials();
        let mut feeds = self.lock_feeds();
        if let Some(feed) = feeds.get(&credentials).and_then(Weak::upgrade).filter(|feed| !feed.feed.has_failed()) {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let parts = Parts {
            upstream: self.upstream.clone(),
            caller: Caller { connection: caller.connection.clone(), metadata: credentials.metadata() },
            metrics: self.metrics.clone(),
        };
        let feed = Arc::new(LiveFeed { feed: Feed::start(parts.clone(), Duty::Live), parts, logs: Mutex::default() });
        feeds.insert(credentials, Arc::downgrade(&feed));
        feed
    }

    /// Finds or opens the shared log for a watch, and asks etcd, at most once for all who ask at the same time,
    /// whether the caller may watch there and where the store stands.
    pub async fn join(&self, feed: &Arc<LiveFeed>, wanted: &Wanted) -> Result<Joined, JoinError> {
        let seen = self.seen();
        if wanted.range.is_empty() || wanted.start_revision < 0 {
            return Err(self.refuse(feed, wanted).await);
        }
        let (live, is_new) = feed.log(wanted, || Log::within(self.config.max_log_bytes, 0, &self.budget));
        let mut opened = live.log.opened().await.ok_or(JoinError::Lost)?;
        if !is_new && opened.is_ok() {
            self.metrics.watch_joins.inc();
            opened = feed.probe(&wanted.range).await?;
        }
        let mut header = opened.map_err(JoinError::Refused)?;
        // Another member may have shown this client, or one it speaks with, more than this one has heard of.
        header.revision = header.revision.max(seen);
        let next_revision = if wanted.start_revision == 0 { header.revision + 1 } else { wanted.start_revision };
        Ok(Joined { header, next_revision, live })
    }

    /// etcd's refusal of a watch that it never grants, so that its header and the order of its checks are etcd's own.
    async fn refuse(&self, feed: &Arc<LiveFeed>, wanted: &Wanted) -> JoinError {
        let answer = match feed.probe(&wanted.range).await {
            Ok(answer) => answer,
            Err(lost) => return lost,
        };
        JoinError::Refused(match answer {
            _ if wanted.start_revision < 0 => {
                let header = answer.unwrap_or_else(|refused| refused.header);
                Refused { header, reason: status::COMPACTED_REASON.to_owned() }
            }
            Err(refused) => refused,
            Ok(header) => Refused { header, reason: status::EMPTY_WATCHER_RANGE_REASON.to_owned() },
        })
    }

    /// Begins to read from etcd what the shared log has dropped, for one reader.
    pub fn catch_up(&self, live: &LogUse, next_revision: i64) -> CatchUp {
        self.metrics.watch_catch_ups.inc();
        let log = Log::new(self.config.max_log_bytes, next_revision);
        let duty = Duty::CatchUp { live: live.log.clone(), gate: self.catch_ups.clone() };
        let feed = Feed::start(live.feed.parts.clone(), duty);
        let LogKey { range, prev_kv } = live.key.clone();
        feed.send(Command::Open(Upward { log: log.clone(), range, prev_kv, start_revision: next_revision }));
        CatchUp { log, _feed: feed }
    }

    fn lock_feeds(&self) -> std::sync::MutexGuard<'_, HashMap<Credentials, Weak<LiveFeed>>> {
        self.feeds.lock().expect("nothing panics while it holds the feeds")
    }
}

/// Each log lets go of what it can by itself; the last batch of each, over very many logs, is left to this.
async fn keep_within_budget(hub: Weak<Hub>) {
    loop {
        tokio::time::sleep(BUDGET_INTERVAL).await;
        let Some(hub) = hub.upgrade() else { return };
        if !hub.budget.is_over() {
            continue;
        }
        let feeds: Vec<_> = hub.lock_feeds().values().filter_map(Weak::upgrade).collect();
        let logs: Vec<_> = feeds
            .iter()
            .flat_map(|feed| feed.lock().values().map(|shared| shared.log.clone()).collect::<Vec<_>>())
            .collect();
        tracing::warn!(
            logs = logs.len(),
            "watched events are over their bound in memory, slow clients read them from etcd again"
        );
        logs.iter().for_each(|log| log.forget());
    }
}

async fn forget_what_was_seen(hub: Weak<Hub>) {
    loop {
        tokio::time::sleep(SEEN_WINDOW).await;
        let Some(hub) = hub.upgrade() else { return };
        let current = hub.seen.current.swap(0, Ordering::Relaxed);
        hub.seen.before.store(current, Ordering::Relaxed);
    }
}

impl LiveFeed {
    /// Asks etcd to say, once everything that it has now is in the logs, how far that is.
    pub fn ask_progress(&self, inbox: &Arc<super::inbox::Inbox>) {
        self.feed.send(Command::Progress(inbox.clone()));
    }

    /// Returns when etcd has refused the stream for good.
    pub async fn failed(&self) -> Status {
        self.feed.clone().failed().await
    }

    async fn probe(&self, range: &KeyRange) -> Result<Opened, JoinError> {
        let (answer, answered) = oneshot::channel();
        self.feed.send(Command::Probe { range: range.clone(), answer });
        answered.await.map_err(|_| JoinError::Lost)
    }

    /// The shared log of a range, and whether it is just being opened for this caller.
    ///
    /// It always begins now, whatever the caller wants to see before or after. etcd may answer a request for progress
    /// that was sent before a create after that create's answer: only of a watch from now is such an answer true all
    /// the same. And etcd reports no progress at all on a stream that has a watch of the future.
    fn log(self: &Arc<Self>, wanted: &Wanted, make: impl FnOnce() -> Arc<Log>) -> (LogUse, bool) {
        let key = LogKey { range: wanted.range.clone(), prev_kv: wanted.prev_kv };
        let mut logs = self.lock();
        if let Some(shared) = logs.get_mut(&key).filter(|shared| !shared.log.has_ended()) {
            shared.uses += 1;
            return (LogUse { feed: self.clone(), log: shared.log.clone(), key }, false);
        }
        let log = make();
        logs.insert(key.clone(), Shared { log: log.clone(), uses: 1 });
        let LogKey { range, prev_kv } = key.clone();
        self.feed.send(Command::Open(Upward { log: log.clone(), range, prev_kv, start_revision: 0 }));
        (LogUse { feed: self.clone(), log, key }, true)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<LogKey, Shared>> {
        self.logs.lock().expect("nothing panics while it holds the logs")
    }
}

impl Drop for LogUse {
    fn drop(&mut self) {
        let mut logs = self.feed.lock();
        let Some(shared) = logs.get_mut(&self.key).filter(|shared| Arc::ptr_eq(&shared.log, &self.log)) else { return };
        shared.uses -= 1;
        if shared.uses == 0 {
            logs.remove(&self.key);
            drop(logs);
            self.feed.feed.send(Command::Close(self.log.clone()));
        }
    }
}
