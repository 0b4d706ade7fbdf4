//! What a tenant or a hurried person does to objects so that something is left behind, or goes on that should not.

use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::lifecycle::condition;

const TEAM: &str = "team-x";

fn base(cluster: &ControlPlane, name: &str) -> String {
    let proxy = cluster.get(TEAM, &format!("etcdproxy/{name}"));
    proxy["status"]["workload"]["name"].as_str().expect("its workload is told").to_owned()
}

/// A tenant takes the finalizer off and deletes its object, so that its quota is free and its proxies serve on.
pub fn proxies_never_outlive_their_object(cluster: &ControlPlane) {
    cluster.kubectl(&["create", "namespace", TEAM]);
    cluster.kubectl(&["label", "namespace", TEAM, "etcd=allowed"]);
    let made = |spec: &str| {
        cluster.apply_text(&format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: sly, namespace: {TEAM}}}, \
             spec: {spec}}}"
        ));
        cluster.wait_ready(TEAM, "sly");
    };
    let apply = || made("{mode: Deployment, backendRef: {name: shared}}");
    let finalizers = |left: &str| {
        let patch = format!(r#"{{"metadata":{{"finalizers":{left}}}}}"#);
        let _ = cluster.try_kubectl(&["patch", "-n", TEAM, "etcdproxy/sly", "--type=merge", "-p", &patch]);
    };
    // The operator puts the finalizer back unless the object goes in the same moment.
    let delete = || cluster.kubectl(&["delete", "-n", TEAM, "etcdproxy/sly", "--wait=false"]);
    let strip = || {
        delete();
        finalizers("null");
        cluster.until_gone(TEAM, "etcdproxy/sly");
    };
    let until_swept = |base: &str| {
        // In the order in which they go.
        for child in [format!("deployment/{base}"), format!("secret/{base}-ca"), format!("service/{base}")] {
            cluster.until_gone("backend", &child);
        }
    };
    apply();
    let base = base(cluster, "sly");
    strip();
    until_swept(&base);
    // One that comes back under the same name has the same names for its children, and is not held up by what was left.
    apply();
    strip();
    apply();
    // One that comes back with an etcd of its own has others, and takes nothing over.
    strip();
    made("{mode: Deployment, upstream: {endpoints: ['http://etcd.example:2379']}}");
    until_swept(&base);
    cluster.kubectl(&["delete", "-n", TEAM, "etcdproxy/sly", "--timeout=90s"]);
    // A finalizer of the tenant's own keeps the object, and not its proxies.
    apply();
    finalizers(r#"["etcdproxy.dev/cleanup","team.example/mine"]"#);
    delete();
    finalizers(r#"["team.example/mine"]"#);
    until_swept(&base);
    finalizers("null");
    cluster.until_gone(TEAM, "etcdproxy/sly");
    apply();
}

/// An administrator takes a namespace off the list; that ends what its tenants have, whatever their objects say.
pub fn what_is_no_longer_allowed_no_longer_serves(cluster: &ControlPlane) {
    let base = base(cluster, "sly");
    let patch = r#"{"spec":{"paused":true}}"#;
    cluster.kubectl(&["patch", "-n", TEAM, "etcdproxy/sly", "--type=merge", "-p", patch]);
    cluster.kubectl(&["label", "namespace", TEAM, "etcd-"]);
    cluster.until_gone("backend", &format!("deployment/{base}"));
    cluster.until_gone(TEAM, "service/sly");
    let note = cluster.until_event(TEAM, "sly", "AccessWithdrawn");
    assert!(note.contains("does not allow namespace team-x"), "{note}");
    let proxy = cluster.until(TEAM, "etcdproxy/sly", "it is refused", |proxy| {
        condition(proxy, "Accepted")["reason"] == "NamespaceNotAllowed" && proxy["status"]["workload"].is_null()
    });
    assert_eq!(condition(&proxy, "Ready")["status"], "False");
    let authority = cluster.get("backend", &format!("secret/{base}-ca"))["data"].clone();
    assert!(authority.is_object(), "its clients' certificates stay good");
    let patch = r#"{"spec":{"paused":null}}"#;
    cluster.kubectl(&["patch", "-n", TEAM, "etcdproxy/sly", "--type=merge", "-p", patch]);
    cluster.kubectl(&["label", "namespace", TEAM, "etcd=allowed"]);
    cluster.wait_ready(TEAM, "sly");
    assert_eq!(cluster.get("backend", &format!("secret/{base}-ca"))["data"], authority);
    cluster.kubectl(&["delete", "namespace", TEAM, "--timeout=90s"]);
    cluster.until_gone("backend", &format!("deployment/{base}"));
}

/// `kubectl delete --cascade=orphan` leaves the pods, and whoever applies the file again means the same object. Kubernetes'
/// own garbage collector may be faster or slower than all others; whatever it left, the object becomes ready.
pub fn an_object_that_is_made_anew_takes_over_what_it_left(cluster: &ControlPlane) {
    let proxy = json!({
        "apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdProxy", "metadata": {"name": "again", "namespace": "own"},
        "spec": {"mode": "Deployment", "upstream": {"endpoints": ["http://etcd.example:2379"]}},
    });
    cluster.apply_text(&proxy.to_string());
    cluster.wait_ready("own", "again");
    let uid = |object: &str| cluster.get("own", object)["metadata"]["uid"].clone();
    let first = uid("etcdproxy/again");
    let authority = cluster.get("own", "secret/again-ca")["data"]["clients.crt"].clone();
    cluster.kubectl(&["delete", "-n", "own", "etcdproxy/again", "--cascade=orphan", "--timeout=60s"]);
    cluster.apply_text(&proxy.to_string());
    cluster.wait_ready("own", "again");
    let second = uid("etcdproxy/again");
    assert_ne!(first, second);
    let owner = |live: &Value| live["metadata"]["ownerReferences"][0]["uid"].clone();
    assert_eq!(owner(&cluster.get("own", "deployment/again")), second);
    assert_ne!(cluster.get("own", "secret/again-ca")["data"]["clients.crt"], authority, "its authority is a new one");
    // And as a person does it who is in a hurry: the children of the first are still being deleted.
    cluster.kubectl(&["delete", "-n", "own", "etcdproxy/again", "--wait=false"]);
    cluster.until_gone("own", "etcdproxy/again");
    cluster.apply_text(&proxy.to_string());
    cluster.wait_ready("own", "again");
    cluster.kubectl(&["delete", "-n", "own", "etcdproxy/again", "--timeout=60s"]);
}
