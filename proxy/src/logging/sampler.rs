//! zap's sampler: of each message the first hundred lines in a second, then every hundredth.

use std::sync::atomic::{AtomicU64, Ordering};

/// etcd's `SamplingConfig`.
const FIRST: u64 = 100;
const THEREAFTER: u64 = 100;
const TICK_NANOS: u64 = 1_000_000_000;

/// zap counts messages of one hash together; it has this many counts for each level.
const COUNTERS_PER_LEVEL: usize = 4_096;
const LEVELS: usize = 5;

/// Counts of what was logged in the current second, by level and message.
pub(super) struct Sampler {
    counters: Box<[Counter]>,
}

#[derive(Default)]
struct Counter {
    resets_at: AtomicU64,
    count: AtomicU64,
}

impl Sampler {
    pub(super) fn new() -> Self {
        Sampler { counters: (0..COUNTERS_PER_LEVEL * LEVELS).map(|_| Counter::default()).collect() }
    }

    /// Whether a line of this message is to be written `now`, in nanoseconds on a clock that never goes back.
    pub(super) fn admits(&self, level: u8, message_hash: u32, now: u64) -> bool {
        let index =
            usize::from(level).min(LEVELS - 1) * COUNTERS_PER_LEVEL + message_hash as usize % COUNTERS_PER_LEVEL;
        let count = self.counters[index].increment(now);
        count <= FIRST || (count - FIRST).is_multiple_of(THEREAFTER)
    }
}

impl Counter {
    fn increment(&self, now: u64) -> u64 {
        let resets_at = self.resets_at.load(Ordering::Relaxed);
        if resets_at > now {
            return self.count.fetch_add(1, Ordering::Relaxed) + 1;
        }
        self.count.store(1, Ordering::Relaxed);
        let next = now.saturating_add(TICK_NANOS);
        match self.resets_at.compare_exchange(resets_at, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => 1,
            // Another thread has begun the second already.
            Err(_) => self.count.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_one_message_is_cut_to_a_hundred_a_second_and_every_hundredth() {
        let sampler = Sampler::new();
        let admitted = |now: u64, times: usize| (0..times).filter(|_| sampler.admits(2, 7, now)).count();
        assert_eq!(admitted(0, 100), 100);
        assert_eq!(admitted(0, 99), 0);
        assert_eq!(admitted(0, 1), 1);
        assert_eq!(admitted(TICK_NANOS - 1, 1_000), 10);
        assert_eq!(admitted(TICK_NANOS, 100), 100);
        assert_eq!(admitted(TICK_NANOS, 1), 0);
    }

    #[test]
    fn another_message_and_another_level_have_counts_of_their_own() {
        let sampler = Sampler::new();
        for _ in 0..150 {
            sampler.admits(2, 7, 0);
        }
        assert!(!sampler.admits(2, 7, 0));
        assert!(sampler.admits(2, 8, 0));
        assert!(sampler.admits(1, 7, 0));
        assert!(sampler.admits(u8::MAX, u32::MAX, u64::MAX));
    }
}
