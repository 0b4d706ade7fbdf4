//! What a node would do for a chart: pods become ready, and those of `helm test` run here as the programs that they name,
//! with their Secrets as files and free ports of this machine in place of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use etcd_proxy_e2e::{Process, ports, programs};
use serde_json::{Value, json};

use crate::containers::{arguments, texts};
use crate::control_plane::{ControlPlane, operator_program};

/// How often pods are looked at.
const POLL: Duration = Duration::from_millis(500);

/// Reports pods as ready while it lives.
pub struct Nodes {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A stand-in that panicked has made the test fail by what it did not report.
            let _ = thread.join();
        }
    }
}

/// One node, whose pods become ready and go as a kubelet would let them.
pub fn nodes(cluster: &ControlPlane) -> Nodes {
    let resources = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"},
        "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": ""}],
        },
    });
    cluster.kubectl(&["create", "-f", &cluster.write(&node.to_string())]);
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, kubeconfig) = (stop.clone(), cluster.kubeconfig());
    let thread = std::thread::spawn(move || {
        let kubectl = programs::tool("kubernetes").join("kubectl");
        while !stopped.load(Ordering::Relaxed) {
            look_after_pods(&kubectl, &kubeconfig);
            std::thread::sleep(POLL);
        }
    });
    Nodes { stop, thread: Some(thread) }
}

fn look_after_pods(kubectl: &Path, kubeconfig: &Path) {
    let run =
        |arguments: &[&str]| Command::new(kubectl).arg("--kubeconfig").arg(kubeconfig).args(arguments).output().ok();
    let Some(pods) = run(&["get", "pods", "-A", "-o", "json"]) else { return };
    let Ok(pods) = serde_json::from_slice::<Value>(&pods.stdout) else { return };
    for pod in pods["items"].as_array().into_iter().flatten().filter(|pod| pod["spec"]["nodeName"].is_string()) {
        let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
        let (Some(namespace), Some(name)) = (namespace.as_str(), name.as_str()) else { continue };
        if pod["metadata"]["deletionTimestamp"].is_string() {
            run(&["delete", "pod", "-n", namespace, name, "--force", "--grace-period=0", "--wait=false"]);
        } else if pod["status"]["phase"] == "Pending" {
            let ready = json!({"status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            ]}});
            run(&["patch", "pod", "-n", namespace, name, "--subresource=status", "-p", &ready.to_string()]);
        }
    }
}

/// The operator of a release, under its own account and with the arguments of its Deployment.
pub fn operator(cluster: &ControlPlane, namespace: &str, name: &str) -> Process {
    operator_at(cluster, namespace, name, "127.0.0.1:0")
}

/// The same, with its webhook, if it has one, at this address.
pub fn operator_at(cluster: &ControlPlane, namespace: &str, name: &str, webhook: &str) -> Process {
    let pod = &cluster.get(namespace, &format!("deployment/{name}"))["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["command"], json!(["etcd-proxy-operator"]));
    let account = pod["serviceAccountName"].as_str().expect("the pod has an account");
    let mut command = Command::new(operator_program());
    let kubeconfig = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(kubeconfig.path(), kubeconfig_of(cluster, namespace, account)).expect("the file can be written");
    command.env("KUBECONFIG", kubeconfig.path());
    command.env("POD_NAME", format!("{name}-0")).env("POD_NAMESPACE", namespace);
    for argument in texts(&container["args"]) {
        match argument.split_once('=') {
            Some(("--listen", _)) => command.arg("--listen=127.0.0.1:0"),
            Some(("--webhook-listen", _)) => {
                command.args([&format!("--webhook-listen={webhook}"), "--webhook-names=127.0.0.1"])
            }
            _ => command.arg(&argument),
        };
    }
    // Who gets no time for so long that the lease is lost ends, and only a kubelet would start the operator anew.
    command.args(["--lease-seconds=45", "--lease-renew-seconds=40"]);
    let process = Process::spawn(name, &mut command, b"");
    process.expect_stderr("this process leads");
    process
}

/// What reaches the cluster as a service account: the administrator's file with another token.
fn kubeconfig_of(cluster: &ControlPlane, namespace: &str, account: &str) -> String {
    let token = cluster.kubectl(&["create", "token", account, "-n", namespace]);
    let text = std::fs::read_to_string(cluster.kubeconfig()).expect("the administrator has one");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config["users"][0]["user"]["token"] = json!(token.trim());
    config.to_string()
}

/// Runs what `helm test` waits for: the proxies of both EtcdProxies, and then the pod that uses them.
pub fn run_test_pod(cluster: &ControlPlane, namespace: &str, pod: &str) {
    let folder = tempfile::TempDir::with_prefix("etcd-proxy-pods-").expect("a temporary folder can be made");
    let mut proxies = Vec::new();
    let mut endpoints = BTreeMap::new();
    for name in ["test-a", "test-b"] {
        let ready = |proxy: &Value| proxy["status"]["workload"]["name"].is_string();
        let proxy = cluster.until(namespace, &format!("etcdproxy/{name}"), "it has a workload", ready);
        let workload = &proxy["status"]["workload"];
        let text = |field: &str| workload[field].as_str().expect("a workload has it").to_owned();
        let deployment = cluster.get(&text("namespace"), &format!("deployment/{}", text("name")));
        let template = &deployment["spec"]["template"]["spec"];
        let (port, metrics) = (ports::free(), ports::free());
        let arguments =
            arguments(cluster, &text("namespace"), template, &template["containers"][0], &folder.path().join(name));
        let arguments = arguments.into_iter().map(|argument| {
            argument
                .replace("0.0.0.0:2379", &format!("127.0.0.1:{port}"))
                .replace("0.0.0.0:2381", &format!("127.0.0.1:{metrics}"))
        });
        let mut command = Command::new(programs::etcd_proxy());
        command.args(arguments);
        let process = Process::spawn(name, &mut command, b"");
        process.expect_stderr("successfully notified init daemon");
        proxies.push(process);
        endpoints.insert(name, format!("https://127.0.0.1:{port}"));
    }
    let object = cluster.until(namespace, &format!("pod/{pod}"), "it runs", |pod| pod["status"]["phase"] == "Running");
    let pod_spec = &object["spec"];
    let arguments = arguments(cluster, namespace, pod_spec, &pod_spec["containers"][0], &folder.path().join("pod"));
    for (name, endpoint) in &endpoints {
        // The name of the Service is for pods; the certificate is good for this address too.
        let file = folder.path().join("pod").join("bindings").join(name).join("endpoints");
        assert!(file.is_file(), "the binding of {name} says where the proxy is");
        std::fs::write(file, endpoint).expect("the file can be written");
    }
    let mut command = Command::new(operator_program());
    command.args(arguments);
    let mut process = Process::spawn(pod, &mut command, b"");
    let code = process.wait();
    process.stdout.wait_for_end();
    let said = process.stdout.text();
    assert_eq!(code, 0, "{said}");
    for step in ["put ", "read it back", "saw it by a watch", "not to be seen through", "all is well"] {
        assert!(said.contains(step), "{step:?} is missing: {said}");
    }
    let done = json!({"status": {"phase": "Succeeded"}}).to_string();
    cluster.kubectl(&["patch", "pod", "-n", namespace, pod, "--subresource=status", "-p", &done]);
}
