//! Where a session hears that one of its watches has something to read.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use tokio::sync::Notify;

/// Filled by logs and the feed, emptied by the one session that owns it. Holds each watch at most once, so it is
/// bounded by the session's watches.
#[derive(Debug, Default)]
pub struct Inbox {
    bell: Notify,
    content: Mutex<Content>,
    /// Set while the bell has rung and nobody has looked, so that a burst rings once.
    rung: AtomicBool,
}

#[derive(Debug, Default)]
struct Content {
    ready: HashSet<u64>,
    progress: Option<ResponseHeader>,
}

impl Inbox {
    /// A watch has something to read.
    pub fn wake(&self, watch: u64) {
        self.content.lock().expect("nothing panics while it holds an inbox").ready.insert(watch);
        self.ring();
    }

    /// etcd has answered the session's progress request.
    pub fn progress(&self, header: ResponseHeader) {
        self.content.lock().expect("nothing panics while it holds an inbox").progress = Some(header);
        self.ring();
    }

    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.bell.notify_one();
        }
    }

    /// Returns when there may be something in the inbox.
    pub async fn heard(&self) {
        self.bell.notified().await;
    }

    /// Takes what is there: the watches that may read on, each once, and an answer to a progress request.
    pub fn take(&self, ready: &mut Vec<u64>) -> Option<ResponseHeader> {
        self.rung.store(false, Ordering::Release);
        let mut content = self.content.lock().expect("nothing panics while it holds an inbox");
        ready.extend(content.ready.drain());
        content.progress.take()
    }
}
