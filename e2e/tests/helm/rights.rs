//! Releases whose operator may do less: each runs here under the account that the chart made, with the flags of its
//! Deployment, so that rights and flags fit together; and the admission policies that the chart brings.

use std::time::Instant;

use etcd_proxy_e2e::Authority;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, PATIENCE, POLL};
use crate::helm::Helm;
use crate::stand_ins;

/// What every release here is installed with; the kinds are there already.
const COMMON: &str = "image.repository=registry.example/etcd-proxy,crds.enabled=false,replicas=1";

fn reason(wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |proxy| {
        let conditions = proxy["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|one| one["type"] == "Accepted" && one["reason"] == wanted)
    }
}

fn may(cluster: &ControlPlane, namespace: &str, verb: &str, what: &str, place: &[&str]) -> bool {
    let account = format!("--as=system:serviceaccount:{namespace}:etcd-proxy");
    cluster.try_kubectl(&[&["auth", "can-i", verb, what, &account], place].concat()).is_ok()
}

/// What the server makes of a pod that asks for a sidecar, without keeping it.
fn admitted(cluster: &ControlPlane, namespace: &str) -> Result<Value, String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "labels": {"etcdproxy.dev/inject": "beside"}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict");
    cluster.request("POST", &path, "application/json", &pod.to_string())
}

fn until<T>(what: &str, look: impl Fn() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
        std::thread::sleep(POLL);
    }
}

fn has_sidecar(pod: &Value) -> bool {
    pod["spec"]["initContainers"].as_array().into_iter().flatten().any(|one| one["name"] == "etcd-proxy")
}

pub fn a_release_for_one_namespace_serves_it_and_has_no_rights_elsewhere(cluster: &ControlPlane) {
    let helm = Helm::new("helm-4", &cluster.kubeconfig());
    let chart = Helm::chart().display().to_string();
    cluster.kubectl(&["create", "namespace", "single"]);
    cluster.kubectl(&["create", "namespace", "other"]);
    let set = format!("{COMMON},rbac.profile=namespaced,injection.mode=policy");
    let notes = helm.release("install", "single", &["etcd-proxy", &chart, "--set", &set]);
    assert!(notes.contains("get their sidecar from the API server"), "{notes}");
    let mut operator = stand_ins::operator(cluster, "single", "etcd-proxy");
    for namespace in ["single", "other"] {
        cluster.apply_text(&format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: beside, namespace: {namespace}}}, \
             spec: {{mode: Sidecar, upstream: {{endpoints: ['http://etcd.example:2379']}}}}}}"
        ));
    }
    cluster.wait_ready("single", "beside");
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: shared, namespace: single}, \
         spec: {mode: Deployment, backendRef: {name: any}}}",
    );
    cluster.until("single", "etcdproxy/shared", "it is refused", reason("UnsupportedByInstall"));

    // The API server takes a moment to heed a new policy.
    until("a pod that asks gets its proxy", || match admitted(cluster, "single") {
        Ok(pod) if has_sidecar(&pod) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (Ok(said) | Err(said)) = cluster.plugin(&["check"]);
    assert!(said.contains("✓ sidecars are put into pods at admission"), "by whatever name: {said}");
    let elsewhere = admitted(cluster, "other").expect("the policy of this release is for its own namespace");
    assert!(!has_sidecar(&elsewhere), "{elsewhere}");
    assert!(cluster.get("other", "etcdproxy/beside")["status"].is_null(), "nor does the operator look elsewhere");

    let can = |verb: &str, what: &str, place: &[&str]| may(cluster, "single", verb, what, place);
    assert!(can("create", "deployments", &["-n", "single"]) && can("get", "secrets", &["-n", "single"]));
    for what in ["etcdproxies", "services", "namespaces", "etcdbackends"] {
        assert!(!can("list", what, &["-A"]), "{what} of the whole cluster");
    }
    assert!(!can("get", "secrets", &["-n", "other"]) && !can("list", "secrets", &["-n", "single"]));
    for namespace in ["single", "other"] {
        cluster.kubectl(&["delete", "etcdproxies", "-n", namespace, "--all", "--timeout=60s"]);
    }
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0);
    helm.release("uninstall", "single", &["etcd-proxy"]);
    let left = cluster.kubectl(&["get", "mutatingadmissionpolicies,mutatingadmissionpolicybindings", "-o", "name"]);
    assert_eq!(left.trim(), "", "an uninstall takes the policies");
}

pub fn a_release_for_backends_puts_no_secret_beside_tenants(cluster: &ControlPlane) {
    let helm = Helm::new("helm-3", &cluster.kubeconfig());
    let chart = Helm::chart().display().to_string();
    cluster.kubectl(&["create", "namespace", "vaults"]);
    cluster.kubectl(&["create", "namespace", "team-v"]);
    let backend = "backends[0].name=vault,backends[0].spec.endpoints={http://etcd.example:2379},\
                   backends[0].spec.namespace=vaults,backends[0].spec.keyspace.root=/vault/,\
                   backends[0].spec.allowedNamespaces.names={team-v}";
    let set = format!("{COMMON},rbac.profile=backends,policy.requireUse=true,{backend}");
    helm.release("install", "vaults", &["etcd-proxy", &chart, "--set", &set]);
    // Where the server can, it puts sidecars into pods without being told to.
    let policies = cluster.kubectl(&["get", "mutatingadmissionpolicies", "-o", "name"]);
    assert!(policies.contains("etcdproxy-inject.etcd-proxy.vaults"), "{policies}");
    let mut operator = stand_ins::operator(cluster, "vaults", "etcd-proxy");

    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let ca = format!("--from-file=ca.crt={}", authority.ca().display());
    cluster.kubectl(&["create", "configmap", "-n", "team-v", "clients", &ca]);
    let text = "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: keys, namespace: team-v}, \
                spec: {mode: Deployment, replicas: 1, backendRef: {name: vault}, \
                tls: {clientCARef: {kind: ConfigMap, name: clients}}}}";
    // Who may edit the namespace may not thereby use every backend that it is allowed to use.
    cluster.kubectl(&["create", "rolebinding", "bea-edits", "-n", "team-v", "--clusterrole=admin", "--user=bea"]);
    let create = || {
        let file = cluster.write(text);
        cluster.try_kubectl(&["create", "--dry-run=server", "--as=bea", "-f", &file])
    };
    until("it is refused for want of the verb use", || match create() {
        Err(error) if error.contains("user bea needs verb \"use\"") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.apply_text(
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: bea-uses}, rules: [\
         {apiGroups: [etcdproxy.dev], resources: [etcdbackends], resourceNames: [vault], verbs: [use]}]}",
    );
    cluster.kubectl(&["create", "clusterrolebinding", "bea-uses", "--clusterrole=bea-uses", "--user=bea"]);
    until("who has the verb may create", create);

    cluster.apply_text(text);
    cluster.wait_ready("team-v", "keys");
    let binding = cluster.get("team-v", "configmap/keys-client");
    assert_eq!(binding["data"]["endpoints"], "https://keys.team-v.svc:2379");
    assert_eq!(cluster.kubectl(&["get", "secrets", "-n", "team-v", "-o", "name"]).trim(), "");
    let can = |verb: &str, what: &str, place: &str| may(cluster, "vaults", verb, what, &["-n", place]);
    assert!(can("get", "secrets", "vaults") && can("create", "deployments", "vaults"));
    for what in ["secrets", "deployments", "serviceaccounts"] {
        assert!(!can("get", what, "team-v") && !can("create", what, "team-v"), "{what} of tenants");
    }
    cluster.kubectl(&["delete", "-n", "team-v", "etcdproxy/keys", "--timeout=60s"]);
    cluster.kubectl(&["delete", "etcdbackend/vault", "--timeout=60s"]);
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0);
    helm.release("uninstall", "vaults", &["etcd-proxy"]);
}
