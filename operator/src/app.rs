//! Starts the operator and ends it: what stands before what, and what happens when a part fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{self, Metrics};
use crate::controller::{self, Scope};
use crate::leader::{Leadership, Timing};
use crate::plan::Settings;
use crate::render::Cluster;
use crate::webhook;

/// The flags of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Image of the proxy where objects do not name one
    #[arg(long, env = "ETCD_PROXY_OPERATOR_IMAGE")]
    pub image: String,
    /// Namespace of the lease by which one of several operators works
    #[arg(long, env = "POD_NAMESPACE", default_value = "etcd-proxy-system")]
    pub namespace: String,
    /// Name by which this process holds the lease and reports events
    #[arg(long, env = "POD_NAME", default_value = "etcd-proxy-operator")]
    pub name: String,
    /// Address of metrics and health
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: String,
    /// Domain of the cluster's DNS
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Allow EtcdProxies to name an etcd of their own; whoever may create one can use the Secrets of its namespace
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub inline_upstream: bool,
    /// Look after the EtcdProxies of these namespaces only, and know no EtcdBackends; needs no rights for the whole cluster
    #[arg(long, value_delimiter = ',', conflicts_with = "backend_namespaces")]
    pub watch_namespaces: Vec<String>,
    /// Look after EtcdProxies on EtcdBackends only, whose proxies run in these namespaces; needs rights to Secrets and
    /// workloads nowhere else, and puts no client certificates into the tenants' namespaces
    #[arg(long, value_delimiter = ',')]
    pub backend_namespaces: Vec<String>,
    /// How many proxies of one backend, or of one namespace, get newer pods at the same time when the operator or a
    /// backend changes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_concurrent_rollouts: u16,
    /// Least severe level that is logged: error, warn, info, debug or trace, for all or by crate
    #[arg(long, default_value = "info")]
    pub log_level: String,
    #[command(flatten)]
    pub webhook: webhook::Flags,
    #[command(flatten)]
    pub lease: Timing,
}

/// How long the work under way gets to end after SIGTERM, and then the lease to be given back.
const STOP: Duration = Duration::from_secs(10);
const RELEASE: Duration = Duration::from_secs(3);

/// The group of PodMonitors.
const MONITORING: &str = crate::render::POD_MONITOR;
/// The first minor version of Kubernetes 1 whose Services take trafficDistribution PreferSameNode.
const SAME_NODE_SINCE: u32 = 34;

/// Runs until SIGTERM or SIGINT. An error, such as a lost lease, must end the process.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let (stopping, stop) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
        drop(stopping);
    });
    let stop = stop.map(|_| ()).shared();

    let metrics = Arc::new(Metrics::new());
    let address = admin::serve(&flags.listen, metrics.clone()).await;
    let address = address.with_context(|| format!("cannot listen on --listen={}", flags.listen))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %address, ?flags, "starting");

    let client =
        Client::try_default().await.context("cannot find the API server: neither in a cluster nor a kubeconfig")?;
    let (settings, cluster) = tokio::select! {
        found = discover(&client, &flags) => found?,
        () = stop.clone() => return Ok(()),
    };
    // Every process serves it, since the API server asks whichever the Service leads it to.
    webhook::start(&client, &flags.webhook, &flags.namespace, &metrics).await?;
    metrics.started.store(true, Ordering::Relaxed);

    let leadership =
        Leadership::new(client.clone(), &flags.namespace, "etcd-proxy-operator", flags.name.clone(), flags.lease);
    tokio::select! {
        () = leadership.acquire() => (),
        () = stop.clone() => return Ok(()),
    }
    tracing::info!("this process leads");
    metrics.leader.set(1);

    let rollouts = usize::from(flags.max_concurrent_rollouts);
    let scope = scope(&flags);
    let context = controller::Context::new(client, settings, cluster, metrics.clone(), flags.name, rollouts);
    let controllers = controller::run(Arc::new(context), scope, stop.clone());
    let bounded = async {
        stop.clone().await;
        tracing::info!("stopping");
        tokio::time::sleep(STOP).await;
    };
    tokio::select! {
        () = controllers => (),
        () = bounded => tracing::warn!("the work under way did not end within {STOP:?}"),
        () = leadership.hold() => anyhow::bail!("the lease is lost; another process may work now, so this one ends"),
    }
    metrics.leader.set(0);
    match tokio::time::timeout(RELEASE, leadership.release()).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the lease could not be given back; the next operator waits for its end")
        }
        Err(_) => tracing::warn!("the lease could not be given back within {RELEASE:?}"),
    }
    Ok(())
}

fn scope(flags: &Flags) -> Scope {
    if !flags.watch_namespaces.is_empty() {
        Scope::Namespaces(flags.watch_namespaces.clone())
    } else if !flags.backend_namespaces.is_empty() {
        Scope::Backends(flags.backend_namespaces.clone())
    } else {
        Scope::Cluster
    }
}

/// How often an API server that does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(2);

/// What tells this cluster from others, as is usual: the uid of the namespace that every cluster has from its beginning.
async fn cluster_uid(client: &Client) -> String {
    loop {
        match Api::<Namespace>::all(client.clone()).get("kube-system").await {
            Ok(namespace) => return namespace.uid().unwrap_or_default(),
            Err(error) => tracing::warn!(%error, "cannot read namespace kube-system; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Asks the API server what it is, until it answers: the operator may well start before it.
async fn discover(client: &Client, flags: &Flags) -> anyhow::Result<(Settings, Cluster)> {
    let version = loop {
        match client.apiserver_version().await {
            Ok(version) => break version,
            Err(error) => tracing::warn!(%error, "the API server does not answer; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    let minor: u32 = version.minor.trim_end_matches('+').parse().unwrap_or(0);
    let pod_monitors = client.list_api_group_resources(MONITORING).await.is_ok();
    tracing::info!(version = version.git_version, pod_monitors, "found the API server");
    let scope = scope(flags);
    let backends = !matches!(scope, Scope::Namespaces(_));
    let cluster_uid = if backends { cluster_uid(client).await } else { String::new() };
    let backend_namespaces = match &scope {
        Scope::Backends(namespaces) => Some(namespaces.clone()),
        Scope::Cluster | Scope::Namespaces(_) => None,
    };
    let settings = Settings {
        cluster_domain: flags.cluster_domain.clone(),
        inline_upstream: flags.inline_upstream && backend_namespaces.is_none(),
        pod_monitors,
        cluster_uid,
        tenant_secrets: backend_namespaces.is_none(),
        backend_namespaces,
        backends,
        ..Settings::with_image(flags.image.clone())
    };
    Ok((settings, Cluster { domain: flags.cluster_domain.clone(), same_node: minor >= SAME_NODE_SINCE }))
}
