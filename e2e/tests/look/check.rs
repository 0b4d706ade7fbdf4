//! `etcd-proxy check` before real etcds with real faults.

use std::collections::HashMap;
use std::net::TcpListener;

use etcd_proxy_e2e::{Authority, Etcd, Tls, Version, docs::Session, ports, wait::until};
use serde_json::Value;

use super::{flag, run};

/// What came of a check.
struct Checked {
    code: i32,
    report: Value,
}

impl Checked {
    /// Result and detail of the rows of one check.
    fn rows(&self, check: &str) -> Vec<(String, String)> {
        let rows = self.report["checks"].as_array().expect("a list of checks");
        let text = |row: &Value, key: &str| row[key].as_str().expect("a text").to_owned();
        let rows = rows.iter().filter(|row| row["check"] == check);
        rows.map(|row| (text(row, "result"), text(row, "detail"))).collect()
    }

    /// Some row of this check has this result and these words.
    #[track_caller]
    fn expect(&self, check: &str, result: &str, words: &str) {
        let found = self.rows(check).iter().any(|(found, detail)| found == result && detail.contains(words));
        assert!(found, "no row {check:?} is {result:?} with {words:?}: {:#}", self.report);
        assert_eq!(self.code, if self.report["ok"] == true { 0 } else { 2 }, "{:#}", self.report);
    }
}

/// Checks with these flags and ports that nobody has.
fn check(flags: &[String]) -> Checked {
    let listen = format!("--listen-addr={}", ports::free_address());
    let mut words = vec!["check".to_owned(), "--output=json".to_owned()];
    words.extend((!flags.iter().any(|flag| flag.starts_with("--listen-addr"))).then_some(listen));
    words.extend(flags.iter().cloned());
    let outcome = run(&words);
    let report = serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("no JSON: {error}: {outcome:?}"));
    Checked { code: outcome.code, report }
}

fn endpoints(endpoints: impl std::fmt::Display) -> String {
    format!("--endpoints={endpoints}")
}

#[test]
fn a_start_that_would_work_is_told_so() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let tls = Tls { server: authority.server("etcd"), ca: authority.ca(), client_cert_auth: true };
    let etcd = Etcd::builder().tls(tls).start();
    let (client, server) = (authority.nameless_client("client"), authority.server("server"));
    let flags = [
        endpoints(etcd.endpoints().replace("127.0.0.1", "localhost")),
        flag("cert", &client.cert),
        flag("key", &client.key),
        flag("cacert", &authority.ca()),
        flag("cert-file", &server.cert),
        flag("key-file", &server.key),
        flag("trusted-ca-file", &authority.ca()),
        "--namespace=team/".to_owned(),
    ];
    let checked = check(&flags);
    for (name, words) in [
        ("flags", "they fit"),
        ("listen", "can be listened on"),
        ("tls to clients", "a handshake succeeds; clients come each with a certificate"),
        ("name", "127.0.0.1"),
        ("tls", "TLS1.3, certificate of O=etcd-proxy tests, runs out in 29 days"),
        ("connect", "answers in"),
        ("version", "3.7."),
        ("leader", "is "),
        ("auth", "off"),
        ("prefix", "can be read, at revision 1"),
        ("clock", "is that of this machine"),
        ("cluster", "1 of 1 endpoints answer, etcd 3.7."),
    ] {
        checked.expect(name, "ok", words);
    }
    assert_eq!((checked.code, &checked.report["ok"]), (0, &Value::Bool(true)), "{:#}", checked.report);

    let words: Vec<String> =
        ["check".to_owned(), format!("--listen-addr={}", ports::free_address())].into_iter().chain(flags).collect();
    let table = run(&words);
    assert!(table.stdout.starts_with("CHECK ") && table.stdout.trim_end().ends_with("ready to start"), "{table:?}");
    let wrong = run(&["check".to_owned(), "--no-such-flag".to_owned()]);
    assert!(wrong.code == 1 && wrong.stderr.contains("unknown flag: --no-such-flag"), "{wrong:?}");
}

#[test]
fn what_is_wrong_on_the_way_to_etcd_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let stranger = Authority::new(&folder.path().join("stranger"));
    let start = |server| Etcd::builder().tls(Tls { server, ca: authority.ca(), client_cert_auth: true }).start();
    let client = authority.nameless_client("client");
    let (cert, key, ca) = (flag("cert", &client.cert), flag("key", &client.key), flag("cacert", &authority.ca()));
    let with = |etcd: &Etcd, ca: &str| check(&[endpoints(etcd.endpoints()), cert.clone(), key.clone(), ca.to_owned()]);

    let good = start(authority.server("etcd"));
    with(&good, &ca).expect("prefix", "ok", "can be read");
    with(&good, &flag("cacert", &stranger.ca())).expect("tls", "failed", "signed by another CA of the same name");
    let without = check(&[endpoints(good.endpoints()), ca.clone()]);
    without.expect("connect", "failed", "etcd wants a certificate and was shown none, see --cert");
    without.expect("cluster", "failed", "none of 1 endpoints answers");
    let plain = check(&[endpoints(good.endpoints().replace("https:", "http:"))]);
    plain.expect("connect", "failed", "does it want TLS");

    let expired = start(authority.expired_server("expired"));
    with(&expired, &ca).expect("tls", "failed", "the certificate of etcd expired on");
    let elsewhere = start(authority.server_for("elsewhere", &["etcd.example"]));
    with(&elsewhere, &ca).expect("tls", "failed", "is not for 127.0.0.1, but for");

    let dead = check(&[endpoints(format!("http://{}", ports::free_address()))]);
    dead.expect("connect", "failed", "refused");
    // No name has two dots in a row, so no name server is asked.
    let nowhere = check(&[endpoints("http://no..such.host:2379")]);
    nowhere.expect("name", "failed", "cannot be resolved");
    let both = check(&[endpoints(format!("{},http://{}", good.endpoints(), ports::free_address())), cert, key, ca]);
    both.expect("cluster", "ok", "1 of 2 endpoints answer");
    assert_eq!(both.code, 2, "an endpoint that is down is a fault: {:#}", both.report);
}

#[test]
fn what_is_wrong_on_this_side_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let etcd = Etcd::start();
    let with = |cert: &std::path::Path, key: &std::path::Path, more: &[String]| {
        let own = [endpoints(etcd.endpoints()), flag("cert-file", cert), flag("key-file", key)];
        check(&[&own[..], more].concat())
    };
    let (good, other) = (authority.server("server"), authority.server_for("other", &["proxy.example"]));
    let expired = authority.expired_server("expired");
    with(&good.cert, &other.key, &[]).expect("tls to clients", "failed", "private key does not match public key");
    with(&expired.cert, &expired.key, &[]).expect("certificate", "failed", "ran out");
    let named = with(&other.cert, &other.key, &[]);
    named.expect("server name", "warning", "is for proxy.example and not for 127.0.0.1 of --advertise-client-url");
    assert_eq!(named.code, 0, "{:#}", named.report);
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = taken.local_addr().expect("a bound socket has an address");
    let busy = check(&[endpoints(etcd.endpoints()), format!("--listen-addr={address}")]);
    busy.expect("listen", "warning", "is in use");
    let secured = check(&[endpoints(etcd.endpoints().replace("http:", "https:"))]);
    secured.expect("tls", "failed", "does it speak plaintext, http instead of https?");
    let refused = check(&[endpoints(etcd.endpoints()), "--api-profile=tenant".to_owned()]);
    refused.expect("configuration", "failed", "give --namespace");
}

#[test]
fn auth_is_found_and_who_is_shut_out_by_it() {
    let etcd = Etcd::start();
    let etcdctl = etcd.etcdctl();
    etcdctl.ok(&["user", "add", "root:password"]);
    etcdctl.ok(&["user", "grant-role", "root", "root"]);
    etcdctl.ok(&["auth", "enable"]);
    let nobody = check(&[endpoints(etcd.endpoints())]);
    nobody.expect("auth", "warning", "on: clients bring their own users");
    nobody.expect("prefix", "skipped", "only its users can tell");
    assert_eq!(nobody.code, 0, "{:#}", nobody.report);
    let registers = [endpoints(etcd.endpoints()), "--resolver-prefix=p".to_owned(), "--resolver-ttl=10".to_owned()];
    check(&registers).expect("auth", "failed", "cannot register itself");
    let as_root = [&registers[..], &["--user=root:password".to_owned()]].concat();
    check(&as_root).expect("prefix", "ok", "can be read");
}

#[test]
fn a_cluster_without_a_leader_is_told_from_one_that_is_down() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.member(1).kill();
    etcd.member(2).kill();
    let survivor = [endpoints(etcd.endpoint(0))];
    until("the last member notices that it is alone", || {
        check(&survivor).rows("leader") == [("failed".to_owned(), "etcdserver: no leader".to_owned())]
    });
    let alone = check(&survivor);
    alone.expect("prefix", "skipped", "without a leader");
    alone.expect("cluster", "failed", "no member knows a leader");
}

#[test]
fn what_the_page_about_operations_says_of_it_is_so() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    Session::read("docs/operations.md", "Check before you run").run(folder.path(), Version::default(), &HashMap::new());
}
