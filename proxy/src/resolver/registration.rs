//! This proxy's own registration: a lease that is kept alive, and a key that lives as long as it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest, kv_client::KvClient,
    lease_client::LeaseClient,
};
use futures_util::stream;
use tokio::{sync::watch, time::Instant};

use super::{Config, Record, Registered};
use crate::{
    backoff::Backoff,
    drain,
    exchange::until,
    metrics::Metrics,
    rules::status::{self, Status},
    upstream::{OWN_CALL_TIMEOUT, Upstream},
};

/// Between tries to register. The original tries once a second for ever, which many proxies turn into a load on an etcd
/// that is just coming back.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(15);
/// A lease is renewed when a third of its life is over, as etcd's own client does: two renewals may fail.
const RENEWALS_PER_TTL: u32 = 3;
/// The shortest that one renewal may take; leases of a second or two would otherwise give it no time on a busy machine.
const SHORTEST_RENEWAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Keeps the registration until the drain begins, and takes it back then, so that no client is sent here any more.
pub async fn run(
    config: Config,
    upstream: Upstream,
    key: Bytes,
    registered: watch::Receiver<Registered>,
    metrics: Arc<Metrics>,
    mut drain: drain::Watcher,
) {
    let mut registration = Registration {
        kv: KvClient::new(upstream.clone()),
        lease: LeaseClient::new(upstream),
        value: Record::write(&config.this),
        config,
        key,
        registered,
        metrics,
        held: None,
        backoff: Backoff::new(FIRST_RETRY, LAST_RETRY),
    };
    tokio::select! {
        biased;
        () = drain.signaled() => (),
        () = registration.keep() => (),
    }
    registration.give_up_lease().await;
}

struct Registration {
    config: Config,
    kv: KvClient<Upstream>,
    lease: LeaseClient<Upstream>,
    key: Bytes,
    value: Bytes,
    registered: watch::Receiver<Registered>,
    metrics: Arc<Metrics>,
    /// The lease that etcd holds for us, from its grant on: revoking it also undoes a put that is under way.
    held: Option<i64>,
    backoff: Backoff,
}

/// A registration that stands.
struct Session {
    lease: i64,
    ttl: Duration,
    /// The revision that wrote the key.
    revision: i64,
}

impl Registration {
    /// Registers, and again whenever the registration is lost. Never returns.
    async fn keep(&mut self) {
        loop {
            match until(Some(deadline(OWN_CALL_TIMEOUT)), self.register()).await {
                Ok(session) => {
                    tracing::info!(
                        addr = self.config.this.address,
                        "lease-ttl" = self.config.ttl_seconds,
                        "registered session with lease"
                    );
                    self.metrics.registrations.set(1);
                    self.renew_until_lost(session).await;
                    self.metrics.registrations.set(0);
                    tracing::warn!("session expired; possible network partition or server restart");
                    tracing::warn!("creating a new session to rejoin");
                }
                Err(status) => {
                    tracing::warn!(error = status.message(), "failed to create a session");
                }
            }
            self.give_up_lease().await;
            self.backoff.wait().await;
        }
    }

    async fn register(&mut self) -> Result<Session, Status> {
        let granted =
            self.lease.lease_grant(LeaseGrantRequest { ttl: self.config.ttl_seconds, id: 0 }).await?.into_inner();
        self.held = Some(granted.id);
        let put =
            PutRequest { key: self.key.clone(), value: self.value.clone(), lease: granted.id, ..PutRequest::default() };
        let written = self.kv.put(put).await?.into_inner();
        // etcd may grant more than was asked for, never less.
        let ttl = Duration::from_secs(u64::try_from(granted.ttl).unwrap_or(1).max(1));
        Ok(Session { lease: granted.id, ttl, revision: written.header.map_or(i64::MAX, |header| header.revision) })
    }

    /// Returns when the lease is gone, has not been renewed for its whole life, or the key is.
    async fn renew_until_lost(&mut self, session: Session) {
        let mut expires = Instant::now() + session.ttl;
        let pause = session.ttl / RENEWALS_PER_TTL;
        let patience = pause.clamp(SHORTEST_RENEWAL_TIMEOUT, OWN_CALL_TIMEOUT);
        let mut retry = Backoff::new(FIRST_RETRY, LAST_RETRY.min(pause));
        let mut next = pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep(next) => (),
                Ok(_) = self.registered.wait_for(|registered| registered.lost(&self.key, session.revision)) => return,
            }
            let asked = Instant::now();
            match until(Some(deadline(patience)), renew(&mut self.lease, session.lease)).await {
                Ok(ttl) if ttl > 0 => {
                    expires = asked + session.ttl;
                    next = pause;
                    retry.reset();
                    self.backoff.reset();
                }
                Ok(_) => return,
                Err(status) => {
                    tracing::debug!(error = status.message(), "failed to renew the registration's lease");
                    if Instant::now() >= expires {
                        return;
                    }
                    next = retry.next();
                }
            }
        }
    }

    /// Revokes the lease if etcd may still hold it. If that fails, its TTL ends it.
    async fn give_up_lease(&mut self) {
        let Some(id) = self.held.take() else { return };
        let revoke = async { self.lease.lease_revoke(LeaseRevokeRequest { id }).await };
        match until(Some(deadline(OWN_CALL_TIMEOUT)), revoke).await {
            Ok(_) => tracing::info!(addr = self.config.this.address, "deregistered"),
            Err(status) => tracing::debug!(error = status.message(), "failed to revoke the registration's lease"),
        }
    }
}

/// One renewal; answers with the TTL, which is 0 for a lease that is gone.
async fn renew(client: &mut LeaseClient<Upstream>, id: i64) -> Result<i64, Status> {
    let once = stream::iter([LeaseKeepAliveRequest { id }]);
    let answer = client.lease_keep_alive(once).await?.into_inner().message().await?;
    answer.map(|answer| answer.ttl).ok_or_else(|| status::unreadable_answer("a renewal without an answer"))
}

fn deadline(timeout: Duration) -> std::time::Instant {
    std::time::Instant::now() + timeout
}
