//! How much a client may ask of us besides calls: grpc-go's rule for pings, and an allowance for all frames that cost
//! work and carry nothing. Pure: the clock is an argument.

use std::time::{Duration, Instant};

use crate::exchange::frames::{Head, kind};

/// Pings that may come too early before the connection is closed, as in grpc-go.
const MAX_PING_STRIKES: u32 = 2;
/// The least time between pings while no call is open, as in grpc-go.
const MIN_TIME_WITHOUT_CALLS: Duration = Duration::from_secs(2 * 3600);
/// What grpc-go takes for `--grpc-keepalive-min-time=0`.
const DEFAULT_MIN_TIME: Duration = Duration::from_secs(5 * 60);

/// What a client may spend at once on frames that carry nothing. A Go client that ends a context with ten thousand
/// open streams spends half of it.
const ALLOWANCE: u32 = 100_000;
/// What comes back in a second. Answering these many bare frames keeps a core busy for some milliseconds.
const EARNED_PER_SECOND: u32 = 10_000;
/// What each frame of an answer gives back: a client may acknowledge it with a ping and with two window updates, and
/// one with a tiny window must.
const EARNED_PER_ANSWER: u32 = 4;

/// SETTINGS make h2 visit every open stream.
const SETTINGS_COST: u32 = 100;
/// A reset stream was begun, routed, perhaps sent to etcd, and all of that is for nothing.
const RESET_COST: u32 = 5;

/// Why a client is sent away; the text is the debug data of the GOAWAY, and the first is one that gRPC clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    TooManyPings,
    TooManyFrames,
}

impl Excess {
    pub fn debug_data(self) -> &'static str {
        match self {
            Self::TooManyPings => "too_many_pings",
            Self::TooManyFrames => "too_many_frames",
        }
    }
}

#[derive(Debug)]
pub struct Pace {
    min_time: Duration,
    last_ping: Option<Instant>,
    strikes: u32,
    /// Whether an answer has been written since the last ping, which forgives it.
    answered: bool,
    allowance: u32,
    refilled: Instant,
}

impl Pace {
    /// `min_time` is the shortest time between two pings of a client with open calls; zero is gRPC's default.
    pub fn new(min_time: Duration, now: Instant) -> Self {
        let min_time = if min_time.is_zero() { DEFAULT_MIN_TIME } else { min_time };
        Self { min_time, last_ping: None, strikes: 0, answered: false, allowance: ALLOWANCE, refilled: now }
    }

    /// Notes a frame that the client has sent, while it has that many calls open.
    pub fn received(&mut self, head: Head, open_calls: usize, now: Instant) -> Result<(), Excess> {
        if head.kind == kind::PING && !head.is_ack() {
            self.ping(open_calls, now)?;
        }
        let cost = match head.kind {
            kind::DATA if head.len > 0 || head.ends_stream() => 0,
            // A call costs more than its frames; `--max-concurrent-streams` bounds how many there are.
            kind::HEADERS => 0,
            kind::SETTINGS if !head.is_ack() => SETTINGS_COST,
            kind::RST_STREAM => RESET_COST,
            _ => 1,
        };
        self.spend(cost, now)
    }

    /// Notes a frame that is on its way to the client.
    pub fn sent(&mut self, head: Head, now: Instant) -> Result<(), Excess> {
        match head.kind {
            kind::DATA | kind::HEADERS => {
                self.answered = true;
                self.allowance = self.allowance.saturating_add(EARNED_PER_ANSWER).min(ALLOWANCE);
                Ok(())
            }
            // A client can make us reset its streams by sending nonsense on them.
            kind::RST_STREAM => self.spend(RESET_COST, now),
            _ => Ok(()),
        }
    }

    /// grpc-go's `handlePing`.
    fn ping(&mut self, open_calls: usize, now: Instant) -> Result<(), Excess> {
        let last = self.last_ping.replace(now);
        if std::mem::take(&mut self.answered) {
            self.strikes = 0;
            return Ok(());
        }
        let min_time = if open_calls == 0 { MIN_TIME_WITHOUT_CALLS } else { self.min_time };
        if last.is_some_and(|last| now.saturating_duration_since(last) < min_time) {
            self.strikes += 1;
        }
        if self.strikes > MAX_PING_STRIKES { Err(Excess::TooManyPings) } else { Ok(()) }
    }

    fn spend(&mut self, cost: u32, now: Instant) -> Result<(), Excess> {
        if let Some(left) = self.allowance.checked_sub(cost) {
            self.allowance = left;
            return Ok(());
        }
        // The clock is asked for what it owes only when it matters.
        let elapsed = now.saturating_duration_since(self.refilled).as_micros();
        let earned = elapsed.saturating_mul(u128::from(EARNED_PER_SECOND)) / 1_000_000;
        if earned > 0 {
            self.refilled = now;
        }
        let earned = u32::try_from(earned).unwrap_or(ALLOWANCE);
        self.allowance = self.allowance.saturating_add(earned).min(ALLOWANCE);
        self.allowance = self.allowance.checked_sub(cost).ok_or(Excess::TooManyFrames)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIN_TIME: Duration = Duration::from_secs(5);
    const SECOND: Duration = Duration::from_secs(1);

    fn frame(kind: u8, len: u32) -> Head {
        Head { len, kind, flags: 0, stream: 1 }
    }

    const PING: Head = Head { len: 8, kind: kind::PING, flags: 0, stream: 0 };
    const RESET: Head = Head { len: 4, kind: kind::RST_STREAM, flags: 0, stream: 1 };

    /// Pings every `interval` with `calls` open until it is refused, and says how many were taken.
    fn pings_taken(pace: &mut Pace, start: Instant, interval: Duration, calls: usize, most: u32) -> u32 {
        let mut now = start;
        for taken in 0..most {
            if pace.received(PING, calls, now).is_err() {
                return taken;
            }
            now += interval;
        }
        most
    }

    #[test]
    fn the_third_ping_that_comes_too_early_is_one_too_many() {
        let now = Instant::now();
        assert_eq!(pings_taken(&mut Pace::new(MIN_TIME, now), now, SECOND, 1, 100), 3);
        assert_eq!(pings_taken(&mut Pace::new(MIN_TIME, now), now, MIN_TIME, 1, 100), 100);
        let error = (0..4).find_map(|_| Pace::new(MIN_TIME, now).received(PING, 1, now).err());
        assert_eq!(error, None, "each pace counts for itself");
    }

    #[test]
    fn without_calls_a_client_may_ping_every_two_hours_only() {
        let now = Instant::now();
        assert_eq!(pings_taken(&mut Pace::new(MIN_TIME, now), now, Duration::from_secs(3600), 0, 100), 3);
        assert_eq!(pings_taken(&mut Pace::new(MIN_TIME, now), now, MIN_TIME_WITHOUT_CALLS, 0, 100), 100);
    }

    #[test]
    fn zero_is_grpcs_own_limit_of_five_minutes() {
        let now = Instant::now();
        assert_eq!(pings_taken(&mut Pace::new(Duration::ZERO, now), now, Duration::from_secs(299), 1, 100), 3);
        assert_eq!(pings_taken(&mut Pace::new(Duration::ZERO, now), now, DEFAULT_MIN_TIME, 1, 100), 100);
    }

    #[test]
    fn an_answer_forgives_the_pings_before_it() {
        let now = Instant::now();
        let mut pace = Pace::new(MIN_TIME, now);
        for _ in 0..100_000 {
            assert_eq!(pace.received(PING, 1, now), Ok(()));
            assert_eq!(pace.sent(frame(kind::DATA, 10), now), Ok(()));
        }
    }

    #[test]
    fn an_acknowledged_ping_is_no_ping() {
        let now = Instant::now();
        let mut pace = Pace::new(MIN_TIME, now);
        for _ in 0..1000 {
            assert_eq!(pace.received(Head { flags: 1, ..PING }, 0, now), Ok(()));
        }
    }

    #[test]
    fn ten_thousand_streams_may_be_cancelled_at_once_but_not_for_ever() {
        let now = Instant::now();
        let mut pace = Pace::new(MIN_TIME, now);
        for number in 0..10_000 {
            assert_eq!(pace.received(RESET, 0, now), Ok(()), "reset {number}");
        }
        let refused = (0..20_000).find_map(|_| pace.received(RESET, 0, now).err());
        assert_eq!(refused, Some(Excess::TooManyFrames));
    }

    #[test]
    fn a_thousand_cancelled_streams_a_second_go_on_for_ever() {
        let start = Instant::now();
        let mut pace = Pace::new(MIN_TIME, start);
        for number in 0..200_000_u32 {
            let now = start + Duration::from_micros(u64::from(number) * 1000);
            assert_eq!(pace.received(RESET, 0, now), Ok(()), "reset {number}");
        }
    }

    #[test]
    fn a_reader_with_a_tiny_window_may_update_it_for_every_byte() {
        let now = Instant::now();
        let mut pace = Pace::new(MIN_TIME, now);
        for _ in 0..1_000_000 {
            assert_eq!(pace.sent(frame(kind::DATA, 1), now), Ok(()));
            assert_eq!(pace.received(frame(8, 4), 1, now), Ok(()));
            assert_eq!(pace.received(frame(8, 4), 1, now), Ok(()));
        }
    }

    #[test]
    fn frames_that_carry_messages_are_free() {
        let now = Instant::now();
        let mut pace = Pace::new(MIN_TIME, now);
        for _ in 0..1_000_000 {
            assert_eq!(pace.received(frame(kind::HEADERS, 100), 1, now), Ok(()));
            assert_eq!(pace.received(frame(kind::DATA, 7), 1, now), Ok(()));
            assert_eq!(pace.received(Head { flags: 1, ..frame(kind::DATA, 0) }, 1, now), Ok(()));
        }
    }

    #[test]
    fn floods_of_frames_that_carry_nothing_are_refused() {
        let now = Instant::now();
        let floods = [
            frame(kind::DATA, 0),
            frame(2, 5),
            frame(kind::SETTINGS, 6),
            frame(8, 4),
            RESET,
            frame(9, 0),
            frame(200, 0),
        ];
        for flood in floods {
            let mut pace = Pace::new(MIN_TIME, now);
            let refused = (0..=ALLOWANCE).find_map(|_| pace.received(flood, 1, now).err());
            assert_eq!(refused, Some(Excess::TooManyFrames), "{flood:?}");
        }
    }

    proptest! {
        #[test]
        fn no_more_is_spent_than_was_allowed_and_earned(steps in prop::collection::vec((0_u8..12, 0_u64..50), 1..2000)) {
            let start = Instant::now();
            let mut now = start;
            let mut pace = Pace::new(MIN_TIME, start);
            let mut spent = 0_u64;
            for (kind, wait) in steps {
                now += Duration::from_millis(wait);
                for _ in 0..100 {
                    if kind != kind::PING && pace.received(frame(kind, 0), 1, now).is_ok() {
                        spent += match kind {
                            kind::HEADERS => 0,
                            kind::SETTINGS => u64::from(SETTINGS_COST),
                            kind::RST_STREAM => u64::from(RESET_COST),
                            _ => 1,
                        };
                    }
                }
            }
            let elapsed = u64::try_from((now - start).as_millis()).expect("a test is short");
            prop_assert!(spent <= u64::from(ALLOWANCE) + elapsed * u64::from(EARNED_PER_SECOND) / 1000);
        }
    }
}
