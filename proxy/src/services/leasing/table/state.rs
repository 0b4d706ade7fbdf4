//! The table itself: entries, their size, and how each piece of news changes them. It waits for nothing and reads no
//! clock.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use etcd_proxy_proto::{etcdserverpb::ResponseHeader, mvccpb::KeyValue};
use tokio::sync::Notify;

use super::MAX_KEYS;

/// What an entry takes besides its key and value, about: its share of the map, and the allocations of its parts.
const OVERHEAD: usize = 256;
/// One value may take this part of the room, so that a few large ones do not drive all others out.
const LARGEST_PART: usize = 8;

#[derive(Default)]
pub struct State {
    session: Option<Session>,
    entries: HashMap<Bytes, Entry>,
    bytes: usize,
    owned: usize,
    header: ResponseHeader,
    releases: VecDeque<(Bytes, i64)>,
    waiting: HashMap<Bytes, Weak<Notify>>,
    tickets: u64,
}

struct Session {
    lease: i64,
    /// Until then etcd cannot have ended the lease.
    alive_until: Duration,
}

pub enum Entry {
    /// Under way. Spoiled by a write of ours that began meanwhile; revoked or deleted if the news of its leasing key came
    /// before the answer.
    Acquiring {
        ticket: u64,
        spoiled: bool,
        revoked: Option<i64>,
        deleted: i64,
    },
    Owned(Owned),
    /// Not shown any more, and its leasing key not yet known to be gone.
    Releasing {
        created: i64,
    },
    /// Not to be acquired yet.
    LeftAlone {
        until: Duration,
    },
}

pub struct Owned {
    created: i64,
    /// The newest revision at which the value is known to be this.
    pub revision: i64,
    pub pair: Option<KeyValue>,
    /// Writes of ours that are under way.
    writers: u32,
    /// Whether someone has read it since the table was last tidied.
    is_used: bool,
}

/// What came of an acquisition while it was under way.
pub struct Meanwhile {
    pub spoiled: bool,
    pub revoked: Option<i64>,
    pub deleted: i64,
}

impl Owned {
    pub fn new(created: i64, revision: i64, pair: Option<&KeyValue>) -> Self {
        Self { created, revision, pair: pair.map(own), writers: 0, is_used: true }
    }

    pub fn fits(&self, key: &Bytes, max_bytes: usize) -> bool {
        cost(key, self.pair.as_ref()) <= max_bytes / LARGEST_PART
    }
}

/// A value by itself: as it came it may be a slice of a much larger answer.
fn own(pair: &KeyValue) -> KeyValue {
    KeyValue { key: Bytes::copy_from_slice(&pair.key), value: Bytes::copy_from_slice(&pair.value), ..*pair }
}

fn cost(key: &Bytes, pair: Option<&KeyValue>) -> usize {
    OVERHEAD + key.len() + pair.map_or(0, |pair| pair.key.len() + pair.value.len())
}

impl Entry {
    fn cost(&self, key: &Bytes) -> usize {
        match self {
            Self::Owned(owned) => cost(key, owned.pair.as_ref()),
            _ => cost(key, None),
        }
    }
}

impl State {
    // === the session ===

    /// The store may have been put back to an older state since the last session, so its header is forgotten.
    pub fn open(&mut self, lease: i64, alive_until: Duration, header: ResponseHeader) {
        self.close();
        self.header = header;
        self.session = Some(Session { lease, alive_until });
    }

    pub fn extend(&mut self, until: Duration) {
        if let Some(session) = &mut self.session {
            session.alive_until = session.alive_until.max(until);
        }
    }

    pub fn close(&mut self) {
        self.session = None;
        self.entries.clear();
        self.releases.clear();
        (self.bytes, self.owned) = (0, 0);
        for (_, waiter) in self.waiting.drain() {
            if let Some(waiter) = waiter.upgrade() {
                waiter.notify_waiters();
            }
        }
    }

    pub fn lease(&self) -> Option<i64> {
        self.session.as_ref().map(|session| session.lease)
    }

    pub fn is_alive(&self, now: Duration) -> bool {
        self.session.as_ref().is_some_and(|session| now < session.alive_until)
    }

    pub fn saw(&mut self, header: &ResponseHeader) {
        if header.revision >= self.header.revision {
            self.header = *header;
        }
    }

    pub fn header_at(&self, revision: i64) -> ResponseHeader {
        ResponseHeader { revision: revision.max(self.header.revision), ..self.header }
    }

    // === entries ===

    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.entries.keys()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn owned(&self) -> usize {
        self.owned
    }

    pub fn is_full(&self, max_bytes: usize) -> bool {
        self.bytes >= max_bytes || self.entries.len() >= MAX_KEYS
    }

    pub fn insert(&mut self, key: Bytes, entry: Entry) {
        self.remove(&key);
        self.bytes += entry.cost(&key);
        self.owned += usize::from(matches!(entry, Entry::Owned(_)));
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Bytes) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.cost(key);
            self.owned -= usize::from(matches!(entry, Entry::Owned(_)));
        }
    }

    /// What is owned and not being written.
    pub fn idle(&mut self, key: &Bytes) -> Option<&Owned> {
        match self.entries.get_mut(key)? {
            Entry::Owned(owned) if owned.writers == 0 => {
                owned.is_used = true;
                Some(owned)
            }
            _ => None,
        }
    }

    pub fn is_free(&self, key: &Bytes, now: Duration) -> bool {
        match self.entries.get(key) {
            None => true,
            Some(Entry::LeftAlone { until }) => now >= *until,
            Some(_) => false,
        }
    }

    pub fn leave_alone(&mut self, key: &Bytes, until: Duration) {
        self.remove(key);
        if self.entries.len() < MAX_KEYS {
            self.insert(key.clone(), Entry::LeftAlone { until });
        }
    }

    // === acquisitions ===

    /// The number of the new acquisition.
    pub fn acquire(&mut self, key: &Bytes) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        self.insert(key.clone(), Entry::Acquiring { ticket, spoiled: false, revoked: None, deleted: 0 });
        ticket
    }

    /// Ends an acquisition, if it is still the one under way.
    pub fn settled(&mut self, key: &Bytes, ticket: u64) -> Option<Meanwhile> {
        match *self.entries.get(key)? {
            Entry::Acquiring { ticket: current, spoiled, revoked, deleted } if current == ticket => {
                self.remove(key);
                Some(Meanwhile { spoiled, revoked, deleted })
            }
            _ => None,
        }
    }

    // === writes ===

    /// A write is about to begin: since when the key's leasing key is ours, and whether its value is kept.
    pub fn mark(&mut self, key: &Bytes) -> Option<(i64, bool)> {
        match self.entries.get_mut(key)? {
            Entry::Owned(owned) => {
                owned.writers += 1;
                Some((owned.created, true))
            }
            // Nobody keeps the value, and no other writer can have the leasing key before it is gone.
            Entry::Releasing { created } => Some((*created, false)),
            Entry::Acquiring { spoiled, .. } => {
                *spoiled = true;
                None
            }
            Entry::LeftAlone { .. } => None,
        }
    }

    pub fn owned_since(&self, key: &Bytes) -> Option<i64> {
        match self.entries.get(key)? {
            Entry::Owned(owned) => Some(owned.created),
            Entry::Releasing { created } => Some(*created),
            Entry::Acquiring { .. } | Entry::LeftAlone { .. } => None,
        }
    }

    pub fn unmark(&mut self, key: &Bytes, created: i64) {
        if let Some(owned) = self.ownership(key, created) {
            owned.writers -= 1;
        }
    }

    pub fn written(&mut self, key: &Bytes, created: i64, revision: i64, pair: Option<&KeyValue>, max_bytes: usize) {
        let Some(owned) = self.ownership(key, created) else { return };
        let writers = owned.writers - 1;
        owned.writers = writers;
        // Answers may overtake each other.
        if revision <= owned.revision {
            return;
        }
        let written = Owned { writers, ..Owned::new(created, revision, pair) };
        // A lease may delete the key without asking anyone.
        if pair.is_some_and(|pair| pair.lease != 0) || !written.fits(key, max_bytes) {
            self.release(key, created);
        } else {
            self.insert(key.clone(), Entry::Owned(written));
        }
    }

    pub fn give_up(&mut self, key: &Bytes, created: i64) {
        if self.ownership(key, created).is_some() {
            self.release(key, created);
        }
    }

    fn ownership(&mut self, key: &Bytes, created: i64) -> Option<&mut Owned> {
        match self.entries.get_mut(key)? {
            Entry::Owned(owned) if owned.created == created => Some(owned),
            _ => None,
        }
    }

    // === giving up ===

    pub fn release(&mut self, key: &Bytes, created: i64) {
        self.insert(key.clone(), Entry::Releasing { created });
        self.releases.push_back((key.clone(), created));
    }

    pub fn take_releases(&mut self, most: usize) -> Vec<(Bytes, i64)> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let Some((key, created)) = self.releases.pop_front() else { break };
            if self.is_releasing(&key, created) {
                taken.push((key, created));
            }
        }
        taken
    }

    pub fn release_again(&mut self, releases: Vec<(Bytes, i64)>) {
        for (key, created) in releases {
            if self.is_releasing(&key, created) {
                self.releases.push_back((key, created));
            }
        }
    }

    pub fn released(&mut self, key: &Bytes, created: i64, until: Duration) {
        if self.is_releasing(key, created) {
            self.leave_alone(key, until);
        }
    }

    fn is_releasing(&self, key: &Bytes, created: i64) -> bool {
        matches!(self.entries.get(key), Some(Entry::Releasing { created: current }) if *current == created)
    }

    // === news of leasing keys ===

    /// Says whether a value was kept that is not any more.
    pub fn revoked(&mut self, key: &Bytes, created: i64, lease: i64, until: Duration) -> bool {
        if self.lease() != Some(lease) {
            // Another owner is asked; we do not get between it and the writer.
            if !self.entries.contains_key(key) {
                self.leave_alone(key, until);
            }
            return false;
        }
        match self.entries.get_mut(key) {
            Some(Entry::Acquiring { revoked, .. }) => {
                *revoked = Some(created);
                false
            }
            Some(Entry::Owned(owned)) => {
                let current = owned.created <= created;
                if current {
                    self.release(key, created);
                }
                current
            }
            Some(Entry::Releasing { created: current }) if *current >= created => false,
            // An acquisition whose answer was lost.
            Some(Entry::Releasing { .. } | Entry::LeftAlone { .. }) | None => {
                self.release(key, created);
                false
            }
        }
    }

    pub fn deleted(&mut self, key: &Bytes, revision: i64, until: Duration) {
        match self.entries.get_mut(key) {
            Some(Entry::Acquiring { deleted, .. }) => *deleted = revision.max(*deleted),
            Some(Entry::Owned(Owned { created, .. }) | Entry::Releasing { created }) if *created < revision => {
                self.leave_alone(key, until);
            }
            _ => (),
        }
    }

    // === those who wait ===

    pub fn waiter(&mut self, key: &Bytes) -> Arc<Notify> {
        if let Some(waiter) = self.waiting.get(key).and_then(Weak::upgrade) {
            return waiter;
        }
        self.waiting.retain(|_, waiter| waiter.strong_count() > 0);
        let waiter = Arc::new(Notify::new());
        self.waiting.insert(key.clone(), Arc::downgrade(&waiter));
        waiter
    }

    pub fn wake(&mut self, key: &Bytes) {
        if let Some(waiter) = self.waiting.remove(key).and_then(|waiter| waiter.upgrade()) {
            waiter.notify_waiters();
        }
    }

    // === tidying ===

    pub fn tidy(&mut self, now: Duration, max_bytes: usize) {
        let is_short = self.bytes > max_bytes / 8 * 7 || self.entries.len() > MAX_KEYS / 8 * 7;
        let mut over = Vec::new();
        let mut unused = Vec::new();
        for (key, entry) in &mut self.entries {
            match entry {
                Entry::LeftAlone { until } if now >= *until => over.push(key.clone()),
                Entry::Owned(owned) => {
                    let was_used = std::mem::take(&mut owned.is_used);
                    if is_short && !was_used && owned.writers == 0 {
                        unused.push((key.clone(), owned.created));
                    }
                }
                _ => (),
            }
        }
        over.iter().for_each(|key| self.remove(key));
        for (key, created) in unused {
            self.release(&key, created);
        }
    }
}
