//! The memory of large answers: those that must be held whole, since their keys are rewritten or several clients wait for
//! them, share one budget, so that a hundred reads of everything are refused and not held all at once.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::rules::tenant::limits::{Exceeded, Limit};

/// What one answer may take unasked; nearly all are smaller, and pay nothing.
pub const UNASKED: usize = 256 << 10;

/// The budget of a proxy. It lives as long as its process.
#[derive(Debug)]
pub struct Memory {
    limit: usize,
    held: AtomicUsize,
}

/// A part of the budget, until it is dropped.
#[derive(Debug)]
pub struct Held {
    memory: &'static Memory,
    bytes: usize,
}

impl Memory {
    /// None is without a limit.
    pub fn leaked(limit: usize) -> Option<&'static Self> {
        (limit > 0).then(|| &*Box::leak(Box::new(Self { limit, held: AtomicUsize::new(0) })))
    }

    pub fn hold(&'static self) -> Held {
        Held { memory: self, bytes: 0 }
    }
}

impl Held {
    /// Makes it so many bytes altogether, if there is room.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Exceeded> {
        let more = bytes.saturating_sub(self.bytes);
        let before = self.memory.held.fetch_add(more, Relaxed);
        if before.saturating_add(more) > self.memory.limit {
            self.memory.held.fetch_sub(more, Relaxed);
            return Err(Exceeded::of(Limit::Memory));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_there_is() {
        let memory = Memory::leaked(100).expect("a limit");
        let (mut one, mut other) = (memory.hold(), memory.hold());
        assert!(one.grow(60).is_ok() && other.grow(40).is_ok());
        assert!(one.grow(61).is_err() && other.grow(40).is_ok());
        drop(other);
        assert!(one.grow(100).is_ok());
        drop(one);
        assert_eq!(memory.held.load(Relaxed), 0);
        assert!(Memory::leaked(0).is_none());
    }
}
