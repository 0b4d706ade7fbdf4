//! A reader of shared watches that is no client: it looks for events when it wants them and is not woken by any.
//!
//! This is all that a cache knows of watches. It hears of each event on its range once and in order, and up to which
//! revision it has heard of all.

use std::sync::Arc;

use etcd_proxy_proto::etcdserverpb::ResponseHeader;

use super::{
    hub::{Hub, JoinError, LiveFeed, LogUse, Wanted},
    inbox::Inbox,
    log::Read,
};
use crate::rules::{caller::Caller, keys::KeyRange};

/// Nothing more can be read: it was dropped before it was read, or the watch has ended. Begin anew.
#[derive(Debug)]
pub struct Lost;

/// A watch on a range that is open and waits to be told from where it shall be read.
pub struct Opened {
    live: LogUse,
    feed: Arc<LiveFeed>,
    range: KeyRange,
    /// What the log has covered already.
    covered: i64,
}

/// A place in a shared log.
pub struct Reader {
    live: LogUse,
    feed: Arc<LiveFeed>,
    /// With the namespace.
    range: KeyRange,
    position: u64,
    /// The first revision whose events have not been read.
    next_revision: i64,
}

/// Watches a range, with the namespace, by the caller's rights.
pub async fn open(hub: &Arc<Hub>, caller: &Caller, range: KeyRange) -> Result<Opened, Lost> {
    let feed = hub.feed(caller);
    let wanted = Wanted { range: range.clone(), start_revision: 0, prev_kv: false };
    match hub.join(&feed, &wanted).await {
        Ok(joined) => {
            let covered = joined.live.log.resume_revision() - 1;
            Ok(Opened { live: joined.live, feed, range, covered })
        }
        Err(JoinError::Refused(_) | JoinError::Lost) => Err(Lost),
    }
}

impl Opened {
    /// Reads what comes after `revision`, which etcd has told since the watch was opened. Were it older than what the
    /// watch had covered by then, the store would have gone back, and the watch would be of what it was before.
    pub fn after(self, revision: i64) -> Result<Reader, Lost> {
        let Self { live, feed, range, covered } = self;
        if revision < covered {
            return Err(Lost);
        }
        let position = live.log.position(revision + 1).ok_or(Lost)?;
        Ok(Reader { live, feed, range, position, next_revision: revision + 1 })
    }
}

impl Reader {
    /// Shows each event that has come, an encoded `mvccpb.Event` whose key is stripped of the namespace, and tells the
    /// revision up to which that is all.
    pub fn read(&mut self, mut show: impl FnMut(&[u8])) -> Result<i64, Lost> {
        // Asked first: whatever it covers is in the log by now.
        let covered = self.live.log.resume_revision() - 1;
        loop {
            match self.live.log.read(self.position) {
                Read::Batch(batch) => {
                    for event in &batch.events {
                        if event.mod_revision >= self.next_revision {
                            show(batch.event(event));
                        }
                    }
                    self.position += 1;
                    self.next_revision = self.next_revision.max(batch.last_revision() + 1);
                }
                Read::Wait => {
                    self.next_revision = self.next_revision.max(covered + 1);
                    return Ok(self.next_revision - 1);
                }
                Read::Fallen | Read::Ended(_) => return Err(Lost),
            }
        }
    }

    /// The feed that answers for progress; readers on the same one hear of it together.
    pub fn feed(&self) -> &Arc<LiveFeed> {
        &self.feed
    }

    /// With the namespace.
    pub fn range(&self) -> &KeyRange {
        &self.range
    }
}

/// Asks etcd how far it is, and returns when everything up to there can be read.
pub async fn progress(feed: &LiveFeed) -> ResponseHeader {
    let inbox = Arc::new(Inbox::default());
    feed.ask_progress(&inbox);
    let mut ready = Vec::new();
    loop {
        inbox.heard().await;
        if let Some(header) = inbox.take(&mut ready) {
            return header;
        }
    }
}
