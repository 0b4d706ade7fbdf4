//! What both kinds are made of: references to Secrets and ConfigMaps, resources, tolerations.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// A Secret by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameRef {
    /// Name of the Secret, in the same namespace.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = schema::object_name()))]
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RefKind {
    ConfigMap,
    Secret,
}

/// One key of a ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// ConfigMap or Secret.
    pub kind: RefKind,
    /// Its name, in the same namespace.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = schema::object_name()))]
    pub name: String,
    /// The key under which the certificates stand.
    #[serde(default = "ca_crt")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = schema::data_key()))]
    pub key: String,
}

fn ca_crt() -> String {
    "ca.crt".to_owned()
}

/// How the proxy proves itself to etcd, and how it checks etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientTls {
    /// Secret of type kubernetes.io/tls with tls.crt, tls.key and, unless caRef is set, ca.crt. The certificate must
    /// have no common name: etcd would take it for a user's name, and every client for that user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<NameRef>,
    /// The CA certificates that verify etcd's servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<KeyRef>,
    /// The name that is expected in the certificates of etcd's servers; the host of each endpoint if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = schema::server_name()))]
    pub server_name: Option<String>,
}

/// A user of etcd with auth enabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserRef {
    /// Secret of type kubernetes.io/basic-auth with username and password. A new password is used without a restart, a
    /// new username by new pods only.
    pub secret_ref: NameRef,
}

/// An amount as Kubernetes writes it, a number or a string such as 250m or 64Mi.
pub type Quantity = IntOrString;

/// What the proxy's container asks for and may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What a node must have free for the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    pub requests: Option<BTreeMap<String, Quantity>>,
    /// What the proxy may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    pub limits: Option<BTreeMap<String, Quantity>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    Exists,
    Equal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// A taint on a node that the proxy's pods put up with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// The taint's key; none means all taints, with operator Exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// Exists or Equal, which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// The taint's value, for operator Equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// The effect that is put up with; none means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TolerationEffect>,
    /// How long a taint with effect NoExecute is put up with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}
