//! About how often each range was read lately, in a fixed amount of memory whatever the number of ranges.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::atomic::{AtomicU16, Ordering},
};

/// Counters in a row. Two ranges that share a counter in one row hardly do in all, and the least is what counts; so some
/// ten thousand ranges that are read now and then make none of them look like one that is read often.
const COUNTERS: usize = 4096;
const ROWS: usize = 3;

pub struct Frequency {
    hasher: RandomState,
    rows: Vec<AtomicU16>,
}

impl Default for Frequency {
    fn default() -> Self {
        Self { hasher: RandomState::new(), rows: (0..ROWS * COUNTERS).map(|_| AtomicU16::new(0)).collect() }
    }
}

impl Frequency {
    /// A number for what is read; others can hardly find a second thing with the same.
    pub fn name(&self, read: impl Hash) -> u64 {
        self.hasher.hash_one(read)
    }

    /// Counts a read, and says how many there were.
    pub fn count(&self, name: u64) -> u16 {
        let places = (0..ROWS).map(|row| row * COUNTERS + (name >> (20 * row)) as usize % COUNTERS);
        let counts = places.map(|place| {
            let counter = &self.rows[place];
            let count = counter.load(Ordering::Relaxed).saturating_add(1);
            // A count that another thread overwrites is one too few, which does no harm.
            counter.store(count, Ordering::Relaxed);
            count
        });
        counts.min().unwrap_or(0)
    }

    /// Lets what was read fade.
    pub fn halve(&self) {
        for counter in &self.rows {
            counter.store(counter.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_among_many_is_counted_about_right_and_fades() {
        let frequency = Frequency::default();
        let hot = frequency.name("hot");
        for round in 0..100 {
            frequency.count(hot);
            for other in 0..20 {
                frequency.count(frequency.name((round, other)));
            }
        }
        let count = frequency.count(hot);
        assert!((101..150).contains(&count), "{count}");
        frequency.halve();
        assert!(frequency.count(hot) <= count / 2 + 1);
    }
}
