//! A real control plane on free ports of 127.0.0.1, kubectl as its client, and a stand-in for kubelets.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Process, ports, programs};
use serde_json::{Value, json};

/// How long anything may take on a loaded machine of two cores.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often the state of the cluster is looked at; kubectl costs a tenth of a second of CPU.
const POLL: Duration = Duration::from_millis(300);

const ADMIN: &str = "admin-token";

pub struct ControlPlane {
    folder: tempfile::TempDir,
    bin: PathBuf,
    server: String,
    // Dropped in this order: clients before what they talk to.
    _controllers: Process,
    _scheduler: Process,
    _server: Process,
    _etcd: Etcd,
}

impl ControlPlane {
    pub fn start() -> ControlPlane {
        let bin = programs::tool("kubernetes");
        let etcd = Etcd::start();
        let folder = tempfile::TempDir::with_prefix("etcd-proxy-cluster-").expect("a temporary folder can be made");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("the file can be written");
            path.display().to_string()
        };
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let (private, public) = (file("sa.key", &key.serialize_pem()), file("sa.pub", &key.public_key_pem()));
        let tokens = file("tokens.csv", &format!("{ADMIN},admin,1,\"system:masters\"\n"));
        let address = ports::free_address();
        let port = address.rsplit(':').next().expect("an address has a port");
        let server = format!("https://{address}");
        let admin = file("admin.kubeconfig", &kubeconfig(&server, ADMIN));

        let mut command = Command::new(bin.join("kube-apiserver"));
        command.args([
            format!("--etcd-servers={}", etcd.endpoints()),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            // It may not be a loopback address, and nobody uses it: no endpoints are written for the server itself.
            "--advertise-address=192.0.2.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--cert-dir={}", folder.path().join("certs").display()),
            format!("--token-auth-file={tokens}"),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={public}"),
            format!("--service-account-signing-key-file={private}"),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            // Nodes have no kubelet to say that they are ready.
            "--disable-admission-plugins=TaintNodesByCondition".to_owned(),
        ]);
        let mut process = Process::spawn("kube-apiserver", &mut command, b"");
        let client = |name: &str, extra: &[&str]| {
            let mut command = Command::new(bin.join(name));
            command.args([&format!("--kubeconfig={admin}"), "--leader-elect=false", "--secure-port=0"]).args(extra);
            Process::spawn(name, &mut command, b"")
        };
        let ready = || {
            let mut kubectl = Command::new(bin.join("kubectl"));
            kubectl.args([&format!("--kubeconfig={admin}"), "get", "--raw=/readyz"]);
            kubectl.output().is_ok_and(|output| output.status.success())
        };
        let deadline = Instant::now() + PATIENCE;
        while !ready() {
            assert!(process.exit().is_none(), "kube-apiserver ended while it started");
            assert!(Instant::now() < deadline, "kube-apiserver is not ready");
            std::thread::sleep(POLL);
        }
        let signing = format!("--service-account-private-key-file={private}");
        // Without kubelets nobody renews what says that a node lives.
        let controllers = client("kube-controller-manager", &[&signing, "--controllers=*,-node-lifecycle-controller"]);
        let scheduler = client("kube-scheduler", &[]);
        ControlPlane {
            folder,
            bin,
            server,
            _controllers: controllers,
            _scheduler: scheduler,
            _server: process,
            _etcd: etcd,
        }
    }

    /// What the operator needs before it starts: its account, with the committed roles.
    pub fn prepare_operator(&self) {
        self.apply_text("{apiVersion: v1, kind: Namespace, metadata: {name: etcd-proxy-system}}");
        self.apply_text(
            "{apiVersion: v1, kind: ServiceAccount, metadata: {name: etcd-proxy-operator, namespace: etcd-proxy-system}}",
        );
        self.apply_file("deploy/rbac/cluster.yaml");
        self.apply_file("deploy/rbac/tenants.yaml");
        let token = self.kubectl(&["create", "token", "etcd-proxy-operator", "-n", "etcd-proxy-system"]);
        let path = self.folder.path().join("operator.kubeconfig");
        std::fs::write(&path, kubeconfig(&self.server, token.trim())).expect("the file can be written");
    }

    /// One operator under that account.
    pub fn start_operator(&self, name: &str) -> Process {
        let mut command = Command::new(operator_program());
        command.env("KUBECONFIG", self.folder.path().join("operator.kubeconfig"));
        command.args(["run", "--image=example/etcd-proxy:1", "--listen=127.0.0.1:0", "--name", name]);
        let process = Process::spawn(name, &mut command, b"");
        process.expect_stderr("found the API server");
        process
    }

    /// So many nodes, whose pods become ready and go as a kubelet would let them, while the value lives.
    pub fn nodes(&self, count: usize) -> Kubelets {
        for index in 0..count {
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": format!("node-{index}"), "labels": {"kubernetes.io/hostname": format!("node-{index}")}},
                "status": {
                    "capacity": {"cpu": "8", "memory": "16Gi", "pods": "110"},
                    "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
                    "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": ""}],
                },
            });
            let path = self.write(&node.to_string());
            self.kubectl(&["create", "-f", &path]);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (kubectl, config, stopped) = (self.bin.join("kubectl"), self.admin(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                act_as_kubelets(&kubectl, &config);
                std::thread::sleep(POLL);
            }
        });
        Kubelets { stop, thread: Some(thread) }
    }

    fn admin(&self) -> String {
        format!("--kubeconfig={}", self.kubeconfig().display())
    }

    /// Runs kubectl as administrator; answers with its output, or with what it complained about.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(self.bin.join("kubectl")).arg(self.admin()).args(arguments).output();
        let output = output.expect("kubectl can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stdout) + &text(&output.stderr))
        }
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    pub fn apply_file(&self, path: &str) {
        self.kubectl(&["apply", "--server-side", "-f", &programs::repository().join(path).display().to_string()]);
    }

    pub fn apply_text(&self, text: &str) {
        let path = self.write(text);
        self.kubectl(&["apply", "-f", &path]);
    }

    /// A file with this text, for `-f`.
    pub fn write(&self, text: &str) -> String {
        let path = self.folder.path().join(format!("{:?}.yaml", std::thread::current().id()));
        std::fs::write(&path, text).expect("the file can be written");
        path.display().to_string()
    }

    /// One object; null if it is not there.
    pub fn get(&self, namespace: &str, object: &str) -> Value {
        let text = self.kubectl(&["get", "-n", namespace, object, "-o", "json", "--ignore-not-found"]);
        if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).expect("kubectl prints JSON") }
    }

    /// Waits until the object is as wanted, and answers with it.
    pub fn until(&self, namespace: &str, object: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.get(namespace, object);
            if wanted(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "{namespace} {object}: {what} did not come true: {found:#}");
            std::thread::sleep(POLL);
        }
    }

    pub fn until_gone(&self, namespace: &str, object: &str) {
        self.until(namespace, object, "that it goes", Value::is_null);
    }

    /// What programs besides kubectl reach the cluster with as administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    /// `kubectl wait` as a person would.
    pub fn wait_ready(&self, namespace: &str, name: &str) {
        let object = format!("etcdproxy/{name}");
        self.kubectl(&["wait", "-n", namespace, "--for=condition=Ready", &object, "--timeout=90s"]);
    }
}

/// Reports pods as ready while it lives.
pub struct Kubelets {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
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

/// One round of what the kubelets of all nodes would do.
fn act_as_kubelets(kubectl: &Path, config: &str) {
    let run = |arguments: &[&str]| Command::new(kubectl).arg(config).args(arguments).output().ok();
    let Some(pods) = run(&["get", "pods", "-A", "-o", "json"]) else { return };
    let Ok(pods) = serde_json::from_slice::<Value>(&pods.stdout) else { return };
    for pod in pods["items"].as_array().into_iter().flatten().filter(|pod| pod["spec"]["nodeName"].is_string()) {
        let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
        let (Some(namespace), Some(name)) = (namespace.as_str(), name.as_str()) else { continue };
        if pod["metadata"]["deletionTimestamp"].is_string() {
            run(&["delete", "pod", "-n", namespace, name, "--force", "--grace-period=0", "--wait=false"]);
        } else if pod["status"]["phase"] != "Running" {
            let ready = json!({"status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            ]}});
            run(&["patch", "pod", "-n", namespace, name, "--subresource=status", "-p", &ready.to_string()]);
        }
    }
}

fn kubeconfig(server: &str, token: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "c", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    })
    .to_string()
}

/// The operator that cargo built beside the proxy.
pub fn operator_program() -> PathBuf {
    let path = programs::etcd_proxy().with_file_name("etcd-proxy-operator");
    assert!(path.is_file(), "no {}; run `cargo build -p etcd-proxy-operator`", path.display());
    path
}
