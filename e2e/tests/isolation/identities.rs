//! Who is asking: clients told apart by their certificates, on one port.

use std::{fs, process::Command};

use etcd_proxy_e2e::{Authority, Pair, Process, Proxy, wait};

use crate::port::Port;

const RULES: &str = "
client-identity:
- name: team-a
  identities: [{common-name: team-a}, {dns: a.example}]
  namespace: /a/
- name: team-b
  identities: [{common-name: team-b}]
  namespace: /b/
- name: reader-of-a
  identities: [{common-name: 'reader-*'}]
  namespace: /a/
  api-profile: read-only
- name: operators
  identities: [{common-name: admin}]
  api-profile: full
";

#[test]
fn one_port_serves_many_tenants_by_what_their_certificates_say() {
    let port = Port::open(RULES, |_| Vec::new());
    let Port { proxy, authority, .. } = &port;
    let etcdctl = |pair: &Pair| port.etcdctl(pair).flag("--command-timeout=5s");
    let named = |name: &str| etcdctl(&authority.client(name, name));

    named("team-a").ok(&["put", "k", "of-a"]);
    named("team-b").ok(&["put", "k", "of-b"]);
    assert_eq!(named("team-a").ok(&["get", "k", "--print-value-only"]), "of-a");
    assert_eq!(named("team-b").ok(&["get", "", "--prefix", "--print-value-only"]), "of-b");
    assert_eq!(named("admin").ok(&["get", "/a/k", "--print-value-only"]), "of-a");

    // By a SAN, too; and one rule may fit many.
    let host = authority.server_for("host", &["a.example"]);
    assert_eq!(etcdctl(&host).ok(&["get", "k", "--print-value-only"]), "of-a");
    assert_eq!(named("reader-1").ok(&["get", "k", "--print-value-only"]), "of-a");
    let refused = named("reader-2").run(&["put", "k", "x"]);
    assert!(refused.code != 0 && refused.stderr.contains("read-only"), "{refused:?}");
    let refused = named("team-b").run(&["snapshot", "save", "/dev/null"]);
    assert!(refused.code != 0, "{refused:?}");

    // Of many tenants none is shown the pages that name the others and count their calls.
    for (name, path, words) in [
        ("team-a", "/proxy/metrics", "403 forbidden"),
        ("team-a", "/metrics", "403 forbidden"),
        ("team-a", "/status.json", "403 forbidden"),
        ("mallory", "/proxy/metrics", "403 forbidden"),
        ("team-a", "/livez", "ok"),
        ("team-a", "/health", "true"),
        ("admin", "/proxy/metrics", "etcd_proxy_"),
    ] {
        let pair = authority.client(name, name);
        for version in ["--http1.1", "--http2"] {
            let shown = page(proxy, authority, &pair, version, path);
            assert!(shown.contains(words) && (name == "admin" || !shown.contains("team-b")), "{name} {path}: {shown}");
        }
    }

    // A good certificate that names nobody.
    let refused = named("mallory").run(&["get", "k"]);
    assert!(refused.code != 0 && refused.stderr.contains("names nobody whom this proxy serves"), "{refused:?}");
    proxy.process.expect_stderr("a client's certificate names nobody whom this proxy serves");
}

#[test]
fn rules_that_change_are_taken_over_and_who_loses_a_rule_is_cut_off() {
    let port = Port::open(RULES, |_| Vec::new());
    let Port { proxy, etcd, authority, config, .. } = &port;
    let pair = |name: &str| authority.client(name, name);
    let [a, b, stranger] = ["team-a", "team-b", "team-c-7"].map(|name| port.etcdctl(&pair(name)));
    for (team, value) in [(&a, "of-a"), (&b, "of-b")] {
        team.ok(&["put", "k", value]);
    }
    let (of_a, of_b) = (a.spawn(&["watch", "k", "--rev=1"]), b.spawn(&["watch", "k", "--rev=1"]));
    of_a.expect_stdout("of-a");
    of_b.expect_stdout("of-b");
    let by_json = open_watch(proxy, authority, &pair("team-b"));
    by_json.expect_stdout("created");

    // What cannot be used changes nothing.
    fs::write(config, RULES.replace("api-profile: full", "api-profile: fool")).expect("the file can be written");
    proxy.process.expect_stderr("the changed rules of client-identity cannot be used");
    a.ok(&["put", "k", "still-a"]);
    of_a.expect_stdout("still-a");

    // Team b is nobody any more, and team c is somebody, whatever follows in its name.
    let changed = RULES.replace("common-name: team-b", "common-name: 'team-c-*'");
    fs::write(config, changed.replace("namespace: /b/", "namespace: /c/")).expect("the file can be written");
    proxy.process.expect_stderr("the rules of client-identity have changed");
    proxy.process.expect_stderr("a client is somebody else by the new rules");
    let mut by_json = by_json;
    assert!(!matches!(by_json.wait(), 0 | 28), "the answer neither ends well nor runs out of time, but is cut off");
    let refused = b.clone().flag("--command-timeout=5s").run(&["get", "k"]);
    assert!(refused.code != 0 && refused.stderr.contains("names nobody whom this proxy serves"), "{refused:?}");
    // Each connection is cut off by itself: only the watch of team a is left.
    let operator = pair("admin");
    wait::until("only team a watches", || {
        page(proxy, authority, &operator, "--http2", "/proxy/metrics").contains("\netcd_proxy_client_watches 1\n")
    });
    etcd.etcdctl().ok(&["put", "/b/k", "secret"]);
    stranger.ok(&["put", "k", "of-c"]);
    assert_eq!(etcd.etcdctl().ok(&["get", "/c/k", "--print-value-only"]), "of-c");
    // Whose rule is as before noticed nothing.
    a.ok(&["put", "k", "last-a"]);
    of_a.expect_stdout("last-a");
    assert!(!of_b.stdout.text().contains("secret"), "{}", of_b.stdout.text());

    // And back again.
    fs::write(config, RULES).expect("the file can be written");
    proxy.process.expect_stderr("the rules of client-identity have changed");
    assert_eq!(b.ok(&["get", "k", "--print-value-only"]), "secret");
    assert_eq!(a.ok(&["get", "k", "--print-value-only"]), "last-a");
}

/// A page as a client with this certificate sees it.
fn page(proxy: &Proxy, authority: &Authority, pair: &Pair, version: &str, path: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", version, "--max-time", "60", "--cacert"]).arg(authority.ca());
    curl.arg("--cert").arg(&pair.cert).arg("--key").arg(&pair.key);
    curl.arg(format!("https://{}{path}", proxy.address()));
    let shown = curl.output().expect("curl runs");
    String::from_utf8_lossy(&shown.stdout).into_owned()
}

/// A watch on a key of one's own over HTTP/1.1.
fn open_watch(proxy: &Proxy, authority: &Authority, pair: &Pair) -> Process {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--no-buffer", "--http1.1", "--max-time", "600", "--cacert"]).arg(authority.ca());
    curl.arg("--cert").arg(&pair.cert).arg("--key").arg(&pair.key);
    curl.args(["--data", r#"{"create_request":{"key":"aw=="}}"#]).arg(format!("https://{}/v3/watch", proxy.address()));
    Process::spawn("curl", &mut curl, b"")
}

#[test]
fn rules_that_keep_nobody_apart_stop_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let config = folder.path().join("proxy.yaml");
    for (rules, words) in [
        (RULES.to_owned(), "give --trusted-ca-file"),
        (RULES.replace("namespace: /b/", "prefix: /b/"), "unknown field `prefix`"),
    ] {
        fs::write(&config, rules).expect("the file can be written");
        let outcome = Proxy::builder().flag(format!("--config-file={}", config.display())).run();
        assert!(outcome.code != 0 && outcome.stderr.contains(words), "{outcome:?}");
    }
}
