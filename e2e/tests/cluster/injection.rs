//! Sidecars by admission: the committed policies on an API server that serves them.

use std::time::Instant;

use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, PATIENCE, POLL};

/// What the server makes of a pod without keeping it.
fn admitted(cluster: &ControlPlane, namespace: &str, pod: &Value) -> Result<Value, String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict");
    cluster.request("POST", &path, "application/json", &pod.to_string())
}

fn pod(asks_for: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "app", "labels": {"etcdproxy.dev/inject": asks_for}},
        "spec": spec,
    })
}

fn app() -> Value {
    json!({
        "name": "app", "image": "app",
        "securityContext": {
            "allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let items = pod["spec"][list].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| item["name"].as_str().unwrap_or_default().to_owned()).collect()
}

pub fn pods_that_ask_get_their_proxy_or_are_refused(cluster: &ControlPlane) {
    cluster.apply_file("deploy/admission/inject.yaml");
    cluster.kubectl(&["create", "namespace", "apps"]);
    // The whole way must also hold where pods may do next to nothing.
    cluster.kubectl(&["label", "namespace", "apps", "pod-security.kubernetes.io/enforce=restricted"]);
    let proxy = |name: &str, more: &str| {
        cluster.apply_text(&format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: {name}, namespace: apps}}, \
             spec: {{mode: Sidecar, {more} upstream: {{endpoints: ['http://etcd.example:2379']}}}}}}"
        ));
        cluster.wait_ready("apps", name);
    };
    proxy("first", "");
    proxy("last", "sidecar: {position: Last},");

    // The API server takes a moment to heed a new policy.
    let plain = pod("first", json!({"containers": [app()]}));
    let deadline = Instant::now() + PATIENCE;
    let injected = loop {
        match admitted(cluster, "apps", &plain) {
            Ok(pod) if !names(&pod, "initContainers").is_empty() => break pod,
            other => assert!(Instant::now() < deadline, "the pod gets no proxy: {other:?}"),
        }
        std::thread::sleep(POLL);
    };
    assert_eq!(names(&injected, "initContainers"), ["etcd-proxy"]);
    let container = &injected["spec"]["initContainers"][0];
    assert_eq!(container["restartPolicy"], "Always", "it is a native sidecar");
    assert_eq!(container["startupProbe"]["httpGet"]["path"], "/readyz", "the application waits until it is ready");
    let wanted = cluster.get("apps", "etcdproxy/first")["status"]["sidecar"].clone();
    assert_eq!(injected["metadata"]["annotations"]["etcdproxy.dev/config-hash"], wanted["configHash"]);
    for volume in wanted["volumes"].as_array().expect("it has volumes") {
        let name = volume["name"].as_str().expect("a volume has a name");
        assert!(names(&injected, "volumes").iter().any(|one| one == name), "volume {name} is there");
    }

    let setup = json!({"name": "setup", "image": "app", "securityContext": app()["securityContext"]});
    let with_setup = |asks: &str| pod(asks, json!({"containers": [app()], "initContainers": [setup]}));
    let before = admitted(cluster, "apps", &with_setup("first")).expect("it is admitted");
    assert_eq!(names(&before, "initContainers"), ["etcd-proxy", "setup"], "other init containers can use it");
    let after = admitted(cluster, "apps", &with_setup("last")).expect("it is admitted");
    assert_eq!(names(&after, "initContainers"), ["setup", "etcd-proxy"]);

    let mut once = plain.clone();
    once["spec"]["initContainers"] = json!([wanted["container"]]);
    once["spec"]["volumes"] = wanted["volumes"].clone();
    let twice = admitted(cluster, "apps", &once).expect("what `inject` has done already is fine");
    assert_eq!(names(&twice, "initContainers"), ["etcd-proxy"]);

    let refusal = admitted(cluster, "apps", &pod("nope", json!({"containers": [app()]}))).expect_err("there is none");
    assert!(refusal.contains("asks for EtcdProxy nope, but namespace apps has none of that name"), "{refusal}");
    cluster.kubectl(&["create", "namespace", "bare"]);
    let refusal = admitted(cluster, "bare", &plain).expect_err("no pod starts without the proxy that it asked for");
    assert!(refusal.contains("etcdproxy-inject"), "{refusal}");
    let mut other = plain;
    other["metadata"]["labels"] = json!({"app": "other"});
    let untouched = admitted(cluster, "bare", &other).expect("a pod that does not ask is never held up");
    assert!(names(&untouched, "initContainers").is_empty());
}

pub fn a_backend_can_ask_for_the_verb_use(cluster: &ControlPlane) {
    cluster.apply_file("deploy/admission/use-backend.yaml");
    cluster.apply_text(
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: ann-edits}, \
         roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: etcdproxy-edit}, \
         subjects: [{kind: User, name: ann, apiGroup: rbac.authorization.k8s.io}]}",
    );
    let text = "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: asks, namespace: default}, \
                spec: {mode: Deployment, backendRef: {name: shared}}}";
    let create = || {
        let file = cluster.write(text);
        cluster.try_kubectl(&["create", "--dry-run=server", "--as=ann", "-f", &file])
    };
    let deadline = Instant::now() + PATIENCE;
    let refusal = loop {
        if let Err(refusal) = create() {
            break refusal;
        }
        assert!(Instant::now() < deadline, "the policy takes effect");
        std::thread::sleep(POLL);
    };
    assert!(refusal.contains("user ann needs verb \"use\" on etcdbackends.etcdproxy.dev/shared"), "{refusal}");
    cluster.apply_text(
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: ann-uses}, rules: [\
         {apiGroups: [etcdproxy.dev], resources: [etcdbackends], resourceNames: [shared], verbs: [use]}]}",
    );
    cluster.kubectl(&["create", "clusterrolebinding", "ann-uses", "--clusterrole=ann-uses", "--user=ann"]);
    let deadline = Instant::now() + PATIENCE;
    while let Err(refusal) = create() {
        assert!(Instant::now() < deadline, "who has the verb may create: {refusal}");
        std::thread::sleep(POLL);
    }
    cluster.kubectl(&["delete", "validatingadmissionpolicybinding/etcdproxy-use-backend"]);
}
