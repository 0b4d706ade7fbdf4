//! One operator works at a time: who holds the Lease. A holder that cannot renew it stops, before another may take over.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

/// How long a Lease is good after its last renewal; the usual one of Kubernetes' own controllers.
const DURATION: Duration = Duration::from_secs(15);
/// When a holder that cannot renew gives up. The rest of the duration is for clocks and what is still under way.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, and how often the others look.
const RETRY: Duration = Duration::from_secs(2);

/// A Lease that this process wants to hold or holds.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// What another process was last seen to have written, and when we saw it. Clocks of two machines are never compared.
struct Observed {
    renewed: Option<MicroTime>,
    holder: Option<String>,
    at: Instant,
}

impl Leadership {
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Leadership {
        Leadership { api: Api::namespaced(client, namespace), name: name.to_owned(), identity }
    }

    /// Returns when this process holds the Lease.
    pub async fn acquire(&self) {
        let mut observed: Option<Observed> = None;
        loop {
            match self.try_acquire(&mut observed).await {
                Ok(true) => return,
                Ok(false) => (),
                // Two that write at once is no error: one has won.
                Err(kube::Error::Api(status)) if status.code == 409 => (),
                Err(error) => tracing::warn!(%error, lease = self.name, "cannot read or write the lease; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn try_acquire(&self, observed: &mut Option<Observed>) -> kube::Result<bool> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(0)) };
            self.api.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let changed = observed.as_ref().is_none_or(|seen| seen.renewed != spec.renew_time || seen.holder != holder);
        if changed {
            *observed = Some(Observed { renewed: spec.renew_time.clone(), holder: holder.clone(), at: Instant::now() });
        }
        let good_for = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(DURATION, Duration::from_secs);
        let expired = observed.as_ref().is_some_and(|seen| seen.at.elapsed() > good_for);
        if holder.as_ref().is_some_and(|holder| *holder != self.identity) && !expired {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        let transitions = if holder.as_ref() == Some(&self.identity) { transitions } else { transitions + 1 };
        // The resource version that was read goes back with it, so that of two only one succeeds.
        let lease = Lease { spec: Some(self.spec(transitions)), ..lease };
        self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(true)
    }

    /// Renews until that fails for too long; then the process must stop writing at once.
    pub async fn hold(&self) {
        let mut last = Instant::now();
        while last.elapsed() < RENEW_DEADLINE {
            tokio::time::sleep(RETRY).await;
            let left = RENEW_DEADLINE.saturating_sub(last.elapsed());
            match tokio::time::timeout(left, self.renew()).await {
                Ok(Ok(true)) => last = Instant::now(),
                Ok(Ok(false)) => {
                    tracing::error!(lease = self.name, "another process took the lease");
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "cannot renew the lease"),
                Err(_) => tracing::warn!(lease = self.name, "renewing the lease takes too long"),
            }
        }
        tracing::error!(lease = self.name, "could not renew the lease for {RENEW_DEADLINE:?}");
    }

    async fn renew(&self) -> kube::Result<bool> {
        let lease = self.api.get(&self.name).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_ref() != Some(&self.identity) {
            return Ok(false);
        }
        let spec = LeaseSpec { renew_time: Some(MicroTime(Timestamp::now())), ..spec };
        self.api.replace(&self.name, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await?;
        Ok(true)
    }

    /// Lets another take over at once.
    pub async fn release(&self) -> kube::Result<()> {
        let lease = self.api.get(&self.name).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_ref() == Some(&self.identity) {
            let spec = LeaseSpec { holder_identity: None, lease_duration_seconds: Some(1), ..spec };
            self.api.replace(&self.name, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await?;
        }
        Ok(())
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}
