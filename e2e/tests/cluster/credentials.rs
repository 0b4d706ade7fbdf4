//! What objects say of etcd's certificates and users, at a real etcd that asks for both: the containers that were rendered
//! run here, with their Secrets as files.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use etcd_proxy_e2e::etcd::Tls;
use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Pair, Process, Version, http, ports, programs};
use serde_json::Value;

use crate::containers::arguments;
use crate::control_plane::{ControlPlane, PATIENCE, POLL};
use crate::kubelets::UNREADY;
use crate::lifecycle::condition;

/// The only name in the certificate of etcd, and none by which it is reached.
const NAME: &str = "etcd.internal";
const HOME: &str = "safe";
const TENANT: &str = "team-s";

/// An etcd in which the proxy may claim keys and a tenant's application may use its own.
fn etcd(authority: &Authority) -> (Etcd, Etcdctl) {
    let tls = Tls { server: authority.server_for("server", &[NAME]), ca: authority.ca(), client_cert_auth: true };
    let etcd = Etcd::builder().tls(tls).flag("--bcrypt-cost=4").start();
    let admin = authority.nameless_client("admin");
    let etcdctl = etcd.etcdctl().tls(&authority.ca(), Some(&admin)).flag("--insecure-skip-tls-verify");
    for (name, prefix) in [("proxy", "/safe/.claims/"), ("app", "/safe/team-s/")] {
        etcdctl.ok(&["user", "add", &format!("{name}:{name}-pw")]);
        etcdctl.ok(&["role", "add", name]);
        etcdctl.ok(&["role", "grant-permission", name, "readwrite", prefix, "--prefix=true"]);
        etcdctl.ok(&["user", "grant-role", name, name]);
    }
    etcdctl.ok(&["user", "add", "root:root"]);
    etcdctl.ok(&["user", "grant-role", "root", "root"]);
    etcdctl.ok(&["auth", "enable"]);
    (etcd, etcdctl.user("root:root"))
}

/// The Secrets that an administrator puts into a namespace of proxies.
fn give_secrets(cluster: &ControlPlane, namespace: &str, authority: &Authority, client: &Pair) {
    let file = |key: &str, path: &Path| format!("--from-file={key}={}", path.display());
    let (certificate, key) = (file("tls.crt", &client.cert), file("tls.key", &client.key));
    let ca = file("ca.crt", &authority.ca());
    let tls = "--type=kubernetes.io/tls";
    cluster.kubectl(&["create", "secret", "generic", "etcd-tls", "-n", namespace, tls, &certificate, &key, &ca]);
    let (name, password) = ("--from-literal=username=proxy", "--from-literal=password=proxy-pw");
    let basic = "--type=kubernetes.io/basic-auth";
    cluster.kubectl(&["create", "secret", "generic", "etcd-user", "-n", namespace, basic, name, password]);
}

/// A proxy whose container was rendered for a pod, on ports of its own.
pub struct Rendered {
    _process: Process,
    pub address: String,
    metrics: String,
}

impl Rendered {
    pub fn start(cluster: &ControlPlane, namespace: &str, pod: &Value, folder: &Path) -> Rendered {
        let (address, metrics) = (ports::free_address(), ports::free_address());
        let mut command = Command::new(programs::etcd_proxy());
        for argument in arguments(cluster, namespace, pod, &pod["containers"][0], folder) {
            command.arg(argument.replace("0.0.0.0:2379", &address).replace("0.0.0.0:2381", &metrics));
        }
        let process = Process::spawn("a rendered proxy", &mut command, b"");
        process.expect_stderr("started gRPC proxy");
        Rendered { _process: process, address, metrics }
    }

    /// Asks a page of the metrics' address, as kubelet's probes do, until it says these words with this status.
    pub fn until_says(&self, path: &str, status: u16, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = http::get(&self.metrics, path);
            if answer.as_ref().is_ok_and(|answer| answer.status == status && answer.body.contains(words)) {
                return;
            }
            assert!(Instant::now() < deadline, "{path} does not say {status} {words:?}: {answer:?}");
            std::thread::sleep(POLL);
        }
    }
}

pub fn pod_of(cluster: &ControlPlane, namespace: &str, name: &str) -> Value {
    let told = |proxy: &Value| proxy["status"]["workload"]["name"].is_string();
    let proxy = cluster.until(namespace, &format!("etcdproxy/{name}"), "its workload is told", told);
    let workload = &proxy["status"]["workload"];
    let text = |field: &str| workload[field].as_str().expect("a workload has it").to_owned();
    cluster.get(&text("namespace"), &format!("deployment/{}", text("name")))["spec"]["template"]["spec"].clone()
}

pub fn rendered_proxies_prove_themselves_to_etcd_and_check_its_name(cluster: &ControlPlane) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let client = authority.nameless_client("proxy");
    let (etcd, root) = etcd(&authority);
    for namespace in [HOME, TENANT, UNREADY] {
        cluster.kubectl(&["create", "namespace", namespace]);
    }
    give_secrets(cluster, HOME, &authority, &client);
    give_secrets(cluster, UNREADY, &authority, &client);
    let upstream = |name: &str| {
        format!(
            "endpoints: ['{}'], tls: {{secretRef: {{name: etcd-tls}}, serverName: {name}}}, \
             auth: {{secretRef: {{name: etcd-user}}}}",
            etcd.endpoints()
        )
    };
    a_tenants_proxy_claims_and_serves(cluster, folder.path(), &upstream(NAME), &root);

    // One that expects another name is not ready, and says why.
    let own = |name: &str| {
        cluster.apply_text(&format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: own, namespace: {UNREADY}}}, \
             spec: {{mode: Deployment, replicas: 1, upstream: {{{}}}}}}}",
            upstream(name)
        ));
        let flag = format!("--tls-server-name={name}");
        cluster.until(UNREADY, "deployment/own", "it has the name", |deployment| {
            deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string().contains(&flag)
        });
        Rendered::start(cluster, UNREADY, &pod_of(cluster, UNREADY, "own"), &folder.path().join(name))
    };
    let misled = own("other.internal");
    let words = format!("the certificate of etcd is not for other.internal, but for DnsName(\\\"{NAME}\\\")");
    misled.until_says("/health", 503, &words);
    misled.until_says("/readyz", 503, "is unreachable");
    let told = |proxy: &Value| condition(proxy, "Ready")["reason"] == "UpstreamUnavailable";
    let proxy = cluster.until(UNREADY, "etcdproxy/own", "what its kubelet saw is told", told);
    let message = condition(&proxy, "Ready")["message"].to_string();
    assert!(
        message.contains("reaches no etcd member") && message.contains("kubectl logs -n team-unready"),
        "{message}"
    );
    own(NAME).until_says("/readyz", 200, "ok");
    cluster.kubectl(&["delete", "-n", UNREADY, "etcdproxy/own", "--timeout=60s"]);
}

fn a_tenants_proxy_claims_and_serves(cluster: &ControlPlane, folder: &Path, upstream: &str, root: &Etcdctl) {
    cluster.apply_text(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {{name: safe}}, spec: {{{upstream}, \
         namespace: {HOME}, keyspace: {{root: /safe/}}, allowedNamespaces: {{names: [{TENANT}]}}}}}}"
    ));
    cluster.apply_text(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: registry, namespace: {TENANT}}}, \
         spec: {{mode: Deployment, backendRef: {{name: safe}}}}}}"
    ));
    cluster.wait_ready(TENANT, "registry");
    let pod = pod_of(cluster, TENANT, "registry");
    let mut claim = Command::new(programs::etcd_proxy());
    claim.args(arguments(cluster, HOME, &pod, &pod["initContainers"][0], &folder.join("claim")));
    let mut claim = Process::spawn("the claim", &mut claim, b"");
    assert_eq!(claim.wait(), 0, "as the user of the Secret it may claim, and as nobody else");
    let claimed = root.ok(&["get", "/safe/.claims/team-s", "--print-value-only"]);
    let uid = cluster.get("", &format!("namespace/{TENANT}"))["metadata"]["uid"].clone();
    assert!(claimed.contains(uid.as_str().expect("a namespace has a uid")), "{claimed}");

    let proxy = Rendered::start(cluster, HOME, &pod, &folder.join("proxy"));
    proxy.until_says("/readyz", 200, "ok");
    // What the tenant's application has: its binding Secret, and a user of its own.
    let binding = folder.join("binding");
    let mounted = serde_json::json!({
        "volumes": [{"name": "binding", "secret": {"secretName": "registry-client"}}],
        "container": {"volumeMounts": [{"name": "binding", "mountPath": "/binding"}], "args": ["/binding"]},
    });
    let at = arguments(cluster, TENANT, &mounted, &mounted["container"], &binding).remove(0);
    let file = |name: &str| format!("{at}/{name}");
    let app = Etcdctl::new(Version::default(), format!("https://{}", proxy.address))
        .flag(format!("--cacert={}", file("ca.crt")))
        .flag(format!("--cert={}", file("tls.crt")))
        .flag(format!("--key={}", file("tls.key")));
    let known = app.clone().user("app:app-pw");
    known.ok(&["put", "greeting", "hello"]);
    assert_eq!(known.ok(&["get", "greeting", "--print-value-only"]).trim(), "hello");
    assert_eq!(root.ok(&["get", "/safe/team-s/registry/greeting", "--print-value-only"]).trim(), "hello");
    let nobody = app.flag("--command-timeout=5s").run(&["get", "greeting"]);
    // As at etcd itself, where a certificate without a name is nobody's.
    assert!(nobody.code != 0 && nobody.stderr.contains("permission denied"), "the proxy's user is its own: {nobody:?}");
    // Whoever lists processes sees no password.
    assert!(pod["containers"][0]["args"].to_string().contains("--user=$(UPSTREAM_USER)"));
    proxy.until_says("/health", 200, "true");
    cluster.kubectl(&["delete", "-n", TENANT, "etcdproxy/registry", "--timeout=60s"]);
    cluster.kubectl(&["delete", "etcdbackend/safe", "--timeout=60s"]);
    cluster.kubectl(&["delete", "namespace", HOME, TENANT, "--wait=false"]);
}
