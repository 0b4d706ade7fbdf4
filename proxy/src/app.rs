//! The proxy from its checked configuration to its last connection; what main, tests and benches all start.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    admin::{Admin, Checks, Identity, Place, Watched},
    admission::{
        gate::{self, Gate},
        memory::Memory,
        shares::Shares,
    },
    audit::{self, AuditLog},
    drain::{self, Trigger},
    go,
    json::Api,
    metrics::{Metrics, Side},
    resolver::{self, Proxy},
    router::Router,
    rules::tenant::identity::Tenants,
    server::{self, Bound, Entrance, Front, Shards, access::Access},
    services::{
        cache::{self, Cache},
        cluster::{Advertised, Cluster},
        health::Health,
        keepalive::KeepAlives,
        leases::Leases,
        leasing::{self, Leasing},
        ordering::Ordering,
        watch::{
            bell::Bell,
            hub::{self, Hub},
        },
    },
    tls::ReloadOutcome,
    upstream::{
        self, Upstream, channel,
        discovery::{self, Discovery},
        endpoint::Endpoint,
        endpoints::Endpoints,
        users::{self, Users},
    },
};

pub mod identities;

use identities::{Keeper, Quotas, Reread};

/// Everything that the proxy needs to know, checked; one part per room.
#[derive(Clone)]
pub struct Config {
    /// The name of the machine, empty if nobody knows it.
    pub machine: String,
    /// Where clients are served, `host:port`.
    pub listen_address: String,
    pub server: server::Config,
    /// Whether the API is served as JSON too.
    pub serves_json: bool,
    /// Who may ask by HTTP.
    pub access: Access,
    /// Where health and metrics are served besides.
    pub metrics_addresses: Vec<MetricsAddress>,
    /// Whether profiles may be taken.
    pub profiles: bool,
    /// Whether each call is logged when it ends.
    pub logs_calls: bool,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub discovery: discovery::Config,
    pub channel: channel::Config,
    pub limits: upstream::Limits,
    pub health: upstream::health::Config,
    pub tenants: Tenants,
    /// Reads again who clients are, where rules say it.
    pub reread: Option<Reread>,
    /// As whom the proxy can ask etcd.
    pub users: Vec<users::Config>,
    /// Where who asked what is written, if it is.
    pub audit: Option<audit::Config>,
    /// How requests under way at etcd are dealt out if there are several tenants.
    pub gate: gate::Config,
    /// What large answers may take of memory together; zero is without a limit.
    pub max_answer_memory: usize,
    pub watch: hub::Config,
    pub cache: cache::Config,
    pub ordering: Ordering,
    /// How single keys are leased, if they are.
    pub leasing: Option<leasing::Config>,
    /// How this proxy is shown to clients that ask for the members; without it they see etcd's own.
    pub advertised: Option<Proxy>,
    /// How it registers itself among the cluster's proxies, if it does.
    pub registration: Option<resolver::Config>,
    /// How long calls under way may take to end after SIGTERM.
    pub drain_timeout: Duration,
}

/// A listener for health and metrics only.
#[derive(Clone, Debug)]
pub struct MetricsAddress {
    /// `host:port`.
    pub address: String,
    /// Whether it is served over the TLS of the main listener.
    pub tls: bool,
}

/// How long the start waits for the endpoints' first answers; those on loopback need a tenth of it, and a start without
/// any etcd should still look instant.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// As etcd's log has it.
const PROFILES_PATH: &str = "/debug/pprof";
/// Prometheus, a probe and a few people have room in this; whoever opens more has lost track of them.
const MAX_METRICS_CONNECTIONS: usize = 512;
/// How long the drain waits for the listener to close, which takes one turn of its task unless a shard is stuck.
const LAST_ACCEPT: Duration = Duration::from_secs(1);
/// How long the last lines of the audit log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);
/// When everything else has ended, an answer about health or metrics still gets this long.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A proxy that serves. Dropping it ends the process's part in it at once; `drain` ends it well.
pub struct Running {
    /// Where clients are served, with the port that the system chose if it was asked to.
    pub address: String,
    /// Where health and metrics are served besides.
    pub metrics_addresses: Vec<SocketAddr>,
    pub endpoints: Arc<Endpoints>,
    drain_timeout: Duration,
    audit: Option<Arc<AuditLog>>,
    /// Ends the taking of new connections.
    door_trigger: Trigger,
    trigger: Trigger,
    /// Ends the metrics addresses, which tell of the drain until it is over.
    metrics_trigger: Trigger,
    tasks: Vec<JoinHandle<()>>,
}

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// In Go's words, which scripts look for.
    #[error("listen {}: {}{}", place(address), if source.raw_os_error().is_some() { "bind: " } else { "" }, go::io_error(source))]
    Listen { address: String, source: io::Error },
    #[error("cannot write the audit log {}: {source}", path.display())]
    Audit { path: PathBuf, source: io::Error },
    #[error("failed to start a thread: {0}")]
    Thread(io::Error),
}

/// Binds, starts what watches over etcd, and serves.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let entrance = Entrance::bind(&config.listen_address).await;
    let entrance = entrance.map_err(|source| StartError::Listen { address: config.listen_address.clone(), source })?;
    let address = match &entrance {
        Entrance::Tcp(bound) => bound.address.to_string(),
        Entrance::Unix(_) => config.listen_address.clone(),
    };
    tracing::info!(address = %config.listen_address, "listening for gRPC proxy client requests");

    let mut metrics_bounds = Vec::new();
    for MetricsAddress { address, tls } in config.metrics_addresses {
        metrics_bounds.push((bind(&address).await?, tls));
        let scheme = if tls { "https" } else { "http" };
        tracing::info!(address = format!("{scheme}://{address}"), "gRPC proxy listening for metrics");
    }

    let metrics = Arc::new(Metrics::new());
    let endpoints = Endpoints::new(config.endpoints.clone());
    let channel = Arc::new(config.channel.clone());
    let users = Users::new(config.users, &metrics);
    let all_tenants = config.tenants.all();
    let shares = Arc::new(Shares::default());
    shares.serve(&all_tenants);
    let memory = Memory::leaked(config.max_answer_memory);
    memory.inspect(|memory| memory.serve(&all_tenants));
    let gate = Gate::new(config.gate, &all_tenants, config.reread.is_some(), metrics.upstream_limit.clone());
    let upstream = Upstream::new(endpoints.clone(), channel.clone(), users.clone(), config.limits, metrics.clone())
        .shared(gate.clone(), memory);
    let (trigger, watcher) = drain::channel();
    let mut tasks = vec![tokio::spawn(upstream::health::run(upstream.clone(), config.health))];

    let mut discovery = Discovery::new(config.discovery, upstream.clone(), channel.clone());
    discovery.begin().await;
    tasks.push(tokio::spawn(discovery.run()));

    metrics.registrations_wanted.set(i64::from(config.registration.is_some()));
    let registered = config.registration.map(|registration| {
        let (registered, working) =
            resolver::start(registration, &upstream, &config.tenants.own().namespace, &metrics, watcher.clone());
        tasks.extend(working);
        registered
    });
    if let Some(this) = &config.advertised {
        // etcd's proxy dials itself here; people look for the line to learn what a proxy advertises.
        tracing::info!("grpcProxyAdvertiseClientURL" = this.address, "create proxy client");
    }
    let cluster = Cluster::new(config.advertised.map(|this| Advertised { this, registered: registered.clone() }));

    let hub = Hub::new(upstream.clone(), metrics.clone(), config.watch, &shares, watcher.observer());
    let cache = Cache::new(hub.clone(), metrics.clone(), config.cache, shares.clone());
    let keepalives = Arc::new(KeepAlives::new(upstream.clone(), metrics.clone(), watcher.observer()));
    let leases = Leases::default();
    let leasing = config.leasing.map(|leasing| {
        let (leasing, working) =
            Leasing::start(leasing, &upstream, &config.tenants.own().namespace, &metrics, watcher.clone());
        tasks.push(working);
        leasing
    });
    let health = Health::new(endpoints.clone(), watcher.observer());
    let audit = start_audit(config.audit.as_ref(), &mut tasks)?;
    let mut quotas = Quotas::new(upstream.clone());
    quotas.keep(&all_tenants);
    let (tenants_sender, tenants) = watch::channel(config.tenants.clone());
    match config.reread {
        Some(reread) => {
            let keeper = Keeper {
                reread,
                tenants: tenants_sender,
                users,
                gate,
                memory,
                shares,
                quotas,
                metrics: metrics.clone(),
            };
            tasks.push(tokio::spawn(keeper.run()));
        }
        None => tasks.push(tokio::spawn(quotas.run())),
    }
    let (shard_metrics, router_audit) = (metrics.clone(), audit.clone());
    let watched = Arc::new(Watched {
        drain: watcher.observer(),
        server_tls: config.server.tls.clone(),
        client_tls: config.channel.tls.clone(),
        profiles: config.profiles,
        registered: registered.clone(),
        checks: Checks::default(),
        identity: Identity { name: config.machine, listen_address: address.to_string(), started: SystemTime::now() },
    });
    if config.profiles {
        tracing::info!(path = PROFILES_PATH, "gRPC proxy enabled pprof");
    }
    tasks.extend(watch_tls_files(&watched, &metrics));
    let make_router = Arc::new(move || {
        Arc::new(Router {
            tenants: tenants.clone(),
            upstream: upstream.for_shard(channel.clone()),
            hub: hub.clone(),
            bell: Bell::hang(),
            keepalives: keepalives.clone(),
            cluster: cluster.clone(),
            leases: leases.clone(),
            leasing: leasing.clone(),
            health: health.clone(),
            cache: cache.clone(),
            ordering: config.ordering,
            metrics: shard_metrics.clone(),
            logs_calls: config.logs_calls,
            audit: router_audit.clone(),
        })
    });

    let (metrics_trigger, metrics_watcher) = drain::channel();
    let metrics_addresses = metrics_bounds.iter().map(|(bound, _)| bound.address).collect();
    for (bound, tls) in metrics_bounds {
        let tls = config.server.tls.clone().filter(|_| tls);
        let server = server::Config { tls, max_connections: MAX_METRICS_CONNECTIONS, ..config.server.clone() };
        let admin = Admin::new(watched.clone(), make_router(), Place::ForOperators);
        let front = Front { router: None, admin, json: None, access: None };
        let serving = server::serve_here(Arc::new(server), metrics.clone(), bound, front, metrics_watcher.clone());
        tasks.push(tokio::spawn(serving));
        tracing::info!("gRPC proxy server metrics URL serving");
    }

    let json = config.serves_json.then(|| Arc::new(Api::new()));
    let access = Arc::new(config.access);
    let make_front = move || {
        let router = make_router();
        let admin = Admin::new(watched.clone(), router.clone(), Place::ForClients);
        Front { admin, router: Some(router), json: json.clone(), access: Some(access.clone()) }
    };
    // Before anyone is let in, so that the first callers go where they will stay.
    upstream::health::first_look(&endpoints, FIRST_LOOK).await;
    let shards = Shards::start(&Arc::new(config.server), &metrics, &watcher, make_front).map_err(StartError::Thread)?;
    let (door_trigger, door_watcher) = drain::channel();
    tasks.push(tokio::spawn(async move { shards.accept(entrance, door_watcher).await }));
    let drain_timeout = config.drain_timeout;
    Ok(Running {
        address,
        metrics_addresses,
        endpoints,
        drain_timeout,
        audit,
        door_trigger,
        trigger,
        metrics_trigger,
        tasks,
    })
}

/// Starts the audit log, and opens its file anew at each SIGHUP.
fn start_audit(
    config: Option<&audit::Config>,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<Option<Arc<AuditLog>>, StartError> {
    let Some(config) = config else { return Ok(None) };
    let refuse = |source| StartError::Audit { path: config.path.clone(), source };
    let audit = AuditLog::start(config).map_err(refuse)?;
    let mut hangups = signal(SignalKind::hangup()).map_err(refuse)?;
    let reopened = audit.clone();
    tasks.push(tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            reopened.reopen();
        }
    }));
    Ok(Some(audit))
}

/// The network and the address as Go tells of them.
fn place(address: &str) -> String {
    match server::unix::path_of(address) {
        Some(path) => format!("unix {}", path.display()),
        None => format!("tcp {address}"),
    }
}

async fn bind(address: &str) -> Result<Bound, StartError> {
    server::bind(address).await.map_err(|source| StartError::Listen { address: address.to_owned(), source })
}

/// Takes over changed TLS files on both sides, and counts it. The log lines are theirs.
fn watch_tls_files(watched: &Watched, metrics: &Arc<Metrics>) -> Vec<JoinHandle<()>> {
    let count = |side| {
        let metrics = metrics.clone();
        move |outcome: ReloadOutcome| {
            if !outcome.replaced.is_empty() {
                metrics.reloaded(side, true);
            }
            if !outcome.failed.is_empty() {
                metrics.reloaded(side, false);
            }
        }
    };
    let server = watched.server_tls.clone().map(|tls| tokio::spawn(tls.run_reload(count(Side::Clients))));
    let client = watched.client_tls.clone().map(|tls| tokio::spawn(tls.run_reload(count(Side::Etcd))));
    server.into_iter().chain(client).collect()
}

impl Running {
    /// Stops taking calls, lets those under way end, and says whether all did in time.
    pub async fn drain(self) -> bool {
        // The door first: a client whose watch has ended comes back at once, and must find another proxy.
        self.door_trigger.drain(LAST_ACCEPT).await;
        let finished = self.trigger.drain(self.drain_timeout).await;
        self.metrics_trigger.drain(LAST_ANSWERS).await;
        for task in &self.tasks {
            task.abort();
        }
        if let Some(audit) = &self.audit {
            audit.flush(LAST_LINES);
        }
        finished
    }
}
