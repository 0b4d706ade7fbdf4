//! Objects on an administrator's etcd.

use serde_json::Value;

use crate::control_plane::ControlPlane;
use crate::lifecycle::condition;

fn tenant(name: &str, namespace: &str) -> String {
    format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{mode: Deployment, backendRef: {{name: shared}}}}}}"
    )
}

pub fn a_tenant_gets_proxies_but_never_the_credential(cluster: &ControlPlane) {
    for namespace in ["backend", "team-a", "team-b"] {
        cluster.kubectl(&["create", "namespace", namespace]);
    }
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {name: shared}, spec: {\
         endpoints: ['http://etcd.example:2379'], namespace: backend, keyspace: {root: /tenants/}, \
         allowedNamespaces: {names: [team-a], selector: {matchLabels: {etcd: allowed}}}, limits: {modes: [Deployment]}}}",
    );
    cluster.apply_text(&tenant("registry", "team-a"));
    cluster.wait_ready("team-a", "registry");
    let proxy = cluster.get("team-a", "etcdproxy/registry");
    assert_eq!(proxy["status"]["keyPrefix"], "/tenants/team-a/registry/");
    assert_eq!(proxy["status"]["workload"]["namespace"], "backend");
    let base = proxy["status"]["workload"]["name"].as_str().expect("the workload has a name").to_owned();

    let alias = cluster.get("team-a", "service/registry");
    assert_eq!(alias["spec"]["externalName"], format!("{base}.backend.svc.cluster.local"));
    let secrets = cluster.kubectl(&["get", "secrets", "-n", "team-a", "-o", "name"]);
    assert_eq!(secrets.trim(), "secret/registry-client", "the tenant's namespace holds its client certificate only");
    let pods = cluster.kubectl(&["get", "pods", "-n", "team-a", "-o", "name"]);
    assert_eq!(pods.trim(), "", "no pod that holds the backend's credential runs beside the tenant");
    cluster.until("", "etcdbackend/shared", "its user is counted", |backend| backend["status"]["proxies"] == 1);

    cluster.kubectl(&["delete", "-n", "team-a", "etcdproxy/registry", "--timeout=60s"]);
    for child in ["deployment", "service", "serviceaccount", "networkpolicy"] {
        cluster.until_gone("backend", &format!("{child}/{base}"));
    }
    cluster.until_gone("backend", &format!("secret/{base}-ca"));
}

pub fn a_namespace_that_may_not_is_told_so(cluster: &ControlPlane) {
    cluster.apply_text(&tenant("registry", "team-b"));
    let reason = |wanted: &'static str| move |proxy: &Value| condition(proxy, "Accepted")["reason"] == wanted;
    let proxy = cluster.until("team-b", "etcdproxy/registry", "it is refused", reason("NamespaceNotAllowed"));
    assert_eq!(condition(&proxy, "Stalled")["status"], "True");
    // The administrator's label opens the namespace, and nobody touches the object.
    cluster.kubectl(&["label", "namespace", "team-b", "etcd=allowed"]);
    cluster.wait_ready("team-b", "registry");
    cluster.kubectl(&[
        "patch",
        "-n",
        "team-b",
        "etcdproxy/registry",
        "--type=merge",
        "-p",
        r#"{"spec":{"replicas":50}}"#,
    ]);
    cluster.until("team-b", "etcdproxy/registry", "too many are refused", reason("ReplicasExceedLimit"));
}

pub fn namespaces_go_although_the_backend_is_going(cluster: &ControlPlane) {
    cluster.kubectl(&["delete", "etcdbackend/shared", "--wait=false"]);
    let backend = cluster.get("", "etcdbackend/shared");
    assert!(backend["metadata"]["deletionTimestamp"].is_string(), "a backend stays while it is used");
    cluster.kubectl(&["delete", "namespace", "team-b", "--timeout=90s"]);
    cluster.until_gone("", "etcdbackend/shared");
    cluster.kubectl(&["delete", "namespace", "team-a", "backend", "--timeout=90s"]);
}
