//! Many objects on many nodes: that they become ready, and what that costs.

use std::collections::BTreeMap;
use std::time::Instant;

use etcd_proxy_e2e::Process;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, PATIENCE, POLL, path};
use crate::kubelets;
use crate::lifecycle::condition;

const NODES: usize = 50;
const PROXIES: usize = 200;
/// Each of these is a pod on every node.
const DAEMON_SETS: usize = 4;
/// Those of the last quarter are in these namespaces, on one backend: each that comes changes its count of users.
const TENANTS: usize = 10;

pub fn two_hundred_objects_on_fifty_nodes(cluster: &ControlPlane, operator: &Process, nodes_already: usize) {
    kubelets::add_nodes(cluster, nodes_already..NODES);
    cluster.kubectl(&["create", "namespace", "fleet"]);
    for number in 0..TENANTS {
        cluster.kubectl(&["create", "namespace", &format!("fleet-{number}")]);
    }
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {name: fleet}, spec: {\
         endpoints: ['http://etcd.example:2379'], namespace: fleet, keyspace: {root: /fleet/}, \
         allowedNamespaces: {selector: {}}}}",
    );
    let before = cluster.audit().len();
    let (started, cpu) = (Instant::now(), operator.cpu_time());
    for number in 0..PROXIES {
        let own = json!({"upstream": {"endpoints": ["http://etcd.example:2379"]}, "keyPrefix": "app/"});
        let tenant = number >= PROXIES - PROXIES / 4;
        let mut spec = if tenant { json!({"backendRef": {"name": "fleet"}}) } else { own };
        if number >= DAEMON_SETS {
            spec["mode"] = json!("Deployment");
            spec["replicas"] = json!(1);
        }
        let namespace = if tenant { format!("fleet-{}", number % TENANTS) } else { "fleet".to_owned() };
        let proxy = json!({
            "apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdProxy",
            "metadata": {"name": format!("p-{number}"), "namespace": namespace}, "spec": spec,
        });
        cluster
            .request("POST", &path(&namespace, "etcdproxy"), "application/json", &proxy.to_string())
            .expect("it is taken");
    }
    let ready = |proxy: &Value| condition(proxy, "Ready")["status"] == "True";
    loop {
        let all = cluster.request("GET", &path("", "etcdproxy"), "", "").expect("they can be listed");
        let fleet = |proxy: &&Value| proxy["metadata"]["namespace"].to_string().starts_with("\"fleet");
        let waiting: Vec<&Value> =
            all["items"].as_array().into_iter().flatten().filter(fleet).filter(|proxy| !ready(proxy)).collect();
        if waiting.is_empty() {
            break;
        }
        assert!(
            started.elapsed() < 2 * PATIENCE,
            "{} are not ready, such as {:#}",
            waiting.len(),
            waiting[0]["status"]
        );
        std::thread::sleep(POLL);
    }
    let took = started.elapsed();
    let requests = cluster.audit().split_off(before);
    let mut by_verb: BTreeMap<&str, usize> = BTreeMap::new();
    for request in &requests {
        *by_verb.entry(request["verb"].as_str().unwrap_or_default()).or_default() += 1;
    }
    println!(
        "{PROXIES} EtcdProxies on {NODES} nodes: ready after {:.1} s; the operator's memory {} MiB, its CPU {:.1} s, its \
         requests {} ({by_verb:?})",
        took.as_secs_f64(),
        operator.resident_bytes() / (1 << 20),
        (operator.cpu_time() - cpu).as_secs_f64(),
        requests.len(),
    );
    // Children once each and a few looks; a loop that answers its own writes would be far beyond.
    assert!(requests.len() < PROXIES * 100, "{by_verb:?}");
}

/// From the API server's own record of all that the operator did in this run.
pub fn the_operator_kept_to_itself(cluster: &ControlPlane) {
    let requests = cluster.audit();
    assert!(!requests.is_empty(), "the API server keeps a record");
    for request in &requests {
        let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (verb, resource, subresource) =
            (text("/verb"), text("/objectRef/resource"), text("/objectRef/subresource"));
        let reads = matches!(verb.as_str(), "get" | "list" | "watch");
        if resource == "secrets" {
            assert!(!matches!(verb.as_str(), "list" | "watch"), "Secrets are read by name only: {request}");
            let (namespace, name) = (text("/objectRef/namespace"), text("/objectRef/name"));
            let own = ["-client", "-serving", "-ca", "-operator-webhook"].iter().any(|end| name.ends_with(end));
            assert!(own || reads, "a Secret of a user is never written: {namespace}/{name}");
        }
        if matches!(resource.as_str(), "etcdproxies" | "etcdbackends") && subresource.is_empty() && !reads {
            let finalizer = text("/requestURI").contains("fieldManager=etcd-proxy-operator-finalizer");
            assert!(
                verb == "patch" && finalizer,
                "nothing of an object is written but its status and finalizer: {request}"
            );
        }
        let code = request.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default();
        // In a namespace that is going nobody may create anything, whatever the roles.
        let going = request.to_string().contains("NamespaceTerminating");
        assert!(code != 403 || going, "the committed roles suffice: {request}");
    }
}
