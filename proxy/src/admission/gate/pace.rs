//! How many calls may be under way at etcd at a time, so that etcd answers nearly as soon as it does when it has little
//! to do. Values in, values out: the time is an argument.
//!
//! The idea is that of TCP Vegas and of Envoy's adaptive concurrency: more calls at a time make each of them slower long
//! before etcd does no more work for it, and how much slower is all that one needs to know. What "quiet" is differs by
//! etcd, by disk, by tenant and by kind of call, so it is measured: now and then hardly anything is let through for a
//! moment, and what calls take then is quiet. Times are compared as ratios and averaged as logarithms, so that neither one
//! call that met a slow disk nor a tenant whose reads are a thousand times as large decides for all.

use std::time::Duration;

/// Calls under way of which one more does not feel the others; so few are let through to learn what quiet is.
pub const QUIET: usize = 2;
/// There is always room for so many, whatever etcd takes: two tenants with two each, so that one's slow call does not
/// hold up its next one.
pub const LEAST: usize = 4;
/// Where it begins, before anything is known.
const FIRST: f64 = 16.0;
/// How often it is judged, and from how many calls on. A tenth of a second is some tens of calls at a slow etcd.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOW_CALLS: u32 = 10;
/// No window makes it less than half, as in most such controls: one bad moment shall not stop everything.
const LEAST_FACTOR: f64 = 0.5;
/// How old knowledge of quiet may be, and how often at most it is looked for: etcd's disk and neighbours change.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long a look takes at most, and after how many calls it has seen enough: a fortieth of the time at most.
const LOOK_TIME: Duration = Duration::from_millis(250);
const LOOK_CALLS: u32 = 20;
/// Of how many calls what is quiet remembers the average: less than a look brings, so that two looks are enough to believe
/// that etcd is another.
const REMEMBERED: u32 = 16;

/// What one tenant's calls of one kind take while etcd has little to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet {
    /// The logarithm of seconds.
    average: f64,
    calls: u32,
    learnt_at: Duration,
}

#[derive(Debug)]
pub struct Pace {
    most: usize,
    /// How much of its quiet time a call may take; none is no control.
    tolerance: Option<f64>,
    limit: f64,
    window: Window,
    look: Option<Look>,
    looked_at: Option<Duration>,
}

#[derive(Debug, Default)]
struct Window {
    since: Duration,
    calls: u32,
    /// The sum of logarithms of how many times its quiet time each call took.
    slowness: f64,
    /// The most calls that one of these was begun among.
    among: usize,
}

#[derive(Debug)]
struct Look {
    since: Duration,
    calls: u32,
}

impl Pace {
    /// At most so many, and calls may take so much of their quiet time (2.0 is twice as long).
    pub fn new(most: usize, tolerance: Option<f64>) -> Self {
        let limit = FIRST.min(most as f64);
        Self { most, tolerance, limit, window: Window::default(), look: None, looked_at: None }
    }

    /// However slow etcd becomes by it.
    pub fn most(&self) -> usize {
        self.most
    }

    pub fn limit(&self) -> usize {
        match (self.tolerance, &self.look) {
            (None, _) => self.most,
            (Some(_), Some(_)) => QUIET.min(self.most),
            (Some(_), None) => self.limit as usize,
        }
    }

    /// Takes note of a call that took so long and was begun among so many, itself counted.
    pub fn note(&mut self, quiet: &mut Quiet, took: Duration, among: usize, now: Duration) {
        let Some(tolerance) = self.tolerance else { return };
        let took = took.as_secs_f64().max(1e-6).ln();
        if among <= QUIET {
            quiet.learn(took, now);
            if let Some(look) = &mut self.look {
                look.calls += 1;
            }
        }
        if let Some(look) = &self.look {
            if look.calls >= LOOK_CALLS || now.saturating_sub(look.since) >= LOOK_TIME {
                self.look = None;
                self.window = Window { since: now, ..Window::default() };
            }
            return;
        }
        if quiet.calls > 0 {
            self.window.calls += 1;
            self.window.slowness += took - quiet.average;
            self.window.among = self.window.among.max(among);
        }
        let is_old = quiet.calls == 0 || now.saturating_sub(quiet.learnt_at) >= LOOK_AGAIN;
        if is_old && self.looked_at.is_none_or(|at| now.saturating_sub(at) >= LOOK_AGAIN) {
            self.look = Some(Look { since: now, calls: 0 });
            self.looked_at = Some(now);
            return;
        }
        if self.window.calls >= WINDOW_CALLS && now.saturating_sub(self.window.since) >= WINDOW {
            self.judge(tolerance);
            self.window = Window { since: now, ..Window::default() };
        }
    }

    fn judge(&mut self, tolerance: f64) {
        let slowness = (self.window.slowness / f64::from(self.window.calls)).exp();
        let factor = (tolerance / slowness).clamp(LEAST_FACTOR, 1.0);
        // What is not made use of is not made more: nobody knows how etcd would bear it.
        let more = if self.window.among * 2 >= self.limit as usize { self.limit.sqrt() / 2.0 } else { 0.0 };
        let least = LEAST.min(self.most) as f64;
        self.limit = (self.limit * factor + more).clamp(least, self.most as f64);
    }
}

impl Quiet {
    fn learn(&mut self, took: f64, now: Duration) {
        self.calls = (self.calls + 1).min(REMEMBERED);
        self.average += (took - self.average) / f64::from(self.calls);
        self.learnt_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An etcd of the test's own, and what is known of it.
    struct Play {
        pace: Pace,
        quiet: Quiet,
        now: Duration,
    }

    impl Play {
        fn new(most: usize, tolerance: Option<f64>) -> Self {
            Self { pace: Pace::new(most, tolerance), quiet: Quiet::default(), now: Duration::ZERO }
        }

        /// So many calls, each begun among as many as are let through, that take what the etcd of the test says.
        fn run(&mut self, calls: u32, takes: impl Fn(usize) -> Duration) -> Vec<usize> {
            let limits = (0..calls).map(|_| {
                let among = self.pace.limit();
                let took = takes(among);
                self.now += took / u32::try_from(among).expect("few");
                self.pace.note(&mut self.quiet, took, among, self.now);
                self.pace.limit()
            });
            limits.collect()
        }
    }

    #[test]
    fn it_lets_through_what_etcd_bears_and_no_more() {
        let mut play = Play::new(128, Some(1.5));
        // It answers ten at a time as soon as one, and then each makes all slower.
        let limits = play.run(20_000, |among| Duration::from_micros(1000 * among.max(10) as u64 / 10));
        let last: Vec<_> = limits[10_000..].iter().filter(|limit| **limit != QUIET).collect();
        assert!(last.iter().all(|limit| (12..=20).contains(*limit)), "{:?}", last.iter().max());
    }

    #[test]
    fn an_etcd_that_does_not_grow_slower_gets_all() {
        let limits = Play::new(128, Some(1.5)).run(200_000, |_| Duration::from_millis(1));
        assert_eq!(limits.iter().max(), Some(&128));
    }

    #[test]
    fn an_etcd_that_becomes_slower_by_itself_is_not_taken_for_a_busy_one_for_long() {
        let mut play = Play::new(128, Some(1.5));
        play.run(200_000, |_| Duration::from_millis(1));
        let limits = play.run(300_000, |_| Duration::from_millis(5));
        assert!(limits.contains(&LEAST), "at first it is");
        assert!(limits[200_000..].contains(&128));
    }

    #[test]
    fn without_control_it_is_what_it_is() {
        let limits = Play::new(7, None).run(1000, |among| Duration::from_millis(among as u64));
        assert!(limits.iter().all(|limit| *limit == 7));
        assert_eq!(Pace::new(1, Some(1.5)).limit(), 1);
    }
}
