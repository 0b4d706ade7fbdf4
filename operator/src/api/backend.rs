//! `EtcdBackend`: an etcd that an administrator shares among namespaces.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::proxy::Mode;
use super::schema;
use super::shared::{ClientTls, Toleration, UserRef};
use super::status::Condition;

/// An etcd that an administrator shares among namespaces. Each namespace gets its own part of the keys:
/// keyspace.root, the namespace's name, and what the EtcdProxy adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "etcdproxy.dev",
    version = "v1alpha1",
    kind = "EtcdBackend",
    shortname = "etcdbe",
    category = "etcd",
    status = "EtcdBackendStatus",
    derive = "PartialEq",
    doc = "EtcdBackend is an etcd that an administrator shares among namespaces, each with its own part of the keys.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters"),
    printcolumn(name = "Root", type_ = "string", json_path = ".spec.keyspace.root"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.namespace"),
    printcolumn(name = "Proxies", type_ = "integer", json_path = ".status.proxies"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.grants) || self.grants.all(g, !g.prefix.startsWith(self.keyspace.root) && !self.keyspace.root.startsWith(g.prefix))").message("a grant's prefix must not overlap keyspace.root (tenants get their keys there)"),
    validation = Rule::new("!has(self.grants) || self.grants.all(a, self.grants.all(b, a.name == b.name || !b.prefix.startsWith(a.prefix)))").message("grants must not overlap: no prefix may start with another grant's prefix"),
    validation = Rule::new("!has(self.tls) || self.endpoints.all(e, e.startsWith('https://'))").message("tls needs https:// endpoints"),
    validation = Rule::new("!has(self.auth) || self.endpoints.all(e, e.startsWith('https://'))").message("auth needs https:// endpoints: a password is not sent in clear text"),
    validation = Rule::new("self.endpoints.all(e, e.startsWith('https://')) || self.endpoints.all(e, e.startsWith('http://'))").message("all endpoints must use the same scheme")
)]
pub struct EtcdBackendSpec {
    /// URLs of etcd's members, each https://host:port or http://host:port.
    #[schemars(schema_with = "schema::endpoints")]
    pub endpoints: Vec<String>,
    /// The namespace that holds the Secrets named here and all proxies of this backend. Whoever may create pods there
    /// can read etcd's credentials.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.namespace is immutable"))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("spec.namespace must be the name of a namespace: lower-case letters, digits and '-'"))]
    pub namespace: String,
    /// TLS to etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// The etcd user as whom the proxies ask for themselves: health, registration, claims and purges. Tenants log in as
    /// themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<UserRef>,
    /// Where tenants' keys stand.
    pub keyspace: Keyspace,
    /// Who may use this backend. Absent means nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<AllowedNamespaces>,
    /// Prefixes outside keyspace.root that namespaces may use, to adopt data that is there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub grants: Option<Vec<Grant>>,
    /// What tenants may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<BackendLimits>,
    /// How the proxies of this backend run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyPods>,
}

/// Where tenants' keys stand, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Keyspace {
    /// The beginning of all tenants' keys. It ends with "/", and should hold the cluster's name if several clusters
    /// share this etcd.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.endsWith('/')").message("root must end with '/'"))]
    #[x_kube(validation = Rule::new("!self.contains('//')").message("root must not contain '//'"))]
    #[x_kube(validation = Rule::new("!self.matches('[[:cntrl:]]')").message("root must not contain control characters, such as line ends"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("root is immutable: create another EtcdBackend"))]
    pub root: String,
    /// What becomes of the keys of an EtcdProxy that is deleted: Retain, the default, leaves them in etcd; Delete deletes
    /// them once its proxies are gone. Keys of a grant always stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reclaim_policy: Option<ReclaimPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    Retain,
    Delete,
}

/// Namespaces by name or by label; one of the two suffices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedNamespaces {
    /// Names of namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::namespaces_1024")]
    pub names: Option<Vec<String>>,
    /// Labels of namespaces. An empty selector allows all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub selector: Option<LabelSelector>,
}

/// A label selector as Kubernetes has it everywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Requirements that must all hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Option<Vec<LabelSelectorRequirement>>,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabelSelectorRequirement {
    /// The label's key.
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub operator: LabelSelectorOperator,
    /// The values for In and NotIn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelSelectorOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// A prefix that named namespaces may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.prefix == oldSelf.prefix").message("a grant's prefix is immutable: remove the grant and add another name"))]
pub struct Grant {
    /// The name by which an EtcdProxy asks for it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The beginning of the keys; it ends with "/".
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.endsWith('/')").message("prefix must end with '/'"))]
    #[x_kube(validation = Rule::new("!self.matches('[[:cntrl:]]')").message("prefix must not contain control characters, such as line ends"))]
    pub prefix: String,
    /// The namespaces that may use it.
    #[schemars(schema_with = "schema::namespaces_64", length(min = 1))]
    pub namespaces: Vec<String>,
    /// Whether its keys may be written.
    #[serde(default)]
    pub access: GrantAccess,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GrantAccess {
    #[default]
    ReadWrite,
    ReadOnly,
}

/// What tenants may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendLimits {
    /// The modes that tenants may choose; all, if absent. DaemonSet puts this backend's credential on every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::modes")]
    pub modes: Option<Vec<Mode>>,
    /// The most replicas that one EtcdProxy may have; 5 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: Option<i32>,
    /// What one proxy takes on at most, whatever its EtcdProxy asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_proxy: Option<Limits>,
}

/// How the proxies of a backend run; what a tenant must not decide beside the administrator's credential.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyPods {
    /// The proxy's image; the operator's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Priority class of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Labels that a node must carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::node_selector")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that the pods put up with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Option<Vec<Toleration>>,
}

/// What is known of an EtcdBackend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackendStatus {
    /// The generation that the operator last worked on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many EtcdProxies use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxies: Option<i32>,
    /// Accepted, ResolvedRefs and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
