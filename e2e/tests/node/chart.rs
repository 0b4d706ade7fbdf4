//! The Helm chart with real containers: its operator takes over from the one of the manifests, `helm test` runs its pods, and
//! the API server puts a sidecar into a Job's pod.

use std::process::Command;

use etcd_proxy_e2e::programs;
use serde_json::json;

use crate::cluster::Cluster;

const SYSTEM: &str = "etcd-proxy-system";
const CONFIGURATION: &str = "mutatingwebhookconfiguration/etcdproxy-inject.etcd-proxy.etcd-proxy-system";
const JOB: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: NAME, namespace: jobs}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {etcdproxy.dev/inject: local}}
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: app
        image: localhost/etcd:3.7.3
        imagePullPolicy: Never
        command: [etcdctl, --endpoints=http://127.0.0.1:2379, --dial-timeout=1s, --command-timeout=2s, put, by, NAME]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"#;

fn helm(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = Command::new(programs::tool("helm-4").join("helm"));
    let home = cluster.folder().join("helm");
    for folder in ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(folder, &home);
    }
    command.env("KUBECONFIG", cluster.folder().join("kubeconfig")).args(["-n", SYSTEM]).args(arguments);
    let output = command.output().expect("helm can be started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "helm {arguments:?}: {said}");
    said
}

/// Its application asks at once, at its own loopback.
fn a_job_is_given_its_proxy(cluster: &Cluster, name: &str) {
    cluster.apply(&JOB.replace("NAME", name));
    cluster.kubectl(&["wait", "-n", "jobs", "--for=condition=Complete", &format!("job/{name}"), "--timeout=120s"]);
    let stored = cluster.on_etcd("etcdctl get jobs/by --print-value-only");
    let stored = cluster.kubectl(&stored.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(stored.trim(), name);
}

/// Needs the namespace and the EtcdProxy of the test of Jobs.
pub fn the_charts_own_test_passes_and_the_api_server_puts_sidecars_into_pods(cluster: &Cluster) {
    let old = "deployment/etcd-proxy-operator";
    let image =
        cluster.kubectl(&["get", old, "-n", SYSTEM, "-o", "jsonpath={.spec.template.spec.containers[0].image}"]);
    let (repository, tag) = image.rsplit_once(':').expect("the image has a tag");
    // Two operators of two leases would both work.
    cluster.kubectl(&["scale", old, "-n", SYSTEM, "--replicas=0"]);
    let gone = "--for=delete";
    let pods = "app.kubernetes.io/name=etcd-proxy-operator";
    cluster.kubectl(&["wait", gone, "pod", "-n", SYSTEM, "-l", pods, "--timeout=60s"]);

    let values = json!({
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "replicas": 1, "crds": {"enabled": false},
        "backends": [{"name": "charted", "spec": {
            "endpoints": ["https://etcd-0.etcd.etcd.svc:2379"], "namespace": SYSTEM,
            "tls": {"secretRef": {"name": "etcd-client"}}, "keyspace": {"root": "/charted/"},
            "allowedNamespaces": {"names": [SYSTEM]},
        }}],
    });
    let file = cluster.folder().join("values.yaml");
    std::fs::write(&file, values.to_string()).expect("the file can be written");
    let chart = programs::repository().join("deploy/helm/etcd-proxy").display().to_string();
    let file = file.display().to_string();
    helm(cluster, &["install", "etcd-proxy", &chart, "-f", &file, "--wait", "--timeout=120s"]);
    let said = helm(cluster, &["test", "etcd-proxy", "--logs", "--timeout=180s"]);
    for step in ["put ", "read it back", "saw it by a watch", "not to be seen through", "all is well"] {
        assert!(said.contains(step), "{step:?} is missing: {said}");
    }

    a_job_is_given_its_proxy(cluster, "by-policy");
    // The same by the operator, which the API server reaches by the Service.
    let webhook = ["--set", "injection.mode=webhook", "--wait", "--timeout=120s"];
    helm(cluster, &[&["upgrade", "etcd-proxy", &chart, "-f", &file][..], &webhook].concat());
    let bundle = "jsonpath={.webhooks[0].clientConfig.caBundle}";
    Cluster::until("the API server knows the webhook's CA", || {
        (!cluster.kubectl(&["get", CONFIGURATION, "-o", bundle]).is_empty()).then_some(())
    });
    a_job_is_given_its_proxy(cluster, "by-webhook");

    cluster.kubectl(&["delete", "etcdbackend/charted", "--timeout=60s"]);
    helm(cluster, &["uninstall", "etcd-proxy", "--wait", "--timeout=60s"]);
    cluster.kubectl(&["scale", old, "-n", SYSTEM, "--replicas=2"]);
    cluster.kubectl(&["rollout", "status", old, "-n", SYSTEM, "--timeout=120s"]);
}
