//! The leases that clients keep alive, for the gauge that counts them: each until the TTL that etcd gave it has passed.

use std::{collections::HashMap, time::Duration};

use prometheus::IntGauge;
use tokio::time::Instant;

/// How often those whose time has passed are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The longest TTL that etcd grants, in seconds.
const MAX_TTL: u64 = 9_000_000_000;

/// Bounded by the leases that etcd has: each is here for the time that it is there without another renewal.
pub struct Kept {
    until: HashMap<i64, Instant>,
    swept: Instant,
    gauge: IntGauge,
}

impl Kept {
    pub fn new(gauge: IntGauge) -> Self {
        Self { until: HashMap::new(), swept: Instant::now(), gauge }
    }

    /// Notes etcd's answer to a renewal; a TTL of zero or less is that of a lease that is gone.
    pub fn note(&mut self, lease: i64, ttl: i64) {
        let ttl = u64::try_from(ttl).unwrap_or_default().min(MAX_TTL);
        let until = Instant::now().checked_add(Duration::from_secs(ttl)).filter(|_| ttl > 0);
        let change = match until {
            Some(until) => i64::from(self.until.insert(lease, until).is_none()),
            None => -i64::from(self.until.remove(&lease).is_some()),
        };
        self.gauge.add(change);
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    pub fn next_sweep(&self) -> Instant {
        self.swept + SWEEP_INTERVAL
    }

    /// Forgets those whose time has passed.
    pub fn sweep(&mut self) {
        self.swept = Instant::now();
        let before = self.until.len();
        self.until.retain(|_, until| *until > self.swept);
        self.gauge.sub(i64::try_from(before - self.until.len()).unwrap_or_default());
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.gauge.sub(i64::try_from(self.until.len()).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_counts_until_its_ttl_has_passed_or_etcd_says_that_it_is_gone() {
        let gauge = IntGauge::new("kept", "kept").expect("a good name");
        let mut kept = Kept::new(gauge.clone());
        for (lease, ttl) in [(1, 5), (2, 60), (3, 60), (1, 5), (4, 0)] {
            kept.note(lease, ttl);
        }
        assert_eq!(gauge.get(), 3);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(kept.next_sweep() < Instant::now());
        kept.sweep();
        assert_eq!(gauge.get(), 2);
        kept.note(3, 0);
        assert_eq!(gauge.get(), 1);
        drop(kept);
        assert_eq!(gauge.get(), 0);
    }
}
