//! Where a session hears that one of its watches has something to read.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use tokio::sync::Notify;

use super::bell::Bell;

/// A hash for the numbers that a session gives its watches. No client chooses them, so none can make them collide.
#[derive(Clone, Copy, Debug, Default)]
pub struct NumberHasher(u64);

pub type NumberHash = BuildHasherDefault<NumberHasher>;

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

/// Filled by logs and the feed, emptied by the one session that owns it. Holds each watch at most once, so it is
/// bounded by the session's watches.
#[derive(Debug, Default)]
pub struct Inbox {
    notify: Notify,
    /// Wakes the owner together with the other sessions of its thread; without one it is woken by itself.
    bell: Option<Arc<Bell>>,
    content: Mutex<Content>,
    /// Set while it has rung and nobody has looked, so that a burst rings once.
    rung: AtomicBool,
}

#[derive(Debug, Default)]
struct Content {
    ready: HashSet<u64, NumberHash>,
    progress: Option<ResponseHeader>,
}

impl Inbox {
    /// An inbox of a session on the bell's thread.
    pub fn at(bell: &Arc<Bell>) -> Arc<Self> {
        Arc::new(Self { bell: Some(bell.clone()), ..Self::default() })
    }

    /// A watch has something to read.
    pub fn wake(self: &Arc<Self>, watch: u64) {
        self.content.lock().expect("nothing panics while it holds an inbox").ready.insert(watch);
        self.ring();
    }

    /// etcd has answered the session's progress request.
    pub fn progress(self: &Arc<Self>, header: ResponseHeader) {
        self.content.lock().expect("nothing panics while it holds an inbox").progress = Some(header);
        self.ring();
    }

    fn ring(self: &Arc<Self>) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        match &self.bell {
            Some(bell) => bell.ring_for(self.clone()),
            None => self.notify(),
        }
    }

    /// Lets the owner hear that something has come.
    pub fn notify(&self) {
        self.notify.notify_one();
    }

    /// Returns when there may be something in the inbox.
    pub async fn heard(&self) {
        self.notify.notified().await;
    }

    /// Takes what is there: the watches that may read on, each once, and an answer to a progress request.
    pub fn take(&self, ready: &mut Vec<u64>) -> Option<ResponseHeader> {
        self.rung.store(false, Ordering::Release);
        let mut content = self.content.lock().expect("nothing panics while it holds an inbox");
        ready.extend(content.ready.drain());
        content.progress.take()
    }
}
