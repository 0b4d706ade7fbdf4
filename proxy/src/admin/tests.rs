//! Each page of a proxy whose etcd is not there, or is something that only a test would put there.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{
    drain::{self, Trigger},
    metrics::{Metrics, Reason},
    rules::tenant::{Tenant, identity::Tenants},
    services::{
        cluster::Cluster,
        health::Health,
        keepalive::KeepAlives,
        leases::Leases,
        ordering::Ordering,
        watch::{
            bell::Bell,
            hub::{self, Hub},
        },
    },
    upstream::{self, Upstream, channel, endpoint::Endpoint, endpoints::Endpoints, users::Users},
};

struct Proxy {
    for_clients: Admin,
    for_operators: Admin,
    endpoints: Arc<Endpoints>,
    trigger: Trigger,
}

/// A proxy before an endpoint of this name.
fn proxy(endpoint: &str, profiles: bool) -> Proxy {
    let metrics = Arc::new(Metrics::new());
    let endpoints = Endpoints::new(vec![Endpoint::parse(endpoint).expect("a good name")]);
    let channel = channel::Config {
        tls: None,
        keepalive_time: Duration::ZERO,
        keepalive_timeout: Duration::ZERO,
        keepalive_without_stream: false,
        is_judge: true,
    };
    let limits = upstream::Limits { max_request: 1 << 20, max_answer: 1 << 20 };
    let upstream =
        Upstream::new(endpoints.clone(), Arc::new(channel), Users::new(Vec::new(), &metrics), limits, metrics.clone());
    let (trigger, watcher) = drain::channel();
    let drain = watcher.observer();
    let watch = hub::Config { max_log_bytes: 1 << 20, coalesce_threshold: 64, ..hub::Config::default() };
    let router = Arc::new(Router {
        tenants: tokio::sync::watch::channel(Tenants::one(Tenant::whole(), Tenant::whole())).1,
        upstream: upstream.clone(),
        bell: Bell::hang(),
        hub: Hub::new(upstream.clone(), metrics.clone(), watch, &Arc::default(), drain.clone()),
        keepalives: Arc::new(KeepAlives::new(upstream, metrics.clone(), drain.clone())),
        cluster: Cluster::new(None),
        leases: Leases::default(),
        leasing: None,
        health: Health::new(endpoints.clone(), drain.clone()),
        cache: None,
        ordering: Ordering { is_strict: false },
        metrics,
        logs_calls: false,
        audit: None,
    });
    let identity =
        Identity { name: "machine".into(), listen_address: "127.0.0.1:23790".into(), started: SystemTime::UNIX_EPOCH };
    let watched = Arc::new(Watched {
        drain,
        server_tls: None,
        client_tls: None,
        profiles,
        registered: None,
        identity,
        checks: Checks::default(),
    });
    let admin = |place| Admin::new(watched.clone(), router.clone(), place);
    Proxy { for_clients: admin(Place::ForClients), for_operators: admin(Place::ForOperators), endpoints, trigger }
}

/// Nobody listens on it: port 0 cannot be dialled.
const NOWHERE: &str = "127.0.0.1:0";

async fn ask(admin: &Admin, method: Method, path: &str) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).body(Empty::<Bytes>::new()).expect("a good request");
    let (head, body) = admin.answer(request).await.into_parts();
    let body = body.collect().await.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    (head.status.as_u16(), body.unwrap_or_else(|error| format!("broke off: {error}")))
}

async fn get(admin: &Admin, path: &str) -> (u16, String) {
    ask(admin, Method::GET, path).await
}

/// An endpoint that gives the same bytes to everyone who asks anything, and what it is called.
async fn member_that_says(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address: SocketAddr = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            // What goes wrong here shows in what the test is told.
            if socket.read(&mut request).await.is_ok() {
                let _ = socket.write_all(answer).await;
            }
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn without_etcd_every_page_has_an_answer() {
    let proxy = proxy(NOWHERE, false);
    for admin in [&proxy.for_clients, &proxy.for_operators] {
        for (path, status, start) in [
            ("/health", 503, "{\"health\":\"false\",\"reason\":\"GET ERROR:"),
            ("/proxy/health", 503, "{\"health\":\"false\",\"reason\":\"GET ERROR:"),
            ("/metrics", 503, "/metrics is an etcd member's, and none of 1 etcd endpoints can be reached"),
            ("/version", 503, "/version is an etcd member's, and none of 1 etcd endpoints can be reached"),
            ("/proxy/metrics", 200, "# HELP etcd_grpc_proxy_"),
            ("/livez", 200, "ok\n"),
            ("/livez?verbose", 200, "[+]ping ok\nlivez check passed\n"),
            ("/readyz", 503, "[-]etcd failed: no etcd endpoint serves: 127.0.0.1:0 is un"),
            ("/readyz?exclude=etcd", 200, "ok\n"),
            ("/readyz/shutdown", 200, "ok\n"),
            ("/readyz/nothing", 404, "404 page not found: /readyz/nothing"),
            ("/debug/pprof/", 404, "404 page not found"),
        ] {
            let (found, body) = get(admin, path).await;
            assert!(found == status && body.starts_with(start), "{path}: {found} {body}");
        }
    }
}

#[tokio::test]
async fn only_operators_see_the_status_page_and_it_tells_no_secret() {
    let proxy = proxy("http://me:word@127.0.0.1:0", false);
    for path in ["/", "/status.json"] {
        assert!(get(&proxy.for_clients, path).await.1.starts_with("404 page not found"), "{path}");
        assert_eq!(ask(&proxy.for_operators, Method::POST, path).await.0, 405);
    }
    let (status, page) = get(&proxy.for_operators, "/").await;
    assert!(status == 200 && page.starts_with("<!doctype html>"), "{status} {page}");
    let (status, text) = get(&proxy.for_operators, "/status.json").await;
    let document: status::Document = serde_json::from_str(&text).expect("the document");
    assert!(status == 200 && !text.contains("word"), "{text}");
    assert_eq!((document.ready, document.endpoints[0].address.as_str()), (false, "http://127.0.0.1:0"));
    assert!(
        document.not_ready_because[0].starts_with("no etcd endpoint serves: http://127.0.0.1:0 is "),
        "{document:?}"
    );
    proxy.for_operators.router.metrics.refusals.note("team", Reason::Policy, "/etcdserverpb.KV/Put");
    let (_, text) = get(&proxy.for_operators, "/status.json").await;
    let document: status::Document = serde_json::from_str(&text).expect("the document");
    assert_eq!(document.refusals[0].what, "/etcdserverpb.KV/Put");
}

#[tokio::test]
async fn health_checks_are_counted_by_their_outcome() {
    let proxy = proxy(NOWHERE, false);
    get(&proxy.for_clients, "/health").await;
    get(&proxy.for_clients, "/proxy/health").await;
    let (_, text) = get(&proxy.for_clients, "/proxy/metrics").await;
    assert!(text.contains("\netcd_server_health_failures 2\n"), "{text}");
    assert!(text.contains("\netcd_server_health_success 0\n"), "{text}");
}

#[tokio::test]
async fn readiness_knows_whether_etcd_serves_and_whether_the_end_has_begun() {
    let proxy = proxy(NOWHERE, false);
    proxy.endpoints.note(&proxy.endpoints.list()[0], State::Serving);
    assert_eq!(get(&proxy.for_clients, "/readyz").await, (200, "ok\n".to_owned()));
    let verbose = "[+]etcd ok\n[+]certificates ok\n[+]shutdown ok\nreadyz check passed\n";
    assert_eq!(get(&proxy.for_clients, "/readyz?verbose").await, (200, verbose.to_owned()));
    proxy.trigger.drain(Duration::ZERO).await;
    let (status, body) = get(&proxy.for_clients, "/readyz").await;
    assert!(status == 503 && body.contains("\n[-]shutdown failed: this proxy drains"), "{status} {body}");
    assert_eq!(get(&proxy.for_clients, "/livez").await.0, 200);
    let (_, text) = get(&proxy.for_clients, "/proxy/metrics").await;
    assert!(text.contains("\netcd_proxy_draining 1\n"), "{text}");
}

#[tokio::test]
async fn what_changes_nothing_may_be_read_and_nothing_else() {
    let proxy = proxy(NOWHERE, true);
    for path in ["/health", "/readyz", "/proxy/metrics", "/debug/pprof/"] {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let answer = ask(&proxy.for_clients, method.clone(), path).await;
            assert_eq!(answer, (405, "Method Not Allowed\n".to_owned()), "{method} {path}");
        }
    }
    assert_eq!(get(&proxy.for_clients, "/log-level").await.0, 404);
    assert_eq!(get(&proxy.for_operators, "/log-level").await.0, 200);
    assert_eq!(ask(&proxy.for_operators, Method::PUT, "/log-level").await.0, 400);
}

#[tokio::test]
async fn profiles_have_an_index_and_refuse_what_they_cannot_do() {
    let proxy = proxy(NOWHERE, true);
    assert!(get(&proxy.for_clients, "/debug/pprof").await.1.starts_with("profile?seconds=30"));
    let (status, body) = get(&proxy.for_clients, "/debug/pprof/goroutine").await;
    assert!(status == 404 && body.contains("only these"), "{status} {body}");
    let (status, body) = get(&proxy.for_clients, "/debug/pprof/profile?seconds=forever").await;
    assert_eq!((status, body.as_str()), (400, "seconds must be a whole number from 1 to 300\n"));
}

#[tokio::test]
async fn a_members_pages_pass_with_their_status() {
    for (answer, status, body) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na 1"[..], 200, "a 1"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na \r\n1\r\n1\r\n0\r\n\r\n", 200, "a 1"),
        (b"HTTP/1.0 200 OK\r\n\r\na 1", 200, "a 1"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone", 404, "none"),
    ] {
        let proxy = proxy(&member_that_says(answer).await, false);
        assert_eq!(get(&proxy.for_clients, "/metrics").await, (status, body.to_owned()));
    }
}

#[tokio::test]
async fn a_page_that_ends_too_early_is_not_taken_for_the_whole() {
    let proxy = proxy(&member_that_says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na 1").await, false);
    let (_, body) = get(&proxy.for_clients, "/metrics").await;
    assert!(body.starts_with("broke off: "), "{body}");
}

#[tokio::test]
async fn what_is_no_etcd_is_told_apart_from_what_is_not_there() {
    for nonsense in [&b""[..], b"SSH-2.0-OpenSSH_9.9\r\n", b"PRI * HTTP/2.0\r\n\r\n"] {
        let proxy = proxy(&member_that_says(nonsense).await, false);
        for path in ["/metrics", "/version"] {
            let (status, body) = get(&proxy.for_clients, path).await;
            assert!(status == 502 && body.contains("--listen-client-http-urls"), "{status} {body}");
        }
    }
    let no_version = member_that_says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    let (status, body) = get(&proxy(&no_version, false).for_clients, "/version").await;
    assert!(status == 502 && body.contains("no JSON object"), "{status} {body}");
}
