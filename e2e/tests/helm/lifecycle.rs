//! Releases from the first install to the last uninstall.

use std::path::Path;
use std::process::Command;

use etcd_proxy_e2e::Etcd;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::helm::Helm;
use crate::stand_ins;

const SYSTEM: &str = "etcd-proxy-system";
const KINDS: [&str; 2] = ["etcdproxies.etcdproxy.dev", "etcdbackends.etcdproxy.dev"];

/// Values of a cluster that teams share: a backend before a real etcd, and a proxy of team-a.
fn values(etcd: &Etcd, replicas: i64) -> String {
    json!({
        "image": {"repository": "registry.example/etcd-proxy"},
        "rbac": {"profile": "backends", "tenantNamespaces": ["team-a"]},
        "backends": [{"name": "shared", "spec": {
            "endpoints": [etcd.endpoints()], "namespace": SYSTEM, "keyspace": {"root": "/tenants/"},
            "allowedNamespaces": {"names": ["team-a", SYSTEM]},
        }}],
        "proxies": [{"name": "registry", "namespace": "team-a", "spec": {
            "mode": "Deployment", "replicas": replicas, "backendRef": {"name": "shared"},
        }}],
    })
    .to_string()
}

pub fn a_release_with_helm_4_comes_changes_goes_back_and_goes(cluster: &ControlPlane) {
    let helm = Helm::new("helm-4", &cluster.kubeconfig());
    let etcd = Etcd::start();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let chart = Helm::chart().display().to_string();
    let file = |replicas| {
        let path = folder.path().join(format!("{replicas}.yaml"));
        std::fs::write(&path, values(&etcd, replicas)).expect("the file can be written");
        path.display().to_string()
    };
    let (one, two) = (file(1), file(2));
    cluster.kubectl(&["create", "namespace", "team-a"]);
    cluster.kubectl(&["create", "namespace", SYSTEM]);
    // The operator has to live where only restricted pods may.
    cluster.kubectl(&["label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted"]);

    helm.expect(&["install", "etcd-proxy", &chart, "-n", SYSTEM, "-f", &one, "--dry-run=server"]);
    assert!(cluster.get("", &format!("crd/{}", KINDS[0])).is_null(), "a dry run makes nothing");
    let notes = helm.release("install", SYSTEM, &["etcd-proxy", &chart, "-f", &one]);
    assert!(notes.contains("kubectl get etcdproxies -A") && notes.contains("team-a/registry"), "{notes}");
    let mut operator = stand_ins::operator(cluster, SYSTEM, "etcd-proxy");
    cluster.wait_ready("team-a", "registry");
    let replicas = |proxy: &Value| proxy["spec"]["replicas"].as_i64();
    let uid = |object: &Value| object["metadata"]["uid"].as_str().expect("objects have one").to_owned();
    let first = cluster.get("team-a", "etcdproxy/registry");
    assert_eq!(first["status"]["keyPrefix"], "/tenants/team-a/registry/");

    // What came as a hook, since its kind came with it, is now the release's like everything else.
    helm.release("upgrade", SYSTEM, &["etcd-proxy", &chart, "-f", &two]);
    let second = cluster.get("team-a", "etcdproxy/registry");
    assert_eq!((replicas(&second), uid(&second)), (Some(2), uid(&first)));
    assert!(helm.expect(&["get", "manifest", "etcd-proxy", "-n", SYSTEM]).contains("kind: EtcdProxy"));
    cluster.wait_ready("team-a", "registry");

    std::thread::scope(|scope| {
        let test = scope.spawn(|| helm.expect(&["test", "etcd-proxy", "-n", SYSTEM, "--timeout=180s"]));
        stand_ins::run_test_pod(cluster, SYSTEM, "etcd-proxy-test");
        let said = test.join().expect("helm test says what it thinks");
        assert!(said.contains("Succeeded"), "{said}");
    });
    cluster.until_gone(SYSTEM, "etcdproxy/test-a");
    cluster.until_gone(SYSTEM, "etcdproxy/test-b");
    let left = etcd.etcdctl().run(&["get", "--prefix", "--keys-only", "/tenants/"]);
    assert_eq!(left.stdout.trim(), "", "the test cleans up behind it");

    helm.release("upgrade", SYSTEM, &["etcd-proxy", &chart, "-f", &one]);
    helm.release("rollback", SYSTEM, &["etcd-proxy", "2"]);
    let back = cluster.get("team-a", "etcdproxy/registry");
    assert_eq!((replicas(&back), uid(&back)), (Some(2), uid(&first)));
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0);

    uninstall(cluster, &helm);
    let kept = cluster.get("team-a", "etcdproxy/registry");
    assert_eq!(uid(&kept), uid(&first), "an uninstall takes no proxy from anybody");
    let home = kept["status"]["workload"]["name"].as_str().expect("it has a workload").to_owned();
    assert!(!cluster.get(SYSTEM, &format!("deployment/{home}")).is_null(), "proxies serve on without their operator");

    // Who installs it again finds everything as it was, and whoever wants to be rid of it all can.
    helm.release("install", SYSTEM, &["etcd-proxy", &chart, "-f", &two]);
    assert_eq!(uid(&cluster.get("team-a", "etcdproxy/registry")), uid(&first));
    let mut operator = stand_ins::operator(cluster, SYSTEM, "etcd-proxy");
    cluster.kubectl(&["delete", "-n", "team-a", "etcdproxy/registry", "--timeout=90s"]);
    cluster.kubectl(&["delete", "etcdbackend/shared", "--timeout=90s"]);
    cluster.until_gone(SYSTEM, &format!("deployment/{home}"));
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0);
    uninstall(cluster, &helm);
    cluster.kubectl(&["delete", "crd", KINDS[0], KINDS[1], "--timeout=60s"]);
}

fn uninstall(cluster: &ControlPlane, helm: &Helm) {
    helm.release("uninstall", SYSTEM, &["etcd-proxy"]);
    cluster.until_gone(SYSTEM, "deployment/etcd-proxy");
    for kind in KINDS {
        assert!(
            !cluster.get("", &format!("crd/{kind}")).is_null(),
            "kinds outlive the release, with all their objects"
        );
    }
}

pub fn a_chart_of_yesterday_is_upgraded_with_helm_3(cluster: &ControlPlane) {
    let helm = Helm::new("helm-3", &cluster.kubeconfig());
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let old = folder.path().join("etcd-proxy");
    copy_chart(&old);
    // Yesterday's kinds lacked a field, and its operator a label.
    let edit = |file: &str, from: &str, to: &str| {
        let path = old.join(file);
        let text = std::fs::read_to_string(&path).expect("the chart has it");
        assert!(text.contains(from), "{file} has no {from:?}");
        std::fs::write(path, text.replace(from, to)).expect("the copy can be written");
    };
    edit("Chart.yaml", "version: 0.1.0", "version: 0.0.9");
    edit("files/crds.yaml", "              paused:", "              formerlyPaused:");
    let has_field = |version: &str| {
        let crd = cluster.get("", &format!("crd/{}", KINDS[0]));
        let chart = &crd["metadata"]["labels"]["helm.sh/chart"];
        assert_eq!(*chart, format!("etcd-proxy-{version}"));
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        spec["paused"].is_object()
    };

    let set = "image.repository=registry.example/etcd-proxy";
    let (old, new) = (old.display().to_string(), Helm::chart().display().to_string());
    helm.release("install", SYSTEM, &["etcd-proxy", &old, "--set", set]);
    assert!(!has_field("0.0.9"));
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: own, namespace: team-a}, \
         spec: {upstream: {endpoints: ['http://etcd.example:2379']}}}",
    );
    let before = cluster.get("team-a", "etcdproxy/own");
    let notes = helm.release("upgrade", SYSTEM, &["etcd-proxy", &new, "--set", set]);
    assert!(notes.contains("may read every Secret"), "{notes}");
    assert!(has_field("0.1.0"), "an upgrade upgrades the kinds");
    let after = cluster.get("team-a", "etcdproxy/own");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    helm.release("rollback", SYSTEM, &["etcd-proxy", "1"]);
    assert!(!has_field("0.0.9"));
    // Another release in another namespace shares the kinds and nothing else.
    let set_more = "image.repository=registry.example/etcd-proxy,crds.enabled=false";
    helm.release("install", "team-a", &["second", &new, "--set", set_more]);
    helm.release("uninstall", "team-a", &["second"]);
    helm.release("upgrade", SYSTEM, &["etcd-proxy", &new, "--set", set]);
    uninstall(cluster, &helm);
    assert_eq!(cluster.get("team-a", "etcdproxy/own")["metadata"]["uid"], after["metadata"]["uid"]);
}

/// A copy of the chart in which its links are files.
fn copy_chart(to: &Path) {
    let status = Command::new("cp").args(["-rL"]).arg(Helm::chart()).arg(to).status().expect("cp can be started");
    assert!(status.success(), "the chart can be copied");
}
