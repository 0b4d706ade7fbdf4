//! The Services before the pods.

use serde_json::{Value, json};

use super::{Cluster, metadata, own_metadata, selector};
use crate::api::Traffic;
use crate::plan::{Plan, Workload};

/// What clients connect to.
pub fn service(plan: &Plan, workload: &Workload, cluster: &Cluster) -> Value {
    let mut metadata = metadata(plan, &plan.home.base);
    // Controllers act on annotations by the namespace that they stand in, and a backend's is not the tenant's.
    if plan.home.backend.is_none() {
        annotate(&mut metadata, workload);
    }
    let mut spec = json!({
        "type": "ClusterIP",
        "selector": selector(&plan.object),
        "ports": [port(workload)],
    });
    match workload.traffic {
        Traffic::PreferNode => {
            let distribution = if cluster.same_node { "PreferSameNode" } else { "PreferClose" };
            spec["trafficDistribution"] = json!(distribution);
        }
        Traffic::NodeOnly => spec["internalTrafficPolicy"] = json!("Local"),
        Traffic::Cluster => (),
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
}

/// Names of the single pods.
pub fn headless(plan: &Plan, workload: &Workload) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(plan, &plan.home.headless_service()),
        "spec": {"clusterIP": "None", "selector": selector(&plan.object), "ports": [port(workload)]},
    })
}

fn port(workload: &Workload) -> Value {
    json!({
        "name": "client", "port": workload.proxy.port, "targetPort": "client", "protocol": "TCP",
        "appProtocol": "grpc",
    })
}

/// The name in the tenant's namespace of a Service in the backend's.
pub fn alias(plan: &Plan, workload: &Workload, cluster: &Cluster) -> Value {
    let mut metadata = own_metadata(plan, &plan.object.name);
    annotate(&mut metadata, workload);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ExternalName",
            "externalName": format!("{}.{}.svc.{}", plan.home.base, plan.home.namespace, cluster.domain),
        },
    })
}

fn annotate(metadata: &mut Value, workload: &Workload) {
    if !workload.service_annotations.is_empty() {
        metadata["annotations"] = json!(workload.service_annotations);
    }
}
