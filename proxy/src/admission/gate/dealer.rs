//! Whose turn it is: of the tenants that wait, the one that has cost etcd least, however many clients each of them has.
//! No clock, no lock and no wait: the time is an argument, and a waiter is whatever the caller can tell.
//!
//! This is fair queueing by virtual time, as Kubernetes' API server does it for its priority levels. Each tenant has a
//! `spent`, which grows by what its calls cost; a tenant that comes back after a while begins where the others are, so that
//! it can neither save turns up nor has to make up for what it had while nobody else wanted anything.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::pace::{Pace, Quiet};
use crate::rules::{methods::Effect, tenant::Tenant};

/// Calls of one tenant that wait for their turn, and the bytes of their requests, which are held meanwhile.
const MAX_WAITING: usize = 10_000;
const MAX_WAITING_BYTES: usize = 64 << 20;
/// A call costs what it sends and what it gets, and as much as so many bytes for each millisecond that it takes, the first
/// one in advance: 64 MB in a second are about what etcd hands out by one stream.
const COST_OF_A_MILLISECOND: u64 = 64 << 10;
/// How long a tenant that has ended its last call counts as one that others share etcd with. Who calls now and then shall
/// not find etcd full each time; who has stopped for good shall not slow down the others for long.
const PRESENT: Duration = Duration::from_secs(10);

pub struct Dealer<W> {
    pace: Pace,
    under_way: usize,
    lines: HashMap<Arc<Tenant>, Line<W>>,
    /// Those who wait, by what they have spent; the number tells apart who has spent the same.
    order: BTreeMap<(u64, u64), Arc<Tenant>>,
    /// What the tenant had spent that was served last: where whoever comes anew begins.
    spent_now: u64,
    next_number: u64,
    last: Option<(Arc<Tenant>, Duration)>,
    /// When another tenant than the last one was there.
    other: Option<Duration>,
}

struct Line<W> {
    number: u64,
    spent: u64,
    under_way: usize,
    waiting: VecDeque<Waiter<W>>,
    waiting_bytes: usize,
    /// By [`Effect`]: what writes waits for the disk, what reads does not.
    quiet: [Quiet; 2],
}

struct Waiter<W> {
    who: W,
    bytes: usize,
}

/// What became of a wish for a turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// It may be made at once, among so many.
    Granted(usize),
    /// It is told when it may be made.
    Waits,
    /// Too many wait already.
    Full,
}

/// A call that went well, as it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub effect: Effect,
    /// How many were under way when it was begun.
    pub among: usize,
}

impl<W> Dealer<W> {
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            under_way: 0,
            lines: HashMap::new(),
            order: BTreeMap::new(),
            spent_now: 0,
            next_number: 0,
            last: None,
            other: None,
        }
    }

    /// Forgets all tenants but these and those who still have something to end.
    pub fn keep(&mut self, tenants: &[Arc<Tenant>]) {
        self.lines.retain(|tenant, line| tenants.contains(tenant) || line.under_way > 0 || !line.waiting.is_empty());
    }

    /// How many may be under way at a time, and how many of one tenant: half where others are there, so that whoever comes
    /// need not wait for what was let in before.
    pub fn room(&self, now: Duration) -> (usize, usize) {
        match self.is_shared(now) {
            true => (self.pace.limit(), self.pace.limit().div_ceil(2)),
            false => (self.pace.most(), self.pace.most()),
        }
    }

    fn is_shared(&self, now: Duration) -> bool {
        self.other.is_some_and(|at| now.saturating_sub(at) < PRESENT)
    }

    /// Takes note of who is there.
    fn see(&mut self, tenant: &Arc<Tenant>, now: Duration) {
        match &mut self.last {
            Some((last, at)) if last == tenant => *at = now,
            last => {
                self.other = last.take().map(|(_, at)| at).or(self.other);
                *last = Some((tenant.clone(), now));
            }
        }
    }

    /// Asks for a turn for a request of so many bytes; `waiter` is made if it has to wait.
    pub fn ask(&mut self, tenant: &Arc<Tenant>, bytes: usize, now: Duration, waiter: impl FnOnce() -> W) -> Asked {
        self.see(tenant, now);
        let (total, share) = self.room(now);
        let line = match self.lines.get_mut(tenant) {
            Some(line) => line,
            None => {
                self.next_number += 1;
                self.lines.entry(tenant.clone()).or_insert(Line::new(self.next_number))
            }
        };
        if line.under_way == 0 && line.waiting.is_empty() {
            line.spent = line.spent.max(self.spent_now);
        }
        if self.under_way < total && line.under_way < share && line.waiting.is_empty() {
            self.spent_now = self.spent_now.max(line.spent);
            line.begin(bytes);
            self.under_way += 1;
            return Asked::Granted(self.under_way);
        }
        let is_too_much = line.waiting_bytes.saturating_add(bytes) > MAX_WAITING_BYTES && !line.waiting.is_empty();
        if line.waiting.len() >= MAX_WAITING || is_too_much {
            return Asked::Full;
        }
        if line.waiting.is_empty() {
            self.order.insert((line.spent, line.number), tenant.clone());
        }
        line.waiting_bytes += bytes;
        line.waiting.push_back(Waiter { who: waiter(), bytes });
        Asked::Waits
    }

    /// Ends a call that took so long, and deals out what there is.
    pub fn leave(
        &mut self,
        tenant: &Arc<Tenant>,
        took: Duration,
        answered: Option<Answered>,
        now: Duration,
        tell: impl FnMut(W, usize) -> bool,
    ) {
        self.under_way -= 1;
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.charge(tenant, milliseconds.saturating_sub(1).saturating_mul(COST_OF_A_MILLISECOND));
        if let Some(line) = self.lines.get_mut(tenant) {
            line.under_way -= 1;
            if let Some(Answered { effect, among }) = answered {
                self.pace.note(&mut line.quiet[effect as usize], took, among, now);
            }
        }
        self.see(tenant, now);
        self.deal(now, tell);
    }

    /// A tenant has cost so many bytes more.
    pub fn charge(&mut self, tenant: &Arc<Tenant>, bytes: u64) {
        let Some(line) = self.lines.get_mut(tenant) else { return };
        let place = (line.spent, line.number);
        line.spent = line.spent.saturating_add(bytes);
        if let Some(tenant) = self.order.remove(&place) {
            self.order.insert((line.spent, line.number), tenant);
        }
    }

    /// Lets in who may be let in; `tell` says whether they are still there to hear of it.
    fn deal(&mut self, now: Duration, mut tell: impl FnMut(W, usize) -> bool) {
        let (total, share) = self.room(now);
        while self.under_way < total {
            let mut in_order = self.order.iter();
            let next = in_order.find(|(_, tenant)| self.lines.get(*tenant).is_some_and(|line| line.under_way < share));
            let Some((place, tenant)) = next.map(|(place, tenant)| (*place, tenant.clone())) else { return };
            self.order.remove(&place);
            let Some(line) = self.lines.get_mut(&tenant) else { continue };
            let mut told = None;
            while told.is_none()
                && let Some(waiter) = line.waiting.pop_front()
            {
                line.waiting_bytes -= waiter.bytes;
                told = tell(waiter.who, self.under_way + 1).then_some(waiter.bytes);
            }
            if let Some(bytes) = told {
                self.spent_now = self.spent_now.max(line.spent);
                line.begin(bytes);
                self.under_way += 1;
            }
            if !line.waiting.is_empty() {
                self.order.insert((line.spent, line.number), tenant);
            }
        }
    }

    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.under_way, self.lines.len(), self.order.len())
    }
}

impl<W> Line<W> {
    fn new(number: u64) -> Self {
        let (waiting, quiet) = (VecDeque::new(), Default::default());
        Self { number, spent: 0, under_way: 0, waiting, waiting_bytes: 0, quiet }
    }

    fn begin(&mut self, bytes: usize) {
        self.under_way += 1;
        self.spent = self.spent.saturating_add(COST_OF_A_MILLISECOND).saturating_add(bytes as u64);
    }
}
