//! The logs of one feed by their ranges: which of them serves a watch, and which of them others make needless.
//!
//! A log serves every range that its own covers. So a log that is covered by another one's range is needless as soon as
//! the other holds what comes next for it: its readers are sent there, and its upstream watch is closed. Where many
//! watches stand below one prefix, a log of the whole prefix is opened for them; where most of what it brings is wanted
//! by nobody, its readers go back to logs of their own ranges.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{live::Used, log::Log, ranges::Ranges};
use crate::rules::keys::{KeyRange, prefix_end};

/// How long a watch from the past may stand among the live ones until etcd has reached the present on it: etcd reports
/// no progress to anyone on the stream meanwhile.
const PAST_PATIENCE: Duration = Duration::from_secs(1);
/// How long a log that was opened for others waits for the first of them. They come as soon as their clients read.
const UNUSED_PATIENCE: Duration = Duration::from_secs(5);
/// After so many events it is judged whether a log brings what its readers want.
const SAMPLE_EVENTS: usize = 1000;
/// How long a prefix is left alone whose log was refused by etcd or brought too much: rights and habits change seldom.
const UNFIT_FOR: Duration = Duration::from_secs(600);
/// Prefixes that are remembered so; with more of them none is tried any more until some are forgotten.
const MAX_UNFIT: usize = 1024;
/// Of a key with more slashes than this, only the longest prefixes are looked at.
const MAX_DEPTH: usize = 16;

#[derive(Default)]
pub struct Directory {
    /// Those of one range in the order in which they were opened.
    logs: Ranges<Vec<Entry>>,
    count: usize,
    /// How many logs that clients asked for stand below each prefix that ends with a slash.
    below: HashMap<Bytes, usize>,
    unfit: HashMap<Bytes, Instant>,
    /// Those whose readers were sent elsewhere and have not all gone.
    gone: Vec<Weak<Log>>,
    /// Whether some log may be needless, or is not what it shall become.
    pub is_unsettled: bool,
}

/// A log as it is to be opened at etcd.
#[derive(Clone)]
pub struct Opening {
    pub range: KeyRange,
    pub prev_kv: bool,
    pub log: Arc<Log>,
    /// Zero is now.
    pub start_revision: i64,
}

#[derive(Clone)]
struct Entry {
    range: Arc<KeyRange>,
    prev_kv: bool,
    log: Arc<Log>,
    uses: usize,
    /// What those who use the log share; they hold its feed, which holds this.
    used: Weak<Used>,
    /// When it was opened, or a user left last.
    since: Instant,
    role: Role,
    /// Whether a client asked for it, whatever became of it.
    was_asked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A client asked for it.
    Asked,
    /// Opened for readers of other logs.
    Made,
    /// It begins in the past and serves only the one who asked, until etcd has reached the present on it.
    Alone,
    /// Its readers shall go to logs of their own.
    Leaving,
}

/// What is to be done at etcd after a look at all logs.
#[derive(Default)]
pub struct Settled {
    pub open: Vec<Opening>,
    pub close: Vec<Arc<Log>>,
    /// Something waits for etcd to say how far it is.
    pub wants_progress: bool,
}

impl Directory {
    /// The log for a range, counted as used: a covering one, the widest first. One that is open goes before one that is
    /// still being opened; of these only those are joined that were made for others or are the very range.
    pub fn join(
        &mut self,
        range: &KeyRange,
        prev_kv: bool,
        contained: bool,
        using: impl FnOnce(Arc<KeyRange>, Arc<Log>) -> Arc<Used>,
    ) -> Option<Arc<Used>> {
        let serves = |entry: &&Entry| contained || *entry.range == *range;
        let open = self.find(range, prev_kv, |entry| serves(&entry) && entry.log.is_opened());
        let opening = |entry: &Entry| serves(&entry) && (entry.role == Role::Made || *entry.range == *range);
        let found = open.or_else(|| self.find(range, prev_kv, opening))?;
        let entry = self.entry(&found.range, &found.log)?;
        entry.uses += 1;
        Some(entry.use_with(using))
    }

    /// Takes in a new log for one who asked. A past start is kept only while nobody else is here to be disturbed.
    pub fn add(&mut self, opening: &Opening, using: impl FnOnce(Arc<KeyRange>, Arc<Log>) -> Arc<Used>) -> Arc<Used> {
        let role = if opening.start_revision > 0 { Role::Alone } else { Role::Asked };
        let used = self.insert(opening, role, 1).use_with(using);
        for prefix in prefixes(&opening.range) {
            *self.below.entry(prefix).or_default() += 1;
        }
        used
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The range of a log to be made, if more than `threshold` logs stand below one prefix with this one: the longest
    /// such prefix within the namespace.
    pub fn crowded(&mut self, range: &KeyRange, prev_kv: bool, namespace: &[u8], threshold: usize) -> Option<KeyRange> {
        if threshold == 0 {
            return None;
        }
        let now = Instant::now();
        let is_crowded = |prefix: &Bytes| {
            prefix.starts_with(namespace) && self.below.get(prefix).is_some_and(|count| *count > threshold)
        };
        let prefix = prefixes(range).find(is_crowded)?;
        self.unfit.retain(|_, until| *until > now);
        if self.unfit.len() >= MAX_UNFIT || self.unfit.contains_key(&prefix) {
            return None;
        }
        let wide = whole(&prefix);
        self.find(&wide, prev_kv, |_| true).is_none().then_some(wide)
    }

    /// Takes in a log that is opened for others.
    pub fn make(&mut self, opening: &Opening) {
        self.insert(opening, Role::Made, 0);
    }

    /// Notes that no log of this range is to be made for a while.
    pub fn note_unfit(&mut self, range: &KeyRange) {
        if self.unfit.len() < MAX_UNFIT {
            self.unfit.insert(range.key().clone(), Instant::now() + UNFIT_FOR);
        }
    }

    /// A user of a log has left. Says whether the log is to be closed.
    pub fn release(&mut self, range: &KeyRange, log: &Arc<Log>) -> bool {
        let Some(entry) = self.entry(range, log) else { return false };
        entry.uses -= 1;
        entry.since = Instant::now();
        if entry.uses == 0 {
            self.remove(range, log);
            return true;
        }
        false
    }

    pub fn logs(&self) -> Vec<Arc<Log>> {
        let gone = self.gone.iter().filter_map(Weak::upgrade);
        self.logs.values().flatten().map(|entry| entry.log.clone()).chain(gone).collect()
    }

    /// Looks which logs bring too much that nobody wants.
    pub fn weigh(&mut self) {
        let mut wasteful = Vec::new();
        for entry in self.logs.values().flatten().filter(|entry| !entry.range.is_single()) {
            let sample = entry.log.sample(SAMPLE_EVENTS);
            if sample.is_some_and(|sample| sample.unwanted * 2 > sample.events) && entry.role != Role::Leaving {
                wasteful.push((entry.range.clone(), entry.log.clone()));
            }
        }
        for (range, log) in wasteful {
            self.note_unfit(&range);
            self.is_unsettled = true;
            if let Some(entry) = self.entry(&range, &log) {
                entry.role = Role::Leaving;
            }
        }
    }

    /// Sends the readers of needless logs where they shall go, as far as that can be done now. `full_range` puts the
    /// namespace on a range as clients know it, `make` makes a log.
    pub fn settle(&mut self, full_range: impl Fn(&KeyRange) -> KeyRange, make: impl Fn() -> Arc<Log>) -> Settled {
        let mut settled = Settled::default();
        self.is_unsettled = false;
        self.gone.retain(|log| log.strong_count() > 0);
        let entries: Vec<Entry> = self.logs.values().flatten().cloned().collect();
        for entry in entries {
            let is_done = match entry.role {
                _ if entry.log.has_ended() => {
                    if entry.role == Role::Made {
                        self.note_unfit(&entry.range);
                    }
                    entry.uses == 0
                }
                _ if entry.uses == 0 && entry.since.elapsed() > UNUSED_PATIENCE => true,
                _ if !entry.log.is_opened() => {
                    self.is_unsettled = true;
                    false
                }
                Role::Alone => self.settle_alone(&entry, &mut settled),
                Role::Leaving => self.settle_leaving(&entry, &mut settled, &full_range, &make),
                Role::Asked | Role::Made => self.settle_needless(&entry, &mut settled),
            };
            if is_done {
                self.remove(&entry.range, &entry.log);
                entry.log.send_away();
                self.gone.push(Arc::downgrade(&entry.log));
                settled.close.push(entry.log);
            } else if entry.uses == 0 {
                self.is_unsettled = true;
            }
        }
        settled
    }

    fn settle_alone(&mut self, entry: &Entry, settled: &mut Settled) -> bool {
        self.is_unsettled = true;
        if entry.log.is_level() {
            if let Some(entry) = self.entry(&entry.range, &entry.log) {
                entry.role = Role::Asked;
            }
            return false;
        }
        settled.wants_progress = true;
        entry.since.elapsed() > PAST_PATIENCE
    }

    fn settle_leaving(
        &mut self,
        entry: &Entry,
        settled: &mut Settled,
        full_range: impl Fn(&KeyRange) -> KeyRange,
        make: impl Fn() -> Arc<Log>,
    ) -> bool {
        let mut is_ready = true;
        for part in entry.log.parts() {
            let range = full_range(&part);
            match self.find(&range, entry.prev_kv, |_| true) {
                Some(target) => is_ready &= target.log.covered_from() <= entry.log.resume_revision(),
                None => {
                    let opening = Opening { range, prev_kv: entry.prev_kv, log: make(), start_revision: 0 };
                    self.make(&opening);
                    settled.open.push(opening);
                    is_ready = false;
                }
            }
        }
        self.is_unsettled = true;
        settled.wants_progress |= !is_ready;
        is_ready
    }

    fn settle_needless(&mut self, entry: &Entry, settled: &mut Settled) -> bool {
        let target = self.find(&entry.range, entry.prev_kv, |other| other.log.is_opened());
        let Some(target) = target.filter(|target| !Arc::ptr_eq(&target.log, &entry.log)) else { return false };
        let is_ready = target.log.covered_from() <= entry.log.resume_revision();
        self.is_unsettled |= !is_ready;
        settled.wants_progress |= !is_ready;
        is_ready
    }

    /// The first log that may serve a range and is accepted; of one range the one with previous values first, since it
    /// can serve all.
    fn find(&self, range: &KeyRange, prev_kv: bool, accept: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let serves = |entry: &&Entry| {
            (entry.prev_kv || !prev_kv)
                && matches!(entry.role, Role::Asked | Role::Made)
                && !entry.log.has_ended()
                && accept(entry)
        };
        self.logs.find_covering(range, |entries| {
            let with_prev_kv = entries.iter().filter(|entry| entry.prev_kv).find(serves);
            with_prev_kv.or_else(|| entries.iter().find(serves)).cloned()
        })
    }

    fn insert(&mut self, opening: &Opening, role: Role, uses: usize) -> &mut Entry {
        let Opening { range, prev_kv, log, .. } = opening.clone();
        let (range, since, used) = (Arc::new(range), Instant::now(), Weak::new());
        let entry = Entry { range, prev_kv, log, uses, used, since, role, was_asked: uses > 0 };
        self.count += 1;
        self.is_unsettled = true;
        let entries = self.logs.or_insert_with(&opening.range, Vec::new);
        entries.push(entry);
        entries.last_mut().expect("it was put there just now")
    }

    fn remove(&mut self, range: &KeyRange, log: &Arc<Log>) {
        let Some(entries) = self.logs.get_mut(range) else { return };
        let Some(index) = entries.iter().position(|entry| Arc::ptr_eq(&entry.log, log)) else { return };
        let entry = entries.remove(index);
        if entries.is_empty() {
            self.logs.remove(range);
        }
        self.count -= 1;
        if !entry.was_asked {
            return;
        }
        for prefix in prefixes(range) {
            if let Some(count) = self.below.get_mut(&prefix) {
                *count -= 1;
                if *count == 0 {
                    self.below.remove(&prefix);
                }
            }
        }
    }

    fn entry(&mut self, range: &KeyRange, log: &Arc<Log>) -> Option<&mut Entry> {
        self.logs.get_mut(range)?.iter_mut().find(|entry| Arc::ptr_eq(&entry.log, log))
    }
}

impl Entry {
    /// What a user shares with the others, made if there are none.
    fn use_with(&mut self, using: impl FnOnce(Arc<KeyRange>, Arc<Log>) -> Arc<Used>) -> Arc<Used> {
        self.used.upgrade().unwrap_or_else(|| {
            let used = using(self.range.clone(), self.log.clone());
            self.used = Arc::downgrade(&used);
            used
        })
    }
}

/// The prefixes up to a slash that hold a range and more, the longest first.
fn prefixes(range: &KeyRange) -> impl Iterator<Item = Bytes> {
    let key = range.key().clone();
    let range = range.clone();
    let slashes: Vec<usize> =
        key.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).take(MAX_DEPTH).collect();
    slashes.into_iter().map(move |at| key.slice(..=at)).filter(move |prefix| {
        let wide = whole(prefix);
        wide != range && wide.covers(&range)
    })
}

fn whole(prefix: &Bytes) -> KeyRange {
    KeyRange::of_watch(prefix.clone(), prefix_end(prefix))
}
