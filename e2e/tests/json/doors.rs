//! The ways in: connections that are kept and filled with requests, HTTP/2, TLS, curl; and what is not let in.

use std::{collections::HashMap, process::Command};

use etcd_proxy_e2e::{Authority, Etcd, Process, Proxy, Version, docs::Session};
use http::Method;
use tempfile::TempDir;

use crate::raw::{self, Wire, request};

/// HTTP/1.1 and HTTP/2, plain and under TLS.
#[path = "../http/client.rs"]
mod client;

use client::{BOTH, Place};

const RANGE: &str = r#"{"key":"Zm9v"}"#;

#[test]
fn a_connection_is_kept_and_requests_that_come_at_once_are_answered_in_turn() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let mut wire = Wire::connect(proxy.address());
    let mut all = Vec::new();
    for number in 0..20 {
        let key = format!(r#"{{"key":"Zm9v","value":"{:04}"}}"#, number);
        all.extend(request("POST", "/v3/kv/put", &[], key.as_bytes()));
        all.extend(request("POST", "/v3/kv/range", &[], RANGE.as_bytes()));
    }
    all.extend(request("POST", "/v3/kv/range", &["Connection: close"], b"xx"));
    wire.send(&all);
    for number in 0..20 {
        assert_eq!(wire.answer(false).head.status, 200);
        let range = wire.answer(false);
        assert!(range.body.contains(&format!(r#""value":"{number:04}""#)), "{range:?}");
    }
    assert_eq!(wire.answer(false).head.status, 400);
    assert!(wire.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_and_2_with_and_without_tls_serve_the_same() {
    let etcd = Etcd::start();
    let folder = TempDir::new().expect("a folder");
    let authority = Authority::new(folder.path());
    let server = authority.server("proxy");
    let plain = Proxy::start(&etcd.endpoints());
    let secure = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag(format!("--cert-file={}", server.cert.display()))
        .flag(format!("--key-file={}", server.key.display()))
        // Under TLS any name is good.
        .flag("--host-whitelist=nobody")
        .start();
    for place in [Place::plain(plain.address()), Place::tls(secure.address(), authority.ca(), None)] {
        for spoken in BOTH {
            let put = place.ask(spoken, Method::POST, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
            assert_eq!((put.status, put.header("content-type")), (200, "application/json"), "{put:?}");
            assert_eq!(put.header("grpc-metadata-content-type"), "application/grpc");
            let range = place.ask(spoken, Method::POST, "/v3/kv/range", RANGE).await;
            assert!(range.body.contains(r#""value":"YmFy""#), "{range:?}");
            let alive = place.ask(spoken, Method::POST, "/v3/lease/keepalive", r#"{"ID":"5"}{"ID":"6"}"#).await;
            assert_eq!((alive.status, alive.body.lines().count()), (200, 2), "{alive:?}");
            let missing = place.get(spoken, "/v3/kv/nothing").await;
            assert_eq!((missing.status, missing.body.as_str()), (404, r#"{"code":5,"message":"Not Found"}"#));
            let document = place.get(spoken, "/openapi.json").await;
            assert_eq!((document.status, document.header("content-type")), (200, "application/json"));
        }
    }
}

#[test]
fn curl_writes_reads_and_watches() {
    let etcd = Etcd::start();
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--namespace=app/").start();
    let url = |path: &str| format!("http://{}{path}", proxy.address());
    let curl = |path: &str, body: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--no-buffer", &url(path), "--data", body]);
        Process::spawn("curl", &mut curl, b"")
    };
    let watching = curl("/v3/watch", r#"{"create_request":{"key":"Zm9v"}}"#);
    watching.expect_stdout(r#""created":true"#);
    let mut put = curl("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#);
    assert_eq!(put.wait(), 0);
    let event = watching.expect_stdout(r#""events""#);
    assert!(event.contains(r#""key":"Zm9v""#) && event.contains(r#""value":"YmFy""#), "{event}");
    let mut range = curl("/v3/kv/range", RANGE);
    assert_eq!(range.wait(), 0);
    assert!(range.expect_stdout("kvs").contains(r#""value":"YmFy""#));
    // It was the namespace's key that was written.
    let whole = raw::post(etcd.address(), "/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#);
    assert!(whole.body.contains(r#""key":"YXBwL2Zvbw==""#), "{whole:?}");
}

#[test]
fn the_documents_commands_work_as_pasted() {
    let etcd = Etcd::start();
    let port = |address: &str| address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).expect("a port");
    let known = HashMap::from([(2379, port(etcd.address()))]);
    let folder = TempDir::new().expect("a folder");
    let said = Session::read("docs/json.md", "HTTP/JSON").run(folder.path(), Version::default(), &known);
    assert!(
        said.stdout.contains(r#""key":"Z3JlZXRpbmc=""#) && said.stdout.contains(r#""value":"aGVsbG8=""#),
        "{said:?}"
    );

    let proxy = Proxy::start(&etcd.endpoints());
    raw::post(etcd.address(), "/v3/auth/user/add", r#"{"name":"root","password":"secret"}"#);
    raw::post(etcd.address(), "/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#);
    assert_eq!(raw::post(etcd.address(), "/v3/auth/enable", "{}").head.status, 200);
    let known = HashMap::from([(23790, port(proxy.address()))]);
    let said = Session::read("docs/json.md", "With auth on").run(folder.path(), Version::default(), &known);
    assert!(said.stdout.contains(r#""value":"aGVsbG8=""#), "{said:?}");
}

#[test]
fn what_a_profile_refuses_is_refused_to_json_too() {
    let etcd = Etcd::start();
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let proxy = Proxy::builder().flag(endpoints).flag("--api-profile=read-only").start();
    assert_eq!(raw::post(proxy.address(), "/v3/kv/range", RANGE).head.status, 200);
    let refused = raw::post(proxy.address(), "/v3/kv/put", RANGE);
    assert_eq!(refused.head.status, 403, "{refused:?}");
    assert!(refused.body.starts_with(r#"{"code":7,"message":""#), "{refused:?}");
}

#[test]
fn turned_off_there_is_no_such_path() {
    let etcd = Etcd::start();
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let proxy = Proxy::builder().flag(endpoints).flag("--enable-grpc-gateway=false").start();
    for path in ["/v3/kv/range", "/v3/watch", "/openapi.json"] {
        let missing = raw::post(proxy.address(), path, RANGE);
        assert_eq!(missing.head.status, 404, "{missing:?}");
        assert!(missing.body.starts_with("404 page not found"), "{missing:?}");
    }
    assert_eq!(proxy.get("/health").status, 200);
}
