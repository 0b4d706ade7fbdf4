//! What the operator tells about an object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema;

/// One statement about the object, as Kubernetes has them everywhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is stated: Accepted, ResolvedRefs, Programmed, Ready, Reconciling, Stalled or CertificateExpiring.
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    /// Whether it is so: True, False or Unknown.
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// The generation of the object that this was said of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the status last changed.
    pub last_transition_time: Time,
    /// Why, in one word.
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"))]
    pub reason: String,
    /// Why, in a sentence that says which field and what would be right.
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// The Secret that applications bind to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Binding {
    pub name: String,
}

/// Where the proxy runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workload {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// Until when the certificates are good.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving_not_after: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_not_after: Option<Time>,
}

/// What injection puts into a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SidecarStatus {
    /// Changes whenever what is injected changes; injected pods carry it as annotation etcdproxy.dev/config-hash.
    pub config_hash: String,
    /// First or Last among the pod's init containers.
    pub position: String,
    /// The finished container.
    #[schemars(schema_with = "schema::part_of_a_pod")]
    pub container: Value,
    /// The volumes that it mounts.
    #[schemars(schema_with = "schema::parts_of_a_pod")]
    pub volumes: Vec<Value>,
    /// Pods that run with an older sidecar until their owner restarts them; counted every five minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outdated_pods: Option<i32>,
}

/// What was made of an EtcdProxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EtcdProxyStatus {
    /// The generation that the operator last worked on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The bytes that stand before every key in etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// What clients connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<String>>,
    /// The Secret with endpoints and client certificate for applications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
    /// What runs the proxy; none for sidecars of an upstream of one's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// Label selector of the proxy's pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Pods that there should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Pods that serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_replicas: Option<i32>,
    /// Pods that run the newest template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_replicas: Option<i32>,
    /// The proxy's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Until when the certificates are good; they are renewed well before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<Certificates>,
    /// What injection puts into pods, with mode Sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarStatus>,
    /// Accepted, ResolvedRefs, Programmed and Ready always; Reconciling, Stalled and CertificateExpiring while they are so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
