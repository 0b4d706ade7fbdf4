//! A Job whose pod has a proxy as a native sidecar.

use std::process::Command;

use serde_json::Value;

use crate::cluster::{Cluster, text};

const OBJECTS: &str = r#"
apiVersion: etcdproxy.dev/v1alpha1
kind: EtcdProxy
metadata: {name: local, namespace: jobs}
spec:
  mode: Sidecar
  upstream:
    endpoints: ["https://etcd-0.etcd.etcd.svc:2379", "https://etcd-1.etcd.etcd.svc:2379"]
    tls: {secretRef: {name: etcd-client}}
  keyPrefix: jobs/
  tls: {source: Disabled}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: jobs}
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
        # It asks once, at once, and has no patience.
        command: [etcdctl, --endpoints=http://127.0.0.1:2379, --dial-timeout=1s, --command-timeout=2s, put, from, job]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"#;

pub fn a_sidecar_is_ready_before_its_application_and_lets_the_job_complete(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "jobs"]);
    cluster.kubectl(&["label", "namespace", "jobs", "pod-security.kubernetes.io/enforce=restricted"]);
    cluster.give_credential("jobs");
    let image = cluster.kubectl(&[
        "get",
        "deployment",
        "etcd-proxy-operator",
        "-n",
        "etcd-proxy-system",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    ]);
    let file = tempfile::NamedTempFile::new().expect("a file can be made");
    std::fs::write(file.path(), OBJECTS).expect("the file can be written");
    let mut inject = Command::new(Cluster::programs().join("etcd-proxy-operator"));
    inject.args(["inject", &format!("--image={image}"), "-f"]).arg(file.path());
    let output = inject.output().expect("the operator's program can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.apply(&String::from_utf8_lossy(&output.stdout));
    cluster.kubectl(&["wait", "-n", "jobs", "--for=condition=Complete", "job/once", "--timeout=120s"]);

    let pods = cluster.pods("jobs", "job-name=once");
    assert_eq!(pods.len(), 1, "the first attempt was enough");
    let ended = |list: &str| pods[0]["status"][list][0]["state"]["terminated"].clone();
    let (sidecar, application) = (ended("initContainerStatuses"), ended("containerStatuses"));
    let time = |state: &Value, what: &str| text(&state[what]);
    // The API server's times are of the same length, and so compare as text.
    assert!(time(&sidecar, "startedAt") <= time(&application, "startedAt"), "{sidecar} {application}");
    assert!(time(&application, "finishedAt") <= time(&sidecar, "finishedAt"), "{sidecar} {application}");
    assert_eq!(sidecar["exitCode"], 0, "it ended well when it was told to");
    let stored = cluster.on_etcd("etcdctl get jobs/from --print-value-only");
    let stored = cluster.kubectl(&stored.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(stored.trim(), "job");
}
