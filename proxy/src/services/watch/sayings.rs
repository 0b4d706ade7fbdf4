//! What many clients are told in the same words: the framed messages of a run of batches, made once for all sessions of
//! a thread whose watches read on from the same place and have the same id.
//!
//! Most clients have one watch on a stream, and its id is 0. They are woken together, so what one is sent all are sent.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::ResponseHeader;

use super::{
    cursor::{self, Cursor},
    log::{Batch, Log, Run, RunOf, Seat},
};

/// What is kept ready on each thread; more than the watches of a few hundred ids say in a turn under load.
const MAX_BYTES: usize = 2 << 20;
/// Short ones are many in that, and each takes a place in the table.
const MAX_SAYINGS: usize = 1024;

/// A hash for what is known by numbers. Clients choose some of them, but no table that it is for holds more than a
/// bounded few.
#[derive(Clone, Copy, Debug, Default)]
struct NumberHasher(u64);

type NumberHash = BuildHasherDefault<NumberHasher>;

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The high bits choose within a bucket and the low ones the bucket; numbers in turn fill both.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// By what one run of messages differs from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Words {
    pub run: Run,
    pub watch_id: i64,
    pub prev_kv: bool,
}

/// Messages of one watch.
#[derive(Clone, Debug)]
pub struct Saying {
    pub bytes: Bytes,
    pub events: u64,
    /// Of the last message, and of its last event.
    pub header: ResponseHeader,
    pub last_revision: i64,
}

#[derive(Debug, Default)]
pub struct Sayings {
    known: HashMap<Words, Saying, NumberHash>,
    bytes: usize,
}

impl Sayings {
    /// Reads on for a watch that is shown all that comes, if others read the same log and it says nothing but events
    /// there: messages with about so many bytes of events at once, and whether there may be more.
    pub fn read(&mut self, log: &Log, seat: Seat, cursor: &mut Cursor, max_run: u64) -> Option<(Saying, bool)> {
        if cursor.part.is_some() || !cursor.wishes.are_plain() {
            return None;
        }
        let (watch_id, prev_kv) = (cursor.watch_id, cursor.wishes.prev_kv);
        let words = |run| Words { run, watch_id, prev_kv };
        let known = |run| self.known.get(&words(run)).cloned();
        let since = (cursor.next_revision, cursor.told_revision);
        let (content, may_be_more) = log.read_run(seat, since, max_run, known)?;
        let saying = match content {
            RunOf::Known(saying) => saying,
            RunOf::Batches(run, batches) => self.make(words(run), &batches),
        };
        cursor.next_revision = saying.last_revision + 1;
        cursor.told_revision = cursor.told_revision.max(saying.header.revision);
        Some((saying, may_be_more))
    }

    fn make(&mut self, words: Words, batches: &[Arc<Batch>]) -> Saying {
        let last = batches.last().expect("a run holds one batch at least");
        let len: usize = batches.iter().map(|batch| cursor::whole_len(batch, &words)).sum();
        let mut out = BytesMut::with_capacity(len);
        batches.iter().for_each(|batch| cursor::put_whole(&mut out, batch, &words));
        let events = batches.iter().map(|batch| batch.events.len() as u64).sum();
        let (header, last_revision) = (last.header, last.last_revision());
        let saying = Saying { bytes: out.freeze(), events, header, last_revision };
        if len <= MAX_BYTES {
            // Whoever is level asks for what was made last, so all that is older may go at once.
            if self.bytes + len > MAX_BYTES || self.known.len() >= MAX_SAYINGS {
                self.known.clear();
                self.bytes = 0;
            }
            self.bytes += len;
            self.known.insert(words, saying.clone());
        }
        saying
    }
}
