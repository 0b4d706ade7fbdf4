//! A real control plane on free ports of 127.0.0.1, and kubectl as its client. What is looked at often goes through one
//! `kubectl proxy`, since a kubectl costs a tenth of a second of CPU.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Process, http, ports, programs};
use serde_json::{Value, json};

/// How long anything may take on a loaded machine of two cores.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How often the state of the cluster is looked at.
pub const POLL: Duration = Duration::from_millis(200);

const ADMIN: &str = "admin-token";

/// Every request of the operator, and of nobody else, is written down: what it costs, and that it keeps to itself.
const AUDIT: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
  {"level": "Metadata", "users": ["system:serviceaccount:etcd-proxy-system:etcd-proxy-operator"]},
  {"level": "None"}]}"#;

pub struct ControlPlane {
    folder: tempfile::TempDir,
    bin: PathBuf,
    server: String,
    /// `kubectl proxy`, which speaks plain HTTP as administrator.
    door: String,
    // Dropped in this order: clients before what they talk to.
    _door: Process,
    _controllers: Process,
    _scheduler: Process,
    pub api_server: Process,
    _etcd: Etcd,
}

impl ControlPlane {
    pub fn start() -> ControlPlane {
        ControlPlane::start_of("kubernetes")
    }

    /// The control plane of this tool; kubectl is the newest.
    pub fn start_of(kubernetes: &'static str) -> ControlPlane {
        let (bin, servers) = (programs::tool("kubernetes"), programs::tool(kubernetes));
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

        let mut command = Command::new(servers.join("kube-apiserver"));
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
            "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
            format!("--audit-policy-file={}", file("audit.yaml", AUDIT)),
            format!("--audit-log-path={}", folder.path().join("audit.log").display()),
            // Nodes have no kubelet to say that they are ready.
            "--disable-admission-plugins=TaintNodesByCondition".to_owned(),
        ]);
        let mut process = Process::spawn("kube-apiserver", &mut command, b"");
        let client = |name: &str, extra: &[&str]| {
            let mut command = Command::new(servers.join(name));
            command.args([&format!("--kubeconfig={admin}"), "--leader-elect=false", "--secure-port=0"]).args(extra);
            // The usual limits are for clusters with other clients; hundreds of pods would wait a minute for them.
            command.args(["--kube-api-qps=500", "--kube-api-burst=1000"]);
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
        let door = ports::free_address();
        let mut command = Command::new(bin.join("kubectl"));
        let port = door.rsplit(':').next().expect("an address has a port");
        command.args([&format!("--kubeconfig={admin}"), "proxy", &format!("--port={port}")]);
        let proxy = Process::spawn("kubectl proxy", &mut command, b"");
        proxy.expect_stdout("Starting to serve");
        ControlPlane {
            folder,
            bin,
            server,
            door,
            _door: proxy,
            _controllers: controllers,
            _scheduler: scheduler,
            api_server: process,
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

    /// One operator under that account, with times of the lease that a test has the patience for.
    pub fn start_operator(&self, name: &str, image: &str) -> Process {
        self.start_operator_with(name, image, &[])
    }

    /// The same with further flags.
    pub fn start_operator_with(&self, name: &str, image: &str, flags: &[String]) -> Process {
        let mut command = Command::new(operator_program());
        command.env("KUBECONFIG", self.folder.path().join("operator.kubeconfig"));
        command.args(["run", "--listen=127.0.0.1:0", "--name", name, "--image", image]);
        command.args(["--lease-seconds=9", "--lease-renew-seconds=6", "--lease-retry-seconds=1"]).args(flags);
        let process = Process::spawn(name, &mut command, b"");
        process.expect_stderr("found the API server");
        process
    }

    /// An operator with the rights of a file, with texts in it replaced, under an account of its own in this namespace.
    pub fn start_profile(&self, roles: &str, namespace: &str, replaced: &[(&str, &str)], flags: &[String]) -> Process {
        self.kubectl(&["create", "namespace", namespace]);
        self.kubectl(&["create", "serviceaccount", "-n", namespace, "etcd-proxy-operator"]);
        let text = std::fs::read_to_string(programs::repository().join(roles)).expect("the roles are committed");
        self.apply_text(&replaced.iter().fold(text, |text, (old, new)| text.replace(old, new)));
        let token = self.kubectl(&["create", "token", "etcd-proxy-operator", "-n", namespace]);
        let path = self.folder.path().join(format!("{namespace}.kubeconfig"));
        std::fs::write(&path, kubeconfig(&self.server, token.trim())).expect("the file can be written");
        let mut command = Command::new(operator_program());
        command.env("KUBECONFIG", path);
        command.args(["run", "--listen=127.0.0.1:0", "--name", namespace, "--image=example/etcd-proxy:1"]).args(flags);
        Process::spawn(namespace, &mut command, b"")
    }

    /// The address of the API server's plain door.
    pub fn door(&self) -> &str {
        &self.door
    }

    /// One request as administrator; the answer is an error if its status is.
    pub fn request(&self, method: &str, path: &str, content_type: &str, body: &str) -> Result<Value, String> {
        let answer = http::send(method, &self.door, path, content_type, body)
            .map_err(|error| format!("{method} {path}: {error}"))?;
        if answer.status >= 300 {
            return Err(format!("{method} {path}: {} {}", answer.status, answer.body));
        }
        serde_json::from_str(&answer.body).map_err(|error| format!("{method} {path}: {error}"))
    }

    /// The operator's requests so far, as the API server wrote them down.
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("audit.log")).expect("the API server writes it");
        // The last line may still be in the making.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
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

    /// Runs the plugin as administrator; answers with all that it printed, as an error if it ends with one.
    pub fn plugin(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(operator_program());
        command.env("KUBECONFIG", self.folder.path().join("admin.kubeconfig")).arg("kubectl").args(arguments);
        let output = command.output().expect("the program can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(text) } else { Err(text) }
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
        let Some(path) = known_path(namespace, object) else {
            let text = self.kubectl(&["get", "-n", namespace, object, "-o", "json", "--ignore-not-found"]);
            return if text.trim().is_empty() {
                Value::Null
            } else {
                serde_json::from_str(&text).expect("kubectl prints JSON")
            };
        };
        let answer = http::get(&self.door, &path).unwrap_or_else(|error| panic!("GET {path}: {error}"));
        match answer.status {
            200 => serde_json::from_str(&answer.body).expect("the API server answers in JSON"),
            404 => Value::Null,
            other => panic!("GET {path}: {other} {}", answer.body),
        }
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

    /// Waits until the object has an event with this reason, and answers with its note.
    pub fn until_event(&self, namespace: &str, name: &str, reason: &str) -> String {
        let about = |event: &&Value| event["regarding"]["name"] == name && event["reason"] == reason;
        let find = |all: &Value| all["items"].as_array().and_then(|items| items.iter().find(about).cloned());
        let all = self.until(namespace, "event", &format!("event {reason} of {name}"), |all| find(all).is_some());
        find(&all).map(|event| event["note"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
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

/// Where the API server has an object that kubectl would call `kind/name`, or all of a `kind`.
pub fn path(namespace: &str, object: &str) -> String {
    known_path(namespace, object).unwrap_or_else(|| panic!("where {object} stands is not known here"))
}

/// The same; nothing for kinds that only kubectl knows.
fn known_path(namespace: &str, object: &str) -> Option<String> {
    let (kind, name) =
        object.split_once('/').map_or((object, String::new()), |(kind, name)| (kind, format!("/{name}")));
    let (group, plural) = match kind {
        "service" => ("api/v1", "services"),
        "secret" => ("api/v1", "secrets"),
        "configmap" => ("api/v1", "configmaps"),
        "serviceaccount" => ("api/v1", "serviceaccounts"),
        "namespace" => ("api/v1", "namespaces"),
        "pod" => ("api/v1", "pods"),
        "node" => ("api/v1", "nodes"),
        "deployment" => ("apis/apps/v1", "deployments"),
        "daemonset" => ("apis/apps/v1", "daemonsets"),
        "job" => ("apis/batch/v1", "jobs"),
        "event" => ("apis/events.k8s.io/v1", "events"),
        "mutatingwebhookconfiguration" => ("apis/admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"),
        "networkpolicy" => ("apis/networking.k8s.io/v1", "networkpolicies"),
        "pdb" => ("apis/policy/v1", "poddisruptionbudgets"),
        "lease" => ("apis/coordination.k8s.io/v1", "leases"),
        "etcdproxy" => ("apis/etcdproxy.dev/v1alpha1", "etcdproxies"),
        "etcdbackend" => ("apis/etcdproxy.dev/v1alpha1", "etcdbackends"),
        _ => return None,
    };
    Some(if namespace.is_empty() {
        format!("/{group}/{plural}{name}")
    } else {
        format!("/{group}/namespaces/{namespace}/{plural}{name}")
    })
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
