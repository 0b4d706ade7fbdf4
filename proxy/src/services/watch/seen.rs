//! The newest revisions that clients were shown, in a window of time and the one before.

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

#[derive(Default)]
pub struct Seen {
    current: AtomicI64,
    before: AtomicI64,
    /// For so many windows nothing is noted: what is on its way may still be of a store that is no more.
    deaf: AtomicU8,
}

/// A whole window, and what is left of the one that has begun.
const DEAF_WINDOWS: u8 = 2;

impl Seen {
    /// Notes a revision that some client has been shown.
    pub fn note(&self, revision: i64) {
        if self.deaf.load(Ordering::Relaxed) == 0 {
            self.current.fetch_max(revision, Ordering::Relaxed);
        }
    }

    /// The newest revision that any client was shown lately.
    pub fn newest(&self) -> i64 {
        self.current.load(Ordering::Relaxed).max(self.before.load(Ordering::Relaxed))
    }

    /// Begins another window.
    pub fn turn(&self) {
        self.before.store(self.current.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        let one_less = |deaf: u8| deaf.checked_sub(1);
        let _ = self.deaf.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
    }

    /// Forgets everything, since it was of another store.
    pub fn forget(&self) {
        self.deaf.store(DEAF_WINDOWS, Ordering::Relaxed);
        self.current.store(0, Ordering::Relaxed);
        self.before.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_counts_for_a_window_and_the_next() {
        let seen = Seen::default();
        seen.note(7);
        seen.note(5);
        assert_eq!(seen.newest(), 7);
        seen.turn();
        seen.note(6);
        assert_eq!(seen.newest(), 7);
        seen.turn();
        assert_eq!(seen.newest(), 6);
        seen.forget();
        seen.note(6);
        assert_eq!(seen.newest(), 0, "that is of the store before");
        (0..DEAF_WINDOWS).for_each(|_| seen.turn());
        seen.note(3);
        assert_eq!(seen.newest(), 3);
    }
}
