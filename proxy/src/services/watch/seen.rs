//! The newest revisions that clients were shown, in a window of time and the one before.

use std::sync::atomic::{AtomicI64, Ordering};

#[derive(Default)]
pub struct Seen {
    current: AtomicI64,
    before: AtomicI64,
}

impl Seen {
    /// Notes a revision that some client has been shown.
    pub fn note(&self, revision: i64) {
        self.current.fetch_max(revision, Ordering::Relaxed);
    }

    /// The newest revision that any client was shown lately.
    pub fn newest(&self) -> i64 {
        self.current.load(Ordering::Relaxed).max(self.before.load(Ordering::Relaxed))
    }

    /// Begins another window.
    pub fn turn(&self) {
        self.before.store(self.current.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Forgets everything, since it was of another store.
    pub fn forget(&self) {
        self.turn();
        self.turn();
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
        assert_eq!(seen.newest(), 0);
    }
}
