//! TLS of the running program on both sides: who gets in, what is spoken, what changes without a restart.

use std::path::Path;
use std::process::{Command, Stdio};

use etcd_proxy_e2e::wait::until;
use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Outcome, Pair, Proxy, Tls, Version};

/// etcdctl gives up here when it is not let in; it would try for longer.
const REFUSED: &str = "--command-timeout=2s";

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// A proxy that serves clients over TLS, before an etcd in plaintext.
fn serving(etcd: &Etcd, server: &Pair, more: &[String]) -> Proxy {
    let own =
        [format!("--endpoints={}", etcd.endpoints()), flag("cert-file", &server.cert), flag("key-file", &server.key)];
    Proxy::builder().flags(own.iter().chain(more).map(String::as_str)).start()
}

fn etcdctl(proxy: &Proxy, ca: &Path, client: Option<&Pair>) -> Etcdctl {
    Etcdctl::new(Version::default(), format!("https://{}", proxy.address())).tls(ca, client)
}

fn assert_refused(etcdctl: Etcdctl, who: &str) {
    let outcome = etcdctl.flag(REFUSED).run(&["get", "k"]);
    assert_ne!(outcome.code, 0, "{who} was let in: {outcome:?}");
}

#[test]
fn clients_get_in_by_a_certificate_of_ours_that_is_valid_and_not_revoked() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let stranger = Authority::new(&folder.path().join("stranger"));
    let revoked = authority.client("revoked", "alice");
    let list = authority.revocation_list("revoked.crl", &[&revoked]);
    let etcd = Etcd::start();
    let more = [flag("trusted-ca-file", &authority.ca()), flag("client-crl-file", &list)];
    let proxy = serving(&etcd, &authority.server("server"), &more);
    let good = authority.client("good", "alice");
    etcdctl(&proxy, &authority.ca(), Some(&good)).ok(&["put", "k", "v"]);
    let expired = authority.expired_client("expired", "alice");
    let foreign = stranger.client("foreign", "alice");
    assert_refused(etcdctl(&proxy, &authority.ca(), None), "a client without a certificate");
    assert_refused(etcdctl(&proxy, &authority.ca(), Some(&expired)), "an expired certificate");
    assert_refused(etcdctl(&proxy, &authority.ca(), Some(&foreign)), "a certificate of another authority");
    assert_refused(etcdctl(&proxy, &authority.ca(), Some(&revoked)), "a revoked certificate");
    // And the client looks at us: another authority than ours is not enough.
    assert_refused(etcdctl(&proxy, &stranger.ca(), Some(&good)), "a client that does not trust us");
    // Plaintext on a port of TLS is no service either.
    assert_refused(proxy.etcdctl(), "plaintext");
}

#[test]
fn an_etcd_that_wants_certificates_is_shown_ours() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let client = authority.nameless_client("client");
    let [cert, key, ca] = [flag("cert", &client.cert), flag("key", &client.key), flag("cacert", &authority.ca())];
    let tls = Tls { server: authority.server("etcd"), ca: authority.ca(), client_cert_auth: true };
    let etcd = Etcd::builder().tls(tls).start();
    let start = |flags: &[&str]| {
        let endpoints = format!("--endpoints={}", etcd.endpoints());
        Proxy::builder().flag(endpoints).flags(flags.iter().copied()).start()
    };
    start(&[&cert, &key, &ca]).etcdctl().ok(&["put", "k", "v"]);
    start(&[&cert, &key, "--insecure-skip-tls-verify"]).etcdctl().ok(&["put", "k", "v"]);
    let without = start(&[&ca]).etcdctl().flag(REFUSED).run(&["put", "k", "v"]);
    assert_unavailable(&without, &["etcd wants a certificate", "--cert"], etcd.address());
}

/// Not `context deadline exceeded`, which says nothing, but the reason and where it was met.
fn assert_unavailable(outcome: &Outcome, words: &[&str], address: &str) {
    assert_ne!(outcome.code, 0, "{outcome:?}");
    for word in words.iter().chain([&address]) {
        assert!(outcome.stderr.contains(word), "{outcome:?} does not say {word:?}");
    }
}

#[test]
fn an_etcd_that_is_not_trusted_is_named_with_the_reason() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let stranger = Authority::new(&folder.path().join("stranger"));
    let serving =
        |server: Pair| Etcd::builder().tls(Tls { server, ca: authority.ca(), client_cert_auth: false }).start();
    // A write that etcdctl does not try again by itself, so that it shows the first answer.
    let ask = |etcd: &Etcd, flags: &[String]| {
        let endpoints = format!("--endpoints={}", etcd.endpoints());
        let proxy = Proxy::builder().flag(endpoints).flags(flags.iter().map(String::as_str)).start();
        proxy.etcdctl().flag(REFUSED).run(&["lease", "grant", "10"])
    };
    let etcd = serving(authority.server("etcd"));
    // No flag says anything about TLS, so the system's authorities count.
    assert_unavailable(&ask(&etcd, &[]), &["certificate", "--cacert"], etcd.address());
    assert_unavailable(&ask(&etcd, &[flag("cacert", &stranger.ca())]), &["certificate", "--cacert"], etcd.address());
    let elsewhere = serving(authority.server_for("elsewhere", &["other.example"]));
    let trusting = [flag("cacert", &authority.ca())];
    assert_unavailable(&ask(&elsewhere, &trusting), &["certificate", "127.0.0.1"], elsewhere.address());
}

#[test]
fn auto_tls_makes_a_certificate_and_keeps_it() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let etcd = Etcd::start();
    let flags = [format!("--endpoints={}", etcd.endpoints()), "--auto-tls".to_owned(), flag("data-dir", folder.path())];
    let cert = folder.path().join("fixtures/proxy/cert.pem");
    let mut made = Vec::new();
    for _ in 0..2 {
        let proxy = Proxy::builder().flags(flags.iter().map(String::as_str)).start();
        let etcdctl = Etcdctl::new(Version::default(), format!("https://{}", proxy.address()));
        etcdctl.flag("--insecure-skip-tls-verify").flag("--insecure-transport=false").ok(&["put", "k", "v"]);
        made.push(std::fs::read(&cert).expect("the certificate is where etcd's proxy puts it"));
    }
    assert_eq!(made[0], made[1]);
}

/// A handshake by openssl; what it agreed upon, or why there was none.
fn handshake(proxy: &Proxy, arguments: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-brief", "-connect", proxy.address()]).args(arguments);
    let output = command.stdin(Stdio::null()).output().expect("openssl is installed, as CONTRIBUTING.md asks");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn versions_and_cipher_suites_are_those_of_the_flags() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let server = authority.server("server");
    let etcd = Etcd::start();
    let check = |flags: &[&str], arguments: &[&str], expected: Option<&str>| {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let proxy = serving(&etcd, &server, &flags);
        let said = handshake(&proxy, arguments);
        match expected {
            Some(agreed) => assert!(said.contains(agreed), "{flags:?} {arguments:?}: {said}"),
            None => assert!(!said.contains("CONNECTION ESTABLISHED"), "{flags:?} {arguments:?}: {said}"),
        }
    };
    check(&[], &["-tls1_3"], Some("TLSv1.3"));
    check(&[], &["-tls1_2"], Some("TLSv1.2"));
    check(&["--tls-max-version=TLS1.2"], &["-tls1_3"], None);
    check(&["--tls-min-version=TLS1.3"], &["-tls1_2"], None);
    let suite = "--listen-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    check(&[suite], &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], Some("ECDHE-ECDSA-AES256-GCM-SHA384"));
    check(&[suite], &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], None);
}

#[test]
fn certificates_authorities_and_revocations_change_under_an_open_watch() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let old = Authority::new(&folder.path().join("old"));
    let new = Authority::new(&folder.path().join("new"));
    let used = folder.path().join("used");
    std::fs::create_dir(&used).expect("a folder can be made");
    let install = |from: &Path, name: &str| {
        // As certificate managers do it: a new file takes the place of the old one at once.
        let fresh = used.join("fresh");
        std::fs::copy(from, &fresh).expect("the file can be copied");
        std::fs::rename(&fresh, used.join(name)).expect("the file can be renamed");
    };
    let (old_server, new_server) = (old.server("server"), new.server("server"));
    install(&old_server.cert, "server.crt");
    install(&old_server.key, "server.key");
    install(&old.ca(), "ca.crt");
    install(&old.revocation_list("none.crl", &[]), "clients.crl");
    let etcd = Etcd::start();
    let flags = [
        format!("--endpoints={}", etcd.endpoints()),
        flag("cert-file", &used.join("server.crt")),
        flag("key-file", &used.join("server.key")),
        flag("trusted-ca-file", &used.join("ca.crt")),
        flag("client-crl-file", &used.join("clients.crl")),
    ];
    let proxy = Proxy::builder().flags(flags.iter().map(String::as_str)).start();
    let (old_client, new_client) = (old.client("client", "alice"), new.client("client", "alice"));
    let mut watch = etcdctl(&proxy, &old.ca(), Some(&old_client)).spawn(&["watch", "k"]);
    until("the watch stands", || etcd.members()[0].metric("etcd_debugging_mvcc_watcher_total") == Some(1.0));
    let works = |ca: &Authority, client: &Pair| {
        etcdctl(&proxy, &ca.ca(), Some(client)).flag(REFUSED).run(&["get", "k"]).code == 0
    };
    assert!(works(&old, &old_client));

    install(&new_server.key, "server.key");
    install(&new_server.cert, "server.crt");
    until("the new certificate is shown", || works(&new, &old_client));
    assert_refused(etcdctl(&proxy, &old.ca(), Some(&old_client)), "the old server certificate");

    install(&new.ca(), "ca.crt");
    install(&new.revocation_list("none.crl", &[]), "clients.crl");
    until("the new authority's clients get in", || works(&new, &new_client));
    assert_refused(etcdctl(&proxy, &new.ca(), Some(&old_client)), "a client of the old authority");

    let other_client = new.client("other", "bob");
    install(&new.revocation_list("one.crl", &[&new_client]), "clients.crl");
    until("the revoked client is refused", || !works(&new, &new_client));
    assert!(works(&new, &other_client));

    std::fs::write(used.join("server.crt"), "no certificate").expect("the file can be written");
    let line = proxy.expect_log("cannot use a changed TLS file, keeping its last good content");
    assert_eq!(line["level"], "error");
    assert!(line["file"].as_str().is_some_and(|file| file.ends_with("server.crt")), "{line}");
    assert!(works(&new, &other_client), "the last good certificate serves on");
    install(&new_server.cert, "server.crt");

    etcd.etcdctl().ok(&["put", "k", "seen to the end"]);
    watch.expect_stdout("seen to the end");
    assert!(watch.exit().is_none());
}

#[test]
fn a_new_client_certificate_towards_etcd_needs_no_restart() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let stranger = Authority::new(&folder.path().join("stranger"));
    let tls = Tls { server: authority.server("etcd"), ca: authority.ca(), client_cert_auth: true };
    let etcd = Etcd::builder().tls(tls).start();
    let used = stranger.nameless_client("used");
    let flags = [
        format!("--endpoints={}", etcd.endpoints()),
        flag("cert", &used.cert),
        flag("key", &used.key),
        flag("cacert", &authority.ca()),
    ];
    let proxy = Proxy::builder().flags(flags.iter().map(String::as_str)).start();
    let works = || proxy.etcdctl().flag(REFUSED).run(&["put", "k", "v"]).code == 0;
    assert!(!works());
    let good = authority.nameless_client("good");
    std::fs::copy(&good.key, &used.key).expect("the key can be copied");
    std::fs::copy(&good.cert, &used.cert).expect("the certificate can be copied");
    until("etcd takes the new certificate", works);
}

/// GET by curl, with the version of HTTP that it spoke.
fn curl(proxy: &Proxy, ca: &Path, protocol: &str) -> String {
    let url = format!("https://{}/health", proxy.address());
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        protocol,
        "--write-out",
        " %{http_version}",
        "--cacert",
    ]);
    let output = command.arg(ca).arg(url).output().expect("curl is installed, as CONTRIBUTING.md asks");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn http_1_and_http_2_are_agreed_upon_on_one_port() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let etcd = Etcd::start();
    let proxy = serving(&etcd, &authority.server("server"), &[]);
    for (protocol, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let answer = curl(&proxy, &authority.ca(), protocol);
        assert!(answer.contains("\"health\":\"true\""), "{answer}");
        assert!(answer.trim_end().ends_with(&format!(" {version}")), "{answer}");
    }
    for (offered, agreed) in [("h2", "h2"), ("http/1.1", "http/1.1"), ("h2,http/1.1", "h2")] {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", proxy.address(), "-alpn", offered]);
        let output = command.stdin(Stdio::null()).output().expect("openssl is installed, as CONTRIBUTING.md asks");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(&format!("ALPN protocol: {agreed}\n")), "{offered}: {said}");
    }
}
