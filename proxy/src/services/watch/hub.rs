//! Which log serves which watch.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::upstream::Upstream;

pub struct Hub {
    upstream: Upstream,
    seen: AtomicI64,
}

impl Hub {
    pub fn new(upstream: Upstream) -> Self {
        Self { upstream, seen: AtomicI64::new(0) }
    }

    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Notes a revision that some client has been shown.
    pub fn saw(&self, revision: i64) {
        self.seen.fetch_max(revision, Ordering::Relaxed);
    }

    /// Notes that everything before `revision` is compacted.
    pub fn compacted(&self, _revision: i64) {}
}
