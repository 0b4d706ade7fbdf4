//! Calls to one endpoint, by method: how long its answers took and how they failed.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tonic::Code;

use super::{
    CODES, code_name,
    family::{Series, Value},
};
use crate::rules::methods::{METHODS, Method};

/// How a call to etcd ended without an answer.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// No byte of it reached etcd.
    Unsent,
    /// It may have been carried out.
    Broken,
}

impl Failure {
    const ALL: [Failure; 2] = [Failure::Unsent, Failure::Broken];

    fn label(self) -> &'static str {
        match self {
            Self::Unsent => "unsent",
            Self::Broken => "broken",
        }
    }
}

/// All calls to one endpoint together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub answered: u64,
    /// Of those, the ones that were nothing but an error.
    pub errors: u64,
    /// Without an answer.
    pub failures: u64,
    /// From sending until answers began.
    pub seconds: f64,
}

/// What one endpoint has answered, by method in the order of [`METHODS`].
#[derive(Debug)]
pub struct EndpointCalls {
    name: String,
    rows: Box<[Row]>,
}

#[derive(Debug, Default)]
struct Row {
    answered: Latencies,
    errors: [AtomicU64; CODES.len()],
    failures: [AtomicU64; Failure::ALL.len()],
}

/// A fast member answers on loopback within 0.1 ms, and after 6.5 s etcd's own request timeout is near; between
/// them each bound is twice the one before.
const FIRST_BOUND: Duration = Duration::from_micros(100);
const BOUNDS: usize = 17;

#[derive(Debug, Default)]
struct Latencies {
    /// The last counts what is beyond all bounds.
    buckets: [AtomicU64; BOUNDS + 1],
    nanoseconds: AtomicU64,
}

impl EndpointCalls {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rows: METHODS.iter().map(|_| Row::default()).collect() }
    }

    /// Counts an answer that has begun after `elapsed`; `error` if it is nothing but an error.
    pub fn answered(&self, method: &Method, error: Option<Code>, elapsed: Duration) {
        let row = &self.rows[method.index()];
        row.answered.observe(elapsed);
        if let Some(code) = error.filter(|code| *code != Code::Ok) {
            row.errors[code as usize].fetch_add(1, Relaxed);
        }
    }

    pub fn failed(&self, method: &Method, failure: Failure) {
        self.rows[method.index()].failures[failure as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let sum = |counts: &[AtomicU64]| counts.iter().map(|count| count.load(Relaxed)).sum::<u64>();
        for row in &self.rows {
            totals.answered += sum(&row.answered.buckets);
            totals.errors += sum(&row.errors);
            totals.failures += sum(&row.failures);
            totals.seconds += Duration::from_nanos(row.answered.nanoseconds.load(Relaxed)).as_secs_f64();
        }
        totals
    }

    pub(super) fn seconds(&self) -> Vec<Series> {
        let used = METHODS.iter().zip(&self.rows).filter_map(|(method, row)| Some((method, row.answered.value()?)));
        used.map(|(method, value)| Series { labels: self.labels([method.name(), method.service()]), value }).collect()
    }

    pub(super) fn errors(&self) -> Vec<Series> {
        self.counted(|row| &row.errors, |method, index| [code_name(CODES[index]), method.name(), method.service()])
    }

    pub(super) fn failures(&self) -> Vec<Series> {
        self.counted(
            |row| &row.failures,
            |method, index| [method.name(), method.service(), Failure::ALL[index].label()],
        )
    }

    /// A series for each count above zero.
    fn counted<const N: usize, const L: usize>(
        &self,
        counts: impl Fn(&Row) -> &[AtomicU64; N],
        labels: impl Fn(&Method, usize) -> [&'static str; L],
    ) -> Vec<Series> {
        let mut series = Vec::new();
        for (method, row) in METHODS.iter().zip(&self.rows) {
            for (index, count) in counts(row).iter().enumerate() {
                let count = count.load(Relaxed);
                if count > 0 {
                    series.push(Series {
                        labels: self.labels(labels(method, index)),
                        value: Value::Number(count as f64),
                    });
                }
            }
        }
        series
    }

    fn labels<const L: usize>(&self, others: [&'static str; L]) -> Vec<String> {
        std::iter::once(self.name.as_str()).chain(others).map(str::to_owned).collect()
    }
}

impl Latencies {
    fn observe(&self, elapsed: Duration) {
        self.buckets[bucket(elapsed)].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn value(&self) -> Option<Value> {
        let mut total = 0;
        let mut buckets = Vec::with_capacity(BOUNDS + 1);
        for (index, count) in self.buckets.iter().enumerate() {
            total += count.load(Relaxed);
            buckets.push((bound(index), total));
        }
        let sum = Duration::from_nanos(self.nanoseconds.load(Relaxed)).as_secs_f64();
        (total > 0).then_some(Value::Histogram { buckets, sum })
    }
}

fn bound(index: usize) -> f64 {
    if index == BOUNDS { f64::INFINITY } else { FIRST_BOUND.as_secs_f64() * f64::from(1_u32 << index) }
}

/// The first bucket whose bound is not below `elapsed`.
fn bucket(elapsed: Duration) -> usize {
    let steps = elapsed.as_nanos().div_ceil(FIRST_BOUND.as_nanos()).max(1);
    (u128::BITS - (steps - 1).leading_zeros()).min(BOUNDS as u32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::methods;

    #[test]
    fn a_time_falls_into_the_first_bucket_that_holds_it() {
        for micros in [0, 1, 99, 100, 101, 200, 201, 400, 401, 6_553_600, 6_553_601, 3_600_000_000] {
            let elapsed = Duration::from_micros(micros);
            let expected =
                (0..=BOUNDS).position(|index| elapsed.as_secs_f64() <= bound(index)).expect("infinity holds all");
            assert_eq!(bucket(elapsed), expected, "{micros} us");
        }
    }

    #[test]
    fn only_what_happened_has_a_series() {
        let calls = EndpointCalls::new("a:1");
        let range = methods::find("/etcdserverpb.KV/Range").expect("a row");
        assert!(calls.seconds().is_empty() && calls.errors().is_empty() && calls.failures().is_empty());
        calls.answered(range, None, Duration::from_millis(3));
        calls.answered(range, Some(Code::Unavailable), Duration::from_millis(5));
        calls.failed(range, Failure::Broken);
        let labels = |series: Vec<Series>| series.into_iter().map(|series| series.labels).collect::<Vec<_>>();
        assert_eq!(labels(calls.errors()), [["a:1", "Unavailable", "Range", "etcdserverpb.KV"]]);
        assert_eq!(labels(calls.failures()), [["a:1", "Range", "etcdserverpb.KV", "broken"]]);
        let [Series { value: Value::Histogram { buckets, sum }, .. }] = &calls.seconds()[..] else {
            panic!("one histogram is expected");
        };
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 2)));
        assert!((sum - 0.008).abs() < 1e-9, "{sum}");
    }
}
