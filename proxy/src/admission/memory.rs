//! The memory of large answers: those that must be held whole, since their keys are rewritten or several clients wait for
//! them, share one budget, so that a hundred reads of everything are refused and not held all at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use crate::rules::tenant::{
    Tenant,
    limits::{Exceeded, Limit},
};

/// What one answer may take unasked; nearly all are smaller, and pay nothing.
pub const UNASKED: usize = 256 << 10;

/// The budget of a proxy. It lives as long as its process.
#[derive(Debug)]
pub struct Memory {
    limit: usize,
    held: AtomicUsize,
    /// Whether there are several tenants. Then none may hold more than half: whoever does not read what it asked for
    /// would keep the others from large answers.
    is_shared: AtomicBool,
}

/// Where the answer to one caller is held.
#[derive(Clone, Debug)]
pub struct Share {
    memory: &'static Memory,
    tenant: Arc<Tenant>,
}

/// A part of the budget, until it is dropped.
#[derive(Debug)]
pub struct Held {
    share: Share,
    bytes: usize,
}

impl Memory {
    /// None is without a limit.
    pub fn leaked(limit: usize) -> Option<&'static Self> {
        let memory = || Self { limit, held: AtomicUsize::new(0), is_shared: AtomicBool::new(false) };
        (limit > 0).then(|| &*Box::leak(Box::new(memory())))
    }

    /// There are these tenants from now on.
    pub fn serve(&self, tenants: &[Arc<Tenant>]) {
        self.is_shared.store(tenants.len() > 1, Relaxed);
    }

    pub fn share_of(&'static self, tenant: &Arc<Tenant>) -> Share {
        Share { memory: self, tenant: tenant.clone() }
    }
}

impl Share {
    pub fn hold(&self) -> Held {
        Held { share: self.clone(), bytes: 0 }
    }

    fn limit_of_one(&self) -> usize {
        let is_shared = self.memory.is_shared.load(Relaxed) && !self.tenant.is_the_proxy();
        if is_shared { self.memory.limit.div_ceil(2) } else { self.memory.limit }
    }
}

impl Held {
    /// Makes it so many bytes altogether, if there is room.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Exceeded> {
        let Share { memory, tenant } = &self.share;
        let more = bytes.saturating_sub(self.bytes);
        let is_within = |held: &AtomicUsize, limit| {
            let fits = held.fetch_add(more, Relaxed).saturating_add(more) <= limit;
            if !fits {
                held.fetch_sub(more, Relaxed);
            }
            fits
        };
        if !is_within(&tenant.usage.held, self.share.limit_of_one()) {
            return Err(Exceeded::of(Limit::Memory));
        }
        if !is_within(&memory.held, memory.limit) {
            tenant.usage.held.fetch_sub(more, Relaxed);
            return Err(Exceeded::of(Limit::Memory));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.share.memory.held.fetch_sub(self.bytes, Relaxed);
        self.share.tenant.usage.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{namespace::Namespace, tenant::policy::Policy};

    fn tenant() -> Arc<Tenant> {
        Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()))
    }

    #[test]
    fn no_more_is_held_than_there_is() {
        let (memory, tenant) = (Memory::leaked(100).expect("a limit"), tenant());
        let share = memory.share_of(&tenant);
        let (mut one, mut other) = (share.hold(), share.hold());
        assert!(one.grow(60).is_ok() && other.grow(40).is_ok());
        assert!(one.grow(61).is_err() && other.grow(40).is_ok());
        drop(other);
        assert!(one.grow(100).is_ok());
        drop(one);
        assert_eq!((memory.held.load(Relaxed), tenant.usage.held.load(Relaxed)), (0, 0));
        assert!(Memory::leaked(0).is_none());
    }

    #[test]
    fn who_does_not_read_leaves_half_to_the_others() {
        let (memory, greedy, modest) = (Memory::leaked(100).expect("a limit"), tenant(), tenant());
        memory.serve(&[greedy.clone(), modest.clone()]);
        let (mut one, mut other) = (memory.share_of(&greedy).hold(), memory.share_of(&greedy).hold());
        assert!(one.grow(50).is_ok() && other.grow(1).is_err());
        let mut modests = memory.share_of(&modest).hold();
        assert!(modests.grow(50).is_ok());
        assert!(memory.share_of(&tenant()).hold().grow(1).is_err(), "there is no more than there is");
        drop(modests);
        memory.serve(&[greedy]);
        assert!(other.grow(50).is_ok());
    }
}
