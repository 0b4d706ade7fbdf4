//! Whom requests go to: the members' client URLs, asked for again and again, and which of them failed lately.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{
    cluster::{self, Members, State},
    origin::Origin,
    pool::Pool,
};
use crate::doors::{Address, Itself};

/// How often members are asked while none is known, whatever the interval: as in etcd.
const EAGER_INTERVAL: Duration = Duration::from_secs(1);
/// Far more URLs than a cluster can have. It keeps a wrong list from taking all memory.
const MAX_ENDPOINTS: usize = 100;

/// A member's client URL.
#[derive(Debug)]
pub struct Endpoint {
    pub origin: Origin,
    available: AtomicBool,
}

/// The endpoints as they are known at present.
pub struct Director {
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    failure_wait: Duration,
    itself: Itself,
}

impl Director {
    pub fn new(failure_wait: Duration, itself: Itself) -> Self {
        Self { endpoints: ArcSwap::default(), failure_wait, itself }
    }

    /// Those that are not held back.
    pub fn available(&self) -> Vec<Arc<Endpoint>> {
        let all = self.endpoints.load();
        all.iter().filter(|endpoint| endpoint.available.load(Ordering::Relaxed)).cloned().collect()
    }

    /// Holds an endpoint back for a while.
    pub fn failed(&self, endpoint: &Arc<Endpoint>) {
        if !endpoint.available.swap(false, Ordering::Relaxed) {
            return;
        }
        tracing::info!(endpoint = endpoint.origin.url, "marked endpoint unavailable");
        let (endpoint, wait) = (endpoint.clone(), self.failure_wait);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            endpoint.available.store(true, Ordering::Relaxed);
            let endpoint = &endpoint.origin.url;
            tracing::info!(endpoint, "marked endpoint available, to retest connectivity");
        });
    }

    /// Takes over what the members tell; what is known of a URL stays with it.
    async fn adopt(&self, urls: &[String]) {
        let known = self.endpoints.load_full();
        let mut endpoints = Vec::new();
        for url in urls.iter().take(MAX_ENDPOINTS) {
            let origin = match Origin::parse(url) {
                Ok(origin) => origin,
                Err(error) => {
                    tracing::info!(error, "upstream URL invalid");
                    continue;
                }
            };
            if self.is_this(&origin).await {
                tracing::warn!(
                    url,
                    "a member advertises the address of this proxy, leaving it out: requests would go in circles; \
                     give that member its own --advertise-client-urls"
                );
                continue;
            }
            let same = known.iter().find(|known| known.origin == origin);
            let fresh = || Arc::new(Endpoint { origin, available: AtomicBool::new(true) });
            endpoints.push(same.cloned().unwrap_or_else(fresh));
        }
        if known.is_empty() && !endpoints.is_empty() {
            let endpoints: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.origin.url.as_str()).collect();
            tracing::info!(?endpoints, "endpoints found");
        }
        // Not always the same one first, so that the requests of many proxies do not all go to one member.
        let first = usize::try_from(rand_below(endpoints.len())).unwrap_or(0);
        endpoints.rotate_left(first);
        self.endpoints.store(Arc::new(endpoints));
    }

    async fn is_this(&self, origin: &Origin) -> bool {
        let Address::Tcp(host_port) = &origin.address else { return false };
        let found = tokio::net::lookup_host(host_port.as_str()).await;
        found.is_ok_and(|mut found| found.any(|address: SocketAddr| self.itself.is_at(address)))
    }
}

/// Below the limit, or zero. The standard library seeds each of its hashers at random, which is random enough here.
fn rand_below(limit: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8) % (limit.max(1) as u64)
}

/// Keeps the director up to date for as long as it runs.
pub struct Refresher {
    pub director: Arc<Director>,
    pub pool: Pool,
    pub state: State,
    pub peer_urls: Vec<String>,
    pub interval: Duration,
}

impl Refresher {
    pub async fn run(mut self) {
        loop {
            let wait =
                if self.director.available().is_empty() { self.interval.min(EAGER_INTERVAL) } else { self.interval };
            tokio::time::sleep(wait).await;
            self.refresh().await;
        }
    }

    /// Asks the members once; if none tells, what is known stays.
    pub async fn refresh(&mut self) {
        match cluster::members(&self.pool, &self.peer_urls).await {
            Ok(members) => self.take_over(members).await,
            Err(error) => {
                let urls = &self.peer_urls;
                tracing::warn!("peer-urls" = ?urls, error, "failed to get cluster from remote peers");
            }
        }
    }

    async fn take_over(&mut self, members: Members) {
        self.director.adopt(&members.client_urls).await;
        if members.peer_urls.is_empty() {
            return;
        }
        let is_news = members.peer_urls != self.peer_urls;
        if is_news {
            tracing::info!(from = ?self.peer_urls, to = ?members.peer_urls, "proxy updated peer URLs");
            self.peer_urls = members.peer_urls;
        }
        if (is_news || !self.state.path().exists())
            && let Err(error) = self.state.write(&self.peer_urls)
        {
            tracing::warn!(path = %self.state.path().display(), %error, "proxy failed to write cluster file");
        }
    }
}
