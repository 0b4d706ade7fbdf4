//! One operator works at a time: who holds the Lease. A holder that cannot renew it stops, before another may take over.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

/// The times of a Lease; those of Kubernetes' own controllers by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Timing {
    /// Seconds for which the lease is good after its last renewal; as long it takes until another operator takes over
    /// from one that died
    #[arg(long = "lease-seconds", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=600))]
    pub lease_seconds: u16,
    /// Seconds after which a holder that cannot renew the lease ends itself; fewer than --lease-seconds, so that it has
    /// stopped before another begins
    #[arg(long = "lease-renew-seconds", default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=599))]
    pub renew_seconds: u16,
    /// Seconds between renewals, and between the looks of those that wait
    #[arg(long = "lease-retry-seconds", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=60))]
    pub retry_seconds: u16,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { lease_seconds: 15, renew_seconds: 10, retry_seconds: 2 }
    }
}

impl Timing {
    /// Why these times cannot serve together.
    pub fn check(&self) -> Result<(), String> {
        let Timing { lease_seconds: lease, renew_seconds: renew, retry_seconds: retry } = *self;
        if renew >= lease {
            return Err(format!("--lease-renew-seconds={renew} must be less than --lease-seconds={lease}"));
        }
        if retry >= renew {
            return Err(format!("--lease-retry-seconds={retry} must be less than --lease-renew-seconds={renew}"));
        }
        Ok(())
    }

    fn lease(self) -> Duration {
        Duration::from_secs(self.lease_seconds.into())
    }

    fn renew(self) -> Duration {
        Duration::from_secs(self.renew_seconds.into())
    }

    fn retry(self) -> Duration {
        Duration::from_secs(self.retry_seconds.into())
    }
}

/// A Lease that this process wants to hold or holds.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
}

/// What another process was last seen to have written, and when we saw it. Clocks of two machines are never compared.
struct Observed {
    renewed: Option<MicroTime>,
    holder: Option<String>,
    at: Instant,
}

impl Leadership {
    pub fn new(client: Client, namespace: &str, name: &str, identity: String, timing: Timing) -> Leadership {
        Leadership { api: Api::namespaced(client, namespace), name: name.to_owned(), identity, timing }
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
            tokio::time::sleep(self.timing.retry()).await;
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
            .map_or(self.timing.lease(), Duration::from_secs);
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
        let deadline = self.timing.renew();
        while last.elapsed() < deadline {
            tokio::time::sleep(self.timing.retry()).await;
            let left = deadline.saturating_sub(last.elapsed());
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
        tracing::error!(lease = self.name, "could not renew the lease for {deadline:?}");
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
            lease_duration_seconds: Some(self.timing.lease_seconds.into()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}
