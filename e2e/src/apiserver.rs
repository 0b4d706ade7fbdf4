//! A kube-apiserver whose store is whatever speaks etcd's API, and the way to it in plain HTTP, which `kubectl proxy`
//! opens. It needs no controllers and no nodes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::Process;
use crate::{http, ports, programs};

/// How long it may take to start on a loaded machine of two cores; alone it takes six seconds.
const STARTUP: Duration = Duration::from_secs(120);
/// How often a starting server is asked whether it is ready; kubectl costs a tenth of a second of CPU.
const POLL: Duration = Duration::from_millis(300);

const ADMIN: &str = "admin-token";

pub struct ApiServer {
    folder: TempDir,
    kubectl: PathBuf,
    door: String,
    // Dropped in this order: the client before what it talks to.
    _door: Process,
    pub process: Process,
}

impl ApiServer {
    /// Starts one on these etcd endpoints, with further flags, and waits until it is ready.
    pub fn start(etcd_servers: &str, flags: &[&str]) -> ApiServer {
        let bin = programs::tool("kubernetes");
        let folder = TempDir::with_prefix("etcd-proxy-apiserver-").expect("a temporary folder can be made");
        let file = |name: &str, text: &str| write(folder.path(), name, text);
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let (private, public) = (file("sa.key", &key.serialize_pem()), file("sa.pub", &key.public_key_pem()));
        let tokens = file("tokens.csv", &format!("{ADMIN},admin,1,\"system:masters\"\n"));
        let port = ports::free();
        let admin = file("admin.kubeconfig", &kubeconfig(&format!("https://127.0.0.1:{port}")));

        let mut command = Command::new(bin.join("kube-apiserver"));
        command.args([
            format!("--etcd-servers={etcd_servers}"),
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
            // No controller makes the accounts that it would ask for.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ]);
        command.args(flags);
        let mut process = Process::spawn("kube-apiserver", &mut command, b"");
        let kubectl = bin.join("kubectl");
        let deadline = Instant::now() + STARTUP;
        let ready = || run(&kubectl, &admin, &["get", "--raw=/readyz"]).is_ok();
        while !ready() {
            assert!(process.exit().is_none(), "kube-apiserver ended while it started");
            assert!(Instant::now() < deadline, "kube-apiserver is not ready");
            std::thread::sleep(POLL);
        }
        let port = ports::free();
        let mut command = Command::new(&kubectl);
        command.args([&format!("--kubeconfig={admin}"), "proxy", &format!("--port={port}")]);
        // It would refuse the paths of exec and attach, and must not look at any other.
        command.arg("--disable-filter=true");
        let door = Process::spawn("kubectl proxy", &mut command, b"");
        door.expect_stdout("Starting to serve");
        ApiServer { folder, kubectl, door: format!("127.0.0.1:{port}"), _door: door, process }
    }

    /// `127.0.0.1:port` where the API is served in plaintext to an administrator.
    pub fn address(&self) -> &str {
        &self.door
    }

    /// GET of a path that must be answered well.
    pub fn get(&self, path: &str) -> String {
        let answer = http::get(&self.door, path).unwrap_or_else(|error| panic!("GET {path}: {error}"));
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
        answer.body
    }

    /// The sum of its own series of this name whose labels hold all of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.get("/metrics");
        let is_meant = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
                && labels.iter().all(|label| line.contains(label))
        };
        page.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Runs kubectl as administrator; what it prints, or what it complains about.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        run(&self.kubectl, &self.folder.path().join("admin.kubeconfig").display().to_string(), arguments)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    pub fn apply(&self, text: &str) {
        let path = write(self.folder.path(), "apply.yaml", text);
        self.kubectl(&["apply", "-f", &path]);
    }
}

fn run(kubectl: &Path, config: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(kubectl).arg(format!("--kubeconfig={config}")).args(arguments).output();
    let output = output.expect("kubectl can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stdout) + &text(&output.stderr)) }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("the file can be written");
    path.display().to_string()
}

fn kubeconfig(server: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "c", "user": {"token": ADMIN}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    })
    .to_string()
}
