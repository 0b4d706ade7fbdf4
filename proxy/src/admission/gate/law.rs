//! The laws of the gate, on an etcd of the test's own in a time of its own: it collects what has come, writes that at once
//! for so long, and each request takes a moment of its one processor besides, as etcd does with its disk.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    dealer::{Answered, Asked, Dealer},
    pace::Pace,
};
use crate::rules::{
    methods::Effect,
    namespace::Namespace,
    tenant::{Tenant, policy::Policy},
};

/// What the disk takes for whatever is written at once, and at every so many times, as disks do.
const DISK: u64 = 1000;
const SLOW_DISK: u64 = 4000;
const SLOW_EVERY: u64 = 20;
/// What a request takes of the processor.
const REQUEST: u64 = 100;

/// A client that makes one call after the other, and so long after each.
#[derive(Clone, Copy)]
struct Client {
    tenant: usize,
    pause: u64,
    /// What one call of it takes of the processor.
    work: u64,
}

#[derive(Clone, Copy)]
struct Call {
    client: usize,
    asked: u64,
    sent: u64,
    among: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Asks(usize),
    BatchEnds,
}

/// What the calls of each tenant took, in microseconds, from the asking to the answer, in the later half of the time.
struct Seen {
    took: Vec<Vec<u64>>,
}

impl Seen {
    fn count(&self, tenant: usize) -> usize {
        self.took[tenant].len()
    }

    /// The 50th and the 99th of a hundred.
    fn percentiles(&self, tenant: usize) -> [u64; 2] {
        let mut took = self.took[tenant].clone();
        took.sort_unstable();
        [took[took.len() / 2], took[took.len() * 99 / 100]]
    }
}

/// Runs the clients for so many seconds; without a dealer whatever comes is sent.
fn run(clients: &[Client], tenants: usize, mut dealer: Option<Dealer<usize>>, seconds: u64) -> Seen {
    let names: Vec<_> =
        (0..tenants).map(|_| Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()))).collect();
    let end = seconds * 1_000_000;
    let mut events: BinaryHeap<Reverse<(u64, Event)>> = BinaryHeap::new();
    for client in 0..clients.len() {
        events.push(Reverse((client as u64, Event::Asks(client))));
    }
    let mut asked = vec![0; clients.len()];
    let (mut arrived, mut batch): (VecDeque<Call>, Vec<Call>) = (VecDeque::new(), Vec::new());
    let mut batches = 0;
    let mut seen = Seen { took: vec![Vec::new(); tenants] };
    while let Some(Reverse((now, event))) = events.pop() {
        if now > end {
            break;
        }
        let time = Duration::from_micros(now);
        match event {
            Event::Asks(client) => {
                asked[client] = now;
                let granted = match &mut dealer {
                    None => Some(0),
                    Some(dealer) => match dealer.ask(&names[clients[client].tenant], 100, time, || client) {
                        Asked::Granted(among) => Some(among),
                        Asked::Waits => None,
                        Asked::Full => panic!("fewer clients wait than may"),
                    },
                };
                arrived.extend(granted.map(|among| Call { client, asked: now, sent: now, among }));
            }
            Event::BatchEnds => {
                for call in std::mem::take(&mut batch) {
                    let Client { tenant, pause, .. } = clients[call.client];
                    if now > end / 2 {
                        seen.took[tenant].push(now - call.asked);
                    }
                    events.push(Reverse((now + pause, Event::Asks(call.client))));
                    if let Some(dealer) = &mut dealer {
                        let answered = Some(Answered { effect: Effect::Write, among: call.among });
                        let took = Duration::from_micros(now - call.sent);
                        dealer.leave(&names[tenant], took, answered, time, |client, among| {
                            arrived.push_back(Call { client, asked: asked[client], sent: now, among });
                            true
                        });
                    }
                }
            }
        }
        if batch.is_empty() && !arrived.is_empty() {
            batch.extend(arrived.drain(..));
            let work: u64 = batch.iter().map(|call| clients[call.client].work).sum();
            batches += 1;
            let disk = if batches % SLOW_EVERY == 0 { SLOW_DISK } else { DISK };
            events.push(Reverse((now + disk + work, Event::BatchEnds)));
        }
    }
    seen
}

fn adaptive() -> Option<Dealer<usize>> {
    Some(Dealer::new(Pace::new(128, Some(1.1))))
}

fn fixed(most: usize) -> Option<Dealer<usize>> {
    Some(Dealer::new(Pace::new(most, None)))
}

fn greedy(count: usize) -> Vec<Client> {
    vec![Client { tenant: 0, pause: 0, work: REQUEST }; count]
}

const MODEST: Client = Client { tenant: 1, pause: 2000, work: REQUEST };

#[test]
fn a_thousand_greedy_clients_cost_a_neighbour_less_than_twice_its_quiet_time() {
    let quiet = run(&[MODEST], 2, None, 20).percentiles(1);
    let beside = |dealer| {
        let mut clients = greedy(1000);
        clients.push(MODEST);
        let beside = run(&clients, 2, dealer, 20).percentiles(1);
        [0, 1].map(|which| beside[which] as f64 / quiet[which] as f64)
    };
    let (without, with_fixed, with) = (beside(None), beside(fixed(128)), beside(adaptive()));
    assert!(without[1] > 10.0 && with_fixed[1] > 2.0, "the test would prove nothing: {without:?} {with_fixed:?}");
    // Whoever comes while the disk is at work waits for that, and then for its own: so half of the calls take twice as long
    // where hardly anything else is under way.
    assert!(with[0] < 2.5 && with[1] < 2.0, "{with:?}");
}

#[test]
fn who_is_alone_loses_nothing() {
    let count = |dealer| run(&greedy(100), 2, dealer, 5).count(0);
    let (free, held) = (count(None), count(adaptive()));
    assert!(held * 100 >= free * 95, "{held} of {free}");
}

#[test]
fn tenants_get_turns_by_what_they_cost() {
    // The calls of the one take ten milliseconds, those of the others one, and all want as many as they can get.
    let client = |tenant, work| Client { tenant, pause: 0, work };
    let mut clients = vec![client(0, 10_000); 20];
    clients.extend([client(1, REQUEST), client(2, REQUEST)].repeat(20));
    let seen = run(&clients, 3, fixed(2), 30);
    let [dear, one, other] = [0, 1, 2].map(|tenant| seen.count(tenant));
    assert!(one > 3 * dear && other > 3 * dear, "{dear} {one} {other}");
    assert!(one * 10 > other * 9 && other * 10 > one * 9, "{one} {other}");
}

#[test]
fn who_comes_back_has_saved_nothing_up_and_owes_nothing() {
    // The third was alone for a while, the second comes later, and from then on they get the same.
    let mut dealer: Dealer<usize> = Dealer::new(Pace::new(1, None));
    let names: Vec<_> = (0..2).map(|_| Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()))).collect();
    let now = Duration::from_secs(1);
    for _ in 0..1000 {
        assert_eq!(dealer.ask(&names[0], 0, now, || 0), Asked::Granted(1));
        dealer.leave(&names[0], Duration::ZERO, None, now, |_, _| true);
    }
    assert_eq!(dealer.ask(&names[0], 0, now, || 0), Asked::Granted(1));
    let mut holder = 0;
    for _ in 0..100 {
        assert_eq!(dealer.ask(&names[1], 0, now, || 1), Asked::Waits);
        assert_eq!(dealer.ask(&names[0], 0, now, || 0), Asked::Waits);
    }
    let mut served = [0, 0];
    for _ in 0..100 {
        let mut next = None;
        dealer.leave(&names[holder], Duration::ZERO, None, now, |who, _| next.replace(who).is_none());
        holder = next.expect("somebody waits");
        served[holder] += 1;
    }
    assert!(served.iter().all(|served| (49..=51).contains(served)), "{served:?}");
}

#[test]
fn a_large_answer_is_paid_for_by_who_asked_for_it() {
    let mut dealer: Dealer<usize> = Dealer::new(Pace::new(1, None));
    let names: Vec<_> = (0..2).map(|_| Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()))).collect();
    let now = Duration::from_secs(1);
    assert_eq!(dealer.ask(&names[0], 0, now, || 0), Asked::Granted(1));
    for tenant in [0, 1].repeat(20) {
        assert_eq!(dealer.ask(&names[tenant], 0, now, || tenant), Asked::Waits);
    }
    // As much as ten calls.
    dealer.charge(&names[0], 10 * (64 << 10));
    let (mut holder, mut order) = (0, Vec::new());
    for _ in 0..15 {
        let mut next = None;
        dealer.leave(&names[holder], Duration::ZERO, None, now, |who, _| next.replace(who).is_none());
        holder = next.expect("somebody waits");
        order.push(holder);
    }
    assert_eq!(order[..10], [1; 10], "{order:?}");
    assert!(order[10..].contains(&0), "{order:?}");
}

#[test]
fn what_waits_is_bounded_by_its_bytes_too() {
    let mut dealer: Dealer<usize> = Dealer::new(Pace::new(1, None));
    let tenant = Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()));
    let mut ask = |bytes| dealer.ask(&tenant, bytes, Duration::ZERO, || 0);
    assert_eq!(ask(0), Asked::Granted(1));
    assert_eq!(ask(100 << 20), Asked::Waits, "one may be as large as it likes");
    assert_eq!(ask(1), Asked::Full);
}
