//! What a tenant and each of its connections may use, and what they use now.
//!
//! The counts are atomics, as the clock is an argument: nobody waits here. What has no limit is not counted, so that a
//! proxy without limits pays nothing for them.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// The limits of one tenant, over all its connections to this proxy; zero is without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub connections: u64,
    /// Streams under way, and calls that wait for something to happen: Lock and Campaign.
    pub streams: u64,
    pub watches: u64,
    /// Calls under way that are none of these.
    pub concurrent_requests: u64,
    pub rates: Rates,
    /// The largest request and the largest answer, in bytes.
    pub request_bytes: u64,
    pub answer_bytes: u64,
    /// What may be stored under the prefix.
    pub keys: u64,
    pub stored_bytes: u64,
    pub connection: ConnectionLimits,
}

/// The limits of each connection of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionLimits {
    pub watches: u64,
    pub rates: Rates,
}

/// What may happen in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub requests: u64,
    /// Requests that may come at once after a time without any; zero is as many as in a second.
    pub request_burst: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// Which limit was met: the name under which it is counted and explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Connections,
    Streams,
    Watches,
    ConcurrentRequests,
    RequestRate,
    RequestBytes,
    AnswerBytes,
    Keys,
    StoredBytes,
    /// No turn at etcd came in time.
    Upstream,
    /// The proxy holds too many large answers already.
    Memory,
}

impl Limit {
    pub const ALL: [Self; 11] = [
        Self::Connections,
        Self::Streams,
        Self::Watches,
        Self::ConcurrentRequests,
        Self::RequestRate,
        Self::RequestBytes,
        Self::AnswerBytes,
        Self::Keys,
        Self::StoredBytes,
        Self::Upstream,
        Self::Memory,
    ];

    /// As metrics have it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Streams => "streams",
            Self::Watches => "watches",
            Self::ConcurrentRequests => "concurrent_requests",
            Self::RequestRate => "requests_per_second",
            Self::RequestBytes => "request_bytes",
            Self::AnswerBytes => "answer_bytes",
            Self::Keys => "keys",
            Self::StoredBytes => "stored_bytes",
            Self::Upstream => "upstream_requests",
            Self::Memory => "answer_memory",
        }
    }
}

/// A limit that was met, and after how long another try may go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub limit: Limit,
    pub wait: Duration,
}

/// What is let go only when somebody else ends something: nobody knows when, so this long is worth waiting.
pub const WAIT_FOR_OTHERS: Duration = Duration::from_secs(1);
/// What is let go only when somebody deletes something.
pub const WAIT_FOR_ROOM: Duration = Duration::from_secs(10);

impl Exceeded {
    pub fn of(limit: Limit) -> Self {
        let wait = match limit {
            Limit::Keys | Limit::StoredBytes => WAIT_FOR_ROOM,
            _ => WAIT_FOR_OTHERS,
        };
        Self { limit, wait }
    }
}

/// What one tenant uses.
#[derive(Debug)]
pub struct Usage {
    pub limits: Limits,
    pub connections: Counter,
    pub streams: Counter,
    pub watches: Counter,
    pub concurrent_requests: Counter,
    pub flow: Flow,
    pub stored: Stored,
    /// Bytes of large answers that are held for it.
    pub held: AtomicUsize,
    /// Lines of the audit log that wait to be written.
    pub audit_lines: AtomicUsize,
    refused: [Refused; Limit::ALL.len()],
}

/// What was refused for one limit.
#[derive(Debug, Default)]
struct Refused {
    count: AtomicU64,
    /// When the last of them was, in milliseconds of the clock that is the callers'.
    last: AtomicU64,
}

impl Usage {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: Counter::new(limits.connections),
            streams: Counter::new(limits.streams),
            watches: Counter::new(limits.watches),
            concurrent_requests: Counter::new(limits.concurrent_requests),
            flow: Flow::new(&limits.rates),
            stored: Stored::default(),
            held: AtomicUsize::new(0),
            audit_lines: AtomicUsize::new(0),
            refused: Default::default(),
        }
    }

    /// Counts a refusal of `now`, and says it again.
    pub fn refused(&self, exceeded: Exceeded, now: Duration) -> Exceeded {
        let refused = &self.refused[exceeded.limit as usize];
        refused.last.fetch_max(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
        refused.count.fetch_add(1, Relaxed);
        exceeded
    }

    /// How often something was refused.
    pub fn refusals(&self, limit: Limit) -> u64 {
        self.refused[limit as usize].count.load(Relaxed)
    }

    /// When that was for the last time.
    pub fn last_refusal(&self, limit: Limit) -> Option<Duration> {
        let refused = &self.refused[limit as usize];
        (refused.count.load(Relaxed) > 0).then(|| Duration::from_millis(refused.last.load(Relaxed)))
    }

    /// What is in use of what has a limit.
    pub fn used(&self) -> Vec<(Limit, u64)> {
        let limits = &self.limits;
        let stored = |count: &AtomicI64| u64::try_from(count.load(Relaxed)).unwrap_or(0);
        [
            (Limit::Connections, limits.connections, self.connections.used()),
            (Limit::Streams, limits.streams, self.streams.used()),
            (Limit::Watches, limits.watches, self.watches.used()),
            (Limit::ConcurrentRequests, limits.concurrent_requests, self.concurrent_requests.used()),
            (Limit::Keys, limits.keys, stored(&self.stored.keys)),
            (Limit::StoredBytes, limits.stored_bytes, stored(&self.stored.bytes)),
        ]
        .into_iter()
        .filter(|(_, limit, _)| *limit > 0)
        .map(|(limit, _, used)| (limit, used))
        .collect()
    }

    /// Whether a write may come that stores something.
    pub fn has_room(&self, now: Duration) -> Result<(), Exceeded> {
        if !self.stored.is_known.load(Relaxed) {
            return Ok(());
        }
        let is_full = |limit: u64, count: &AtomicI64| {
            limit > 0 && u64::try_from(count.load(Relaxed)).is_ok_and(|count| count >= limit)
        };
        if is_full(self.limits.keys, &self.stored.keys) {
            return Err(self.refused(Exceeded::of(Limit::Keys), now));
        }
        if is_full(self.limits.stored_bytes, &self.stored.bytes) {
            return Err(self.refused(Exceeded::of(Limit::StoredBytes), now));
        }
        Ok(())
    }

    pub fn has_quota(&self) -> bool {
        self.limits.keys > 0 || self.limits.stored_bytes > 0
    }
}

/// What stands under a tenant's prefix, as far as it has been told.
#[derive(Debug, Default)]
pub struct Stored {
    pub keys: AtomicI64,
    pub bytes: AtomicI64,
    /// Whether it has been counted at all.
    pub is_known: AtomicBool,
}

/// What flows over a connection, or over all of a tenant's.
#[derive(Debug)]
pub struct Flow {
    pub requests: Option<Bucket>,
    pub received: Option<Bucket>,
    pub sent: Option<Bucket>,
}

impl Flow {
    pub fn new(rates: &Rates) -> Self {
        Self {
            requests: Bucket::new(rates.requests, rates.request_burst),
            received: Bucket::new(rates.received_bytes, 0),
            sent: Bucket::new(rates.sent_bytes, 0),
        }
    }

    pub fn is_limited(&self) -> bool {
        self.requests.is_some() || self.received.is_some() || self.sent.is_some()
    }
}

/// Things of which only so many may be there at a time.
#[derive(Debug)]
pub struct Counter {
    limit: u64,
    used: AtomicU64,
}

impl Counter {
    pub fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    pub fn is_limited(&self) -> bool {
        self.limit > 0
    }

    /// Takes one, if there is one left. What was taken must be given back.
    pub fn take(&self) -> bool {
        if self.limit == 0 {
            return true;
        }
        if self.used.fetch_add(1, Relaxed) < self.limit {
            return true;
        }
        self.used.fetch_sub(1, Relaxed);
        false
    }

    pub fn give_back(&self) {
        if self.limit > 0 {
            self.used.fetch_sub(1, Relaxed);
        }
    }

    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Whether nothing is left now.
    pub fn is_full(&self) -> bool {
        self.limit > 0 && self.used() >= self.limit
    }
}

/// So much of something in a second, with a burst: the time at which all that was taken would have been earned one by
/// one, in nanoseconds, which is one number that threads can share.
#[derive(Debug)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    earned_at: AtomicU64,
}

const SECOND: u128 = 1_000_000_000;

impl Bucket {
    /// None for what has no limit. A burst of zero is what a second earns.
    pub fn new(per_second: u64, burst: u64) -> Option<Self> {
        let burst = if burst == 0 { per_second } else { burst };
        (per_second > 0).then(|| Self { per_second, burst, earned_at: AtomicU64::new(0) })
    }

    fn nanoseconds(&self, amount: u64) -> u64 {
        u64::try_from(u128::from(amount) * SECOND / u128::from(self.per_second)).unwrap_or(u64::MAX)
    }

    /// Takes an amount at a time, if that is earned; else says after how long it will be.
    pub fn take(&self, amount: u64, now: Duration) -> Result<(), Duration> {
        let (now, cost, burst) = (nanoseconds(now), self.nanoseconds(amount), self.nanoseconds(self.burst));
        let mut earned_at = self.earned_at.load(Relaxed);
        loop {
            let next = earned_at.max(now).saturating_add(cost);
            // What is larger than the burst could never be taken, so it is when nothing else was.
            let most = now.saturating_add(burst.max(cost));
            if next > most {
                return Err(Duration::from_nanos(next - most));
            }
            match self.earned_at.compare_exchange_weak(earned_at, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => earned_at = other,
            }
        }
    }

    /// Takes an amount whether it is earned or not, and says how long to wait before more is taken.
    pub fn charge(&self, amount: u64, now: Duration) -> Duration {
        let cost = self.nanoseconds(amount);
        let instant = nanoseconds(now);
        let charged = |earned_at: u64| Some(earned_at.max(instant).saturating_add(cost));
        // The closure always gives a value, so there is no failure.
        let _ = self.earned_at.fetch_update(Relaxed, Relaxed, charged);
        self.debt(now)
    }

    /// How long to wait until what was taken is earned.
    pub fn debt(&self, now: Duration) -> Duration {
        let most = nanoseconds(now).saturating_add(self.nanoseconds(self.burst));
        Duration::from_nanos(self.earned_at.load(Relaxed).saturating_sub(most))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_is_let_through_and_then_what_is_earned() {
        let bucket = Bucket::new(10, 5).expect("a limit");
        let mut now = Duration::from_secs(100);
        for _ in 0..5 {
            assert_eq!(bucket.take(1, now), Ok(()));
        }
        assert_eq!(bucket.take(1, now), Err(Duration::from_millis(100)));
        now += Duration::from_millis(99);
        assert_eq!(bucket.take(1, now), Err(MILLISECOND));
        now += MILLISECOND;
        assert_eq!(bucket.take(1, now), Ok(()));
        assert!(bucket.take(1, now).is_err());
        now += Duration::from_secs(1000);
        assert_eq!((0..100).filter(|_| bucket.take(1, now).is_ok()).count(), 5, "no more than the burst is saved up");
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_alone() {
        let bucket = Bucket::new(10, 5).expect("a limit");
        let now = Duration::from_secs(100);
        assert_eq!(bucket.take(50, now), Ok(()));
        assert!(bucket.take(1, now + Duration::from_secs(4)).is_err());
        assert_eq!(bucket.take(1, now + Duration::from_secs(5)), Ok(()));
    }

    #[test]
    fn what_is_charged_beyond_the_burst_is_waited_for() {
        let bucket = Bucket::new(1000, 0).expect("a limit");
        let now = Duration::from_secs(100);
        assert_eq!(bucket.charge(1000, now), Duration::ZERO);
        assert_eq!(bucket.charge(500, now), Duration::from_millis(500));
        assert_eq!(bucket.debt(now + Duration::from_millis(400)), Duration::from_millis(100));
        assert_eq!(bucket.debt(now + Duration::from_millis(600)), Duration::ZERO);
        assert!(Bucket::new(0, 5).is_none());
    }

    #[test]
    fn what_is_taken_is_taken_until_it_is_given_back() {
        let counter = Counter::new(2);
        assert!(counter.take() && !counter.is_full() && counter.take() && counter.is_full());
        assert!(!counter.take() && !counter.take());
        counter.give_back();
        assert!(counter.take() && !counter.take());
        let unlimited = Counter::new(0);
        assert!((0..100).all(|_| unlimited.take()) && unlimited.used() == 0 && !unlimited.is_full());
    }

    #[test]
    fn refusals_are_counted_by_what_was_exceeded() {
        let usage = Usage::new(Limits { keys: 2, ..Limits::default() });
        let now = Duration::from_secs(7);
        assert_eq!(usage.has_room(now), Ok(()), "nothing is refused before it is counted");
        usage.stored.keys.store(2, Relaxed);
        usage.stored.is_known.store(true, Relaxed);
        assert_eq!(usage.has_room(now).expect_err("it is full").limit, Limit::Keys);
        assert_eq!((usage.refusals(Limit::Keys), usage.refusals(Limit::StoredBytes)), (1, 0));
        assert_eq!((usage.last_refusal(Limit::Keys), usage.last_refusal(Limit::StoredBytes)), (Some(now), None));
        assert_eq!(usage.used(), [(Limit::Keys, 2)]);
        for (index, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, index, "{}", limit.label());
        }
    }

    proptest! {
        #[test]
        fn no_more_is_taken_than_the_burst_and_what_was_earned(
            per_second in 1_u64..5000,
            burst in 1_u64..500,
            steps in prop::collection::vec((0_u64..20, 1_u64..5), 1..500),
        ) {
            let bucket = Bucket::new(per_second, burst).expect("a limit");
            let start = Duration::from_secs(1000);
            let (mut now, mut taken) = (start, 0);
            for (wait, amount) in steps {
                now += MILLISECOND * u32::try_from(wait).expect("a small number");
                if bucket.take(amount, now).is_ok() {
                    taken += amount;
                }
            }
            let earned = (now - start).as_nanos() * u128::from(per_second) / SECOND;
            // Each piece's price is rounded down to a nanosecond, and one piece may be larger than the burst.
            prop_assert!(u128::from(taken) <= earned + u128::from(burst) + 5, "{taken} of {earned}");
        }
    }
}
