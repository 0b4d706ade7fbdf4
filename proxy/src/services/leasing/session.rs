//! The session: a lease that is kept alive and on which all leasing keys hang, for as long as etcd asks nobody who they
//! are.
//!
//! A value may be shown until the lease could have run out at etcd: its TTL after the last renewal was *sent*, less a
//! margin. When it has run out, or a proxy that was paused comes back, nothing is shown until a new session begins.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_proxy_proto::etcdserverpb::{
    AuthStatusRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, ResponseHeader,
    auth_client::AuthClient, kv_client::KvClient, lease_client::LeaseClient,
};
use futures_util::stream;

use super::{
    clock,
    follow::{self, Missed},
    table::Table,
};
use crate::{
    backoff::Backoff,
    drain,
    exchange::until,
    rules::{
        leasing::Prefix,
        status::{self, Code, Status},
    },
    upstream::{OWN_CALL_TIMEOUT, Upstream},
};

/// Between tries to begin a session.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Renewals in the life of a lease: with 60 seconds, one in 10. This is also how soon it is noticed that auth was turned
/// on.
const RENEWALS_PER_TTL: u32 = 6;
/// The part of a TTL that is not trusted: etcd's clock may run faster than ours. NTP bends clocks by at most one part in
/// two thousand, so this is for worse ones.
const MARGIN_PARTS: u32 = 10;
/// The shortest that one renewal may take; leases of a second or two would otherwise give it no time on a busy machine.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(500);
/// Leasing keys that are given up in one transaction: half of what etcd takes, since each counts twice.
const RELEASES_AT_ONCE: usize = 32;

/// Keeps a session until the drain begins, and gives everything up then.
pub async fn run(ttl_seconds: i64, prefix: Prefix, upstream: Upstream, table: Arc<Table>, mut drain: drain::Watcher) {
    let mut keeper = Keeper {
        ttl_seconds,
        lease: LeaseClient::new(upstream.clone()),
        auth: AuthClient::new(upstream.clone()),
        upstream,
        prefix,
        table,
        held: None,
        backoff: Backoff::new(FIRST_RETRY, LAST_RETRY),
        told_of_auth: false,
    };
    tokio::select! {
        biased;
        () = drain.signaled() => (),
        () = keeper.keep() => (),
    }
    keeper.table.close();
    keeper.give_up_lease().await;
}

struct Keeper {
    ttl_seconds: i64,
    prefix: Prefix,
    upstream: Upstream,
    lease: LeaseClient<Upstream>,
    auth: AuthClient<Upstream>,
    table: Arc<Table>,
    /// The lease that etcd holds for us.
    held: Option<i64>,
    backoff: Backoff,
    told_of_auth: bool,
}

/// A lease that was granted.
struct Granted {
    id: i64,
    ttl: Duration,
    /// Leasing keys that hang on it are younger than this.
    header: ResponseHeader,
}

/// What etcd said to a renewal.
enum Renewal {
    Alive,
    Gone,
    /// Auth is on, so that etcd would have to judge each reader.
    Guarded,
}

impl Keeper {
    /// Begins a session, and another whenever it is lost. Never returns.
    async fn keep(&mut self) {
        loop {
            match self.begin().await {
                Ok(Some(granted)) => {
                    tracing::info!("lease-ttl" = granted.ttl.as_secs(), "leasing session began");
                    self.told_of_auth = false;
                    self.serve(granted).await;
                    self.table.close();
                }
                Ok(None) if self.told_of_auth => (),
                Ok(None) => {
                    self.told_of_auth = true;
                    tracing::warn!("auth is on, so reads are not served from leases but by etcd");
                }
                Err(status) => tracing::warn!(error = status.message(), "failed to begin a leasing session"),
            }
            self.give_up_lease().await;
            self.backoff.wait().await;
        }
    }

    /// A session with its lease, or nothing while auth is on.
    async fn begin(&mut self) -> Result<Option<Granted>, Status> {
        let asked = clock::now();
        let beginning = async {
            if auth_is_on(&mut self.auth).await? {
                return Ok(None);
            }
            let request = LeaseGrantRequest { ttl: self.ttl_seconds, id: 0 };
            Ok(Some(self.lease.lease_grant(request).await?.into_inner()))
        };
        let Some(granted) = until(Some(Instant::now() + OWN_CALL_TIMEOUT), beginning).await? else { return Ok(None) };
        self.held = Some(granted.id);
        // etcd may grant more than was asked for, never less.
        let ttl = Duration::from_secs(u64::try_from(granted.ttl).unwrap_or(1).max(1));
        let header = granted.header.ok_or_else(|| status::unreadable_answer("no header"))?;
        self.table.open(granted.id, asked + trusted(ttl), &header);
        Ok(Some(Granted { id: granted.id, ttl, header }))
    }

    /// Returns when the lease is gone, the watch on the prefix has missed something, or auth is on.
    async fn serve(&mut self, granted: Granted) {
        let following = follow::run(&self.upstream, &self.prefix, &self.table, granted.header);
        let releasing = release(&self.upstream, &self.prefix, &self.table);
        let renewing = renew_until_lost(&self.lease, &self.auth, &self.table, &granted, &mut self.backoff);
        tokio::select! {
            missed = following => match missed {
                Missed::Compacted => tracing::warn!("leasing session ends, since some of its watch was compacted"),
                Missed::WentBack => tracing::warn!("leasing session ends, since etcd was put back to an older state"),
            },
            () = releasing => (),
            () = renewing => (),
        }
    }

    /// Revokes the lease if etcd may still hold it, so that nobody waits for what hangs on it. If that fails, its TTL
    /// ends it.
    async fn give_up_lease(&mut self) {
        let Some(id) = self.held.take() else { return };
        let revoke = async { self.lease.lease_revoke(LeaseRevokeRequest { id }).await };
        if let Err(status) = until(Some(Instant::now() + OWN_CALL_TIMEOUT), revoke).await
            && status.code() != Code::NotFound
        {
            tracing::debug!(error = status.message(), "failed to revoke the leasing session's lease");
        }
    }
}

/// How long after it was asked for a lease is surely alive.
fn trusted(ttl: Duration) -> Duration {
    ttl - ttl / MARGIN_PARTS
}

async fn renew_until_lost(
    lease: &LeaseClient<Upstream>,
    auth: &AuthClient<Upstream>,
    table: &Table,
    granted: &Granted,
    backoff: &mut Backoff,
) {
    let (mut lease, mut auth) = (lease.clone(), auth.clone());
    let pause = granted.ttl / RENEWALS_PER_TTL;
    let patience = pause.clamp(SHORTEST_TIMEOUT, OWN_CALL_TIMEOUT);
    let mut retry = Backoff::new(FIRST_RETRY.min(pause), pause);
    let mut next = pause;
    loop {
        tokio::time::sleep(next).await;
        table.tidy();
        let asked = clock::now();
        match until(Some(Instant::now() + patience), renew(&mut lease, &mut auth, granted.id)).await {
            Ok(Renewal::Alive) => {
                table.extend(asked + trusted(granted.ttl));
                next = pause;
                retry.reset();
                backoff.reset();
            }
            Ok(Renewal::Gone) => return tracing::warn!("leasing session expired"),
            Ok(Renewal::Guarded) => return tracing::warn!("leasing session ends, since auth is on"),
            Err(status) => {
                tracing::debug!(error = status.message(), "failed to renew the leasing session's lease");
                next = retry.next();
            }
        }
    }
}

/// Renews the lease, if auth is off: an answer that is kept would be shown to whoever asks.
async fn renew(lease: &mut LeaseClient<Upstream>, auth: &mut AuthClient<Upstream>, id: i64) -> Result<Renewal, Status> {
    let renewal = async {
        let once = stream::iter([LeaseKeepAliveRequest { id }]);
        let answer = lease.lease_keep_alive(once).await?.into_inner().message().await?;
        answer.map(|answer| answer.ttl).ok_or_else(|| status::unreadable_answer("a renewal without an answer"))
    };
    let (is_on, ttl) = tokio::join!(auth_is_on(auth), renewal);
    // With auth on the renewal may be refused, which tells nothing more.
    Ok(match (is_on?, ttl) {
        (true, _) => Renewal::Guarded,
        (false, Ok(1..)) => Renewal::Alive,
        (false, Ok(_)) => Renewal::Gone,
        (false, Err(status)) => return Err(status),
    })
}

/// Whether etcd judges callers. It tells only those that it may tell, and with auth on we are a stranger to it.
async fn auth_is_on(auth: &mut AuthClient<Upstream>) -> Result<bool, Status> {
    match auth.auth_status(AuthStatusRequest {}).await {
        Ok(answer) => Ok(answer.into_inner().enabled),
        Err(status) => match status.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::Unauthenticated => Ok(true),
            _ => Err(status),
        },
    }
}

/// Gives up what is to be given up. Never returns.
async fn release(upstream: &Upstream, prefix: &Prefix, table: &Table) {
    let mut client = KvClient::new(upstream.clone());
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        table.work().await;
        loop {
            let releases = table.take_releases(RELEASES_AT_ONCE);
            if releases.is_empty() {
                break;
            }
            let giving_up = async { client.txn(prefix.release(&releases)).await };
            match until(Some(Instant::now() + OWN_CALL_TIMEOUT), giving_up).await {
                Ok(_) => {
                    table.released(&releases);
                    backoff.reset();
                }
                Err(status) => {
                    tracing::debug!(error = status.message(), "failed to give up leasing keys");
                    table.not_released(releases);
                    backoff.wait().await;
                }
            }
        }
    }
}
