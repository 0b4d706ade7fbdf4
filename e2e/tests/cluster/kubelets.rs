//! A stand-in for kubelets: nodes that are objects only, and pods that become ready and go as a kubelet would let them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use etcd_proxy_e2e::http;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, POLL};

/// Pods that run are looked at less often than those that wait: only their deletion is of interest.
const ROUNDS_BETWEEN_LOOKS: u32 = 4;

/// The claim on the keys of this namespace fails, as if another cluster held it.
pub const FOREIGN: &str = "team-foreign";

/// The proxies of this namespace run and are not ready, as kubelet reports those whose probe fails.
pub const UNREADY: &str = "team-unready";

/// Reports pods as ready while it lives.
pub struct Kubelets {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Creates the nodes with these numbers.
pub fn add_nodes(cluster: &ControlPlane, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let name = format!("node-{number}");
        let room = json!({"cpu": "32", "memory": "64Gi", "pods": "110"});
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "capacity": room, "allocatable": room,
                "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": ""}],
            },
        });
        cluster.request("POST", "/api/v1/nodes", "application/json", &node.to_string()).expect("a node can be made");
    }
}

impl Kubelets {
    pub fn start(cluster: &ControlPlane) -> Kubelets {
        let stop = Arc::new(AtomicBool::new(false));
        let (door, stopped) = (cluster.door().to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut round: u32 = 0;
            while !stopped.load(Ordering::Relaxed) {
                let waiting = "/api/v1/pods?resourceVersion=0&fieldSelector=spec.nodeName!%3D,status.phase%3DPending";
                let all = "/api/v1/pods?resourceVersion=0&fieldSelector=spec.nodeName!%3D";
                let query = if round.is_multiple_of(ROUNDS_BETWEEN_LOOKS) { all } else { waiting };
                // While the API server is away there is nothing to do.
                if let Ok(answer) = http::get(&door, query) {
                    act(&door, &serde_json::from_str(&answer.body).unwrap_or_default());
                }
                round = round.wrapping_add(1);
                std::thread::sleep(POLL);
            }
        });
        Kubelets { stop, thread: Some(thread) }
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A stand-in that panicked has made the test fail by what it did not report.
            let _ = thread.join();
        }
    }
}

/// What the kubelets of all nodes would do with these pods.
fn act(door: &str, pods: &Value) {
    for pod in pods["items"].as_array().into_iter().flatten() {
        let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
        let (Some(namespace), Some(name)) = (namespace.as_str(), name.as_str()) else { continue };
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        // Somebody else may have been faster; the next round sees what has become of it.
        if pod["metadata"]["deletionTimestamp"].is_string() {
            let now = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
            let _ = http::send("DELETE", door, &path, "application/json", &now.to_string());
        } else if pod["status"]["phase"] == "Pending" {
            let job = pod["metadata"]["ownerReferences"][0]["kind"] == "Job";
            let tenant = &pod["metadata"]["labels"]["etcdproxy.dev/namespace"];
            let status = if job {
                json!({"status": {"phase": "Succeeded"}})
            } else if tenant == FOREIGN {
                json!({"status": {"initContainerStatuses": [{
                    "name": "claim", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                    "state": {"terminated": {"exitCode": 3, "message": "these keys belong to another"}},
                }]}})
            } else if tenant == UNREADY {
                json!({"status": {"phase": "Running", "containerStatuses": [{
                    "name": "etcd-proxy", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"running": {"startedAt": "2020-01-01T00:00:00Z"}},
                }]}})
            } else {
                json!({"status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                ]}})
            };
            let patch = "application/merge-patch+json";
            let _ = http::send("PATCH", door, &format!("{path}/status"), patch, &status.to_string());
        }
    }
}
