//! How long to wait before trying again what failed: longer each time up to a bound, and out of step with others.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// The waits between tries of one thing.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits grow from `first` to `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The next wait: between half of its step and all of it, so that many proxies which lost the same etcd do not
    /// come back to it in the same instant.
    #[expect(clippy::should_implement_trait, reason = "it has no end, and nobody walks through it")]
    pub fn next(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.most);
        step / 2 + (step / 2).mul_f64(fraction())
    }

    /// Waits it out.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// It worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A number from 0 to 1. The standard library seeds each of its hashers at random, which is random enough to spread
/// tries; nothing here is a secret.
fn fraction() -> f64 {
    let random = RandomState::new().hash_one(0u8);
    (random >> 32) as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for step in [100, 200, 300, 300] {
            let wait = backoff.next();
            assert!(
                wait >= Duration::from_millis(step / 2) && wait <= Duration::from_millis(step),
                "{wait:?} of {step}"
            );
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }

    #[test]
    fn two_that_fail_together_do_not_come_back_together() {
        let waits: std::collections::HashSet<Duration> =
            (0..32).map(|_| Backoff::new(Duration::from_secs(8), Duration::from_secs(8)).next()).collect();
        assert!(waits.len() > 16, "{waits:?}");
    }
}
