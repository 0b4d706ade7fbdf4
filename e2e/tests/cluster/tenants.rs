//! Objects on an administrator's etcd.

use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, path};
use crate::kubelets::FOREIGN;
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

    let pod = cluster.get("backend", &format!("deployment/{base}"))["spec"]["template"]["spec"].clone();
    let namespace = cluster.get("", "namespace/team-a")["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let claim = pod["initContainers"][0]["args"].to_string();
    assert!(claim.contains("--claim-key=/tenants/.claims/team-a") && claim.contains(&namespace), "{claim}");

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

pub fn keys_that_are_anothers_are_not_served(cluster: &ControlPlane) {
    cluster.kubectl(&["create", "namespace", FOREIGN]);
    cluster.kubectl(&["label", "namespace", FOREIGN, "etcd=allowed"]);
    cluster.apply_text(&tenant("registry", FOREIGN));
    let proxy = cluster.until(FOREIGN, "etcdproxy/registry", "the foreign claim is told", |proxy| {
        condition(proxy, "Ready")["reason"] == "ForeignClaim"
    });
    assert!(condition(&proxy, "Ready")["message"].to_string().contains("these keys belong to another"), "{proxy}");
    cluster.until_event(FOREIGN, "registry", "ForeignClaim");
    cluster.kubectl(&["delete", "-n", FOREIGN, "etcdproxy/registry", "--timeout=60s"]);
}

pub fn keys_are_purged_if_the_backend_says_so(cluster: &ControlPlane) {
    cluster.kubectl(&["create", "namespace", "team-p"]);
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {name: scratch}, spec: {\
         endpoints: ['http://etcd.example:2379'], namespace: backend, \
         keyspace: {root: /scratch/, reclaimPolicy: Delete}, allowedNamespaces: {names: [team-p]}}}",
    );
    let proxy = |name: &str, prefix: &str| {
        cluster.apply_text(&format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: {name}, namespace: team-p}}, \
             spec: {{mode: Deployment, keyPrefix: {prefix}, backendRef: {{name: scratch}}}}}}"
        ));
        cluster.wait_ready("team-p", name);
    };
    proxy("wide", "''");
    proxy("narrow", "a/");
    cluster.kubectl(&["delete", "-n", "team-p", "etcdproxy/wide", "--timeout=60s"]);
    let why = cluster.until_event("team-p", "wide", "CleanupBlocked");
    assert!(why.contains("EtcdProxy narrow of this namespace uses a part of them"), "{why}");

    let base =
        cluster.get("team-p", "etcdproxy/narrow")["status"]["workload"]["name"].as_str().unwrap_or_default().to_owned();
    cluster.kubectl(&["delete", "-n", "team-p", "etcdproxy/narrow", "--timeout=60s"]);
    let purged = cluster.until_event("team-p", "narrow", "KeysPurged");
    assert!(purged.contains("/scratch/team-p/a/"), "{purged}");
    cluster.until_gone("backend", &format!("job/{base}"));
    cluster.kubectl(&["delete", "etcdbackend/scratch", "--timeout=60s"]);
}

/// Twenty administrators who do not know of each other want prefixes that overlap. All grants stand in one object, and
/// the API server judges what it would then hold, so that no two of them can both succeed.
pub fn of_overlapping_grants_one_wins(cluster: &ControlPlane) {
    const APPLIERS: usize = 20;
    let apply = |number: usize| {
        let grant = json!({"name": format!("g-{number}"), "prefix": format!("/adopted/{}", "x/".repeat(number)),
                           "namespaces": ["team-a"]});
        let patch = json!({
            "apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdBackend", "metadata": {"name": "shared"},
            "spec": {"grants": [grant]},
        });
        let path = format!("{}?fieldManager=admin-{number}", path("", "etcdbackend/shared"));
        cluster.request("PATCH", &path, "application/apply-patch+yaml", &patch.to_string())
    };
    let results: Vec<Result<Value, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..APPLIERS).map(|number| scope.spawn(move || apply(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a request does not panic")).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{lost:?}");
    for refusal in lost.into_iter().filter_map(Result::err) {
        assert!(refusal.contains("grants must not overlap"), "{refusal}");
    }
    let grants = cluster.get("", "etcdbackend/shared")["spec"]["grants"].clone();
    assert_eq!(grants.as_array().map(Vec::len), Some(1), "{grants}");
    let (name, prefix) = (grants[0]["name"].as_str().unwrap_or_default(), &grants[0]["prefix"]);
    cluster.apply_text(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: adopted, namespace: team-a}}, \
         spec: {{mode: Deployment, backendRef: {{name: shared, grant: {name}}}}}}}"
    ));
    cluster.wait_ready("team-a", "adopted");
    assert_eq!(cluster.get("team-a", "etcdproxy/adopted")["status"]["keyPrefix"], *prefix);
    cluster.apply_text(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: foreign, namespace: team-b}}, \
         spec: {{mode: Deployment, backendRef: {{name: shared, grant: {name}}}}}}}"
    ));
    cluster.kubectl(&["label", "namespace", "team-b", "etcd=allowed"]);
    let reason = |proxy: &Value| condition(proxy, "Accepted")["reason"] == "GrantNotFound";
    cluster.until("team-b", "etcdproxy/foreign", "a grant is for the namespaces that it names", reason);
    cluster.kubectl(&["label", "namespace", "team-b", "etcd-"]);
    cluster.kubectl(&["delete", "-n", "team-b", "etcdproxy/foreign", "--timeout=60s"]);
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
    cluster.kubectl(&["delete", "namespace", "team-a", "team-b", "--timeout=90s"]);
    cluster.until_gone("", "etcdbackend/shared");
    cluster.kubectl(&["delete", "namespace", "backend", "--timeout=90s"]);
}
