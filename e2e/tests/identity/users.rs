//! Certificates that are mapped to users of etcd: by a password, by a certificate of the user's own, or not at all.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use etcd_proxy_e2e::process::PATIENCE;
use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Pair, Process, Proxy, Tls, Version, http, ports};
use tempfile::TempDir;

use crate::{add_user, enable_auth, etcd, logins};

pub struct Rig {
    pub proxy: Proxy,
    metrics: String,
    etcd: Etcd,
    pub direct: Etcdctl,
    pub authority: Authority,
    folder: TempDir,
}

fn rig() -> Rig {
    rig_with(&[])
}

/// etcd with users, over TLS, and a proxy that maps certificates to them.
pub fn rig_with(flags: &[&str]) -> Rig {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let tls = Tls { server: authority.server("etcd"), ca: authority.ca(), client_cert_auth: true };
    let etcd = etcd(&authority).tls(tls).start();
    let own = authority.nameless_client("own");
    let direct = etcd.etcdctl().tls(&authority.ca(), Some(&own));
    add_user(&direct, "alice", &["alice:secret"], "/a/");
    add_user(&direct, "bob", &["bob", "--no-password"], "/b/");
    direct.ok(&["user", "add", "eve:eve"]);
    enable_auth(&direct);
    let direct = direct.user("root:root");

    let file = |name: &str, content: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("the file can be written");
        path
    };
    let bob = authority.client("bob", "bob");
    let rules = format!(
        "client-identity:
- {{name: a, identities: [{{common-name: team-a}}], namespace: /a/, user: alice, password-file: {alice}}}
- {{name: b, identities: [{{uri: 'spiffe://cluster/ns/b/*'}}], namespace: /b/, cert: {bob}, key: {bobs_key}}}
- {{name: eve, identities: [{{dns: eve.example}}], namespace: /a/, user: eve, password-file: {eve}}}
- {{name: nobody, identities: [{{common-name: plain}}], namespace: /c/}}
- {{name: root, identities: [{{common-name: admin}}], api-profile: full, user: root, password-file: {root}}}
",
        alice = file("alice.password", "secret\n").display(),
        eve = file("eve.password", "eve").display(),
        root = file("root.password", "root").display(),
        bob = bob.cert.display(),
        bobs_key = bob.key.display(),
    );
    let server = authority.server("server");
    let metrics = ports::free_address();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag(format!("--cert={}", own.cert.display()))
        .flag(format!("--key={}", own.key.display()))
        .flag(format!("--cacert={}", authority.ca().display()))
        .flag(format!("--cert-file={}", server.cert.display()))
        .flag(format!("--key-file={}", server.key.display()))
        .flag(format!("--trusted-ca-file={}", authority.ca().display()))
        .flag(format!("--config-file={}", file("proxy.yaml", &rules).display()))
        .flag(format!("--metrics-addr=http://{metrics}"))
        .flags(flags.iter().copied())
        .start();
    Rig { proxy, metrics, etcd, direct, authority, folder }
}

impl Rig {
    pub fn etcdctl(&self, pair: &Pair) -> Etcdctl {
        Etcdctl::new(Version::default(), format!("https://{}", self.proxy.address()))
            .tls(&self.authority.ca(), Some(pair))
            .flag("--command-timeout=5s")
    }

    pub fn named(&self, name: &str) -> (Pair, Etcdctl) {
        let pair = self.authority.client(name, name);
        let etcdctl = self.etcdctl(&pair);
        (pair, etcdctl)
    }

    /// A POST over the JSON door.
    fn curl(&self, pair: &Pair, path: &str, body: &str) -> Process {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--no-buffer", "--data", body, "--cacert"]).arg(self.authority.ca());
        curl.arg("--cert").arg(&pair.cert).arg("--key").arg(&pair.key);
        curl.arg(format!("https://{}{path}", self.proxy.address()));
        Process::spawn("curl", &mut curl, b"")
    }

    /// What it brings.
    fn json(&self, pair: &Pair, path: &str, body: &str) -> String {
        let mut curl = self.curl(pair, path, body);
        assert_eq!(curl.wait(), 0, "curl {path}");
        curl.stdout.wait_for_end();
        curl.stdout.text()
    }

    fn cache_hits(&self) -> f64 {
        self.metric("etcd_grpc_proxy_cache_hits_total")
    }

    /// How many watches have ended because the right to them had.
    pub fn withdrawn(&self) -> f64 {
        self.metric("etcd_proxy_watches_withdrawn_total")
    }

    fn metric(&self, name: &str) -> f64 {
        let answer = http::get(&self.metrics, "/proxy/metrics").expect("metrics");
        answer.metric(name).expect("it is always there")
    }
}

fn refused(etcdctl: &Etcdctl, arguments: &[&str], words: &str) {
    let outcome = etcdctl.run(arguments);
    assert!(outcome.code != 0 && outcome.stderr.contains(words), "{arguments:?}, want {words}: {outcome:?}");
}

const RANGE: &str = r#"{"key":"aw=="}"#;

#[test]
fn each_client_is_the_user_to_whom_its_certificate_is_mapped() {
    let rig = rig();
    let (team_a, a) = rig.named("team-a");
    let spiffe = rig.authority.client_for_uri("spiffe", "spiffe://cluster/ns/b/sa/app");
    let b = rig.etcdctl(&spiffe);
    a.ok(&["put", "k", "of-a"]);
    b.ok(&["put", "k", "of-b"]);
    assert_eq!(rig.direct.ok(&["get", "/a/k", "--print-value-only"]).trim(), "of-a");
    assert_eq!(rig.direct.ok(&["get", "/b/k", "--print-value-only"]).trim(), "of-b");
    let (_, admin) = rig.named("admin");
    assert!(admin.ok(&["user", "list"]).contains("alice"));

    // Whoever is mapped to no user is nobody to etcd, unless the client logs in by itself.
    let (_, plain) = rig.named("plain");
    refused(&plain, &["get", "k"], "permission denied");
    refused(&plain.clone().user("alice:secret"), &["get", "k"], "permission denied");
    plain.clone().user("root:root").ok(&["put", "k", "of-c"]);
    // And whoever does is judged by that alone, although its certificate is somebody's.
    refused(&a.clone().user("eve:eve"), &["get", "k"], "permission denied");

    // The other door.
    for (pair, value) in [(&team_a, "b2YtYQ=="), (&spiffe, "b2YtYg==")] {
        let answer = rig.json(pair, "/v3/kv/range", RANGE);
        assert!(answer.contains(&format!(r#""value":"{value}""#)), "want {value}: {answer}");
    }
    let snapshot = rig.json(&team_a, "/v3/maintenance/snapshot", "{}");
    assert!(snapshot.contains("tenant"), "{snapshot}");
    let (mallory, by_grpc) = rig.named("mallory");
    let by_json = rig.json(&mallory, "/v3/kv/range", RANGE);
    assert!(by_json.contains("names nobody whom this proxy serves") && by_json.contains("16"), "{by_json}");
    refused(&by_grpc, &["get", "k"], "names nobody whom this proxy serves");

    // What is right for etcd in its own clients is refused in a foreign authority's.
    let foreign = Authority::new(&rig.folder.path().join("foreign")).client("team-a", "team-a");
    assert_ne!(rig.etcdctl(&foreign).run(&["get", "k"]).code, 0);
}

#[test]
fn answers_and_watches_never_cross_to_a_user_with_other_rights() {
    let rig = rig();
    let (_, a) = rig.named("team-a");
    let eves = rig.authority.server_for("eve", &["eve.example"]);
    let eve = rig.etcdctl(&eves);
    a.ok(&["put", "k", "secret"]);
    let watch = a.spawn(&["watch", "k", "--rev=1"]);
    watch.expect_stdout("secret");
    let deadline = Instant::now() + PATIENCE;
    let before = rig.cache_hits();
    while rig.cache_hits() < before + 2.0 {
        a.ok(&["get", "k"]);
        a.ok(&["get", "k", "--consistency=s"]);
        assert!(Instant::now() < deadline, "the range is read often and not cached");
    }
    refused(&eve, &["get", "k"], "permission denied");
    refused(&eve, &["get", "k", "--consistency=s"], "permission denied");
    refused(&eve, &["watch", "k", "--rev=1"], "permission denied");
    let by_json = rig.json(&eves, "/v3/kv/range", RANGE);
    assert!(by_json.contains("permission denied"), "{by_json}");
    let watched = rig.curl(&eves, "/v3/watch", r#"{"create_request":{"key":"aw==","start_revision":"1"}}"#);
    watched.expect_stdout("permission denied");
    assert!(!watched.stdout.text().contains("c2VjcmV0"), "{}", watched.stdout.text());
}

#[test]
fn single_calls_outlive_the_token() {
    let rig = rig();
    let (_, a) = rig.named("team-a");
    a.ok(&["put", "k", "v"]);
    let before = logins(&rig.metrics, "success");
    let deadline = Instant::now() + PATIENCE;
    while logins(&rig.metrics, "success") < before + 2.0 {
        a.ok(&["put", "k", "v"]);
        assert!(Instant::now() < deadline, "the proxy has not logged in again");
    }
}

#[test]
fn tokens_that_have_run_out_are_exchanged_unseen() {
    let mut rig = rig();
    let (_, a) = rig.named("team-a");
    let watch = a.spawn(&["watch", "--prefix", ""]);
    let granted = a.ok(&["lease", "grant", "3"]);
    let lease = granted.split(' ').nth(1).expect("its id").to_owned();
    let kept = a.spawn(&["lease", "keep-alive", &lease]);
    let before = logins(&rig.metrics, "success");
    let deadline = Instant::now() + PATIENCE;
    let mut round = 0;
    while logins(&rig.metrics, "success") < before + 3.0 {
        round += 1;
        let key = format!("key-{round}");
        a.ok(&["put", &key, "v", &format!("--lease={lease}")]);
        a.ok(&["get", &key]);
        let fresh = a.spawn(&["watch", &key, "--rev=1"]);
        fresh.expect_stdout(&key);
        watch.expect_stdout(&key);
        assert!(Instant::now() < deadline, "the proxy has not logged in again");
    }
    for _ in 0..3 {
        kept.expect_stdout("keepalived with TTL(3)");
    }
    // A member that comes back knows no stream of before: all is taken up under a fresh token.
    rig.etcd.member(0).kill();
    rig.etcd.member(0).restart();
    a.ok(&["put", "after", "v"]);
    watch.expect_stdout("after");
    kept.expect_stdout("keepalived with TTL(3)");
    // A user who is no more is let in nowhere.
    rig.direct.ok(&["user", "delete", "alice"]);
    refused(&a, &["get", "after"], "");
}
