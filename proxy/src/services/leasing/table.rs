//! What this proxy owns: its keys with their values, the session on whose lease they hang, and what must be given up.
//!
//! The following invariants apply:
//!
//! 1. A value is shown only while the session's lease is known to be alive, so that no other writer can have got past
//!    the guard, and while no write of ours is under way to its key.
//! 2. Whatever leaves a doubt about a value (a write without an answer, a lease on the key, a wish of another writer)
//!    ends its ownership: it is not shown from that moment on, and its leasing key is deleted before the key may be
//!    acquired again.
//! 3. An ownership is known by the revision at which its leasing key was created. Nothing that is late can be taken for
//!    news of a later one.

mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use etcd_proxy_proto::{etcdserverpb::ResponseHeader, mvccpb::KeyValue};
use tokio::sync::Notify;

use super::clock;
use crate::{
    metrics::Metrics,
    rules::{
        keys::KeyRange,
        leasing::{Acquired, Ownership, answer::Kept},
    },
};

use state::{Entry, Owned, State};

/// Keys that one proxy owns, or is about to own or to give up. etcd deletes them all in one go when the session ends;
/// this many take it some tenths of a second.
pub const MAX_KEYS: usize = 32_768;
/// For how long a key is left alone that another writer wanted, or that could not be had, as in `leasing.NewKV`: the
/// writer needs the time to write.
const BACKOFF: Duration = Duration::from_secs(2);

pub struct Table {
    /// Held for a look or a change, never across an await.
    state: Mutex<State>,
    /// Rung when there is something to give up.
    work: Notify,
    max_bytes: usize,
    metrics: Arc<Metrics>,
}

/// What the table has for a reader of one key.
pub enum Look {
    Hit(Option<KeyValue>, ResponseHeader),
    /// Nobody here owns the key, and the holder of the ticket may try to.
    Free(Ticket),
    /// Ask etcd.
    Elsewhere,
}

/// The right to acquire one key. Dropped without a result it leaves the key alone for a while.
pub struct Ticket {
    table: Arc<Table>,
    key: Bytes,
    /// The lease to hang the leasing key on.
    pub lease: i64,
    number: u64,
    settled: bool,
}

/// A write of ours that is under way: none of the keys that it may change is shown. Dropped without a result it ends
/// the ownership of all of them.
pub struct Writing {
    table: Arc<Table>,
    marks: Vec<Mark>,
}

/// An ownership that a write relies on.
struct Mark {
    key: Bytes,
    created: i64,
    /// Whether a value is kept, and waits for the write.
    kept: bool,
}

/// What a key is after a write.
pub enum After {
    Is(Option<KeyValue>),
    Unknown,
}

impl Table {
    pub fn new(max_bytes: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), work: Notify::new(), max_bytes, metrics })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === reading ===

    /// `seen` is the newest revision that any client was shown, from before this look.
    pub fn look(self: &Arc<Self>, key: &Bytes, seen: i64, may_acquire: bool) -> Look {
        let mut state = self.lock();
        if let Some(owned) = state.idle(key) {
            let (pair, revision) = (owned.pair.clone(), owned.revision);
            // The clock is looked at last: what was read before is right for this moment.
            return match state.is_alive(clock::now()) {
                true => Look::Hit(pair, state.header_at(revision.max(seen))),
                false => Look::Elsewhere,
            };
        }
        let now = clock::now();
        if !may_acquire || !state.is_alive(now) || state.is_full(self.max_bytes) || !state.is_free(key, now) {
            return Look::Elsewhere;
        }
        let Some(lease) = state.lease() else { return Look::Elsewhere };
        let number = state.acquire(key);
        self.measure(&state);
        Look::Free(Ticket { table: self.clone(), key: key.clone(), lease, number, settled: false })
    }

    /// Those of the keys that are kept, all as of the same moment.
    pub fn peek(&self, keys: &[Bytes], seen: i64) -> Option<(Kept, ResponseHeader)> {
        let mut state = self.lock();
        let mut kept = Kept::new();
        let mut newest = seen;
        for key in keys {
            if let Some(owned) = state.idle(key) {
                newest = newest.max(owned.revision);
                kept.insert(key.clone(), owned.pair.clone());
            }
        }
        (!kept.is_empty() && state.is_alive(clock::now())).then(|| (kept, state.header_at(newest)))
    }

    /// Notes the header of an answer of etcd's, which hits are shown under.
    pub fn saw(&self, header: &ResponseHeader) {
        self.lock().saw(header);
    }

    /// The newest revision in a header of etcd's: what is owned was so at it or before it.
    pub fn newest_revision(&self) -> i64 {
        self.lock().header_at(0).revision
    }

    // === writing ===

    /// From now on nothing is shown that the write may change.
    pub fn begin_write(self: &Arc<Self>, keys: &[Bytes], ranges: &[KeyRange]) -> Writing {
        let mut state = self.lock();
        let mut touched: Vec<Bytes> = keys.to_vec();
        if !ranges.is_empty() {
            let inside = |key: &&Bytes| ranges.iter().any(|range| range.contains(key)) && !keys.contains(key);
            touched.extend(state.keys().filter(inside).cloned());
        }
        let marks = touched.into_iter().filter_map(|key| {
            let (created, kept) = state.mark(&key)?;
            Some(Mark { key, created, kept })
        });
        Writing { marks: marks.collect(), table: self.clone() }
    }

    /// Someone waits for the leasing key of this one to go.
    pub fn waiter(&self, key: &Bytes) -> Arc<Notify> {
        self.lock().waiter(key)
    }

    /// Since when the key's leasing key is ours, if it is.
    pub fn owned_since(&self, key: &Bytes) -> Option<i64> {
        self.lock().owned_since(key)
    }

    // === the session ===

    pub fn open(&self, lease: i64, alive_until: Duration, header: &ResponseHeader) {
        self.lock().open(lease, alive_until, *header);
        self.metrics.leasing_sessions.set(1);
    }

    pub fn extend(&self, alive_until: Duration) {
        self.lock().extend(alive_until);
    }

    /// The lease is gone or given up, and with it all that hung on it.
    pub fn close(&self) {
        let mut state = self.lock();
        state.close();
        self.metrics.leasing_sessions.set(0);
        self.measure(&state);
    }

    /// Forgets what is over, and gives up what nobody has read since the last time when room is short.
    pub fn tidy(&self) {
        let mut state = self.lock();
        state.tidy(clock::now(), self.max_bytes);
        self.changed(state);
    }

    // === what the watch on the prefix tells ===

    /// Another writer wants a key whose leasing key was created at `created` under `lease`.
    pub fn revoked(&self, key: &Bytes, created: i64, lease: i64) {
        let mut state = self.lock();
        if state.revoked(key, created, lease, until()) {
            self.metrics.leasing_revocations.inc();
        }
        self.changed(state);
    }

    /// A leasing key was deleted.
    pub fn deleted(&self, key: &Bytes, revision: i64) {
        let mut state = self.lock();
        state.deleted(key, revision, until());
        state.wake(key);
        self.measure(&state);
    }

    // === giving up ===

    /// Returns when there may be something to give up.
    pub async fn work(&self) {
        self.work.notified().await;
    }

    /// What is to be given up next.
    pub fn take_releases(&self, most: usize) -> Vec<(Bytes, i64)> {
        self.lock().take_releases(most)
    }

    /// Their leasing keys are gone.
    pub fn released(&self, released: &[(Bytes, i64)]) {
        let mut state = self.lock();
        for (key, created) in released {
            state.released(key, *created, until());
            state.wake(key);
        }
        self.measure(&state);
    }

    /// Whether they are is not known.
    pub fn not_released(&self, releases: Vec<(Bytes, i64)>) {
        self.lock().release_again(releases);
        self.work.notify_one();
    }

    /// Ends a change after which there may be something to give up.
    fn changed(&self, state: MutexGuard<'_, State>) {
        self.measure(&state);
        drop(state);
        self.work.notify_one();
    }

    fn measure(&self, state: &State) {
        self.metrics.leasing_keys.set(i64::try_from(state.owned()).unwrap_or(i64::MAX));
        self.metrics.leasing_bytes.set(i64::try_from(state.bytes()).unwrap_or(i64::MAX));
    }
}

// === impl Ticket ===

impl Ticket {
    /// Takes over what etcd said.
    pub fn settle(mut self, acquired: &Acquired) {
        self.settled = true;
        let mut state = self.table.lock();
        state.saw(&acquired.header);
        if let Some(meanwhile) = state.settled(&self.key, self.number) {
            match acquired.ownership {
                Ownership::Ours { created } if meanwhile.deleted > created => state.leave_alone(&self.key, until()),
                Ownership::Ours { created } if !meanwhile.spoiled && meanwhile.revoked.is_none() => {
                    let owned = Owned::new(created, acquired.header.revision, acquired.pair.as_ref());
                    if owned.fits(&self.key, self.table.max_bytes) {
                        state.insert(self.key.clone(), Entry::Owned(owned));
                        self.table.metrics.leasing_acquisitions.inc();
                    } else {
                        state.release(&self.key, created);
                    }
                }
                Ownership::Ours { created } | Ownership::Unwanted { created } => state.release(&self.key, created),
                Ownership::Refused => state.leave_alone(&self.key, until()),
            }
        }
        self.table.changed(state);
    }
}

impl Drop for Ticket {
    /// Without an answer the leasing key may have been created, or may be yet. It then is there without a value here, and
    /// is taken over by the next acquisition or given up when someone asks.
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.table.lock();
        if let Some(meanwhile) = state.settled(&self.key, self.number) {
            match meanwhile.revoked {
                Some(created) => state.release(&self.key, created),
                None => state.leave_alone(&self.key, until()),
            }
        }
        self.table.changed(state);
    }
}

/// When a key that is left alone may be acquired again.
fn until() -> Duration {
    clock::now() + BACKOFF
}

// === impl Writing ===

impl Writing {
    /// Since when the key's leasing key is ours; 0 if it is not.
    pub fn created(&self, key: &Bytes) -> i64 {
        self.marks.iter().find(|mark| mark.key == *key).map_or(0, |mark| mark.created)
    }

    /// Since when the youngest leasing key of ours in a range is; 0 if there is none.
    pub fn youngest(&self, range: &KeyRange) -> i64 {
        self.marks.iter().filter(|mark| range.contains(&mark.key)).map(|mark| mark.created).max().unwrap_or(0)
    }

    /// The keys whose values are kept.
    pub fn kept(&self) -> impl Iterator<Item = &Bytes> {
        self.marks.iter().filter(|mark| mark.kept).map(|mark| &mark.key)
    }

    /// The write was done at this revision.
    pub fn done(mut self, revision: i64, mut after: impl FnMut(&Bytes) -> After) {
        let mut state = self.table.lock();
        for mark in std::mem::take(&mut self.marks) {
            if mark.kept {
                match after(&mark.key) {
                    After::Is(pair) => {
                        state.written(&mark.key, mark.created, revision, pair.as_ref(), self.table.max_bytes)
                    }
                    After::Unknown => state.give_up(&mark.key, mark.created),
                }
            }
        }
        self.table.changed(state);
    }

    /// A guard did not hold, so that nothing was written.
    pub fn held_up(mut self) {
        let mut state = self.table.lock();
        for mark in std::mem::take(&mut self.marks) {
            if mark.kept {
                state.unmark(&mark.key, mark.created);
            }
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.marks.is_empty() {
            return;
        }
        let mut state = self.table.lock();
        for mark in std::mem::take(&mut self.marks) {
            if mark.kept {
                state.give_up(&mark.key, mark.created);
            }
        }
        self.table.changed(state);
    }
}

#[cfg(test)]
mod tests;
