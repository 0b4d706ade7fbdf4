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
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": container::USER,
            "runAsGroup": container::USER,
            "fsGroup": container::USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": container::volumes(&workload.proxy),
    });
    if let Some(selector) = &workload.node_selector {
        pod["nodeSelector"] = json!(selector);
    }
    if let Some(tolerations) = &workload.tolerations {
        pod["tolerations"] = json!(tolerations);
    }
    if let Some(class) = &workload.priority_class_name {
        pod["priorityClassName"] = json!(class);
    }
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

/// The URL of the Service in the object's namespace.
pub fn service_url(plan: &Plan) -> String {
    let workload = plan.workload.as_ref().expect("asked for plans with pods only");
    let scheme = if workload.proxy.serving == crate::plan::Serving::Clear { "http" } else { "https" };
    format!("{scheme}://{}.{}.svc:{}", plan.object.name, plan.object.namespace, workload.proxy.port)
}
