//! Who may reach the pods, how many of them may go at a time, and who scrapes them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{POD_MONITOR, metadata, selector};
use crate::plan::{HOME_LABEL_NAME, HOME_LABEL_NAMESPACE, Plan, Workload};

/// Policies are judged by the port of the DNS server's pod, and not by that of its Service: where that pod may not open 53,
/// as on OpenShift, it listens on 5353.
const DNS: [i32; 2] = [53, 5353];

/// In: clients of the object's namespace, and anyone to the metrics. Out: DNS and the ports of etcd; its addresses are
/// names as often as not, and a policy cannot hold names.
pub fn network_policy(plan: &Plan, workload: &Workload) -> Value {
    let proxy = &workload.proxy;
    let clients = if workload.host_port.is_some() {
        // What comes by a port of the node has the node's address or any, depending on the network.
        json!({"ports": [tcp(proxy.port)]})
    } else {
        json!({
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": plan.object.namespace}}}],
            "ports": [tcp(proxy.port)],
        })
    };
    let etcd: BTreeSet<i32> =
        proxy.endpoints.iter().filter_map(|endpoint| endpoint.rsplit(':').next()?.parse().ok()).collect();
    // The pod that purges keys too, which must get out where a policy of the namespace lets nothing out.
    let pods = json!({HOME_LABEL_NAMESPACE: plan.object.namespace, HOME_LABEL_NAME: plan.object.name});
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": metadata(plan, &plan.home.base),
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [clients, {"ports": [tcp(proxy.metrics_port)]}],
            "egress": [
                {"ports": DNS.into_iter().flat_map(|port| [json!({"port": port, "protocol": "UDP"}), tcp(port)]).collect::<Vec<_>>()},
                {"ports": etcd.into_iter().map(tcp).collect::<Vec<_>>()},
            ],
        },
    })
}

fn tcp(port: i32) -> Value {
    json!({"port": port, "protocol": "TCP"})
}

pub fn disruption_budget(plan: &Plan) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": metadata(plan, &plan.home.base),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(&plan.object)}},
    })
}

pub fn pod_monitor(plan: &Plan) -> Value {
    json!({
        "apiVersion": POD_MONITOR, "kind": "PodMonitor",
        "metadata": metadata(plan, &plan.home.base),
        "spec": {
            "selector": {"matchLabels": selector(&plan.object)},
            "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics"}],
        },
    })
}
