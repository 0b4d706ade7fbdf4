//! The endpoints of the gateway: which there are, which of them work, and whose turn it is.

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::net::UnixStream;

use crate::{
    dial,
    doors::{Address, Itself, Socket, set_options},
    go,
};

/// How long a name may take to be looked up; a resolver asks each of its servers twice in this time.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// One endpoint.
#[derive(Debug)]
pub struct Backend {
    pub address: Address,
    /// As in an SRV record: those with the lowest are used as long as one of them works.
    pub priority: u16,
    /// As in an SRV record: how often it is chosen among those of its priority. If all are zero they take turns.
    pub weight: u16,
    active: AtomicBool,
    /// What its name stands for; empty for a unix socket.
    resolved: ArcSwap<Vec<SocketAddr>>,
    pub connections: AtomicU64,
    pub failures: AtomicU64,
}

impl Backend {
    pub fn new(address: Address, priority: u16, weight: u16) -> Self {
        Self {
            address,
            priority,
            weight,
            active: AtomicBool::new(true),
            resolved: ArcSwap::default(),
            connections: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Whether that is news.
    pub fn set_active(&self, active: bool) -> bool {
        self.active.swap(active, Ordering::Relaxed) != active
    }

    /// Looks its name up; the old addresses stay if that fails. The gateway's own address is left out.
    pub async fn resolve(&self, itself: &Itself) -> Result<(), String> {
        let Address::Tcp(host_port) = &self.address else { return Ok(()) };
        let looked_up = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(host_port.as_str())).await;
        let found: Vec<SocketAddr> = match looked_up {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => return Err(format!("lookup {host_port}: {}", go::io_error(&error))),
            Err(_) => return Err(format!("lookup {host_port}: no answer within {RESOLVE_TIMEOUT:?}")),
        };
        let (own, mut others): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| itself.is_at(*address));
        if let Some(own) = own.first() {
            tracing::warn!(address = %self.address, resolved = %own, "an endpoint must not be the gateway itself, leaving it out");
        }
        others.dedup();
        if **self.resolved.load() != others {
            tracing::debug!(address = %self.address, resolved = ?others, "resolved an endpoint");
            self.resolved.store(Arc::new(others));
        }
        Ok(())
    }

    /// Whether its addresses can change.
    pub fn has_name(&self) -> bool {
        matches!(&self.address, Address::Tcp(host_port) if host_port.parse::<SocketAddr>().is_err())
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.resolved.load().to_vec()
    }

    /// Opens a connection, in Go's words if that fails.
    pub async fn dial(&self, timeout: Duration) -> Result<Socket, String> {
        let dialled = tokio::time::timeout(timeout, self.connect()).await;
        let failed = |reason: String| {
            let network = if matches!(self.address, Address::Tcp(_)) { "tcp" } else { "unix" };
            format!("dial {network} {}: {reason}", self.address)
        };
        match dialled {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(error)) => Err(failed(format!("connect: {}", go::io_error(&error)))),
            Err(_) => Err(failed("i/o timeout".to_owned())),
        }
    }

    async fn connect(&self) -> std::io::Result<Socket> {
        if let Address::Unix(path) = &self.address {
            return UnixStream::connect(path).await.map(Socket::Unix);
        }
        let socket = dial::first_of(&self.resolved.load_full()).await?;
        set_options(&socket)?;
        Ok(Socket::Tcp(socket))
    }
}

/// All endpoints.
#[derive(Debug, Default)]
pub struct Backends {
    list: ArcSwap<Vec<Arc<Backend>>>,
    turn: AtomicUsize,
}

impl Backends {
    pub fn list(&self) -> Arc<Vec<Arc<Backend>>> {
        self.list.load_full()
    }

    pub fn replace(&self, list: Vec<Arc<Backend>>) {
        self.list.store(Arc::new(list));
    }

    /// The next endpoint to try that is not among `tried`. When none works that is left, the others are tried: one may
    /// have come back.
    pub fn pick(&self, tried: &[Arc<Backend>]) -> Option<Arc<Backend>> {
        let list = self.list.load();
        let is_left = |backend: &&Arc<Backend>| !tried.iter().any(|other| Arc::ptr_eq(other, backend));
        let mut left: Vec<&Arc<Backend>> = list.iter().filter(is_left).filter(|backend| backend.is_active()).collect();
        if left.is_empty() {
            left = list.iter().filter(is_left).collect();
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let ranks: Vec<(u16, u16)> = left.iter().map(|backend| (backend.priority, backend.weight)).collect();
        choose(&ranks, turn, below).map(|index| left[index].clone())
    }
}

/// By RFC 2782: of the endpoints with the lowest number as their priority one at random, by weight. One without a weight
/// has a small chance beside others, and where none has a weight they take turns, so that all get the same.
fn choose(ranks: &[(u16, u16)], turn: usize, below: impl Fn(u32) -> u32) -> Option<usize> {
    /// One in so many connections goes to an endpoint without a weight, as in etcd's gateway.
    const SMALL_CHANCE: u32 = 100;
    let best = ranks.iter().map(|(priority, _)| *priority).min()?;
    let class = || ranks.iter().enumerate().filter(|(_, (priority, _))| *priority == best);
    let unweighted: Vec<usize> = class().filter(|(_, (_, weight))| *weight == 0).map(|(index, _)| index).collect();
    let total: u32 = class().map(|(_, (_, weight))| u32::from(*weight)).sum();
    if total == 0 || (!unweighted.is_empty() && below(SMALL_CHANCE) == 0) {
        return Some(unweighted[turn % unweighted.len()]);
    }
    let mut at = below(total);
    for (index, (_, weight)) in class() {
        match at.checked_sub(u32::from(*weight)) {
            Some(rest) => at = rest,
            None => return Some(index),
        }
    }
    None
}

/// A number below the limit. The standard library seeds each of its hashers at random, which is random enough to spread
/// connections; nothing here is a secret.
fn below(limit: u32) -> u32 {
    let random = RandomState::new().hash_one(0u8) >> 32;
    u32::try_from((random * u64::from(limit)) >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_priority_goes_first_and_weights_divide_it() {
        let ranks = [(2, 100), (1, 1), (1, 3), (2, 0)];
        let chosen: Vec<_> = (0..4).map(|at| choose(&ranks, 0, |_| at)).collect();
        assert_eq!(chosen, [Some(1), Some(2), Some(2), Some(2)]);
        assert_eq!(choose(&[], 0, |_| 0), None);
    }

    #[test]
    fn endpoints_without_weights_take_turns() {
        let chosen: Vec<_> = (0..4).map(|turn| choose(&[(0, 0), (0, 0), (5, 9)], turn, |_| 0)).collect();
        assert_eq!(chosen, [Some(0), Some(1), Some(0), Some(1)]);
    }

    #[test]
    fn an_endpoint_without_a_weight_has_a_small_chance_beside_others() {
        let ranks = [(0, 7), (0, 0)];
        assert_eq!(choose(&ranks, 3, |limit| if limit == 100 { 0 } else { 6 }), Some(1));
        assert_eq!(choose(&ranks, 3, |limit| if limit == 100 { 1 } else { 6 }), Some(0));
    }

    #[test]
    fn random_numbers_stay_below_their_limit_and_reach_all_of_it() {
        let seen: std::collections::HashSet<u32> = (0..1_000).map(|_| below(4)).collect();
        assert_eq!(seen, [0, 1, 2, 3].into());
    }

    #[test]
    fn what_failed_is_tried_only_when_nothing_else_is_left() {
        let backends = Backends::default();
        let list: Vec<_> =
            ["a:1", "b:1"].map(|name| Arc::new(Backend::new(Address::Tcp(name.into()), 0, 0))).into_iter().collect();
        list[0].set_active(false);
        backends.replace(list.clone());
        for _ in 0..4 {
            let first = backends.pick(&[]).expect("one works");
            assert_eq!(first.address, list[1].address);
            let second = backends.pick(&[first]).expect("one is left");
            assert_eq!(second.address, list[0].address);
            assert!(backends.pick(&list).is_none());
        }
    }
}
