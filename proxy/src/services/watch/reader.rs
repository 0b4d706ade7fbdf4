//! A reader of shared watches that is no client: it looks for events when it wants them and is not woken by any.
//!
//! This is all that a cache knows of watches. It hears of each event on its range once and in order, and up to which
//! revision it has heard of all.

use std::sync::Arc;

use etcd_proxy_proto::etcdserverpb::ResponseHeader;

use super::{
    hub::{Hub, JoinError, Wanted},
    inbox::Inbox,
    live::{LiveFeed, LogUse},
    log::{End, Read, Seat, Subscriber},
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
    /// In that log; none while it is between two, so that it never gives up another reader's seat in the next one.
    seat: Option<Seat>,
    /// The first revision whose events have not been read.
    next_revision: i64,
}

/// Watches a range, with the namespace, by the caller's rights.
pub async fn open(hub: &Arc<Hub>, caller: &Caller, range: KeyRange) -> Result<Opened, Lost> {
    let feed = hub.feed(caller);
    let wanted = Wanted { range: range.clone(), start_revision: 0, prev_kv: false };
    match hub.join(&feed, &wanted).await {
        Ok(joined) => Ok(Opened::new(joined.live, feed, range)),
        Err(JoinError::Refused(_) | JoinError::Lost) => Err(Lost),
    }
}

impl Opened {
    pub(super) fn new(live: LogUse, feed: Arc<LiveFeed>, range: KeyRange) -> Self {
        let covered = live.log.resume_revision() - 1;
        Self { live, feed, range, covered }
    }

    /// Reads what comes after `revision`, which etcd has told since the watch was opened. Were it older than what the
    /// watch had covered by then, the store would have gone back, and the watch would be of what it was before.
    pub fn after(self, revision: i64) -> Result<Reader, Lost> {
        let Self { live, feed, range, covered } = self;
        if revision < covered {
            return Err(Lost);
        }
        let seat = Some(subscribe(&live, revision + 1)?);
        Ok(Reader { live, feed, range, seat, next_revision: revision + 1 })
    }
}

/// Takes a seat whose calls nobody hears.
fn subscribe(live: &LogUse, revision: i64) -> Result<Seat, Lost> {
    let subscriber = Subscriber { inbox: Arc::default(), watch: 0, part: live.part.clone(), progress: false };
    live.log.subscribe(revision, subscriber).ok_or(Lost)
}

impl Reader {
    /// Shows each event that has come, an encoded `mvccpb.Event` whose key is stripped of the namespace, and tells the
    /// revision up to which that is all.
    pub fn read(&mut self, mut show: impl FnMut(&[u8])) -> Result<i64, Lost> {
        // Asked first: whatever it covers is in the log by now.
        let covered = self.live.log.resume_revision() - 1;
        loop {
            let Some(seat) = self.seat else { return Err(Lost) };
            match self.live.log.read(seat) {
                Read::Batch(batch) => {
                    for event in &batch.events {
                        let is_ours = self.live.part.as_ref().is_none_or(|part| part.contains(batch.key(event)));
                        if is_ours && event.mod_revision >= self.next_revision {
                            show(batch.event(event));
                        }
                    }
                    self.next_revision = self.next_revision.max(batch.last_revision() + 1);
                }
                Read::Wait => {
                    self.next_revision = self.next_revision.max(covered + 1);
                    return Ok(self.next_revision - 1);
                }
                // Another log serves this range now.
                Read::Ended(End::Continue { next_revision }) => {
                    self.leave();
                    self.live.look_again();
                    self.next_revision = self.next_revision.max(next_revision);
                    self.seat = Some(subscribe(&self.live, self.next_revision)?);
                }
                Read::Fallen { .. } | Read::Ended(_) => return Err(Lost),
            }
        }
    }

    fn leave(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.live.log.unsubscribe(seat);
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

impl Drop for Reader {
    fn drop(&mut self) {
        self.leave();
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
