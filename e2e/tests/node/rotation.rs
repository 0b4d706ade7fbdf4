//! A watch through the Service while the proxy's certificate grows old and is renewed in the running pod, and while other
//! endpoints make new pods of it.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE, text};

const KEY: &str = "/tenants/team-a/registry/counter";

pub fn a_watch_loses_nothing_while_certificates_and_endpoints_change(cluster: &Cluster) {
    let watch = cluster.spawn("the watch", &["exec", "-n", "team-a", "app", "--", "etcdctl", "watch", "counter"]);
    // Nobody can tell from outside when it watches, so a first value is put until it comes.
    Cluster::until("the watch", || {
        cluster.kubectl(&refs(&cluster.on_etcd(&format!("etcdctl put {KEY} begin"))));
        watch.stdout.all().iter().any(|line| line == "begin").then_some(())
    });
    // Straight into etcd, so that each value is put exactly once whatever happens to the proxies.
    let script = format!(
        "i=0; while [ ! -e /data/stop ]; do i=$((i+1)); etcdctl put {KEY} $i >/dev/null || exit 1; sleep 0.1; done; echo put $i"
    );
    let writer = cluster.spawn("the writer", &refs(&cluster.on_etcd(&script)));
    let seen = || watch.stdout.all().iter().filter_map(|line| line.parse().ok()).collect::<Vec<usize>>();
    Cluster::until("the first values", || (seen().len() >= 3).then_some(()));

    let before = cluster.proxies("team-a", "registry");
    let address = service_address(cluster);
    let old = serial(&address).expect("the proxy shows a certificate");
    let workload = cluster.get("team-a", &["etcdproxy", "registry"])["status"]["workload"].clone();
    let (namespace, name) = (text(&workload["namespace"]), text(&workload["name"]));
    // As if the operator had issued it eighty days ago: of its own authority, for the same names, and to end soon.
    give_aged_certificate(cluster, &namespace, &name);
    let aged =
        Cluster::until("the certificate that will end soon", || serial(&address).filter(|serial| *serial != old));
    // The operator looks now, and not at its next round.
    cluster.kubectl(&["annotate", "etcdproxy", "-n", "team-a", "registry", "example.dev/look=now"]);
    Cluster::until("another certificate", || serial(&address).filter(|serial| *serial != old && *serial != aged));
    assert!(days_left(&address) > 80, "a whole life lies before it");
    let after = cluster.proxies("team-a", "registry");
    assert_eq!(identities(&after), identities(&before), "no pod was replaced, and none was restarted");
    let count = seen().len();
    Cluster::until("values after the rotation", || (seen().len() > count).then_some(()));

    let endpoints =
        r#"{"spec":{"endpoints":["https://etcd-1.etcd.etcd.svc:2379","https://etcd-2.etcd.etcd.svc:2379"]}}"#;
    cluster.kubectl(&["patch", "etcdbackend", "shared", "--type=merge", "-p", endpoints]);
    Cluster::until("pods with the other endpoints", || {
        let pods = cluster.proxies("team-a", "registry");
        let has_them = |pod: &Value| pod["spec"]["containers"][0]["args"].to_string().contains("etcd-2.etcd.etcd.svc");
        let is_ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        (pods.len() == 1 && pods.iter().all(|pod| has_them(pod) && is_ready(pod))).then_some(())
    });
    let count = seen().len();
    Cluster::until("values after the change", || (seen().len() > count).then_some(()));

    cluster.kubectl(&refs(&cluster.on_etcd("touch /data/stop")));
    let line = writer.stdout.wait_until(Instant::now() + PATIENCE, |line| line.starts_with("put "));
    let last: usize = line.and_then(|line| line[4..].parse().ok()).expect("the writer says how far it came");
    Cluster::until("the last value", || (seen().last() == Some(&last)).then_some(()));
    assert_eq!(seen(), (1..=last).collect::<Vec<_>>(), "each value came once and in its order");
}

fn refs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The pods, and how often their containers were started anew.
fn identities(pods: &[Value]) -> Vec<(String, Value)> {
    let identity =
        |pod: &Value| (text(&pod["metadata"]["name"]), pod["status"]["containerStatuses"][0]["restartCount"].clone());
    pods.iter().map(identity).collect()
}

fn service_address(cluster: &Cluster) -> String {
    let workload = cluster.get("team-a", &["etcdproxy", "registry"])["status"]["workload"].clone();
    let service = cluster.get(&text(&workload["namespace"]), &["service", &text(&workload["name"])]);
    format!("{}:2379", text(&service["spec"]["clusterIP"]))
}

/// Puts a certificate that ends in ten days in the place of the one that the operator issued.
fn give_aged_certificate(cluster: &Cluster, namespace: &str, name: &str) {
    let folder = cluster.folder().join("aged");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let unpack = |secret: &str, key: &str| {
        let template = format!("--template={{{{index .data \"{key}\" | base64decode}}}}");
        let text = cluster.kubectl(&["get", "secret", "-n", namespace, secret, &template]);
        std::fs::write(folder.join(key), text).expect("the file can be written");
    };
    unpack(&format!("{name}-ca"), "serving.crt");
    unpack(&format!("{name}-ca"), "serving.key");
    unpack(&format!("{name}-serving"), "tls.crt");
    unpack(&format!("{name}-serving"), "tls.key");
    let script = "openssl x509 -in tls.crt -noout -ext subjectAltName,extendedKeyUsage,keyUsage >was && \
                  printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' \
                  \"$(grep DNS: was | sed 's/IP Address:/IP:/g; s/ //g')\" >wanted && \
                  openssl req -new -key tls.key -subj / -out aged.csr && \
                  openssl x509 -req -in aged.csr -CA serving.crt -CAkey serving.key -set_serial 4711 -days 10 \
                  -extfile wanted -out aged.crt";
    let output = Command::new("bash").current_dir(&folder).args(["-ec", script]).output().expect("bash is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let aged = std::fs::read_to_string(folder.join("aged.crt")).expect("openssl has written it");
    let patch = serde_json::json!({"stringData": {"tls.crt": aged}}).to_string();
    cluster.kubectl(&["patch", "secret", "-n", namespace, &format!("{name}-serving"), "--type=merge", "-p", &patch]);
}

/// How long the certificate that a server shows will last.
fn days_left(address: &str) -> u32 {
    const DAY: u32 = 24 * 60 * 60;
    let lasts = |days: u32| {
        let script = format!(
            "openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -checkend {}",
            days * DAY
        );
        Command::new("bash").args(["-c", &script]).output().expect("bash is there").status.success()
    };
    (0..=90).rev().find(|days| lasts(*days)).unwrap_or_default()
}

/// The serial number of the certificate that a server shows, to whoever asks.
fn serial(address: &str) -> Option<String> {
    let script = format!("openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -serial");
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash is there");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
