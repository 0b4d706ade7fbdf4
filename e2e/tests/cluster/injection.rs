//! Sidecars by admission: the committed policies on an API server that serves them, and the webhook for those that do not.

use std::time::Instant;

use etcd_proxy_e2e::{ports, programs};
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

/// A webhook in an operator that does not lead; the API server serves policies too, but none is applied yet.
pub fn a_webhook_does_what_policies_do(cluster: &ControlPlane) {
    let address = ports::free_address();
    let committed = std::fs::read_to_string(programs::repository().join("deploy/admission/webhook.yaml"));
    let committed = committed.expect("the webhook is committed");
    let (start, end) = ("    service: {name: etcd-proxy-operator-webhook", "port: 443}\n");
    let from = committed.find(start).expect("the API server is led to a Service");
    let to = from + committed[from..].find(end).expect("the line has its end") + end.len();
    // Services lead nowhere here.
    let text = format!("{}    url: https://{address}/inject\n{}", &committed[..from], &committed[to..]);
    cluster.apply_text(&text);
    // A new role takes a moment, and a test looks whether the operator was ever refused.
    let account = "--as=system:serviceaccount:etcd-proxy-system:etcd-proxy-operator";
    let what = "mutatingwebhookconfigurations.admissionregistration.k8s.io/etcdproxy-inject";
    let deadline = Instant::now() + PATIENCE;
    while cluster.try_kubectl(&["auth", "can-i", "patch", what, account]).is_err() {
        assert!(Instant::now() < deadline, "the operator may write its CA");
        std::thread::sleep(POLL);
    }
    let flags = [format!("--webhook-listen={address}"), "--webhook-names=127.0.0.1".to_owned()];
    let mut operator = cluster.start_operator_with("hook", "example/etcd-proxy:1", &flags);
    pods_get_their_proxy(cluster, "hooked");

    cluster.kubectl(&["create", "namespace", "hookless"]);
    let asks = pod("first", json!({"containers": [app()]}));
    until_refused(cluster, "hookless", &asks, "asks for EtcdProxy first, but namespace hookless has none of that name");

    let configuration = || cluster.get("", "mutatingwebhookconfiguration/etcdproxy-inject");
    let bundle = || configuration()["webhooks"][0]["clientConfig"]["caBundle"].clone();
    let before = bundle();
    cluster.apply_text(&text);
    assert_eq!(bundle(), before, "applying the file again leaves what the operator wrote");
    cluster.kubectl(&["delete", "secret", "-n", "etcd-proxy-system", "etcd-proxy-operator-webhook"]);
    let deadline = Instant::now() + PATIENCE;
    while bundle() == before {
        assert!(Instant::now() < deadline, "another authority is made and told");
        std::thread::sleep(POLL);
    }
    until_injected(cluster, "hooked", &asks);

    operator.signal(libc::SIGKILL);
    operator.wait();
    until_refused(cluster, "hooked", &asks, "inject.etcdproxy.dev");
    let mut other = asks;
    other["metadata"]["labels"] = json!({"app": "other"});
    admitted(cluster, "hooked", &other).expect("a pod that does not ask is never held up");
    cluster.kubectl(&["delete", "mutatingwebhookconfiguration/etcdproxy-inject"]);
}

pub fn pods_that_ask_get_their_proxy_or_are_refused(cluster: &ControlPlane) {
    cluster.apply_file("deploy/admission/inject.yaml");
    pods_get_their_proxy(cluster, "apps");
    cluster.kubectl(&["create", "namespace", "bare"]);
    let plain = pod("first", json!({"containers": [app()]}));
    until_refused(cluster, "bare", &plain, "etcdproxy-inject");
    let mut other = plain;
    other["metadata"]["labels"] = json!({"app": "other"});
    let untouched = admitted(cluster, "bare", &other).expect("a pod that does not ask is never held up");
    assert!(names(&untouched, "initContainers").is_empty());
}

/// The API server takes a moment to heed a new policy or webhook.
fn until_injected(cluster: &ControlPlane, namespace: &str, pod: &Value) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match admitted(cluster, namespace, pod) {
            Ok(pod) if !names(&pod, "initContainers").is_empty() => return pod,
            other => assert!(Instant::now() < deadline, "the pod gets no proxy: {other:?}"),
        }
        std::thread::sleep(POLL);
    }
}

/// No pod starts without the proxy that it asked for. A namespace that was just made has no account for pods for a
/// moment, which is refused in other words.
fn until_refused(cluster: &ControlPlane, namespace: &str, pod: &Value, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let refusal = admitted(cluster, namespace, pod).expect_err("it is refused, whatever the reason");
        if refusal.contains(words) {
            return;
        }
        assert!(Instant::now() < deadline, "{words:?} is not said: {refusal}");
        std::thread::sleep(POLL);
    }
}

/// What holds however it is done.
fn pods_get_their_proxy(cluster: &ControlPlane, namespace: &str) {
    cluster.kubectl(&["create", "namespace", namespace]);
    // The whole way must also hold where pods may do next to nothing.
    cluster.kubectl(&["label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"]);
    let proxy = |name: &str, more: &str| {
        cluster.apply_text(&format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: {name}, namespace: {namespace}}}, \
             spec: {{mode: Sidecar, {more} upstream: {{endpoints: ['http://etcd.example:2379']}}}}}}"
        ));
        cluster.wait_ready(namespace, name);
    };
    proxy("first", "");
    proxy("last", "sidecar: {position: Last},");

    let plain = pod("first", json!({"containers": [app()]}));
    let injected = until_injected(cluster, namespace, &plain);
    assert_eq!(names(&injected, "initContainers"), ["etcd-proxy"]);
    let container = &injected["spec"]["initContainers"][0];
    assert_eq!(container["restartPolicy"], "Always", "it is a native sidecar");
    assert_eq!(container["startupProbe"]["httpGet"]["path"], "/readyz", "the application waits until it is ready");
    let wanted = cluster.get(namespace, "etcdproxy/first")["status"]["sidecar"].clone();
    assert_eq!(injected["metadata"]["annotations"]["etcdproxy.dev/config-hash"], wanted["configHash"]);
    for volume in wanted["volumes"].as_array().expect("it has volumes") {
        let name = volume["name"].as_str().expect("a volume has a name");
        assert!(names(&injected, "volumes").iter().any(|one| one == name), "volume {name} is there");
    }

    let setup = json!({"name": "setup", "image": "app", "securityContext": app()["securityContext"]});
    let with_setup = |asks: &str| pod(asks, json!({"containers": [app()], "initContainers": [setup]}));
    let before = admitted(cluster, namespace, &with_setup("first")).expect("it is admitted");
    assert_eq!(names(&before, "initContainers"), ["etcd-proxy", "setup"], "other init containers can use it");
    let after = admitted(cluster, namespace, &with_setup("last")).expect("it is admitted");
    assert_eq!(names(&after, "initContainers"), ["setup", "etcd-proxy"]);

    let mut once = plain.clone();
    once["spec"]["initContainers"] = json!([wanted["container"]]);
    once["spec"]["volumes"] = wanted["volumes"].clone();
    let twice = admitted(cluster, namespace, &once).expect("what `inject` has done already is fine");
    assert_eq!(names(&twice, "initContainers"), ["etcd-proxy"]);

    // Odd ones. A container that was called so before is somebody's, and two of one name are the server's to refuse.
    let named = json!({"name": "etcd-proxy", "image": "other", "securityContext": app()["securityContext"]});
    let refusal = admitted(cluster, namespace, &pod("first", json!({"containers": [named]})));
    assert!(refusal.as_ref().is_err_and(|words| words.contains("Duplicate value: \\\"etcd-proxy\\\"")), "{refusal:?}");
    for (spec, words) in [
        (json!({"containers": [app()], "nodeSelector": {"kubernetes.io/os": "windows"}}), "runs on Linux only"),
        (json!({"containers": [app()], "hostNetwork": true}), "with hostNetwork would serve the whole node"),
    ] {
        let mut odd = pod("first", spec);
        // Restricted namespaces refuse it anyway, in words of their own.
        let open = if odd["spec"]["hostNetwork"] == true { "own" } else { namespace };
        if open == "own" {
            odd["metadata"]["labels"]["etcdproxy.dev/inject"] = json!("beside");
        }
        let refusal = admitted(cluster, open, &odd);
        assert!(refusal.as_ref().is_err_and(|said| said.contains(words)), "{refusal:?}");
    }
    // Debugging by an ephemeral container is another request, and none of ours.
    let mut debugged = plain.clone();
    debugged["metadata"]["name"] = json!("debugged");
    let at = format!("/api/v1/namespaces/{namespace}/pods");
    cluster.request("POST", &at, "application/json", &debugged.to_string()).expect("it is admitted");
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "look", "image": "app",
        "securityContext": app()["securityContext"]}]}});
    let kind = "application/strategic-merge-patch+json";
    let path = format!("{at}/debugged/ephemeralcontainers");
    let debugged = cluster.request("PATCH", &path, kind, &debug.to_string()).expect("it can be debugged");
    assert_eq!(names(&debugged, "initContainers"), ["etcd-proxy"]);
    cluster.kubectl(&["delete", "-n", namespace, "pod/debugged", "--wait=false"]);

    let refusal =
        admitted(cluster, namespace, &pod("nope", json!({"containers": [app()]}))).expect_err("there is none");
    let words = format!("asks for EtcdProxy nope, but namespace {namespace} has none of that name");
    assert!(refusal.contains(&words), "{refusal}");
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
