//! The workload and its ServiceAccount.

use serde_json::{Value, json};

use super::{container, labels, metadata, selector};
use crate::plan::{Plan, Workload};

/// What a pod gets after its drain before it is killed.
const GRACE_AFTER_DRAIN: i32 = 5;

/// An account without rights; without it the pods would run under the namespace's default one, which may have some.
pub fn service_account(plan: &Plan) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": metadata(plan, &plan.home.base),
        "automountServiceAccountToken": false,
    })
}

pub fn workload(plan: &Plan, workload: &Workload) -> Value {
    let rolling = json!({
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": workload.max_surge, "maxUnavailable": workload.max_unavailable},
    });
    let mut object = json!({
        "apiVersion": "apps/v1",
        "metadata": metadata(plan, &plan.home.base),
        "spec": {
            "selector": {"matchLabels": selector(&plan.object)},
            "template": {"metadata": {"labels": labels(&plan.object)}, "spec": pod(plan, workload)},
        },
    });
    match workload.replicas {
        None => {
            object["kind"] = json!("DaemonSet");
            object["spec"]["updateStrategy"] = rolling;
        }
        Some(replicas) => {
            object["kind"] = json!("Deployment");
            object["spec"]["replicas"] = json!(replicas);
            object["spec"]["strategy"] = rolling;
        }
    }
    object
}

fn pod(plan: &Plan, workload: &Workload) -> Value {
    let mut container = container::container(&workload.proxy, &service_url(plan));
    if let Some(port) = workload.host_port {
        container["ports"][0]["hostPort"] = json!(port);
    }
    let mut pod = json!({
        "serviceAccountName": plan.home.base,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": workload.proxy.drain_seconds + GRACE_AFTER_DRAIN,
        "securityContext": security_context(),
        "containers": [container],
        "volumes": container::volumes(&workload.proxy),
    });
    if let Some(claim) = &plan.claim {
        pod["initContainers"] = json!([container::claim(&workload.proxy, claim)]);
    }
    place(&mut pod, workload);
    if workload.replicas.is_some() {
        let spread = |key: &str| {
            json!({
                "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(&plan.object)},
            })
        };
        pod["topologySpreadConstraints"] =
            json!([spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")]);
    }
    pod
}

/// On which nodes.
fn place(pod: &mut Value, workload: &Workload) {
    if let Some(selector) = &workload.node_selector {
        pod["nodeSelector"] = json!(selector);
    }
    if let Some(tolerations) = &workload.tolerations {
        pod["tolerations"] = json!(tolerations);
    }
    if let Some(class) = &workload.priority_class_name {
        pod["priorityClassName"] = json!(class);
    }
}

/// How often a purge that failed is tried again, and how long all of it may take: an etcd that is away must not keep a
/// namespace from going.
const PURGE_RETRIES: i32 = 2;
const PURGE_SECONDS: i64 = 300;

/// A Job that deletes the keys of an object that goes, where the credential is.
pub fn purge(plan: &Plan) -> Option<Value> {
    let (workload, claim) = (plan.workload.as_ref()?, plan.claim.as_ref()?);
    let mut labels = labels(&plan.object);
    // Not the proxies' own name, by which Services would send clients here.
    labels["app.kubernetes.io/name"] = json!("etcd-proxy-purge");
    let mut metadata = metadata(plan, &plan.home.base);
    metadata["labels"] = labels.clone();
    let mut pod = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": security_context(),
        "containers": [container::purge(&workload.proxy, claim)],
        // Its own serving certificate is gone by then, and not needed.
        "volumes": container::upstream_volumes(&workload.proxy),
    });
    place(&mut pod, workload);
    Some(json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
        "spec": {
            "backoffLimit": PURGE_RETRIES,
            "activeDeadlineSeconds": PURGE_SECONDS,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }))
}

fn security_context() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": container::USER,
        "runAsGroup": container::USER,
        "fsGroup": container::USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// The URL of the Service in the object's namespace.
pub fn service_url(plan: &Plan) -> String {
    let workload = plan.workload.as_ref().expect("asked for plans with pods only");
    let scheme = if workload.proxy.serving == crate::plan::Serving::Clear { "http" } else { "https" };
    format!("{scheme}://{}.{}.svc:{}", plan.object.name, plan.object.namespace, workload.proxy.port)
}
