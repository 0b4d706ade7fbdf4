//! What the proxy serves besides gRPC, on both kinds of listener, by HTTP/1.1 and HTTP/2, with etcd up, down, in trouble
//! and behind TLS.

mod client;
mod health_service;
mod idle;
mod tls;

use std::time::{Duration, Instant};

use client::{Answer, BOTH, Place, Spoken};
use etcd_proxy_e2e::{Etcd, Proxy, ports, process::PATIENCE};
use etcd_proxy_proto::{
    etcdserverpb::{
        AlarmRequest, AlarmType, LeaseGrantRequest, alarm_request::AlarmAction, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient,
    },
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use http::Method;

/// How often a state is asked for that no event tells of.
const POLL: Duration = Duration::from_millis(20);

/// A proxy with a metrics address, and where to ask both of its listeners.
fn proxy_with_metrics(endpoints: &str, flags: &[&str]) -> (Proxy, [Place; 2]) {
    let metrics = ports::free_address();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={endpoints}"))
        .flag(format!("--metrics-addr=http://{metrics}"))
        .flags(flags.iter().copied())
        .start();
    let places = [Place::plain(proxy.address()), Place::plain(&metrics)];
    (proxy, places)
}

/// Asks until the answer has this status.
async fn until_status(place: &Place, path: &str, status: u16) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = place.get(Spoken::Http1, path).await;
        if answer.status == status {
            return answer;
        }
        assert!(Instant::now() < deadline, "{path} does not become {status}: {answer:?}");
        tokio::time::sleep(POLL).await;
    }
}

const HEALTHY: &str = r#"{"health":"true","reason":""}"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_served_on_both_listeners_by_both_protocols() {
    let etcd = Etcd::start();
    let (_proxy, places) = proxy_with_metrics(&etcd.endpoints(), &[]);
    for place in &places {
        until_status(place, "/readyz", 200).await;
        for spoken in BOTH {
            for (path, content) in [
                ("/health", HEALTHY),
                ("/proxy/health", HEALTHY),
                ("/metrics", "etcd_server_has_leader 1"),
                ("/proxy/metrics", "etcd_proxy_build_info"),
                ("/version", "\"etcdcluster\":"),
                ("/livez", "ok\n"),
                ("/livez/ping", "ok\n"),
                ("/readyz", "ok\n"),
                ("/readyz/etcd", "ok\n"),
                ("/readyz?verbose", "[+]etcd ok\n[+]certificates ok\n[+]shutdown ok\nreadyz check passed\n"),
            ] {
                let answer = place.get(spoken, path).await;
                assert_eq!(answer.status, 200, "{path} {answer:?}");
                assert!(answer.body.contains(content), "{path}: {}", answer.body);
                let head = place.ask(spoken, Method::HEAD, path, "").await;
                assert_eq!((head.status, head.body.as_str()), (200, ""), "HEAD {path}");
                assert_eq!(head.header("content-type"), answer.header("content-type"), "HEAD {path}");
                let post = place.ask(spoken, Method::POST, path, "{}").await;
                assert_eq!((post.status, post.header("allow")), (405, "GET, HEAD"), "POST {path}");
            }
            for path in ["/nothing", "/readyz/nothing", "/debug/pprof/", "/metrics/"] {
                let answer = place.get(spoken, path).await;
                assert_eq!(answer.status, 404, "{path}");
                assert!(answer.body.contains("/proxy/metrics"), "the reader is told what there is: {}", answer.body);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tells_of_all_tenants_is_not_for_clients() {
    let etcd = Etcd::start();
    let (_proxy, [for_clients, for_operators]) = proxy_with_metrics(&etcd.endpoints(), &[]);
    for (path, content_type) in [("/", "text/html; charset=utf-8"), ("/status.json", "application/json")] {
        for spoken in BOTH {
            assert_eq!(for_clients.get(spoken, path).await.status, 404, "{path}");
            let answer = for_operators.get(spoken, path).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, content_type), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reads_as_that_of_etcds_proxy() {
    let mut etcd = Etcd::start();
    let ours = Proxy::start(&etcd.endpoints());
    let theirs = Proxy::original(&etcd.endpoints());
    let ask = async |method: Method, path: &str| {
        let ours = Place::plain(ours.address()).ask(Spoken::Http1, method.clone(), path, "").await;
        (ours, Place::plain(theirs.address()).ask(Spoken::Http1, method, path, "").await)
    };
    for path in ["/health", "/proxy/health"] {
        let (ours, theirs) = ask(Method::GET, path).await;
        assert_eq!((ours.status, &ours.body), (theirs.status, &theirs.body), "{path}");
        assert_eq!(ours.header("content-type"), theirs.header("content-type"), "{path}");
        let (ours, theirs) = ask(Method::PUT, path).await;
        assert_eq!((ours.status, &ours.body), (theirs.status, &theirs.body), "{path}");
    }
    etcd.member(0).kill();
    for path in ["/health", "/proxy/health"] {
        let (ours, theirs) = ask(Method::GET, path).await;
        assert_eq!((ours.status, theirs.status), (503, 503), "{path}");
        let start = r#"{"health":"false","reason":"GET ERROR:"#;
        for answer in [&ours, &theirs] {
            assert!(answer.body.starts_with(start) && answer.body.ends_with("\"}\n"), "{path}: {}", answer.body);
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn auth_does_not_make_a_proxy_sick() {
    let etcd = Etcd::start();
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--namespace=ns/").start();
    etcd.etcdctl().ok(&["user", "add", "root:secret"]);
    etcd.etcdctl().ok(&["user", "grant-role", "root", "root"]);
    etcd.etcdctl().ok(&["auth", "enable"]);
    let place = Place::plain(proxy.address());
    for path in ["/health", "/health?serializable=true", "/proxy/health"] {
        let answer = place.get(Spoken::Http1, path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, HEALTHY), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_told_unless_it_is_excluded() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let mut maintenance = MaintenanceClient::new(etcd_proxy_e2e::grpc::channel(etcd.address()).await);
    let raise = AlarmRequest { action: AlarmAction::Activate as i32, member_id: 0, alarm: AlarmType::Nospace as i32 };
    maintenance.alarm(raise).await.expect("etcd takes the alarm");
    let place = Place::plain(proxy.address());
    let answer = place.get(Spoken::Http1, "/health").await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n"));
    for path in ["/health?exclude=NOSPACE", "/proxy/health"] {
        let answer = place.get(Spoken::Http1, path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, HEALTHY), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_only_a_serializable_check_is_well() {
    let mut etcd = Etcd::builder().members(3).start();
    let (_proxy, [place, _]) = proxy_with_metrics(&etcd.endpoints(), &[]);
    etcd.member(1).kill();
    etcd.member(2).kill();
    let answer = until_status(&place, "/health", 503).await;
    assert!(answer.body.contains("GET ERROR:"), "{}", answer.body);
    until_status(&place, "/health?serializable=true", 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_etcd_and_liveness_does_not() {
    let mut etcd = Etcd::start();
    let (_proxy, places) = proxy_with_metrics(&etcd.endpoints(), &[]);
    for place in &places {
        until_status(place, "/readyz", 200).await;
    }
    etcd.member(0).kill();
    for place in &places {
        let answer = until_status(place, "/readyz", 503).await;
        assert!(answer.body.starts_with("[-]etcd failed: no etcd endpoint serves: "), "{}", answer.body);
        assert!(answer.body.ends_with("readyz check failed\n"), "{}", answer.body);
        assert_eq!(place.get(Spoken::Http1, "/readyz?exclude=etcd").await.status, 200);
        assert_eq!(place.get(Spoken::Http1, "/livez").await.status, 200);
        for path in ["/metrics", "/version"] {
            let answer = place.get(Spoken::Http1, path).await;
            assert_eq!(answer.status, 503, "{path}");
            assert!(answer.body.contains("none of 1 etcd endpoints can be reached"), "{}", answer.body);
        }
    }
    etcd.member(0).restart();
    for place in &places {
        until_status(place, "/readyz", 200).await;
        assert_eq!(place.get(Spoken::Http1, "/metrics").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_etcd_come_from_a_member_that_is_up() {
    let mut etcd = Etcd::builder().members(3).start();
    let (_proxy, [place, _]) = proxy_with_metrics(&etcd.endpoints(), &[]);
    for down in [0, 1] {
        etcd.member(down).kill();
        let answer = place.get(Spoken::Http1, "/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.contains("etcd_server_is_leader"), "{}", answer.body);
        assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"), "{answer:?}");
        etcd.member(down).restart();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_proxy_is_alive_and_not_ready_until_its_last_call_ends() {
    let etcd = Etcd::start();
    let (mut proxy, [place, metrics_place]) = proxy_with_metrics(&etcd.endpoints(), &[]);
    let channel = etcd_proxy_e2e::grpc::channel(etcd.address()).await;
    let lease = LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await;
    let lease = lease.expect("etcd grants a lease").into_inner().id;
    let lock = LockRequest { name: "lock".into(), lease };
    let mut direct = LockClient::new(channel);
    let held = direct.lock(lock.clone()).await.expect("nobody holds it").into_inner();

    // A second holder waits for it through the proxy, which is a call that has not ended.
    let second = LeaseClient::new(etcd_proxy_e2e::grpc::channel(etcd.address()).await)
        .lease_grant(LeaseGrantRequest { ttl: 600, id: 0 })
        .await
        .expect("etcd grants a lease");
    let mut through = LockClient::new(etcd_proxy_e2e::grpc::channel(proxy.address()).await);
    let waiting =
        tokio::spawn(
            async move { through.lock(LockRequest { name: "lock".into(), lease: second.into_inner().id }).await },
        );
    let is_waiting = |answer: &Answer| {
        let series = r#"etcd_proxy_calls{grpc_method="Lock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#;
        answer.body.lines().any(|line| line == series)
    };
    let deadline = Instant::now() + PATIENCE;
    while !is_waiting(&metrics_place.get(Spoken::Http1, "/proxy/metrics").await) {
        assert!(Instant::now() < deadline, "the call does not show in the metrics");
        tokio::time::sleep(POLL).await;
    }

    proxy.process.signal(libc::SIGTERM);
    let answer = until_status(&metrics_place, "/readyz", 503).await;
    assert!(answer.body.contains("[-]shutdown failed: "), "{}", answer.body);
    assert_eq!(metrics_place.get(Spoken::Http2, "/livez").await.status, 200);
    let metrics = metrics_place.get(Spoken::Http1, "/proxy/metrics").await;
    assert!(metrics.body.contains("\netcd_proxy_draining 1\n"), "{}", metrics.body);
    let refused = place.try_to_ask(Spoken::Http1, Method::GET, "/livez", "").await;
    assert!(refused.is_err(), "the main listener takes no connections any more: {refused:?}");

    direct.unlock(UnlockRequest { key: held.key }).await.expect("it is held");
    waiting.await.expect("the call was not dropped").expect("the lock was free at last");
    assert_eq!(proxy.process.wait(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_changes_on_a_metrics_address_only() {
    let etcd = Etcd::start();
    let (_proxy, [place, metrics_place]) = proxy_with_metrics(&etcd.endpoints(), &[]);
    for spoken in BOTH {
        for (body, status, expected) in [
            ("debug", 200, "debug\n"),
            ("warn\n", 200, "warn\n"),
            ("loud", 400, "the body must be one of: debug, info, warn, error\n"),
            (&"x".repeat(1000), 400, "the body must be one of: debug, info, warn, error\n"),
        ] {
            let answer = metrics_place.ask(spoken, Method::PUT, "/log-level", body).await;
            assert_eq!((answer.status, answer.body.as_str()), (status, expected), "{spoken:?}");
        }
        assert_eq!(metrics_place.get(spoken, "/log-level").await.body, "warn\n");
        assert_eq!(metrics_place.ask(spoken, Method::POST, "/log-level", "debug").await.status, 405);
        for method in [Method::GET, Method::PUT] {
            assert_eq!(place.ask(spoken, method, "/log-level", "debug").await.status, 404);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_taken_one_at_a_time_and_only_if_they_are_allowed() {
    let etcd = Etcd::start();
    let (_proxy, [place, metrics_place]) = proxy_with_metrics(&etcd.endpoints(), &["--enable-pprof"]);
    assert!(place.get(Spoken::Http1, "/debug/pprof/").await.body.contains("profile?seconds=30"));
    assert_eq!(place.get(Spoken::Http1, "/debug/pprof/heap").await.status, 404);
    for seconds in ["0", "301", "-1", "x", ""] {
        let answer = place.get(Spoken::Http1, &format!("/debug/pprof/profile?seconds={seconds}")).await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    let path = "/debug/pprof/profile?seconds=1";
    let (one, other) = tokio::join!(place.get(Spoken::Http1, path), metrics_place.get(Spoken::Http2, path));
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    let profile = if one.status == 200 { one } else { other };
    assert_eq!(profile.header("content-type"), "application/octet-stream");
    assert!(profile.body.contains("nanoseconds"), "the texts of a profile stand in it as they are: {profile:?}");
}
