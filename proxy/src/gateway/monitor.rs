//! What goes on beside the connections: endpoints that failed are tried again, names and SRV records looked up again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{Gateway, backends::Backend, discovery};
use crate::go;

/// How often names are looked up again. A Pod or a machine that comes back under another address is found within this
/// time, for one question to a resolver that has it in its cache.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);
/// SRV records are asked for again when their TTL is over, within these bounds: a TTL of zero must not keep a name
/// server busy, and one of a day must not keep a member that was replaced.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);
const LONGEST_REFRESH: Duration = Duration::from_secs(30);
/// The least time between two look-ups that failed connections set off.
const FAILURE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs for as long as the gateway does; the records hold until `refresh_at`.
pub async fn run(gateway: Arc<Gateway>, srv: Option<discovery::Config>, mut refresh_at: Instant) {
    let mut retry_at = Instant::now() + gateway.retry_delay;
    let mut resolve_at = Instant::now() + RESOLVE_INTERVAL;
    loop {
        let mut next = retry_at.min(resolve_at);
        if srv.is_some() {
            next = next.min(refresh_at);
        }
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => (),
            () = gateway.failed.notified() => {
                // What is known may be out of date; but a dead endpoint must not make for a look-up per connection.
                tokio::time::sleep(FAILURE_INTERVAL).await;
                resolve_at = Instant::now();
                refresh_at = resolve_at;
            }
        }
        let now = Instant::now();
        if let Some(srv) = srv.as_ref().filter(|_| now >= refresh_at) {
            refresh_at = refresh(&gateway, srv).await;
        }
        if now >= resolve_at {
            resolve(&gateway).await;
            resolve_at = Instant::now() + RESOLVE_INTERVAL;
        }
        if now >= retry_at {
            reactivate(&gateway).await;
            retry_at = Instant::now() + gateway.retry_delay;
        }
    }
}

/// Takes over what the records name now; if they cannot be had, or name nobody who can be trusted, all stays as it is.
async fn refresh(gateway: &Gateway, srv: &discovery::Config) -> Instant {
    let known = gateway.backends.list();
    match srv.look_up(&known).await {
        Ok((found, valid_until)) => {
            let now = Instant::now();
            let changed = found.len() != known.len() || found.iter().zip(known.iter()).any(|(f, k)| !Arc::ptr_eq(f, k));
            if changed && !found.is_empty() {
                join_all(found.iter().map(|backend| look_up(gateway, backend))).await;
                let endpoints: Vec<String> = found.iter().map(|backend| backend.address.to_string()).collect();
                tracing::info!(?endpoints, "endpoints have changed");
                gateway.backends.replace(found);
            }
            valid_until.clamp(now + SHORTEST_REFRESH, now + LONGEST_REFRESH)
        }
        Err(error) => {
            tracing::warn!("srv-server" = srv.dns.domain, error, "failed to discover endpoints, keeping the last ones");
            Instant::now() + LONGEST_REFRESH
        }
    }
}

async fn resolve(gateway: &Gateway) {
    let list = gateway.backends.list();
    join_all(list.iter().filter(|backend| backend.has_name()).map(|backend| look_up(gateway, backend))).await;
}

async fn look_up(gateway: &Gateway, backend: &Backend) {
    if let Err(error) = backend.resolve(&gateway.itself).await {
        tracing::warn!(address = %backend.address, error, "failed to resolve an endpoint, keeping its last addresses");
    }
}

async fn reactivate(gateway: &Gateway) {
    let list = gateway.backends.list();
    let inactive = list.iter().filter(|backend| !backend.is_active());
    join_all(inactive.map(async |backend| match backend.dial(gateway.dial_timeout).await {
        Ok(_) => gateway.activate(backend),
        Err(error) => tracing::warn!(
            address = %backend.address,
            interval = go::format_duration(gateway.retry_delay),
            error,
            "failed to activate endpoint (stay inactive for another interval)"
        ),
    }))
    .await;
}
