//! Which log serves which watch: one upstream watch for all who ask for the same range with the same rights.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use etcd_proxy_proto::etcdserverpb::ResponseHeader;

use super::{
    feed::Parts,
    live::{LiveFeed, LogUse, Settings},
    log::{Budget, Refused},
    seen::Seen,
};
use crate::{
    admission::shares::{Places, Shares},
    drain::Observer,
    metrics::Metrics,
    rules::{
        caller::{Caller, Credentials},
        keys::KeyRange,
        status,
    },
    upstream::Upstream,
};

#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Bytes of events that one shared watch holds for those who lag.
    pub max_log_bytes: usize,
    /// How many watches on different ranges below one prefix share a watch of the prefix if there are more; 0 is never.
    pub coalesce_threshold: usize,
    /// How soon a watch ends after the right to it; zero is never.
    pub rights_interval: Duration,
    /// Whether etcd knows this proxy by a certificate, and so may judge callers that show nothing of their own.
    pub has_certificate: bool,
}

/// Catch-ups that run at a time; each is a stream of its own at etcd, which reads old revisions for it from disk.
const MAX_CATCH_UPS: usize = 64;
/// How long a revision that some client was shown counts as "now" although the member that is asked is behind it. A
/// member that lags longer is sick, and a store that was restored from a backup must not be waited for.
const SEEN_WINDOW: Duration = Duration::from_secs(5);

/// What the logs of all ranges hold together at most, or soon after: 64 of them full at the default bound of one.
const MAX_SHARED_LOG_BYTES: usize = 256 << 20;
/// How often that is looked at, and which logs have become needless. In this time etcd sends some tens of MiB on a
/// fast network.
const KEEPING_INTERVAL: Duration = Duration::from_millis(200);
/// At each so many of these it is judged whether logs bring what is wanted.
const ROUNDS_PER_WEIGHING: u32 = 5;
/// How often a watch looks for a shared log that others opened; after that it opens its own.
const MAX_JOINS: usize = 3;
/// The revision of a store that nothing was ever written to, so that no revision up to it lies in the future.
const FIRST_REVISION: i64 = 1;

pub struct Hub {
    upstream: Upstream,
    pub metrics: Arc<Metrics>,
    settings: Settings,
    config: Config,
    drain: Observer,
    seen: Arc<Seen>,
    /// The live feed of each set of credentials that has sessions.
    feeds: Mutex<HashMap<Credentials, Weak<LiveFeed>>>,
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

impl Hub {
    pub fn new(
        upstream: Upstream,
        metrics: Arc<Metrics>,
        config: Config,
        shares: &Arc<Shares>,
        drain: Observer,
    ) -> Arc<Self> {
        metrics.watch_log_max_bytes.set(MAX_SHARED_LOG_BYTES as i64);
        let settings = Settings {
            max_log_bytes: config.max_log_bytes,
            coalesce_threshold: config.coalesce_threshold,
            budget: Budget::new(MAX_SHARED_LOG_BYTES, metrics.watch_log_bytes.clone(), shares.clone()),
            catch_ups: Places::new(MAX_CATCH_UPS, shares),
        };
        let (seen, feeds) = (Arc::<Seen>::default(), Mutex::default());
        let hub = Arc::new(Self { upstream, metrics, settings, config, drain, seen, feeds });
        tokio::spawn(forget_what_was_seen(Arc::downgrade(&hub)));
        tokio::spawn(keep(Arc::downgrade(&hub)));
        hub
    }

    pub fn drain(&self) -> Observer {
        self.drain.clone()
    }

    /// Notes a revision that some client has been shown.
    pub fn saw(&self, revision: i64) {
        self.seen.note(revision);
    }

    /// The newest revision that any client was shown lately.
    pub fn seen(&self) -> i64 {
        self.seen.newest()
    }

    /// Notes that everything before `revision` is compacted: no shared watch knows any more what etcd would say of it.
    pub fn compacted(&self, revision: i64) {
        let feeds: Vec<_> = self.lock_feeds().values().filter_map(Weak::upgrade).collect();
        for feed in feeds {
            feed.logs().iter().for_each(|log| log.compacted(revision));
        }
    }

    /// The feed for a caller's credentials.
    pub fn feed(&self, caller: &Caller) -> Arc<LiveFeed> {
        let credentials = caller.credentials();
        let mut feeds = self.lock_feeds();
        if let Some(feed) = feeds.get(&credentials).and_then(Weak::upgrade).filter(|feed| !feed.has_failed()) {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        // A token of the client's own is left to the client: etcd renews one that it keeps each time it is shown, so it
        // would never run out, and takes a JSON Web Token no more after any change of rights, whosever they are.
        let is_judged = !credentials.has_token() && (self.config.has_certificate || caller.user().is_some());
        let parts = Parts {
            upstream: self.upstream.clone(),
            caller: Caller { connection: caller.connection.clone(), metadata: credentials.metadata() },
            metrics: self.metrics.clone(),
            rights_interval: Some(self.config.rights_interval).filter(|interval| is_judged && !interval.is_zero()),
            seen: self.seen.clone(),
        };
        let of_tenant = feeds.iter().filter(|(other, _)| other.tenant == credentials.tenant);
        let of_tenant = of_tenant.filter_map(|(_, feed)| feed.upgrade()).map(|feed| feed.settings().clone()).next();
        let settings = of_tenant.unwrap_or_else(|| self.settings.for_another());
        let feed = LiveFeed::start(parts, settings, self.drain());
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
        let mut attempts = 0;
        let (live, mut header) = loop {
            attempts += 1;
            let (live, is_new) = feed.log(wanted, seen.max(FIRST_REVISION), attempts <= MAX_JOINS);
            match live.log.opened().await {
                Some(Ok(header)) if is_new => break (live, header),
                Some(Ok(_)) => {
                    self.metrics.watch_joins.inc();
                    let header = feed.probe(&wanted.range).await?.map_err(JoinError::Refused)?;
                    // Boxed, since few ask for the past, and very many may come at once and wait here.
                    let is_past = (1..=header.revision).contains(&wanted.start_revision);
                    if is_past && Box::pin(feed.has_lost(&live.log, wanted)).await {
                        self.compacted(wanted.start_revision);
                    }
                    break (live, header);
                }
                // What etcd says of a wider watch is not said to this one.
                Some(Err(_)) if live.part.is_some() => live.note_refused(),
                Some(Err(refused)) => return Err(JoinError::Refused(refused)),
                None if feed.has_failed() || attempts > MAX_JOINS => return Err(JoinError::Lost),
                None => (),
            }
        };
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

    fn lock_feeds(&self) -> std::sync::MutexGuard<'_, HashMap<Credentials, Weak<LiveFeed>>> {
        self.feeds.lock().expect("nothing panics while it holds the feeds")
    }
}

/// Looks after all logs now and then. Each lets go of what it can by itself; the last batch of each, over very many
/// logs, is left to this, and so is what has become needless.
async fn keep(hub: Weak<Hub>) {
    for round in 0_u32.. {
        tokio::time::sleep(KEEPING_INTERVAL).await;
        let Some(hub) = hub.upgrade() else { return };
        let feeds: Vec<_> = hub.lock_feeds().values().filter_map(Weak::upgrade).collect();
        feeds.iter().for_each(|feed| feed.settle(round % ROUNDS_PER_WEIGHING == 0));
        let too_much = feeds.iter().filter(|feed| feed.settings().budget.is_over());
        let logs: Vec<_> = too_much.flat_map(|feed| feed.logs()).collect();
        if !logs.is_empty() {
            tracing::warn!(
                logs = logs.len(),
                "watched events are over their bound in memory, slow clients read them from etcd again"
            );
            logs.iter().for_each(|log| log.forget());
        }
    }
}

async fn forget_what_was_seen(hub: Weak<Hub>) {
    loop {
        tokio::time::sleep(SEEN_WINDOW).await;
        let Some(hub) = hub.upgrade() else { return };
        hub.seen.turn();
    }
}
