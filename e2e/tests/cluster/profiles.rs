//! Operators with fewer rights: each under its own account with exactly the committed roles of its profile.

use etcd_proxy_e2e::Authority;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, path};
use crate::lifecycle::condition;

fn reason(wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |proxy| condition(proxy, "Accepted")["reason"] == wanted
}

fn create(cluster: &ControlPlane, namespace: &str, name: &str, spec: &Value) {
    let proxy = json!({
        "apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdProxy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    });
    cluster
        .request("POST", &path(namespace, "etcdproxy"), "application/json", &proxy.to_string())
        .expect("it is taken");
}

pub fn an_operator_for_backends_needs_no_secrets_of_tenants(cluster: &ControlPlane) {
    let home = "ops-backends";
    let replaced = [("etcd-proxy-system", home)];
    let flags = [format!("--namespace={home}"), format!("--backend-namespaces={home}")];
    let mut operator = cluster.start_profile("deploy/rbac/profiles/backends.yaml", home, &replaced, &flags);
    operator.expect_stderr("this process leads");
    cluster.kubectl(&["create", "namespace", "team-v"]);
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {name: vault}, spec: {\
         endpoints: ['http://etcd.example:2379'], namespace: ops-backends, keyspace: {root: /vault/}, \
         allowedNamespaces: {names: [team-v]}}}",
    );
    create(cluster, "team-v", "keys", &json!({"mode": "Deployment", "backendRef": {"name": "vault"}}));
    cluster.until("team-v", "etcdproxy/keys", "a CA of clients is asked for", reason("ClientCARequired"));
    create(cluster, "team-v", "own", &json!({"upstream": {"endpoints": ["http://etcd.example:2379"]}}));
    cluster.until("team-v", "etcdproxy/own", "it is refused", reason("InlineUpstreamForbidden"));

    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let ca = format!("--from-file=ca.crt={}", authority.ca().display());
    cluster.kubectl(&["create", "configmap", "-n", "team-v", "clients", &ca]);
    let patch = r#"{"spec":{"tls":{"clientCARef":{"kind":"ConfigMap","name":"clients"}}}}"#;
    cluster.kubectl(&["patch", "-n", "team-v", "etcdproxy/keys", "--type=merge", "-p", patch]);
    cluster.wait_ready("team-v", "keys");
    let binding = cluster.get("team-v", "configmap/keys-client");
    assert_eq!(binding["data"]["endpoints"], "https://keys.team-v.svc:2379");
    let secrets = cluster.kubectl(&["get", "secrets", "-n", "team-v", "-o", "name"]);
    assert_eq!(secrets.trim(), "", "no Secret is put beside the tenant");

    let account = format!("--as=system:serviceaccount:{home}:etcd-proxy-operator");
    let can = |verb: &str, what: &str, namespace: &str| {
        cluster.try_kubectl(&["auth", "can-i", verb, what, &account, "-n", namespace]).is_ok()
    };
    for what in ["secrets", "deployments", "pods"] {
        assert!(
            !can("get", what, "team-v") && !can("create", what, "team-v"),
            "{what} of tenants are not its business"
        );
    }
    assert!(can("get", "secrets", home));
    cluster.kubectl(&["delete", "-n", "team-v", "etcdproxy/keys", "--timeout=60s"]);
    cluster.until_gone("team-v", "configmap/keys-client");
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0, "the operator ends well");
}

pub fn an_operator_for_a_namespace_needs_no_rights_elsewhere(cluster: &ControlPlane) {
    let home = "ops-single";
    cluster.kubectl(&["create", "namespace", "single"]);
    let replaced = [("etcd-proxy-system", home), ("namespace: default", "namespace: single")];
    let flags = [format!("--namespace={home}"), "--watch-namespaces=single".to_owned()];
    let mut operator = cluster.start_profile("deploy/rbac/profiles/namespaced.yaml", home, &replaced, &flags);
    operator.expect_stderr("this process leads");
    let own = json!({"mode": "Deployment", "replicas": 1, "upstream": {"endpoints": ["http://etcd.example:2379"]}});
    create(cluster, "single", "own", &own);
    cluster.wait_ready("single", "own");
    create(cluster, "single", "shared", &json!({"mode": "Deployment", "backendRef": {"name": "vault"}}));
    cluster.until("single", "etcdproxy/shared", "it is refused", reason("UnsupportedByInstall"));
    let account = format!("--as=system:serviceaccount:{home}:etcd-proxy-operator");
    for what in ["etcdproxies", "services", "namespaces"] {
        assert!(
            cluster.try_kubectl(&["auth", "can-i", "list", what, &account, "-A"]).is_err(),
            "{what} of all namespaces"
        );
    }
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0, "the operator ends well");
}
