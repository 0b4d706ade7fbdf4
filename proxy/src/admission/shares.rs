//! What tenants share and no one of several may take for itself: each gets half at most, so that one alone, however greedy,
//! cannot keep the others from it. Half, and not less: most proxies have few tenants that want much at the same time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::rules::tenant::Tenant;

/// Whether there are several tenants; one alone shares with nobody.
#[derive(Debug, Default)]
pub struct Shares {
    is_shared: AtomicBool,
}

impl Shares {
    /// There are these tenants from now on.
    pub fn serve(&self, tenants: &[Arc<Tenant>]) {
        self.is_shared.store(tenants.len() > 1, Relaxed);
    }

    /// What one tenant may have of so much.
    pub fn of_one(&self, total: usize) -> usize {
        if self.is_shared.load(Relaxed) { total.div_ceil(2) } else { total }
    }
}

/// Places for work of which only so much may run at a time, as one tenant sees them.
#[derive(Clone, Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    /// The tenant's half.
    own: Arc<Semaphore>,
    total: usize,
    shares: Arc<Shares>,
}

/// A place that is taken, until it is dropped.
pub struct Place {
    _of_all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub fn new(total: usize, shares: &Arc<Shares>) -> Self {
        let (all, own) = (Arc::new(Semaphore::new(total)), Arc::new(Semaphore::new(total.div_ceil(2))));
        Self { all, own, total, shares: shares.clone() }
    }

    /// The same places for another tenant.
    pub fn for_another(&self) -> Self {
        Self { own: Arc::new(Semaphore::new(self.total.div_ceil(2))), ..self.clone() }
    }

    /// Waits for a place, first among the tenant's own, so that those that it has too many do not stand before others.
    pub async fn take(&self) -> Place {
        let is_shared = self.shares.of_one(self.total) < self.total;
        // Neither of them is ever closed.
        let own = if is_shared { self.own.clone().acquire_owned().await.ok() } else { None };
        Place { _own: own, _of_all: self.all.clone().acquire_owned().await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::rules::{namespace::Namespace, tenant::policy::Policy};

    fn shares(tenants: usize) -> Arc<Shares> {
        let shares = Arc::new(Shares::default());
        let tenant = || Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()));
        shares.serve(&(0..tenants).map(|_| tenant()).collect::<Vec<_>>());
        shares
    }

    fn taken(places: &Places, wanted: usize) -> Vec<Place> {
        (0..wanted).filter_map(|_| places.take().now_or_never()).collect()
    }

    #[test]
    fn a_tenant_of_several_leaves_half_of_the_places_to_the_others() {
        let greedy = Places::new(4, &shares(2));
        let modest = greedy.for_another();
        let held = taken(&greedy, 10);
        assert_eq!(held.len(), 2);
        let modests = taken(&modest, 10);
        assert_eq!(modests.len(), 2);
        assert!(taken(&greedy.for_another(), 1).is_empty(), "there are no more than there are");
        drop(held);
        assert_eq!(taken(&greedy, 10).len(), 2);
        drop(modests);
    }

    #[test]
    fn who_is_alone_has_all_places() {
        assert_eq!(taken(&Places::new(4, &shares(1)), 10).len(), 4);
    }
}
