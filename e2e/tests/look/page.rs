//! The status page in a browser and on a terminal, before a proxy that has something to show.

use std::process::Command;

use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Process, Proxy, Version, ports, programs};

use super::{browser::Browser, flag, ours, run};

/// A proxy over TLS with a tenant, a registration, a watch, a cached range and refusals, one of them for a limit.
struct Scene {
    etcd: Etcd,
    proxy: Proxy,
    metrics: String,
    _watcher: Process,
    _folder: tempfile::TempDir,
}

const NAMESPACE: &str = "the-prefix-of-a-tenant/";
const KEY: &str = "the-key-of-a-tenant";
const VALUE: &str = "the-value-of-a-tenant";

fn scene() -> Scene {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let (server, client) = (authority.server("server"), authority.client("client", "alice"));
    let etcd = Etcd::start();
    let metrics = ports::free_address();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag(format!("--metrics-addr=http://{metrics}"))
        .flags(["--resolver-prefix=proxies", "--resolver-ttl=10", "--api-profile=tenant"])
        .flag(format!("--namespace={NAMESPACE}"))
        .flag("--tenant-max-request-bytes=4096")
        .flag(flag("cert-file", &server.cert))
        .flag(flag("key-file", &server.key))
        .flag(flag("trusted-ca-file", &authority.ca()))
        .start();
    let address = format!("https://{}", proxy.address());
    let etcdctl = || Etcdctl::new(Version::default(), address.as_str()).tls(&authority.ca(), Some(&client));
    etcdctl().ok(&["put", KEY, VALUE]);
    let watcher = etcdctl().spawn(&["watch", KEY]);
    assert_ne!(etcdctl().run(&["compaction", "1"]).code, 0, "a tenant may not compact");
    let large = "x".repeat(5000);
    assert_ne!(etcdctl().run(&["put", KEY, &large]).code, 0, "it is larger than the tenant may send");
    let stranger = Etcdctl::new(Version::default(), address.as_str()).tls(&authority.ca(), None);
    assert_ne!(
        stranger.flag("--command-timeout=2s").run(&["get", KEY]).code,
        0,
        "without a certificate nobody gets in"
    );
    Scene { etcd, proxy, metrics, _watcher: watcher, _folder: folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_how_the_proxy_is_and_goes_on_showing_it() {
    let mut scene = tokio::task::spawn_blocking(scene).await.expect("the scene is set");
    let mut browser = Browser::open(&format!("http://{}/", scene.metrics)).await;
    let endpoint = scene.etcd.endpoint(0);
    for (id, words) in [
        ("ready", "ready"),
        ("age", "live"),
        ("endpoints", endpoint.as_str()),
        ("endpoints", "serving"),
        ("watches", "Watches of clients\t1"),
        ("watches", "Shared watches on etcd\t1"),
        ("registration", "registered"),
        ("registration", scene.proxy.address()),
        ("tenants", "default\ttenant\tyes\t2"),
        ("certificates", "29 days"),
        ("refusals", "/etcdserverpb.KV/Compact"),
        ("refusals", "the client sent no certificate"),
        ("refusals", "request_bytes"),
        ("refusals", "request is too large for this tenant"),
        ("cache", "Memory\t0 B of 64.0 MiB"),
    ] {
        browser.expect(id, words).await;
    }
    // The policy lets the page's own style and script through.
    assert_eq!(browser.value("getComputedStyle(document.querySelector('main')).display").await, "grid");
    let whole = browser.value("document.documentElement.outerHTML").await.to_string();
    let document = etcd_proxy_e2e::http::get(&scene.metrics, "/status.json").expect("it is served").body;
    for secret in [NAMESPACE.trim_end_matches('/'), KEY, VALUE] {
        assert!(!whole.contains(secret) && !document.contains(secret), "{secret} is shown");
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        browser.expect("calls-more", "under way").await;
        let picture = browser.picture().await;
        let path = programs::repository().join("docs/status.png");
        let mut decode = Command::new("base64");
        decode.arg("-d").stdout(std::fs::File::create(&path).expect("docs can be written to"));
        use std::io::Write;
        let mut child = decode.stdin(std::process::Stdio::piped()).spawn().expect("coreutils are there");
        child.stdin.take().expect("it is piped").write_all(picture.as_bytes()).expect("it reads");
        assert!(child.wait().expect("it ends").success());
    }
    // Nobody loads the page again: it finds out by itself.
    scene.etcd.member(0).kill();
    browser.expect("endpoints", "unreachable").await;
    browser.expect("ready", "not ready").await;
    browser.expect("why", "no etcd endpoint serves").await;
    scene.proxy.process.kill();
    browser.expect("age", "no answer for").await;
}

#[test]
fn top_shows_the_same_in_a_terminal() {
    let mut scene = scene();
    let url = format!("--url=http://{}", scene.metrics);
    let once = |url: &str| run(&["top".to_owned(), "--once".to_owned(), url.to_owned()]);
    let shown = once(&url);
    let endpoint = scene.etcd.endpoint(0);
    for words in [
        "  ready",
        &endpoint,
        " serving ",
        "1 of clients, 1 shared on etcd",
        "default",
        "29 days",
        "KV/Compact",
        "request is too large for this tenant",
    ] {
        assert!(shown.stdout.contains(words), "no {words:?} in {}", shown.stdout);
    }
    assert!(shown.code == 0 && !shown.stdout.contains('\x1b'), "{shown:?}");
    for secret in [NAMESPACE.trim_end_matches('/'), KEY, VALUE] {
        assert!(!shown.stdout.contains(secret), "{secret} is shown");
    }

    let mut live = ours(&["top".to_owned(), "--interval=50ms".to_owned(), url.clone()]);
    for _ in 0..3 {
        live.expect_stdout("\x1b[H");
    }
    scene.etcd.member(0).kill();
    live.expect_stdout("NOT READY");
    live.signal(libc::SIGINT);
    assert_eq!(live.wait(), 0);
    live.stdout.wait_for_end();
    assert!(live.stdout.text().ends_with("\x1b[?1049l"), "the terminal is as it was before");

    assert_eq!(once(&url).code, 2, "it is not ready");
    scene.proxy.process.kill();
    let gone = once(&url);
    assert!(gone.code == 1 && gone.stderr.contains("connection refused"), "{gone:?}");
    let wrong = once("--url=127.0.0.1:1");
    assert!(wrong.code == 1 && wrong.stderr.contains("invalid url"), "{wrong:?}");
}
