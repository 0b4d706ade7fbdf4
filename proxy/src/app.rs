//! The proxy from its checked configuration to its last connection; what main, tests and benches all start.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use crate::{
    admin::Admin,
    drain::{self, Trigger},
    metrics::Metrics,
    resolver::{self, Proxy},
    router::Router,
    rules::namespace::Namespace,
    server::{self, Shards},
    services::{
        cluster::{Advertised, Cluster},
        health::Health,
        keepalive::KeepAlives,
        watch::hub::{self, Hub},
    },
    upstream::{
        self, Upstream, channel,
        discovery::{self, Discovery},
        endpoint::Endpoint,
        endpoints::Endpoints,
    },
};

/// Everything that the proxy needs to know, checked; one part per room.
#[derive(Clone)]
pub struct Config {
    /// Where clients are served, `host:port`.
    pub listen_address: String,
    pub server: server::Config,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub discovery: discovery::Config,
    pub channel: channel::Config,
    pub limits: upstream::Limits,
    pub health: upstream::health::Config,
    pub namespace: Namespace,
    pub watch: hub::Config,
    /// How this proxy is shown to clients that ask for the members; without it they see etcd's own.
    pub advertised: Option<Proxy>,
    /// How it registers itself among the cluster's proxies, if it does.
    pub registration: Option<resolver::Config>,
    /// How long calls under way may take to end after SIGTERM.
    pub drain_timeout: Duration,
}

/// A proxy that serves. Dropping it ends the process's part in it at once; `drain` ends it well.
pub struct Running {
    /// Where clients are served, with the port that the system chose if it was asked to.
    pub address: SocketAddr,
    pub endpoints: Arc<Endpoints>,
    drain_timeout: Duration,
    trigger: Trigger,
    tasks: Vec<JoinHandle<()>>,
}

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("listen tcp {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("failed to start a thread: {0}")]
    Thread(io::Error),
}

/// Binds, starts what watches over etcd, and serves.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let bound = server::bind(&config.listen_address)
        .await
        .map_err(|source| StartError::Listen { address: config.listen_address.clone(), source })?;
    let address = bound.address;
    tracing::info!(address = %config.listen_address, "listening for gRPC proxy client requests");

    let metrics = Arc::new(Metrics::new());
    let endpoints = Endpoints::new(config.endpoints.clone());
    let channel = Arc::new(config.channel.clone());
    let upstream = Upstream::new(endpoints.clone(), channel.clone(), config.limits, metrics.clone());
    let (trigger, watcher) = drain::channel();
    let mut tasks = vec![tokio::spawn(upstream::health::run(upstream.clone(), config.health))];

    let mut discovery = Discovery::new(config.discovery, upstream.clone(), channel.clone());
    discovery.begin().await;
    tasks.push(tokio::spawn(discovery.run()));

    let registered = config.registration.map(|registration| {
        let (registered, working) = resolver::start(registration, &upstream, &config.namespace, watcher.clone());
        tasks.extend(working);
        registered
    });
    let cluster = Cluster::new(config.advertised.map(|this| Advertised { this, registered }));

    let admin = Admin::new(metrics.clone());
    let hub = Hub::new(upstream.clone(), config.namespace.clone(), metrics.clone(), config.watch, watcher.clone());
    let keepalives = Arc::new(KeepAlives::new(upstream.clone(), metrics.clone(), watcher.clone()));
    let health = Health::new(endpoints.clone());
    let (namespace, shard_metrics) = (config.namespace.clone(), metrics.clone());
    let make_router = move || {
        Arc::new(Router {
            namespace: namespace.clone(),
            upstream: upstream.for_shard(channel.clone()),
            hub: hub.clone(),
            keepalives: keepalives.clone(),
            cluster: cluster.clone(),
            health: health.clone(),
            admin: admin.clone(),
            metrics: shard_metrics.clone(),
        })
    };
    let shards =
        Shards::start(&Arc::new(config.server), &metrics, &watcher, make_router).map_err(StartError::Thread)?;
    tasks.push(tokio::spawn(async move { shards.accept(bound, watcher).await }));
    Ok(Running { address, endpoints, drain_timeout: config.drain_timeout, trigger, tasks })
}

impl Running {
    /// Stops taking calls, lets those under way end, and says whether all did in time.
    pub async fn drain(self) -> bool {
        let finished = self.trigger.drain(self.drain_timeout).await;
        for task in &self.tasks {
            task.abort();
        }
        finished
    }
}
