//! Who is asking: clients told apart by their certificates, on one port.

use std::fs;

use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Pair, Proxy, Version};

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
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let etcd = Etcd::start();
    let server = authority.server("server");
    let config = folder.path().join("proxy.yaml");
    fs::write(&config, RULES).expect("the file can be written");
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag(format!("--cert-file={}", server.cert.display()))
        .flag(format!("--key-file={}", server.key.display()))
        .flag(format!("--trusted-ca-file={}", authority.ca().display()))
        .flag(format!("--config-file={}", config.display()))
        .start();
    let etcdctl = |pair: &Pair| {
        Etcdctl::new(Version::default(), format!("https://{}", proxy.address()))
            .tls(&authority.ca(), Some(pair))
            .flag("--command-timeout=5s")
    };
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

    // A good certificate that names nobody.
    let refused = named("mallory").run(&["get", "k"]);
    assert!(refused.code != 0 && refused.stderr.contains("names nobody whom this proxy serves"), "{refused:?}");
    proxy.process.expect_stderr("a client's certificate names nobody whom this proxy serves");
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
