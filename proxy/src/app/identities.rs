//! The rules by which clients are told apart, as they change: who is new is let in, and whoever is somebody else now, or
//! nobody any more, has to come again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::{
    admission::{gate::Gate, memory::Memory, shares::Shares},
    metrics::Metrics,
    rules::tenant::{Tenant, identity::Tenants},
    services::quota,
    upstream::{
        Upstream,
        users::{self, Users},
    },
};

/// How often the file is looked at; so often are those of TLS.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the rules have become. Whoever is the same as before is the same [`Tenant`].
pub struct Changed {
    pub tenants: Tenants,
    pub users: Vec<users::Config>,
}

/// Reads the rules again: what they have become, if that is news, or why they are not taken.
pub type Reread = Arc<dyn Fn() -> Result<Option<Changed>, String> + Send + Sync>;

/// What hangs on who the tenants are.
pub struct Keeper {
    pub reread: Reread,
    pub tenants: watch::Sender<Tenants>,
    pub users: Arc<Users>,
    pub gate: Option<Arc<Gate>>,
    pub memory: Option<&'static Memory>,
    pub shares: Arc<Shares>,
    pub quotas: Quotas,
    pub metrics: Arc<Metrics>,
}

/// The counts of what tenants have stored, as long as they are tenants.
pub struct Quotas {
    upstream: Upstream,
    tasks: JoinSet<()>,
    counted: HashMap<Arc<Tenant>, AbortHandle>,
}

impl Quotas {
    pub fn new(upstream: Upstream) -> Self {
        Self { upstream, tasks: JoinSet::new(), counted: HashMap::new() }
    }

    /// Counts for these, and for nobody else any more.
    pub fn keep(&mut self, tenants: &[Arc<Tenant>]) {
        self.counted.retain(|tenant, task| {
            let stays = tenants.contains(tenant);
            if !stays {
                task.abort();
            }
            stays
        });
        for tenant in tenants.iter().filter(|tenant| tenant.usage.has_quota()) {
            let (upstream, tasks) = (&self.upstream, &mut self.tasks);
            self.counted
                .entry(tenant.clone())
                .or_insert_with(|| tasks.spawn(quota::run(upstream.clone(), tenant.clone())));
        }
    }

    /// Goes on until it is dropped.
    pub async fn run(mut self) {
        while self.tasks.join_next().await.is_some() {}
        std::future::pending().await
    }
}

impl Keeper {
    /// Looks at the rules until it is dropped.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match (self.reread)() {
                Ok(None) => (),
                Ok(Some(changed)) => self.take_over(changed),
                Err(error) => {
                    self.metrics.rules_reloaded(false);
                    tracing::warn!(error, "the changed rules of client-identity cannot be used, the old ones stay");
                }
            }
        }
    }

    fn take_over(&mut self, changed: Changed) {
        let all = changed.tenants.all();
        // Whoever is let in by the new rules must find all that they need.
        self.users.replace(changed.users);
        if let Some(gate) = &self.gate {
            gate.serve(&all);
        }
        self.memory.inspect(|memory| memory.serve(&all));
        self.shares.serve(&all);
        self.quotas.keep(&all);
        // Said first, since what follows from it is said by others.
        let names: Vec<&str> = all.iter().map(|tenant| tenant.name.as_str()).collect();
        tracing::info!(tenants = names.join(","), "the rules of client-identity have changed");
        self.tenants.send_replace(changed.tenants);
        self.metrics.rules_reloaded(true);
    }
}
