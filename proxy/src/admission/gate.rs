//! Turns at etcd, dealt out fairly: so many calls may be under way there at a time as it answers soon ([`pace`]), no tenant
//! may have more than half of them, and when all are taken the tenants that wait get the next ones by what they have cost
//! ([`dealer`]), however many clients each of them has. Who is alone is not held back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus::IntGauge;
use tokio::sync::oneshot;

mod dealer;
#[cfg(test)]
mod law;
mod pace;

use dealer::{Answered, Asked, Dealer};
use pace::Pace;

use super::now;
use crate::rules::{
    methods::Effect,
    tenant::{
        Tenant,
        limits::{Exceeded, Limit},
    },
};

/// How long a call waits for its turn. A client that waits longer has given up, or should come again later.
const PATIENCE: Duration = Duration::from_secs(10);
/// Smaller answers are not worth a look at the dealer.
const LARGE: u64 = 16 << 10;

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Calls under way at a time at most; zero is without a limit.
    pub most: usize,
    /// By how many percent calls may be slower than at an etcd that has little to do, before fewer are let through at a
    /// time; zero is any.
    pub max_slowdown: u32,
}

pub struct Gate {
    /// Whether there are several tenants; one alone shares with nobody.
    is_shared: AtomicBool,
    dealer: Mutex<Dealer<oneshot::Sender<usize>>>,
    /// Shows how many may be under way.
    limit: IntGauge,
}

/// A call's turn, until it is dropped.
pub struct Turn {
    gate: Arc<Gate>,
    tenant: Arc<Tenant>,
    began: Duration,
    among: usize,
    has_waited: bool,
    answered: Option<Effect>,
}

/// What an answer costs beside its turn, told when it is dropped.
pub struct Bill {
    gate: Arc<Gate>,
    tenant: Arc<Tenant>,
    bytes: u64,
}

impl Gate {
    /// None where there is only one tenant and that cannot change, or no limit.
    pub fn new(config: Config, tenants: &[Arc<Tenant>], may_change: bool, limit: IntGauge) -> Option<Arc<Self>> {
        if config.most == 0 || (tenants.len() < 2 && !may_change) {
            return None;
        }
        let tolerance = (config.max_slowdown > 0).then(|| 1.0 + f64::from(config.max_slowdown) / 100.0);
        let dealer = Mutex::new(Dealer::new(Pace::new(config.most, tolerance)));
        let gate = Self { is_shared: AtomicBool::new(false), dealer, limit };
        gate.serve(tenants);
        Some(Arc::new(gate))
    }

    /// Serves these tenants from now on. What others have begun goes on to its end.
    pub fn serve(&self, tenants: &[Arc<Tenant>]) {
        self.is_shared.store(tenants.len() > 1, Ordering::Relaxed);
        let mut dealer = self.lock();
        dealer.keep(tenants);
        self.show(&dealer);
    }

    fn lock(&self) -> MutexGuard<'_, Dealer<oneshot::Sender<usize>>> {
        // It is held for a few lines that cannot leave anything half done.
        self.dealer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, dealer: &Dealer<oneshot::Sender<usize>>) {
        let (limit, _) = dealer.room(now());
        self.limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// Waits for a turn for a request of so many bytes. The proxy's own calls, of which there are few, need none.
    pub async fn enter(self: &Arc<Self>, tenant: &Arc<Tenant>, bytes: usize) -> Result<Option<Turn>, Exceeded> {
        if !self.is_shared.load(Ordering::Relaxed) || tenant.is_the_proxy() {
            return Ok(None);
        }
        let mut told = None;
        let asked = self.lock().ask(tenant, bytes, now(), || {
            let (tell, hears) = oneshot::channel();
            told = Some(hears);
            tell
        });
        let mut waiting = match asked {
            Asked::Granted(among) => return Ok(Some(self.turn(tenant, among, false))),
            Asked::Full => return Err(tenant.usage.refused(Exceeded::of(Limit::Upstream), now())),
            Asked::Waits => Waiting { gate: self, tenant, told },
        };
        let Some(told) = waiting.told.as_mut() else { return Ok(None) };
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(among)) => {
                waiting.told = None;
                Ok(Some(self.turn(tenant, among, true)))
            }
            _ => Err(tenant.usage.refused(Exceeded::of(Limit::Upstream), now())),
        }
    }

    fn turn(self: &Arc<Self>, tenant: &Arc<Tenant>, among: usize, has_waited: bool) -> Turn {
        Turn { gate: self.clone(), tenant: tenant.clone(), began: now(), among, has_waited, answered: None }
    }

    /// Gives a turn back, and to the next who waits.
    fn leave(&self, tenant: &Arc<Tenant>, took: Duration, answered: Option<Answered>) {
        let mut dealer = self.lock();
        dealer.leave(tenant, took, answered, now(), |tell, among| tell.send(among).is_ok());
        self.show(&dealer);
    }
}

impl Turn {
    /// Whether others may have come first since the call was let in.
    pub fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// etcd has begun to answer, so that the time it took is worth being looked at; what follows is on the bill.
    pub fn answered(mut self, effect: Effect) -> Bill {
        self.answered = Some(effect);
        Bill { gate: self.gate.clone(), tenant: self.tenant.clone(), bytes: 0 }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let answered = self.answered.map(|effect| Answered { effect, among: self.among });
        self.gate.leave(&self.tenant, now().saturating_sub(self.began), answered);
    }
}

impl Bill {
    pub fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if self.bytes >= LARGE {
            self.gate.lock().charge(&self.tenant, self.bytes);
        }
    }
}

/// A place in a line. Given up, it gives on a turn that came in the same moment.
struct Waiting<'a> {
    gate: &'a Gate,
    tenant: &'a Arc<Tenant>,
    told: Option<oneshot::Receiver<usize>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(told) = &mut self.told {
            told.close();
            if told.try_recv().is_ok() {
                self.gate.leave(self.tenant, Duration::ZERO, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;
    use crate::rules::{namespace::Namespace, tenant::policy::Policy};

    fn tenants(count: usize) -> Vec<Arc<Tenant>> {
        (0..count).map(|_| Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()))).collect()
    }

    fn gate(most: usize, tenants: &[Arc<Tenant>], may_change: bool) -> Option<Arc<Gate>> {
        let shown = IntGauge::new("limit", "of a test").expect("a good name");
        Gate::new(Config { most, max_slowdown: 0 }, tenants, may_change, shown)
    }

    type Entering<'a> = BoxFuture<'a, Result<Option<Turn>, Exceeded>>;

    fn turn(entering: &mut Entering<'_>) -> Option<Turn> {
        entering.as_mut().now_or_never().map(|turn| turn.expect("no limit was met").expect("a tenant of the gate"))
    }

    #[tokio::test]
    async fn who_waits_gets_every_other_turn_however_many_others_wait() {
        let tenants = tenants(2);
        let gate = gate(4, &tenants, false).expect("a gate");
        // Both are there.
        drop((gate.enter(&tenants[1], 0).await, gate.enter(&tenants[0], 0).await));
        let mut greedy: Vec<Entering> = (0..100).map(|_| gate.enter(&tenants[0], 0).boxed()).collect();
        let mut greedy_turns: Vec<Turn> = greedy.iter_mut().filter_map(turn).collect();
        assert_eq!(greedy_turns.len(), 2, "no tenant has more than half");
        let mut modest: Vec<Entering> = (0..4).map(|_| gate.enter(&tenants[1], 0).boxed()).collect();
        let modest_turns: Vec<Turn> = modest.iter_mut().filter_map(turn).collect();
        assert_eq!(modest_turns.len(), 2);
        greedy.drain(..2);
        modest.drain(..2);
        // A turn of the one goes to the one that may have it, since the other has its half.
        greedy_turns.pop();
        greedy_turns.extend(greedy.iter_mut().filter_map(turn));
        assert_eq!((greedy_turns.len(), modest.iter_mut().filter_map(turn).count()), (2, 0));
        drop(modest_turns);
        assert_eq!(modest.iter_mut().filter_map(turn).count(), 2);
    }

    #[tokio::test]
    async fn who_is_alone_has_all_turns_and_half_of_them_when_another_comes() {
        let tenants = tenants(2);
        let gate = gate(4, &tenants, false).expect("a gate");
        let mut alone: Vec<Entering> = (0..6).map(|_| gate.enter(&tenants[0], 0).boxed()).collect();
        let mut turns: Vec<Turn> = alone.iter_mut().filter_map(turn).collect();
        assert_eq!(turns.len(), 4);
        alone.drain(..4);
        let mut other = gate.enter(&tenants[1], 0).boxed();
        assert!(turn(&mut other).is_none());
        drop(turns.pop());
        assert!(turn(&mut other).is_some(), "who was alone has more than half");
        drop(turns.pop());
        assert_eq!(alone.iter_mut().filter_map(turn).count(), 0);
    }

    #[tokio::test]
    async fn a_turn_of_who_has_left_is_not_lost() {
        let tenants = tenants(2);
        let gate = gate(1, &tenants, false).expect("a gate");
        let mut first = gate.enter(&tenants[0], 0).boxed();
        let held = turn(&mut first);
        let (mut second, mut third) = (gate.enter(&tenants[1], 0).boxed(), gate.enter(&tenants[0], 0).boxed());
        assert!(turn(&mut second).is_none() && turn(&mut third).is_none());
        // The second, who has cost less, is told and leaves before it hears of it; the other one's turn comes by that.
        drop(held);
        drop(second);
        assert!(turn(&mut third).is_some());
        assert_eq!(gate.lock().counts(), (0, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let tenants = tenants(2);
        let full = gate(1, &tenants, false).expect("a gate");
        let _held = full.enter(&tenants[0], 0).await.expect("a turn");
        let refused = full.enter(&tenants[0], 0).await.err();
        assert_eq!(refused.map(|exceeded| exceeded.limit), Some(Limit::Upstream));
        assert_eq!(tenants[0].usage.refusals(Limit::Upstream), 1);
        let whole = Tenant::whole();
        assert!(full.enter(&whole, 0).await.expect("no limit").is_none(), "the proxy's own calls wait for nobody");
        assert!(gate(1, &tenants[..1], false).is_none() && gate(0, &tenants, true).is_none());
    }

    #[tokio::test]
    async fn tenants_come_and_go_and_one_alone_shares_with_nobody() {
        let tenants = tenants(2);
        let gate = gate(1, &tenants[..1], true).expect("a gate");
        assert!(gate.enter(&tenants[0], 0).await.expect("no limit").is_none());
        gate.serve(&tenants);
        let held = gate.enter(&tenants[0], 0).await.expect("no limit").expect("a turn");
        let mut waiting = gate.enter(&tenants[0], 0).boxed();
        assert!(turn(&mut waiting).is_none());
        // Who is a tenant no more ends what was begun, and leaves nothing behind.
        gate.serve(&tenants[1..]);
        drop(held);
        drop(turn(&mut waiting).expect("its turn has come"));
        drop(waiting);
        gate.serve(&tenants[1..]);
        assert_eq!(gate.lock().counts(), (0, 0, 0));
    }
}
