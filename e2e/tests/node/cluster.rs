//! The cluster that `make cluster` brings up: its folder, kubectl, and the way into the node.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Process, programs};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything on the node may take on a loaded machine of two cores.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often the state of the cluster is looked at; kubectl costs a tenth of a second of CPU.
const POLL: Duration = Duration::from_millis(300);

pub struct Cluster {
    parent: TempDir,
}

impl Cluster {
    /// A place for one; the walk-through brings it up.
    pub fn new() -> Cluster {
        // A short name, since sockets lie below.
        Cluster { parent: TempDir::with_prefix("epx").expect("a temporary folder can be made") }
    }

    pub fn folder(&self) -> PathBuf {
        self.parent.path().join("cluster")
    }

    /// The folder of the programs under test.
    pub fn programs() -> PathBuf {
        programs::etcd_proxy().parent().expect("a program lies in a folder").to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs::tool("kubernetes").join("kubectl"));
        command.env("KUBECONFIG", self.folder().join("kubeconfig")).args(arguments);
        command.env("KUBECACHEDIR", self.folder().join("kubectl"));
        command
    }

    /// Runs kubectl as administrator; answers with its output, or with what it complained about.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        run(&mut self.command(arguments))
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// Leaves kubectl running, such as an `exec` of a watch.
    pub fn spawn(&self, name: &str, arguments: &[&str]) -> Process {
        Process::spawn(name, &mut self.command(arguments), b"")
    }

    pub fn apply(&self, text: &str) {
        let path = self.parent.path().join("apply.yaml");
        std::fs::write(&path, text).expect("the file can be written");
        self.kubectl(&["apply", "-f", &path.display().to_string()]);
    }

    /// The Secret of the etcd for tenants, in a namespace that has proxies of its own.
    pub fn give_credential(&self, namespace: &str) {
        let pki = self.folder().join("pki");
        let from = |key: &str, file: &str| format!("--from-file={key}={}", pki.join(file).display());
        let (certificate, key) = (from("tls.crt", "etcd-client.crt"), from("tls.key", "etcd-client.key"));
        let authority = from("ca.crt", "etcd-ca.crt");
        let kind = "--type=kubernetes.io/tls";
        let wanted =
            ["create", "secret", "generic", "etcd-client", "-n", namespace, kind, &certificate, &key, &authority];
        self.kubectl(&wanted);
    }

    pub fn get(&self, namespace: &str, arguments: &[&str]) -> Value {
        let text = self.kubectl(&[&["get", "-n", namespace, "-o", "json"], arguments].concat());
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// The pods with this label that are not on their way out.
    pub fn pods(&self, namespace: &str, selector: &str) -> Vec<Value> {
        let mut found = self.get(namespace, &["pods", "-l", selector]);
        let pods = found["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    /// The proxies of an EtcdProxy, wherever they are.
    pub fn proxies(&self, namespace: &str, name: &str) -> Vec<Value> {
        let object = self.get(namespace, &["etcdproxy", name]);
        let selector = text(&object["status"]["selector"]);
        self.pods(&text(&object["status"]["workload"]["namespace"]), &selector)
    }

    /// etcdctl in a pod whose environment says where its etcd is.
    pub fn try_etcdctl(&self, namespace: &str, arguments: &[&str]) -> Result<String, String> {
        self.try_kubectl(&[&["exec", "-n", namespace, "app", "--", "etcdctl"], arguments].concat())
    }

    /// A shell in a member of the etcd for tenants, as its administrator has it.
    pub fn on_etcd(&self, script: &str) -> Vec<String> {
        let script = format!(
            "export ETCDCTL_ENDPOINTS=https://localhost:2379 ETCDCTL_CACERT=/tls/ca.crt ETCDCTL_CERT=/tls/tls.crt \
             ETCDCTL_KEY=/tls/tls.key; {script}"
        );
        ["exec", "-n", "etcd", "etcd-0", "--", "sh", "-c", &script].map(str::to_owned).to_vec()
    }

    /// Runs a shell's words inside of the node, where its processes have their ids.
    pub fn on_node(&self, script: &str) -> String {
        let pid = std::fs::read_to_string(self.folder().join("pid")).expect("the cluster has a first process");
        let pid = pid.split(' ').next().expect("the id comes first");
        let mut command = Command::new("nsenter");
        command.args(["--target", pid, "--mount", "--net", "--pid", "sh", "-c", script]);
        run(&mut command).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until what is looked at is as wanted.
    pub fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "{what} did not come true within {PATIENCE:?}");
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.folder().exists() {
            return;
        }
        if std::thread::panicking() {
            let state = self.try_kubectl(&["get", "pods,etcdproxies,etcdbackends,events", "-A", "-o", "wide"]);
            eprintln!("{}", state.unwrap_or_else(|error| error));
        }
        let mut down = Command::new(programs::repository().join("e2e/cluster/down.sh"));
        down.env("ETCD_PROXY_CLUSTER", self.folder());
        if let Err(error) = run(&mut down) {
            eprintln!("the cluster could not be taken away: {error}");
        }
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stdout) + &text(&output.stderr)) }
}

/// A text that must be there.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}
