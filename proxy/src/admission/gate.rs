//! Turns at etcd, dealt out fairly: so many calls may be under way there at a time, no tenant may have more than half of
//! them, and when all are taken the tenants that wait get the next ones in turn, however many clients each of them has.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::now;
use crate::rules::tenant::{
    Tenant,
    limits::{Exceeded, Limit},
};

/// Calls of one tenant that wait for their turn. Each holds its request, so this bounds memory too.
const MAX_WAITING: usize = 10_000;
/// How long a call waits for its turn. A client that waits longer has given up, or should come again later.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Gate {
    /// What one tenant may have under way.
    share: usize,
    /// Whether there are several tenants; one alone shares with nobody.
    is_shared: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// Turns that nobody has. While there are any, nobody waits who could have one.
    free: usize,
    lines: HashMap<Arc<Tenant>, Line>,
    /// Those in whose line somebody waits, the one whose turn is next first.
    turns: VecDeque<Arc<Tenant>>,
}

#[derive(Default)]
struct Line {
    under_way: usize,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// A call's turn, until it is dropped.
pub struct Turn {
    gate: Arc<Gate>,
    tenant: Arc<Tenant>,
}

impl Gate {
    /// For so many calls at a time; none where there is only one tenant and that cannot change, or no limit.
    pub fn new(capacity: usize, tenants: &[Arc<Tenant>], may_change: bool) -> Option<Arc<Self>> {
        if capacity == 0 || (tenants.len() < 2 && !may_change) {
            return None;
        }
        let state = State { free: capacity, lines: HashMap::new(), turns: VecDeque::new() };
        let gate = Self { share: capacity.div_ceil(2), is_shared: AtomicBool::new(false), state: Mutex::new(state) };
        gate.serve(tenants);
        Some(Arc::new(gate))
    }

    /// Serves these tenants from now on. What others have begun goes on to its end.
    pub fn serve(&self, tenants: &[Arc<Tenant>]) {
        self.is_shared.store(tenants.len() > 1, Ordering::Relaxed);
        let is_of_use = |tenant: &Arc<Tenant>, line: &Line| {
            tenants.contains(tenant) || line.under_way > 0 || !line.waiting.is_empty()
        };
        self.lock().lines.retain(|tenant, line| is_of_use(tenant, line));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // It is held for a few lines that cannot leave anything half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn. The proxy's own calls, of which there are few, need none.
    pub async fn enter(self: &Arc<Self>, tenant: &Arc<Tenant>) -> Result<Option<Turn>, Exceeded> {
        if !self.is_shared.load(Ordering::Relaxed) || tenant.is_the_proxy() {
            return Ok(None);
        }
        let mut waiting = match self.ask(tenant) {
            Ok(None) => return Ok(Some(self.turn(tenant))),
            Ok(Some(told)) => Waiting { gate: self, tenant, told: Some(told) },
            Err(exceeded) => return Err(tenant.usage.refused(exceeded, now())),
        };
        let told = waiting.told.as_mut().expect("it was put there just now");
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(_) => {
                waiting.told = None;
                Ok(Some(self.turn(tenant)))
            }
            Err(_) => Err(tenant.usage.refused(Exceeded::of(Limit::Upstream), now())),
        }
    }

    fn turn(self: &Arc<Self>, tenant: &Arc<Tenant>) -> Turn {
        Turn { gate: self.clone(), tenant: tenant.clone() }
    }

    /// Takes a turn, or a place in the line.
    fn ask(&self, tenant: &Arc<Tenant>) -> Result<Option<oneshot::Receiver<()>>, Exceeded> {
        let state = &mut *self.lock();
        if !state.lines.contains_key(tenant) {
            state.lines.insert(tenant.clone(), Line::default());
        }
        let own = state.lines.get_mut(tenant).expect("it is there by now");
        if state.free > 0 && own.under_way < self.share {
            state.free -= 1;
            own.under_way += 1;
            return Ok(None);
        }
        if own.waiting.len() >= MAX_WAITING {
            return Err(Exceeded::of(Limit::Upstream));
        }
        if own.waiting.is_empty() {
            state.turns.push_back(tenant.clone());
        }
        let (tell, told) = oneshot::channel();
        own.waiting.push_back(tell);
        Ok(Some(told))
    }

    /// Gives a turn back, and to the next who waits.
    fn leave(&self, tenant: &Arc<Tenant>) {
        let state = &mut *self.lock();
        if let Some(line) = state.lines.get_mut(tenant) {
            line.under_way -= 1;
        }
        state.free += 1;
        for _ in 0..state.turns.len() {
            let Some(next) = state.turns.pop_front() else { return };
            let Some(line) = state.lines.get_mut(&next) else { continue };
            let mut is_told = false;
            while line.under_way < self.share && !is_told {
                let Some(tell) = line.waiting.pop_front() else { break };
                // Whoever has given up hears nothing, and the next of the line is asked.
                is_told = tell.send(()).is_ok();
            }
            if is_told {
                line.under_way += 1;
                state.free -= 1;
            }
            if !line.waiting.is_empty() {
                state.turns.push_back(next);
            }
            if is_told {
                return;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.gate.leave(&self.tenant);
    }
}

/// A place in a line. Given up, it gives on a turn that came in the same moment.
struct Waiting<'a> {
    gate: &'a Gate,
    tenant: &'a Arc<Tenant>,
    told: Option<oneshot::Receiver<()>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(told) = &mut self.told {
            told.close();
            if told.try_recv().is_ok() {
                self.gate.leave(self.tenant);
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

    type Entering<'a> = BoxFuture<'a, Result<Option<Turn>, Exceeded>>;

    fn turn(entering: &mut Entering<'_>) -> Option<Turn> {
        entering.as_mut().now_or_never().map(|turn| turn.expect("no limit was met").expect("a tenant of the gate"))
    }

    #[tokio::test]
    async fn who_waits_gets_every_other_turn_however_many_others_wait() {
        let tenants = tenants(2);
        let gate = Gate::new(4, &tenants, false).expect("a gate");
        let mut greedy: Vec<Entering> = (0..100).map(|_| gate.enter(&tenants[0]).boxed()).collect();
        let mut greedy_turns: Vec<Turn> = greedy.iter_mut().filter_map(turn).collect();
        assert_eq!(greedy_turns.len(), 2, "no tenant has more than half");
        let mut modest: Vec<Entering> = (0..4).map(|_| gate.enter(&tenants[1]).boxed()).collect();
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
    async fn of_three_tenants_that_wait_each_gets_its_turn() {
        let tenants = tenants(3);
        let gate = Gate::new(1, &tenants, false).expect("a gate");
        let mut first = gate.enter(&tenants[0]).boxed();
        let mut held = turn(&mut first);
        let mut lines: Vec<Vec<Entering>> =
            tenants.iter().map(|tenant| (0..10).map(|_| gate.enter(tenant).boxed()).collect()).collect();
        lines.iter_mut().flatten().for_each(|entering| assert!(turn(entering).is_none()));
        let mut served = Vec::new();
        for _ in 0..9 {
            drop(held.take());
            for (index, line) in lines.iter_mut().enumerate() {
                if let Some(turn) = turn(&mut line[0]) {
                    served.push(index);
                    held = Some(turn);
                    drop(line.remove(0));
                    break;
                }
            }
        }
        for line in 0..3 {
            assert_eq!(served.iter().filter(|served| **served == line).count(), 3, "{served:?}");
        }
    }

    #[tokio::test]
    async fn a_turn_of_who_has_left_is_not_lost() {
        let tenants = tenants(2);
        let gate = Gate::new(1, &tenants, false).expect("a gate");
        let mut first = gate.enter(&tenants[0]).boxed();
        let held = turn(&mut first);
        let (mut second, mut third) = (gate.enter(&tenants[0]).boxed(), gate.enter(&tenants[1]).boxed());
        assert!(turn(&mut second).is_none() && turn(&mut third).is_none());
        // One is told and leaves before it hears of it; the other one's turn comes by that.
        drop(held);
        let told_second = gate.lock().lines[&tenants[0]].waiting.is_empty();
        if told_second {
            drop(second);
            assert!(turn(&mut third).is_some());
        } else {
            drop(third);
            assert!(turn(&mut second).is_some());
        }
        assert_eq!(gate.lock().free, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let tenants = tenants(2);
        let gate = Gate::new(1, &tenants, false).expect("a gate");
        let _held = gate.enter(&tenants[0]).await.expect("a turn");
        let refused = gate.enter(&tenants[0]).await.err();
        assert_eq!(refused.map(|exceeded| exceeded.limit), Some(Limit::Upstream));
        assert_eq!(tenants[0].usage.refusals(Limit::Upstream), 1);
        assert!(
            gate.enter(&Tenant::whole()).await.expect("no limit").is_none(),
            "the proxy's own calls wait for nobody"
        );
        assert!(Gate::new(1, &tenants[..1], false).is_none() && Gate::new(0, &tenants, true).is_none());
    }

    #[tokio::test]
    async fn tenants_come_and_go_and_one_alone_shares_with_nobody() {
        let tenants = tenants(2);
        let gate = Gate::new(2, &tenants[..1], true).expect("a gate");
        assert!(gate.enter(&tenants[0]).await.expect("no limit").is_none());
        gate.serve(&tenants);
        let held = gate.enter(&tenants[0]).await.expect("no limit").expect("a turn");
        let mut waiting = gate.enter(&tenants[0]).boxed();
        assert!(turn(&mut waiting).is_none());
        // Who is a tenant no more ends what was begun, and leaves nothing behind.
        gate.serve(&tenants[1..]);
        drop(held);
        drop(turn(&mut waiting).expect("its turn has come"));
        drop(waiting);
        gate.serve(&tenants[1..]);
        let state = gate.lock();
        assert_eq!((state.free, state.lines.len(), state.turns.len()), (2, 0, 0));
    }
}
