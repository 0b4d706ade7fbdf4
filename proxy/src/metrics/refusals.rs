//! What the proxy itself has refused: counted by tenant and reason, and the last ones in words for the status page.
//!
//! Refusals are rare, or someone's mistake or attack; then one lock for a few lines is the least of what they cost.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use prometheus::proto::MetricFamily;

use super::family::{self, Series, Value};

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The client did not come through the handshake.
    Handshake,
    /// There are as many connections as there may be.
    Connections,
    /// The tenant may not make this call.
    Policy,
}

impl Reason {
    pub fn label(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Connections => "connections",
            Self::Policy => "policy",
        }
    }
}

/// The tenant of whoever was refused before it was known to whom the connection belongs.
pub const UNKNOWN: &str = "unknown";

/// How many refusals are told of; a person reads no more, and equal ones are told as one.
const MAX_RECENT: usize = 50;
/// How much of what a client said is kept.
const MAX_WHAT: usize = 300;

/// Refusals of one kind that came one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recent {
    /// When the last of them was.
    pub at: SystemTime,
    pub tenant: String,
    pub reason: Reason,
    /// The method, or what was wrong in words. Never a key or a value.
    pub what: String,
    pub count: u64,
}

#[derive(Default)]
pub struct Refusals(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    totals: BTreeMap<(String, Reason), u64>,
    /// Newest last.
    recent: VecDeque<Recent>,
}

impl Refusals {
    /// `tenant` is one of those that the operator has named, or [`UNKNOWN`], so that there are few.
    pub fn note(&self, tenant: &str, reason: Reason, what: &str) {
        let at = SystemTime::now();
        let what: String = what.chars().take(MAX_WHAT).collect();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *kept.totals.entry((tenant.to_owned(), reason)).or_default() += 1;
        let is_same = |one: &Recent| one.tenant == tenant && one.reason == reason && one.what == what;
        let before = kept.recent.iter().position(is_same).and_then(|place| kept.recent.remove(place));
        let count = before.map_or(0, |before| before.count) + 1;
        if kept.recent.len() == MAX_RECENT {
            kept.recent.pop_front();
        }
        kept.recent.push_back(Recent { at, tenant: tenant.to_owned(), reason, what, count });
    }

    /// The last ones, newest first.
    pub fn recent(&self) -> Vec<Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).recent.iter().rev().cloned().collect()
    }

    /// How many there were for a tenant, whatever the reason.
    pub fn of(&self, tenant: &str) -> u64 {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.totals.iter().filter(|((name, _), _)| name == tenant).map(|(_, count)| count).sum()
    }

    pub(super) fn gather(&self) -> Option<MetricFamily> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let series = kept.totals.iter().map(|((tenant, reason), count)| Series {
            labels: vec![reason.label().to_owned(), tenant.clone()],
            value: Value::Number(*count as f64),
        });
        family::REFUSALS.gathered(series)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_refusals_are_told_as_one_and_the_newest_first() {
        let refusals = Refusals::default();
        for what in ["a", "b", "a"] {
            refusals.note("team", Reason::Policy, what);
        }
        refusals.note(UNKNOWN, Reason::Handshake, "b");
        let told: Vec<_> = refusals.recent().into_iter().map(|one| (one.tenant, one.what, one.count)).collect();
        let expected = [(UNKNOWN, "b", 1), ("team", "a", 2), ("team", "b", 1)];
        assert_eq!(told, expected.map(|(tenant, what, count)| (tenant.to_owned(), what.to_owned(), count)));
        assert_eq!((refusals.of("team"), refusals.of(UNKNOWN), refusals.of("other")), (3, 1, 0));
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_counted_is_not_lost() {
        let refusals = Refusals::default();
        for number in 0..MAX_RECENT + 5 {
            refusals.note("team", Reason::Policy, &format!("{number}{}", "é".repeat(MAX_WHAT)));
        }
        let recent = refusals.recent();
        assert_eq!(recent.len(), MAX_RECENT);
        assert!(recent.iter().all(|one| one.what.chars().count() == MAX_WHAT));
        assert_eq!(refusals.of("team"), (MAX_RECENT + 5) as u64);
    }
}
