//! What an EtcdProxy comes to: all defaults and all refusals, decided once from the object and what was fetched for it.
//! Pure. Whoever holds a [`Plan`] need not ask again.

mod access;
mod names;
mod references;
#[cfg(test)]
mod tests;

pub use access::own_part;
pub use names::{HOME_LABEL_NAME, HOME_LABEL_NAMESPACE, HOME_LABEL_OWNER, Home, Object};
pub use names::{finalizer, is_object_name, short_hash};
pub use references::upstream_references;
pub use references::{Found, ObjectKey, PASSWORD, USERNAME, certificate_facts, check_client, check_user, references};

use std::collections::BTreeMap;

use crate::api::{
    Advertise, ClientAuth, Compact, EtcdBackend, EtcdProxy, EtcdProxySpec, GrantAccess, KeyRef, Limits, Mode,
    NetworkPolicyMode, PodMonitorMode, Position, Profile, Quantity, Resources, TlsSource, Toleration, Traffic,
};

/// Replicas of mode Deployment if the object does not say: one may go while the other serves.
const DEFAULT_REPLICAS: i32 = 2;
/// The most replicas of one EtcdProxy on a backend that does not say.
const DEFAULT_MAX_REPLICAS: i32 = 5;
/// A little less than the 30 s that Kubernetes gives a pod by default.
const DEFAULT_DRAIN_SECONDS: i32 = 25;

/// What the operator itself was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The proxy's image where neither object names one.
    pub image: String,
    /// The domain of the cluster's DNS.
    pub cluster_domain: String,
    /// Whether objects may name an etcd of their own.
    pub inline_upstream: bool,
    /// Whether the cluster serves PodMonitors.
    pub pod_monitors: bool,
    /// What tells this cluster from others: the uid of its first namespace. Empty where there is no cluster to ask.
    pub cluster_uid: String,
    /// Namespaces in which EtcdBackends may run their proxies; `None` is all.
    pub backend_namespaces: Option<Vec<String>>,
    /// Whether EtcdBackends can be used at all.
    pub backends: bool,
    /// Whether client certificates are put into the namespaces of tenants of a backend.
    pub tenant_secrets: bool,
}

impl Settings {
    /// Whether the operator has rights in the namespace where an EtcdBackend runs its proxies.
    pub fn serves(&self, namespace: &str) -> bool {
        self.backend_namespaces.as_ref().is_none_or(|served| served.iter().any(|one| one == namespace))
    }

    /// Those of an operator that may do everything, with this image.
    pub fn with_image(image: impl Into<String>) -> Settings {
        Settings {
            image: image.into(),
            cluster_domain: "cluster.local".to_owned(),
            inline_upstream: true,
            pod_monitors: false,
            cluster_uid: String::new(),
            backend_namespaces: None,
            backends: true,
            tenant_secrets: true,
        }
    }
}

/// What was read from the cluster for one object.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    pub backend: Option<EtcdBackend>,
    pub namespace_labels: BTreeMap<String, String>,
    /// The uid of the object's namespace; a namespace that is made anew has another.
    pub namespace_uid: String,
    pub objects: BTreeMap<ObjectKey, Found>,
    /// Seconds since 1970.
    pub now: i64,
}

/// Why there is no plan. The message goes word for word into the condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub stage: Stage,
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    /// Whether an administrator took back what was given: then nothing may go on serving, whatever the object says.
    pub fn withdraws(&self) -> bool {
        matches!(self.reason, "NamespaceNotAllowed" | "GrantNotFound")
    }
}

/// The condition that a refusal belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Accepted,
    ResolvedRefs,
}

/// What is to be deployed.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub object: Object,
    pub home: Home,
    pub mode: Mode,
    /// The bytes before every key in etcd.
    pub prefix: String,
    pub workload: Option<Workload>,
    pub sidecar: Option<Sidecar>,
    /// Names for a managed serving certificate, if there shall be one.
    pub managed: Option<Managed>,
    /// What applications connect to.
    pub endpoints: Vec<String>,
    pub paused: bool,
    /// Whose the keys are, for objects on a backend.
    pub claim: Option<Claim>,
    /// A certificate that somebody must renew soon.
    pub expiring: Option<Expiring>,
    /// Whether applications get a client certificate; else they bring their own.
    pub client_certificate: bool,
}

/// What is written into etcd before a namespace's part of the keys is used, so that nobody inherits the keys of a
/// namespace that had the same name, or of another cluster's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Beside the namespaces' parts: a namespace's name cannot begin with a dot.
    pub key: String,
    /// The uids of the cluster and of the namespace.
    pub value: String,
    /// The prefix of all keys that belong to the namespace.
    pub covers: String,
}

/// A certificate that was brought and expires soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiring {
    pub reason: &'static str,
    pub message: String,
}

/// Certificates that the operator issues.
#[derive(Clone, Debug, PartialEq)]
pub struct Managed {
    pub names: Vec<String>,
    /// CA certificates of further clients, in PEM.
    pub further_clients: Option<String>,
}

/// Pods of the proxy's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub proxy: Proxy,
    /// `None` is a DaemonSet.
    pub replicas: Option<i32>,
    pub host_port: Option<i32>,
    pub node_selector: Option<BTreeMap<String, String>>,
    pub tolerations: Option<Vec<Toleration>>,
    pub priority_class_name: Option<String>,
    pub max_surge: Quantity,
    pub max_unavailable: Quantity,
    pub traffic: Traffic,
    pub service_annotations: BTreeMap<String, String>,
    pub pod_monitor: bool,
    pub network_policy: bool,
}

/// A proxy in the pods of applications.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    pub proxy: Proxy,
    pub position: Position,
}

/// One proxy container; `render::container` makes flags of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    pub image: String,
    pub resources: Option<Resources>,
    /// Only on the pod's loopback.
    pub loopback: bool,
    pub port: i32,
    pub metrics_port: i32,
    pub endpoints: Vec<String>,
    pub upstream_tls: Option<UpstreamTls>,
    /// Secret with username and password of the proxy's own user at etcd.
    pub upstream_user: Option<String>,
    pub prefix: String,
    pub serving: Serving,
    pub profile: Profile,
    pub compact: Compact,
    /// Methods on top of the profile, and methods that nothing allows.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    pub limits: Limits,
    pub registration: Option<Registration>,
    pub drain_seconds: i32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamTls {
    /// Secret with tls.crt and tls.key.
    pub pair: Option<String>,
    pub ca: Option<Ca>,
    /// The name to expect in etcd's certificates, in place of each endpoint's host.
    pub server_name: Option<String>,
}

/// Where a CA bundle stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Ca {
    /// Under this key of the Secret that holds the pair too.
    WithPair(&'static str),
    Apart(KeyRef),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Serving {
    Clear,
    Tls { secret: String, clients: Option<Ca> },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    pub prefix: String,
    pub ttl_seconds: i32,
    pub advertise: Advertise,
    /// The port that is advertised.
    pub port: i32,
    /// Below which the cluster's DNS has the pods' names, if these are advertised.
    pub pod_domain: Option<String>,
}

/// Decides everything about one object.
pub fn check(proxy: &EtcdProxy, fetched: &Fetched, settings: &Settings) -> Result<Plan, Refusal> {
    let object = Object::of(proxy);
    let spec = &proxy.spec;
    let access = access::check(&object, spec, fetched, settings)?;
    let abroad = spec.backend_ref.is_some();
    let client_certificate = settings.tenant_secrets || !abroad;
    if !client_certificate {
        access::check_without_secrets(spec)?;
    }
    let home = Home::of(&object, fetched.backend.as_ref().filter(|_| spec.backend_ref.is_some()));
    let contents = references::check(proxy, fetched)?;

    let profile = profile(spec, &access);
    let compact = spec.api.compact.unwrap_or(Compact::Deny);
    let pods =
        fetched.backend.as_ref().filter(|_| spec.backend_ref.is_some()).and_then(|backend| backend.spec.proxy.as_ref());
    let image = pods.and_then(|pods| pods.image.clone()).or_else(|| spec.image.clone());
    let (serving, managed) = serving(spec, &object, &home, settings, contents.further_clients);
    let base = Proxy {
        image: image.unwrap_or_else(|| settings.image.clone()),
        resources: spec.resources.clone(),
        loopback: false,
        port: spec.port,
        metrics_port: spec.metrics.port,
        endpoints: access.endpoints,
        upstream_tls: contents.upstream_tls,
        upstream_user: contents.upstream_user,
        prefix: access.prefix.clone(),
        serving,
        profile,
        compact,
        allow: spec.api.allow.clone().unwrap_or_default(),
        deny: spec.api.deny.clone().unwrap_or_default(),
        limits: spec.limits.clone().unwrap_or_default().and(&access.limits),
        registration: spec.registration.as_ref().map(|wanted| Registration {
            prefix: wanted.prefix.clone(),
            ttl_seconds: wanted.ttl_seconds,
            advertise: wanted.advertise,
            port: if wanted.advertise == Advertise::HostIP { spec.host_port.unwrap_or(spec.port) } else { spec.port },
            pod_domain: (wanted.advertise == Advertise::PodDNS).then(|| home.pod_domain()),
        }),
        drain_seconds: spec.drain_seconds.unwrap_or(DEFAULT_DRAIN_SECONDS),
    };
    let chained = spec.mode == Mode::Sidecar && spec.backend_ref.is_some();
    let sidecar = (spec.mode == Mode::Sidecar).then(|| sidecar(spec, &object, &base, chained));
    let workload = if spec.mode == Mode::Sidecar && !chained {
        None
    } else {
        let (max_surge, max_unavailable) = update_strategy(spec)?;
        let service = spec.service.clone().unwrap_or_default();
        let default_traffic = if spec.mode == Mode::DaemonSet { Traffic::PreferNode } else { Traffic::Cluster };
        Some(Workload {
            replicas: (spec.mode != Mode::DaemonSet).then(|| spec.replicas.unwrap_or(DEFAULT_REPLICAS)),
            host_port: spec.host_port,
            node_selector: pods.and_then(|pods| pods.node_selector.clone()).or_else(|| spec.node_selector.clone()),
            tolerations: pods.and_then(|pods| pods.tolerations.clone()).or_else(|| spec.tolerations.clone()),
            priority_class_name: pods.and_then(|pods| pods.priority_class_name.clone()),
            max_surge,
            max_unavailable,
            traffic: service.traffic.unwrap_or(default_traffic),
            service_annotations: service.annotations.unwrap_or_default(),
            pod_monitor: match spec.metrics.pod_monitor.unwrap_or(PodMonitorMode::Auto) {
                PodMonitorMode::Auto => settings.pod_monitors,
                PodMonitorMode::Enabled => true,
                PodMonitorMode::Disabled => false,
            },
            network_policy: spec.network_policy != Some(NetworkPolicyMode::Disabled),
            proxy: base,
        })
    };
    let endpoints = match &sidecar {
        Some(sidecar) => vec![format!("{}://127.0.0.1:{}", scheme(&sidecar.proxy.serving), spec.port)],
        None => {
            let serving = &workload.as_ref().expect("what is no sidecar has pods").proxy.serving;
            vec![format!("{}://{}.{}.svc:{}", scheme(serving), object.name, object.namespace, spec.port)]
        }
    };
    let paused = spec.paused == Some(true);
    let expiring = contents.expiring;
    let (prefix, claim) = (access.prefix, access.claim);
    Ok(Plan {
        object,
        home,
        mode: spec.mode,
        prefix,
        workload,
        sidecar,
        managed,
        endpoints,
        paused,
        claim,
        expiring,
        client_certificate,
    })
}

/// The proxy in an application's pod. On a backend it is the tenant's client of the proxies that hold the credential,
/// so it knows neither the credential nor the prefix.
fn sidecar(spec: &EtcdProxySpec, object: &Object, base: &Proxy, chained: bool) -> Sidecar {
    let mut proxy = Proxy { loopback: true, registration: None, ..base.clone() };
    if chained {
        proxy.endpoints = vec![format!("https://{}.{}.svc:{}", object.name, object.namespace, spec.port)];
        let (pair, ca) = (Some(object.binding()), Some(Ca::WithPair("ca.crt")));
        proxy.upstream_tls = Some(UpstreamTls { pair, ca, server_name: None });
        proxy.upstream_user = None;
        proxy.prefix = String::new();
        proxy.serving = Serving::Clear;
        // What may be called is decided where the credential is.
        proxy.profile = Profile::Full;
        proxy.compact = Compact::Deny;
        (proxy.allow, proxy.deny) = (Vec::new(), Vec::new());
        // And what is stored is counted there.
        proxy.limits = Limits { keys: None, stored_bytes: None, ..proxy.limits };
    }
    let position = spec.sidecar.as_ref().and_then(|sidecar| sidecar.position).unwrap_or(Position::First);
    Sidecar { proxy, position }
}

fn scheme(serving: &Serving) -> &'static str {
    if *serving == Serving::Clear { "http" } else { "https" }
}

fn profile(spec: &EtcdProxySpec, access: &access::Access) -> Profile {
    if access.grant == Some(GrantAccess::ReadOnly) {
        return Profile::ReadOnly;
    }
    let default = if access.prefix.is_empty() { Profile::Full } else { Profile::Tenant };
    spec.api.profile.unwrap_or(default)
}

fn serving(
    spec: &EtcdProxySpec,
    object: &Object,
    home: &Home,
    settings: &Settings,
    further_clients: Option<String>,
) -> (Serving, Option<Managed>) {
    let checks_clients = spec.tls.client_auth == ClientAuth::Required;
    match spec.tls.source {
        TlsSource::Disabled => (Serving::Clear, None),
        TlsSource::Secret => {
            let secret = spec.tls.secret_ref.as_ref().map(|secret| secret.name.clone()).unwrap_or_default();
            let clients = spec.tls.client_ca_ref.clone().filter(|_| checks_clients).map(Ca::Apart);
            (Serving::Tls { secret, clients }, None)
        }
        TlsSource::Managed => {
            let clients = checks_clients.then_some(Ca::WithPair("client-ca.crt"));
            let further = spec.tls.extra_sans.clone().unwrap_or_default();
            let names = home.server_names(object, &settings.cluster_domain, further);
            (Serving::Tls { secret: home.serving_secret(), clients }, Some(Managed { names, further_clients }))
        }
    }
}

/// How many pods may be more and fewer; a combination with which the API server would refuse the workload is refused
/// here, where the field can be named.
fn update_strategy(spec: &EtcdProxySpec) -> Result<(Quantity, Quantity), Refusal> {
    let given = spec.update_strategy.clone().unwrap_or_default();
    let (surge, unavailable) = match (given.max_surge, given.max_unavailable) {
        (Some(surge), Some(unavailable)) => (surge, unavailable),
        (Some(surge), None) => {
            let unavailable = i32::from(is_zero(&surge));
            (surge, Quantity::Int(unavailable))
        }
        (None, Some(unavailable)) => {
            let surge = i32::from(is_zero(&unavailable) && spec.host_port.is_none());
            (Quantity::Int(surge), unavailable)
        }
        (None, None) if spec.host_port.is_some() => (Quantity::Int(0), Quantity::Int(1)),
        (None, None) => (Quantity::Int(1), Quantity::Int(0)),
    };
    let refuse = |message: &str| {
        Err(Refusal { stage: Stage::Accepted, reason: "InvalidUpdateStrategy", message: message.to_owned() })
    };
    match (is_zero(&surge), is_zero(&unavailable)) {
        (true, true) => refuse(
            "spec.updateStrategy lets no pod be replaced: maxSurge and maxUnavailable are both 0; set one of them to 1",
        ),
        (false, false) if spec.mode == Mode::DaemonSet => {
            refuse("spec.updateStrategy has maxSurge and maxUnavailable; with mode DaemonSet one of them must be 0")
        }
        _ => Ok((surge, unavailable)),
    }
}

fn is_zero(quantity: &Quantity) -> bool {
    match quantity {
        Quantity::Int(number) => *number == 0,
        Quantity::String(text) => text.trim_end_matches('%').trim_start_matches('0').is_empty(),
    }
}
