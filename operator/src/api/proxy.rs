//! `EtcdProxy`: proxies on every node, as replicas, or beside applications in their pods.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::schema;
use super::shared::{ClientTls, KeyRef, NameRef, Quantity, Resources, Toleration, UserRef};
use super::status::EtcdProxyStatus;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "etcdproxy.dev",
    version = "v1alpha1",
    kind = "EtcdProxy",
    plural = "etcdproxies",
    namespaced,
    shortname = "etcdp",
    category = "etcd",
    status = "EtcdProxyStatus",
    derive = "PartialEq",
    doc = "EtcdProxy runs gRPC proxies for etcd: one on every node, as replicas, or as sidecars of applications.",
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be a DNS-1035 label of at most 40 characters (it becomes a Service name)"),
    selectable = ".spec.backendRef.name",
    selectable = ".spec.mode",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Backend", type_ = "string", json_path = ".spec.backendRef.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.availableReplicas"),
    printcolumn(name = "Prefix", type_ = "string", json_path = ".status.keyPrefix", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoints[0]", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.backendRef) != has(self.upstream)").message("set exactly one of spec.backendRef (admin-owned etcd) or spec.upstream (your own etcd)"),
    validation = Rule::new("has(self.backendRef) == has(oldSelf.backendRef) && (!has(self.backendRef) || self.backendRef == oldSelf.backendRef)").message("spec.backendRef is immutable: another backend is another keyspace; create a new EtcdProxy"),
    validation = Rule::new("has(self.keyPrefix) == has(oldSelf.keyPrefix) && (!has(self.keyPrefix) || self.keyPrefix == oldSelf.keyPrefix)").message("spec.keyPrefix is immutable: changing it would make the existing keys disappear for clients"),
    validation = Rule::new("!has(self.backendRef) || !has(self.image)").message("spec.image cannot be set with spec.backendRef: the pod holds the admin's etcd credential"),
    validation = Rule::new("!has(self.backendRef) || !has(self.api.profile) || self.api.profile != 'Full'").message("api.profile Full is only allowed with spec.upstream"),
    validation = Rule::new("!has(self.backendRef) || !has(self.api.compact) || self.api.compact != 'Allow'").message("api.compact Allow is only allowed with spec.upstream: a compaction takes history from every tenant"),
    validation = Rule::new("!has(self.backendRef) || !has(self.api.allow)").message("api.allow is only allowed with spec.upstream: each method on top of the profile reaches beyond a tenant's keys"),
    validation = Rule::new("has(self.backendRef) || !has(self.api.profile) || self.api.profile != 'Tenant' || (has(self.keyPrefix) && self.keyPrefix != '')").message("api.profile Tenant keeps clients inside spec.keyPrefix: set a keyPrefix, or leave the profile out"),
    validation = Rule::new("!has(self.backendRef) || self.tls.source == 'Managed'").message("tls.source must be Managed with spec.backendRef: private keys never cross namespaces"),
    validation = Rule::new("!has(self.backendRef) || (!has(self.hostPort) && !has(self.nodeSelector) && !has(self.tolerations))").message("hostPort, nodeSelector and tolerations are the admin's choice (EtcdBackend.spec.proxy) with spec.backendRef"),
    validation = Rule::new("self.mode == 'Deployment' || (self.mode == 'Sidecar' && has(self.backendRef)) || !has(self.replicas)").message("spec.replicas is only used with mode Deployment, and with mode Sidecar on a backendRef"),
    validation = Rule::new("self.mode == 'DaemonSet' || !has(self.hostPort)").message("spec.hostPort is only used with mode DaemonSet"),
    validation = Rule::new("self.mode == 'Sidecar' || !has(self.sidecar)").message("spec.sidecar is only used with mode Sidecar"),
    validation = Rule::new("self.mode == 'Sidecar' || self.tls.source != 'Disabled' || (has(self.tls.insecure) && self.tls.insecure)").message("tls.source Disabled exposes etcd in clear text on the pod network; set tls.insecure: true to accept that"),
    validation = Rule::new("self.port != self.metrics.port").message("port and metrics.port must differ"),
    validation = Rule::new("!has(self.hostPort) || !has(self.updateStrategy) || !has(self.updateStrategy.maxSurge) || string(self.updateStrategy.maxSurge) in ['0', '0%']").message("updateStrategy.maxSurge must be 0 with hostPort: two pods cannot bind one host port"),
    validation = Rule::new("!has(self.registration) || self.mode != 'Sidecar'").message("spec.registration makes no sense with mode Sidecar: a sidecar listens on its pod's loopback"),
    validation = Rule::new("!has(self.registration) || self.registration.advertise == 'PodDNS' || self.tls.source != 'Managed'").message("registration.advertise PodIP and HostIP register addresses, which a Managed certificate cannot name; use PodDNS, or tls.source Secret with a certificate that names them"),
    validation = Rule::new("!has(self.registration) || self.registration.advertise != 'HostIP' || has(self.hostPort)").message("registration.advertise HostIP needs spec.hostPort")
)]
pub struct EtcdProxySpec {
    /// DaemonSet runs one proxy on every node, Deployment a number of replicas, Sidecar one in each pod that asks for it
    /// with the label etcdproxy.dev/inject.
    #[serde(default)]
    pub mode: Mode,
    /// An etcd that an administrator shares. Set this or upstream; it cannot be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<BackendRef>,
    /// An etcd of your own. Set this or backendRef.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
    /// What stands before every key in etcd; clients do not see it. It is empty or ends with "/", and cannot be changed.
    /// With backendRef it is relative to the namespace's own part of the keys, and the object's name with "/" if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self == '' || self.endsWith('/')").message("keyPrefix must end with '/': otherwise prefix 'app' also covers 'app2'"))]
    #[x_kube(validation = Rule::new("!self.contains('//')").message("keyPrefix must not contain '//'"))]
    #[x_kube(validation = Rule::new("!self.matches('[[:cntrl:]]')").message("keyPrefix must not contain control characters, such as line ends"))]
    pub key_prefix: Option<String>,
    /// The port on which clients are served.
    #[serde(default = "port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub port: i32,
    /// A port of every node that leads to its proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 65535))]
    pub host_port: Option<i32>,
    /// TLS to clients.
    #[serde(default)]
    pub tls: ServingTls,
    /// What clients may call.
    #[serde(default)]
    pub api: Api,
    /// What one proxy takes on at most. With backendRef the backend's own limits hold too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Registers each proxy in etcd under a lease, so that clients find all of them by etcd's member list. Absent means
    /// that they do not register.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
    /// How many proxies mode Deployment runs; 2 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// The proxy's image; the operator's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// What a proxy asks for and may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Labels that a node must carry to get a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::node_selector")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints on nodes that the proxies put up with; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Option<Vec<Toleration>>,
    /// How proxies are replaced. If absent, a new one is ready before an old one goes; with hostPort, one at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategy>,
    /// How long running calls get to end when a proxy stops; 25 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub drain_seconds: Option<i32>,
    /// The Service before the proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSettings>,
    /// Metrics and health.
    #[serde(default)]
    pub metrics: Metrics,
    /// Managed, the default, lets in clients of this namespace and whoever reads metrics, and out to etcd and DNS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicyMode>,
    /// How sidecars are put into pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Sidecar>,
    /// Leaves what runs as it is; only the status is kept current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

fn port() -> i32 {
    2379
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    #[default]
    DaemonSet,
    Deployment,
    Sidecar,
}

/// An EtcdBackend, and optionally one of its grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendRef {
    /// Name of the EtcdBackend.
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = schema::object_name()))]
    pub name: String,
    /// Name of a grant of the backend, whose prefix is used in place of this namespace's own part of the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub grant: Option<String>,
}

/// An etcd of your own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.endpoints.all(e, e.startsWith('https://')) || self.endpoints.all(e, e.startsWith('http://'))").message("all endpoints must use the same scheme"),
    validation = Rule::new("!has(self.tls) || self.endpoints.all(e, e.startsWith('https://'))").message("upstream.tls needs https:// endpoints"),
    validation = Rule::new("!has(self.auth) || self.endpoints.all(e, e.startsWith('https://'))").message("upstream.auth needs https:// endpoints: a password is not sent in clear text")
)]
pub struct Upstream {
    /// URLs of etcd's members, each https://host:port or http://host:port.
    #[schemars(schema_with = "schema::endpoints")]
    pub endpoints: Vec<String>,
    /// TLS to etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// The etcd user as whom the proxy asks for itself: health and registration. Clients log in as themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<UserRef>,
}

/// TLS to clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.source == 'Secret') == has(self.secretRef)").message("tls.secretRef must be set if and only if tls.source is Secret"),
    validation = Rule::new("self.source != 'Secret' || self.clientAuth == 'None' || has(self.clientCARef)").message("tls.clientCARef is required when tls.source is Secret and clientAuth is Required"),
    validation = Rule::new("self.source != 'Disabled' || !has(self.clientCARef)").message("tls.clientCARef has no effect when tls.source is Disabled"),
    validation = Rule::new("self.source == 'Managed' || !has(self.extraSANs)").message("tls.extraSANs go into a Managed certificate; the certificate of a Secret names what it names")
)]
pub struct ServingTls {
    /// Managed issues certificates for the proxies and for one client, and renews them. Secret takes a certificate that
    /// you or cert-manager provide. Disabled serves clear text.
    #[serde(default)]
    pub source: TlsSource,
    /// Secret of type kubernetes.io/tls, for source Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<NameRef>,
    /// Whether clients must show a certificate.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// CA certificates of clients, besides the Managed one; needed for source Secret with clientAuth Required.
    #[serde(rename = "clientCARef", skip_serializing_if = "Option::is_none")]
    pub client_ca_ref: Option<KeyRef>,
    /// Further host names and IP addresses that a Managed certificate names.
    #[serde(default, rename = "extraSANs", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names_16")]
    pub extra_sans: Option<Vec<String>>,
    /// Must be true for source Disabled outside mode Sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsSource {
    #[default]
    Managed,
    Secret,
    Disabled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientAuth {
    #[default]
    Required,
    None,
}

/// What clients may call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Api {
    /// Tenant leaves what stays inside the prefix: KV, Watch, Lock, Election and own leases. ReadOnly leaves reads. Full,
    /// with upstream only, passes everything. If absent: Tenant where there is a prefix, else Full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// What becomes of a Compact under profile Tenant: Deny, the default, refuses it; Ignore answers as if it were done,
    /// which kube-apiserver wants; Allow, with upstream only, passes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact: Option<Compact>,
    /// Methods that are allowed on top of the profile, such as Maintenance/HashKV; with upstream only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::methods")]
    pub allow: Option<Vec<String>>,
    /// Methods that are denied whatever else allows them, such as Lock/Lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::methods")]
    pub deny: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Profile {
    Tenant,
    ReadOnly,
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Compact {
    Deny,
    Ignore,
    Allow,
}

/// How proxies register in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.prefix.startsWith('/') && !self.prefix.endsWith('/')").message("registration.prefix must not start or end with '/' (the proxy writes <prefix>/<address>)"))]
pub struct Registration {
    /// The keys' beginning, inside keyPrefix.
    #[serde(default = "registration_prefix")]
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = schema::printable()))]
    pub prefix: String,
    /// How long a proxy that died without a word stays registered.
    #[serde(default = "registration_ttl")]
    #[schemars(range(min = 5, max = 3600))]
    pub ttl_seconds: i32,
    /// What is registered: the pod's name in the cluster's DNS, which a Managed certificate covers; the pod's address; or
    /// with hostPort the node's address.
    #[serde(default)]
    pub advertise: Advertise,
}

fn registration_prefix() -> String {
    "__etcdproxy".to_owned()
}

fn registration_ttl() -> i32 {
    30
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Advertise {
    #[default]
    PodDNS,
    PodIP,
    HostIP,
}

/// How many proxies may be more or fewer than wanted while they are replaced. One of the two must be 0 in mode DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// More than wanted; 1 if absent, with hostPort 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pods_or_percent")]
    pub max_surge: Option<Quantity>,
    /// Fewer than wanted; 0 if absent, with hostPort 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pods_or_percent")]
    pub max_unavailable: Option<Quantity>,
}

/// The Service before the proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceSettings {
    /// PreferNode sends a client to its own node's proxy while that is ready, NodeOnly to no other, Cluster to any. If
    /// absent, PreferNode with mode DaemonSet and Cluster else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// Annotations of the Service in this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::annotations")]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Traffic {
    PreferNode,
    NodeOnly,
    Cluster,
}

/// Metrics and health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// The port of metrics and health, in clear text.
    #[serde(default = "metrics_port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub port: i32,
    /// Auto, the default, makes a PodMonitor where the cluster serves that kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_monitor: Option<PodMonitorMode>,
}

fn metrics_port() -> i32 {
    2381
}

impl Default for Metrics {
    fn default() -> Self {
        Self { port: metrics_port(), pod_monitor: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodMonitorMode {
    Auto,
    Enabled,
    Disabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkPolicyMode {
    Managed,
    Disabled,
}

/// How sidecars are put into pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sidecar {
    /// First, the default, starts the proxy before all other init containers, so that they can use it; Last after them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Position {
    First,
    Last,
}
