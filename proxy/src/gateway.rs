//! The L4 front door: a drop-in for `etcd gateway start`, which moves bytes between clients and etcd without looking at
//! them, so that TLS goes from end to end.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::JoinHandle};

use crate::{
    doors::{self, Address, Bound, Itself, Serve, Socket},
    drain::{self, Observer, Trigger},
    go, logging,
    metrics::gateway::{self as page, Observed},
    pages,
};

pub mod backends;
pub mod discovery;
mod monitor;
mod pipe;
mod relay;

use backends::{Backend, Backends};
use relay::Moved;

/// Everything that the gateway needs to know, checked.
#[derive(Clone)]
pub struct Config {
    /// Where clients are served, as the user wrote it.
    pub listen: Vec<String>,
    /// Used when there are no SRV records to look up, or they name nobody who can be trusted.
    pub endpoints: Vec<String>,
    pub srv: Option<discovery::Config>,
    /// After how long an endpoint that failed is tried again; zero is etcd's five minutes.
    pub retry_delay: Duration,
    /// How long an endpoint may take to accept a connection.
    pub dial_timeout: Duration,
    pub threads: usize,
    /// Connections that may be open; zero is without a limit.
    pub max_connections: usize,
    /// Where metrics, health and readiness are served, each `host:port`.
    pub metrics_addresses: Vec<String>,
    /// How long open connections may go on after SIGTERM.
    pub drain_timeout: Duration,
}

/// Why the gateway could not start, in the words of etcd's.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Discovery(String),
    #[error("error parsing endpoint {}", go::quote(.0))]
    Endpoint(String),
    #[error("failed to validate listen address: {0}")]
    ListenAddress(String),
    #[error("failed to resolve listen host: {0}")]
    ListenHost(String),
    #[error("failed to resolve endpoint host: {0}")]
    EndpointHost(String),
    #[error("SRV or endpoint ({endpoint}->{resolved}) should not resolve to the gateway listen addr ({listen})")]
    Itself { endpoint: Address, resolved: String, listen: Address },
    #[error("no endpoints found")]
    NoEndpoints,
    #[error(transparent)]
    Listen(#[from] doors::ListenError),
    #[error("listen tcp {address}: {}{}", if source.raw_os_error().is_some() { "bind: " } else { "" }, go::io_error(source))]
    Metrics { address: String, source: io::Error },
    #[error("failed to start a thread: {0}")]
    Thread(io::Error),
}

/// etcd takes a delay of zero for this.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(5 * 60);
/// A connection needs one descriptor towards each side, and now and then two for a pipe, which few need at a time.
const DESCRIPTORS_EACH: usize = 2;
/// When the last connection has ended, an answer about health or metrics still gets this long.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What all threads share.
pub struct Gateway {
    backends: Backends,
    itself: Itself,
    retry_delay: Duration,
    dial_timeout: Duration,
    /// Told of each endpoint that fails.
    failed: Notify,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    ended: AtomicU64,
    /// Connections that no endpoint took.
    refused: AtomicU64,
    /// One for each thread.
    moved: Vec<Arc<Moved>>,
}

/// A gateway that serves.
pub struct Running {
    /// Where clients are served, with the ports that the system chose if it was asked to.
    pub addresses: Vec<Address>,
    pub metrics_addresses: Vec<SocketAddr>,
    /// Logged once the init daemon has been told.
    pub endpoints: Vec<String>,
    listeners: Vec<Bound>,
    drain_timeout: Duration,
    trigger: Trigger,
    metrics_trigger: Trigger,
    tasks: Vec<JoinHandle<()>>,
}

/// Checks in etcd's order, binds, and serves.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let (backends, refresh_at) = endpoints(&config).await?;
    let itself = check_not_itself(&config.listen, &backends).await?;
    if backends.is_empty() {
        return Err(StartError::NoEndpoints);
    }
    let mut listeners = Vec::new();
    for listen in &config.listen {
        listeners.push(Bound::bind(&Address::parse(listen)).await?);
    }
    let mut metrics = Vec::new();
    for address in &config.metrics_addresses {
        let bound = pages::bind(address).await;
        metrics.push(bound.map_err(|source| StartError::Metrics { address: address.clone(), source })?);
    }
    let threads = config.threads.max(1);
    let endpoints = backends.iter().map(|backend| backend.address.to_string()).collect();
    let gateway = Arc::new(Gateway {
        backends: Backends::default(),
        itself,
        retry_delay: if config.retry_delay.is_zero() { DEFAULT_RETRY_DELAY } else { config.retry_delay },
        dial_timeout: config.dial_timeout,
        failed: Notify::new(),
        counts: Counts { moved: (0..threads).map(|_| Arc::default()).collect(), ..Counts::default() },
    });
    gateway.backends.replace(backends);

    let (trigger, watcher) = drain::channel();
    let (metrics_trigger, metrics_watcher) = drain::channel();
    let watched = Arc::new(Watched { gateway: gateway.clone(), drain: watcher.observer() });
    let metrics_addresses = metrics.iter().map(|listener| listener.address).collect();
    let serving = metrics.into_iter().map(|listener| {
        let drain = metrics_watcher.clone();
        tokio::spawn(pages::serve(listener, watched.clone(), watcher.observer(), drain))
    });
    let mut tasks: Vec<JoinHandle<()>> = serving.collect();
    tasks.push(tokio::spawn(monitor::run(gateway.clone(), config.srv, refresh_at)));

    let doors = doors::Config { threads, max_connections: config.max_connections, descriptors_each: DESCRIPTORS_EACH };
    let taken = AtomicU64::new(0);
    let make = move || {
        let number = usize::try_from(taken.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
        Thread { moved: gateway.counts.moved[number % threads].clone(), gateway: gateway.clone() }
    };
    doors::open(doors, &listeners, &watcher, make).map_err(StartError::Thread)?;
    let addresses = listeners.iter().map(|bound| bound.address.clone()).collect();
    let drain_timeout = config.drain_timeout;
    Ok(Running { addresses, metrics_addresses, endpoints, listeners, drain_timeout, trigger, metrics_trigger, tasks })
}

impl Running {
    /// Stops accepting, lets connections end by themselves, and says whether all did in time.
    pub async fn drain(self) -> bool {
        // Its unix sockets go first, so that nobody queues up behind a door that does not open any more.
        drop(self.listeners);
        let finished = self.trigger.drain(self.drain_timeout).await;
        self.metrics_trigger.drain(LAST_ANSWERS).await;
        for task in &self.tasks {
            task.abort();
        }
        finished
    }
}

/// The endpoints by SRV, else as configured, and how long the records hold.
async fn endpoints(config: &Config) -> Result<(Vec<Arc<Backend>>, Instant), StartError> {
    if let Some(srv) = &config.srv {
        let (found, valid_until) = srv.look_up(&[]).await.map_err(StartError::Discovery)?;
        if !found.is_empty() {
            return Ok((found, valid_until));
        }
    }
    let read = |text: &String| {
        let address = Address::parse(text);
        match &address {
            Address::Tcp(host_port) if split(host_port).is_none() => Err(StartError::Endpoint(host_port.clone())),
            _ => Ok(Arc::new(Backend::new(address, 0, 0))),
        }
    };
    Ok((config.endpoints.iter().map(read).collect::<Result<_, _>>()?, Instant::now()))
}

/// Host and port, where there are both.
fn split(host_port: &str) -> Option<(&str, u16)> {
    let (host, port) = host_port.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return None;
    }
    Some((bare.unwrap_or(host), port.parse().ok()?))
}

/// Resolves both sides, and refuses an endpoint that leads back here.
async fn check_not_itself(listen: &[String], backends: &[Arc<Backend>]) -> Result<Itself, StartError> {
    let mut listening = Vec::new();
    for text in listen {
        let address = Address::parse(text);
        if let Address::Tcp(host_port) = &address {
            let (host, port) = split(host_port).ok_or_else(|| StartError::ListenAddress(text.clone()))?;
            let host = if host.is_empty() { "::" } else { host };
            let found = tokio::net::lookup_host((host, port)).await;
            let found = found.map_err(|_| StartError::ListenHost(host.to_owned()))?;
            listening.extend(found.map(|resolved| (resolved, address.clone())));
        }
    }
    let nobody = Itself::default();
    let itself = Itself::new(listening);
    for backend in backends {
        match &backend.address {
            Address::Unix(path) => {
                let own = listen.iter().map(|text| Address::parse(text)).find(|own| is_same_file(own, path));
                if let Some(listen) = own {
                    let (endpoint, resolved) = (backend.address.clone(), path.display().to_string());
                    return Err(StartError::Itself { endpoint, resolved, listen });
                }
            }
            Address::Tcp(host_port) => {
                let host = || split(host_port).map_or(host_port.as_str(), |(host, _)| host).to_owned();
                backend.resolve(&nobody).await.map_err(|_| StartError::EndpointHost(host()))?;
                for resolved in backend.addresses() {
                    if let Some(listen) = itself.listener_at(resolved) {
                        let (endpoint, listen) = (backend.address.clone(), listen.clone());
                        return Err(StartError::Itself { endpoint, resolved: resolved.to_string(), listen });
                    }
                }
            }
        }
    }
    Ok(itself)
}

fn is_same_file(own: &Address, path: &Path) -> bool {
    let Address::Unix(own) = own else { return false };
    let real = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    real(own) == real(path)
}

/// The gateway as one thread has it.
#[derive(Clone)]
struct Thread {
    gateway: Arc<Gateway>,
    moved: Arc<Moved>,
}

impl Serve for Thread {
    fn serve(&self, _: usize, client: Socket, _: Observer) -> impl Future<Output = ()> + Send + 'static {
        let this = self.clone();
        async move {
            let counts = &this.gateway.counts;
            counts.accepted.fetch_add(1, Ordering::Relaxed);
            // On the heap, so that what dialling needs is not kept for as long as the connection lasts.
            match Box::pin(this.gateway.dial()).await {
                Some(endpoint) => {
                    if let Err(error) = relay::relay(client, endpoint, &this.moved).await {
                        tracing::debug!(%error, "a connection broke");
                    }
                }
                None => {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("no endpoint accepts a connection, closing the client's");
                }
            }
            counts.ended.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Gateway {
    /// A connection to the endpoint whose turn it is, or to another where that one fails; each is tried once.
    async fn dial(&self) -> Option<Socket> {
        let mut tried = Vec::new();
        while let Some(backend) = self.backends.pick(&tried) {
            match backend.dial(self.dial_timeout).await {
                Ok(socket) => {
                    backend.connections.fetch_add(1, Ordering::Relaxed);
                    self.activate(&backend);
                    return Some(socket);
                }
                Err(error) => {
                    backend.failures.fetch_add(1, Ordering::Relaxed);
                    if backend.set_active(false) {
                        let interval = go::format_duration(self.retry_delay);
                        tracing::warn!(address = %backend.address, interval, error, "deactivated endpoint");
                    }
                    self.failed.notify_one();
                }
            }
            tried.push(backend);
        }
        None
    }

    fn activate(&self, backend: &Backend) {
        if backend.set_active(true) {
            tracing::info!(address = %backend.address, "activated");
        }
    }
}

/// What the pages tell of.
struct Watched {
    gateway: Arc<Gateway>,
    drain: Observer,
}

impl pages::Watched for Watched {
    fn metrics(&self) -> String {
        let counts = &self.gateway.counts;
        let (accepted, ended) = (counts.accepted.load(Ordering::Relaxed), counts.ended.load(Ordering::Relaxed));
        let sum =
            |of: fn(&Moved) -> &AtomicU64| counts.moved.iter().map(|moved| of(moved).load(Ordering::Relaxed)).sum();
        page::text(&Observed {
            open: accepted.saturating_sub(ended),
            accepted,
            refused: counts.refused.load(Ordering::Relaxed),
            bytes_to_endpoints: sum(|moved| &moved.to_endpoints),
            bytes_to_clients: sum(|moved| &moved.to_clients),
            endpoints: self.gateway.backends.list().iter().map(|backend| endpoint(backend)).collect(),
            draining: self.drain.is_signaled(),
            log_lines_dropped: logging::dropped(),
            log_lines_sampled: logging::sampled(),
        })
    }

    fn failure(&self) -> Option<String> {
        let list = self.gateway.backends.list();
        if list.iter().any(|backend| backend.is_active()) {
            return None;
        }
        let names: Vec<String> = list.iter().map(|backend| backend.address.to_string()).collect();
        Some(format!("no endpoint accepts connections: {}", names.join(", ")))
    }
}

fn endpoint(backend: &Backend) -> page::Endpoint {
    page::Endpoint {
        name: backend.address.to_string(),
        is_active: backend.is_active(),
        connections: backend.connections.load(Ordering::Relaxed),
        failures: backend.failures.load(Ordering::Relaxed),
    }
}
