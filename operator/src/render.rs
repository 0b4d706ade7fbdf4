//! What a plan looks like as Kubernetes objects. Pure: the same plan gives the same bytes. Objects are JSON, since
//! server-side apply wants exactly the fields that are meant; a test reads each of them back as its type.

pub mod container;
mod pods;
mod policy;
mod services;

use serde_json::{Value, json};

use crate::api::{GROUP, SidecarStatus};
use crate::plan::{HOME_LABEL_NAME, HOME_LABEL_NAMESPACE, HOME_LABEL_OWNER, Home, Object, Plan, short_hash};

/// Who applies; the field manager of all that is written.
pub const MANAGER: &str = "etcd-proxy-operator";

/// All children but the Secrets with certificates, in the order in which they are applied: what pods need comes before
/// the pods.
pub fn render(plan: &Plan, cluster: &Cluster) -> Vec<Value> {
    let mut objects = Vec::new();
    if let Some(workload) = &plan.workload {
        objects.push(pods::service_account(plan));
        if workload.network_policy {
            objects.push(policy::network_policy(plan, workload));
        }
        objects.push(services::service(plan, workload, cluster));
        objects.push(services::headless(plan, workload));
        if plan.home.backend.is_some() {
            objects.push(services::alias(plan, workload, cluster));
        }
        if workload.replicas.is_some_and(|replicas| replicas > 1) {
            objects.push(policy::disruption_budget(plan));
        }
        if workload.pod_monitor {
            objects.push(policy::pod_monitor(plan));
        }
        objects.push(pods::workload(plan, workload));
    }
    objects
}

/// The Job that deletes an object's keys, if they are its own.
pub fn purge(plan: &Plan) -> Option<Value> {
    pods::purge(plan)
}

/// What injection puts into pods, if the plan has a sidecar.
pub fn sidecar(plan: &Plan) -> Option<SidecarStatus> {
    let sidecar = plan.sidecar.as_ref()?;
    let container = container::sidecar(&sidecar.proxy, &plan.endpoints[0]);
    let volumes = container::volumes(&sidecar.proxy);
    let config_hash = short_hash(&json!([container, volumes]).to_string());
    let position = format!("{:?}", sidecar.position);
    Some(SidecarStatus { config_hash, position, container, volumes, outdated_pods: None })
}

/// What the cluster can do and how it is named.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub domain: String,
    /// Whether Services take trafficDistribution PreferSameNode (Kubernetes 1.34 and later).
    pub same_node: bool,
}

/// What an object is, without what is in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl Identity {
    pub fn of(object: &Value) -> Identity {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Identity {
            api_version: text(&object["apiVersion"]),
            kind: text(&object["kind"]),
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
        }
    }
}

/// Every child that an object can ever have, workload first: what was not rendered of these is pruned, and all of them
/// when the object goes. Names follow from the object alone, so nothing must be listed for it.
pub fn possible(object: &Object, home: &Home) -> Vec<Identity> {
    let at_home = |api_version: &str, kind: &str, name: &str| Identity {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        namespace: home.namespace.clone(),
        name: name.to_owned(),
    };
    let base = &home.base;
    let mut all = vec![
        at_home("apps/v1", "Deployment", base),
        at_home("apps/v1", "DaemonSet", base),
        at_home("v1", "Service", base),
        at_home("v1", "Service", &home.headless_service()),
        at_home("policy/v1", "PodDisruptionBudget", base),
        at_home("networking.k8s.io/v1", "NetworkPolicy", base),
        at_home(POD_MONITOR, "PodMonitor", base),
        at_home("v1", "ServiceAccount", base),
        at_home("v1", "Secret", &home.serving_secret()),
        at_home("v1", "Secret", &home.ca_secret()),
    ];
    let own = |kind: &str, name: &str| Identity {
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        namespace: object.namespace.clone(),
        name: name.to_owned(),
    };
    all.push(own("Secret", &object.binding()));
    if home.backend.is_some() || home.namespace != object.namespace {
        all.push(own("Service", &object.name));
        all.push(own("ConfigMap", &object.binding()));
        all.push(at_home("batch/v1", "Job", base));
    }
    all
}

pub const POD_MONITOR: &str = "monitoring.coreos.com/v1";

/// The labels of all children.
pub fn labels(object: &Object) -> Value {
    let mut labels = selector(object);
    labels["app.kubernetes.io/instance"] = json!(object.name);
    labels["app.kubernetes.io/managed-by"] = json!(MANAGER);
    labels[HOME_LABEL_OWNER] = json!(object.uid);
    labels
}

/// The labels by which Services and workloads find their pods. They outlive the object's uid, as a selector cannot
/// change.
pub fn selector(object: &Object) -> Value {
    json!({
        "app.kubernetes.io/name": "etcd-proxy",
        HOME_LABEL_NAMESPACE: object.namespace,
        HOME_LABEL_NAME: object.name,
    })
}

/// The same as a label selector is written.
pub fn selector_text(object: &Object) -> String {
    let labels = selector(object);
    let pairs = labels.as_object().into_iter().flatten();
    let pairs = pairs.filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    pairs.collect::<Vec<_>>().join(",")
}

/// The metadata of a child beside the pods.
pub fn metadata(plan: &Plan, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": plan.home.namespace,
        "labels": labels(&plan.object),
        "ownerReferences": [owner(plan)],
    })
}

/// The metadata of a child beside the object.
pub fn own_metadata(plan: &Plan, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": plan.object.namespace,
        "labels": labels(&plan.object),
        "ownerReferences": [owner_object(&plan.object)],
    })
}

/// An owner must stand in the same namespace or in none: abroad it is the backend, and the labels lead to the object.
fn owner(plan: &Plan) -> Value {
    match &plan.home.backend {
        None => owner_object(&plan.object),
        Some((name, uid)) => json!({
            "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "EtcdBackend", "name": name, "uid": uid,
        }),
    }
}

fn owner_object(object: &Object) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "EtcdProxy", "name": object.name, "uid": object.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}
