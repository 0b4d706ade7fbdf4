//! Secrets in the shape that cert-manager gives them, with keys of all the kinds and forms that it makes: the container
//! that was rendered runs here, and serves each that takes the place of the one before.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use etcd_proxy_e2e::{Etcd, Etcdctl, Version};
use serde_json::Value;

use crate::containers::arguments;
use crate::control_plane::{ControlPlane, PATIENCE, POLL};
use crate::credentials::{Rendered, pod_of};
use crate::lifecycle::condition;

const HOME: &str = "brought";

/// What makes tls.key, by the name of the kind.
const KINDS: [(&str, &str); 4] = [
    ("rsa-pkcs1", "openssl genrsa -traditional -out tls.key 2048"),
    ("ec-sec1", "openssl ecparam -name prime256v1 -genkey -out tls.key"),
    ("ed25519-pkcs8", "openssl genpkey -algorithm ed25519 -out tls.key"),
    ("p384-pkcs8", "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out tls.key"),
];

/// Issues tls.crt for that key by an intermediate of an authority of its own, and puts the intermediate behind it.
const ISSUE: &str = "
    curve='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
    openssl req -x509 $curve -days 9 -subj /CN=root -keyout root.key -out ca.crt
    openssl req -new $curve -subj /CN=between -keyout between.key -out between.csr
    printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign\\n' >between.ext
    openssl x509 -req -in between.csr -CA ca.crt -CAkey root.key -CAcreateserial -days 9 -extfile between.ext -out between.crt
    openssl req -new -key tls.key -subj / -out leaf.csr
    printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\\nextendedKeyUsage=serverAuth,clientAuth\\n' >leaf.ext
    openssl x509 -req -in leaf.csr -CA between.crt -CAkey between.key -CAcreateserial -days 30 -extfile leaf.ext -out leaf.crt
    cat leaf.crt between.crt >tls.crt";

fn issue(folder: &Path, kind: &str, key: &str) -> PathBuf {
    let folder = folder.join(kind);
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let output = Command::new("bash").current_dir(&folder).args(["-ec", &format!("{key}\n{ISSUE}")]).output();
    let output = output.expect("bash is there");
    assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
    folder
}

/// Puts all three files into the Secret at once, as a renewal does.
fn give(cluster: &ControlPlane, certificate: &Path, key: &Path) {
    let file = |name: &str, folder: &Path| format!("--from-file={name}={}", folder.join(name).display());
    let (crt, ca, key) = (file("tls.crt", certificate), file("ca.crt", certificate), file("tls.key", key));
    let kind = "--type=kubernetes.io/tls";
    let printed = ["create", "secret", "generic", "serving", "-n", HOME, kind, "--dry-run=client", "-o", "yaml"];
    cluster.apply_text(&cluster.kubectl(&[&printed[..], &[&crt, &ca, &key]].concat()));
}

/// Secrets are not watched; touching the object makes the operator look now and not in a while.
fn look(cluster: &ControlPlane, mark: &str) {
    cluster.kubectl(&["annotate", "-n", HOME, "etcdproxy/own", "--overwrite", &format!("touched={mark}")]);
}

pub fn certificates_of_all_kinds_are_served_and_renewed_in_the_running_proxy(cluster: &ControlPlane) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let etcd = Etcd::start();
    cluster.kubectl(&["create", "namespace", HOME]);
    let kinds = KINDS.map(|(kind, key)| issue(folder.path(), kind, key));
    give(cluster, &kinds[0], &kinds[0]);
    cluster.apply_text(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: own, namespace: {HOME}}}, spec: {{\
         mode: Deployment, replicas: 1, upstream: {{endpoints: ['{}']}}, \
         tls: {{source: Secret, secretRef: {{name: serving}}, clientAuth: None}}}}}}",
        etcd.endpoints()
    ));
    cluster.wait_ready(HOME, "own");
    let pod = pod_of(cluster, HOME, "own");
    let mounts = folder.path().join("mounts");
    let proxy = Rendered::start(cluster, HOME, &pod, &mounts);
    for kind in &kinds {
        give(cluster, kind, kind);
        // Whoever asks for the arguments has what they name brought up to date.
        arguments(cluster, HOME, &pod, &pod["containers"][0], &mounts);
        let client = Etcdctl::new(Version::default(), format!("https://{}", proxy.address))
            .flag(format!("--cacert={}", kind.join("ca.crt").display()))
            .flag("--command-timeout=5s");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let outcome = client.run(&["put", "kind", "served"]);
            if outcome.code == 0 {
                break;
            }
            assert!(Instant::now() < deadline, "{} is not served: {}", kind.display(), outcome.stderr);
            std::thread::sleep(POLL);
        }
    }
    assert_eq!(pod_of(cluster, HOME, "own"), pod, "no renewal makes other pods");

    // What cannot serve is told, by its kind too: nobody has to look into the log of a proxy.
    let told = |reason: &'static str, words: &'static str| {
        move |proxy: &Value| {
            let resolved = condition(proxy, "ResolvedRefs");
            resolved["reason"] == reason && resolved["message"].to_string().contains(words)
        }
    };
    for (certificate, key) in [(0, 1), (1, 2), (3, 1)] {
        give(cluster, &kinds[certificate], &kinds[key]);
        look(cluster, &format!("wrong-{certificate}"));
        let wrong = told("KeyMismatch", "tls.crt and tls.key do not belong together");
        cluster.until(HOME, "etcdproxy/own", "a key of another is refused", wrong);
        give(cluster, &kinds[certificate], &kinds[certificate]);
        look(cluster, &format!("right-{certificate}"));
        cluster.until(HOME, "etcdproxy/own", "the right one is taken", told("ResolvedRefs", "can serve"));
    }
    cluster.kubectl(&["delete", "-n", HOME, "etcdproxy/own", "--timeout=60s"]);
    cluster.kubectl(&["delete", "namespace", HOME, "--wait=false"]);
}
