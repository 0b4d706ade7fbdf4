//! The members of a crowd: what each event asks of them stands together, and apart from the rest.

use std::sync::Arc;

use bytes::Bytes;
use h2::SendStream;

use super::{
    super::{inbox::Inbox, watches::Number},
    Member,
};
use crate::exchange::books::Entry;

/// What HTTP/2 is made to send for what is written below it.
static NOTHING: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Default)]
pub struct Members {
    entries: Vec<Entry>,
    rest: Vec<Rest>,
}

/// What is asked for when one leaves.
pub struct Rest {
    pub stream: u32,
    pub watch: Number,
    pub send: SendStream<Bytes>,
    pub inbox: Arc<Inbox>,
}

impl Members {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn push(&mut self, entry: Entry, member: Member) {
        let Member { stream, watch, send, inbox, .. } = member;
        self.entries.push(entry);
        self.rest.push(Rest { stream, watch, send, inbox });
    }

    pub fn entry(&self, index: usize) -> Entry {
        self.entries[index]
    }

    pub fn stream(&self, index: usize) -> u32 {
        self.rest[index].stream
    }

    pub fn swap(&mut self, one: usize, other: usize) {
        self.entries.swap(one, other);
        self.rest.swap(one, other);
    }

    /// Takes one out; the last stands in its place then.
    pub fn swap_remove(&mut self, index: usize) -> (Entry, Rest) {
        (self.entries.swap_remove(index), self.rest.swap_remove(index))
    }

    pub fn wake_all(&self) {
        self.rest.iter().for_each(|rest| rest.inbox.wake(rest.watch));
    }

    /// Has HTTP/2 send bytes of nothing on a member's stream. Says whether it does.
    pub fn send_nothing(&mut self, index: usize, len: usize) -> bool {
        send_nothing(&mut self.rest[index].send, len)
    }
}

/// Has HTTP/2 send bytes of nothing on a stream. Says whether it does, which it does not on one that has ended.
pub fn send_nothing(send: &mut SendStream<Bytes>, mut len: usize) -> bool {
    while len > 0 {
        let now = len.min(NOTHING.len());
        if send.send_data(Bytes::from_static(&NOTHING[..now]), false).is_err() {
            return false;
        }
        len -= now;
    }
    true
}
