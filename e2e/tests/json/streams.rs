//! Streams over JSON: each message at once, held back for who reads slowly, ended for who leaves, through one proxy and
//! through two.

use etcd_proxy_e2e::{Etcd, Proxy, wait::until};
use serde_json::Value;

use crate::raw::{self, Wire, request};

const FOO: &str = "Zm9v";

fn watch(address: &str, key: &str) -> Wire {
    let mut wire = Wire::connect(address);
    let body = format!(r#"{{"create_request":{{"key":"{key}"}}}}"#);
    wire.send(&request("POST", "/v3/watch", &[], body.as_bytes()));
    assert_eq!(wire.head().status, 200);
    assert!(wire.line().is_some_and(|line| line.contains(r#""created":true"#)));
    wire
}

fn put(address: &str, key: &str, value: &str) {
    let answer = raw::post(address, "/v3/kv/put", &format!(r#"{{"key":"{key}","value":"{value}"}}"#));
    assert_eq!(answer.head.status, 200, "{answer:?}");
}

/// The values of the events of a line.
fn values(line: &str) -> Vec<String> {
    let line: Value = serde_json::from_str(line).expect("it is JSON");
    let events = line["result"]["events"].as_array().unwrap_or_else(|| panic!("no events in {line}"));
    events.iter().map(|event| event["kv"]["value"].as_str().unwrap_or_default().to_owned()).collect()
}

fn watchers(etcd: &Etcd) -> Option<f64> {
    etcd.members()[0].metric("etcd_debugging_mvcc_watcher_total")
}

#[test]
fn a_watch_through_two_proxies_delivers_each_event_at_once_and_ends_at_etcd_with_its_client() {
    let etcd = Etcd::start();
    let inner = Proxy::start(&etcd.endpoints());
    let outer = Proxy::start(inner.address());
    let mut wire = watch(outer.address(), FOO);
    for value in ["MQ==", "Mg==", "Mw=="] {
        // The next is written when this one has come, so nothing but a flush brings it.
        put(etcd.address(), FOO, value);
        assert_eq!(values(&wire.line().expect("an event")), [value]);
    }
    until("etcd has the watch", || watchers(&etcd) > Some(0.0));
    drop(wire);
    until("the watch of a client that left stays at etcd", || watchers(&etcd) == Some(0.0));
}

#[test]
fn hundreds_of_watches_wait_on_one_proxy_and_all_are_told() {
    const WATCHES: usize = 300;
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let mut wires: Vec<Wire> = (0..WATCHES).map(|_| watch(proxy.address(), FOO)).collect();
    put(proxy.address(), FOO, "MQ==");
    for wire in &mut wires {
        assert_eq!(values(&wire.line().expect("an event")), ["MQ=="]);
    }
    assert!(watchers(&etcd) < Some(3.0), "they share what they watch: {:?}", watchers(&etcd));
}

#[test]
fn a_client_that_does_not_read_is_waited_for_and_gets_everything_in_order() {
    const EVENTS: usize = 120;
    let etcd = Etcd::start();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag("--watch-log-max-bytes=1048576")
        .start();
    let mut wire = watch(proxy.address(), FOO);
    let before = proxy.process.resident_bytes();
    // 24 MiB in all, many times what may be on its way to one client.
    let filler = "A".repeat(200 << 10);
    for number in 0..EVENTS {
        put(etcd.address(), FOO, &format!("{filler}{number:04}"));
    }
    let grown = proxy.process.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes are held for a client that does not read");
    let mut seen = 0;
    while seen < EVENTS {
        for value in values(&wire.line().expect("an event")) {
            assert_eq!(value[filler.len()..], format!("{seen:04}"));
            seen += 1;
        }
    }
}

#[test]
fn a_stream_that_fails_ends_with_a_line_that_says_why() {
    let mut etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    // An election without a leader: nothing comes until there is one.
    let mut wire = Wire::connect(proxy.address());
    wire.send(&request("POST", "/v3/election/observe", &["Grpc-Timeout: 300m"], br#"{"name":"Zm9v"}"#));
    let answer = wire.answer(false);
    assert_eq!(answer.head.status, 504, "{answer:?}");
    assert_eq!(answer.body, "{\"error\":{\"code\":4,\"message\":\"context deadline exceeded\"}}\n");

    etcd.member(0).kill();
    let refused = raw::post(proxy.address(), "/v3/kv/range", r#"{"key":"Zm9v"}"#);
    assert_eq!(refused.head.status, 503, "{refused:?}");
    assert!(refused.body.starts_with(r#"{"code":14,"message":""#), "{refused:?}");
}

#[test]
fn a_watch_that_begins_with_rubbish_is_refused_and_not_left_waiting() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let refused = raw::post(proxy.address(), "/v3/watch", r#"{"create_request":xx"#);
    assert_eq!(refused.head.status, 400);
    assert_eq!(refused.body, r#"{"code":3,"message":"invalid character 'x' looking for beginning of value"}"#);
}

#[test]
fn a_request_that_is_too_large_is_refused_while_it_comes() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let before = proxy.process.resident_bytes();
    // etcd's own limit, told by etcd.
    let large = format!(r#"{{"key":"Zm9v","value":"{}"}}"#, "A".repeat(2_200_000));
    let refused = raw::post(proxy.address(), "/v3/kv/put", &large);
    assert_eq!(
        (refused.head.status, refused.body.as_str()),
        (400, r#"{"code":3,"message":"etcdserver: request is too large"}"#)
    );
    assert_eq!(refused.head, raw::post(etcd.address(), "/v3/kv/put", &large).head, "as etcd refuses it");
    // Beyond what is held at all: the proxy answers before the client has sent it.
    let mut wire = Wire::connect(proxy.address());
    wire.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000\r\n\r\n{\"key\":\"");
    for _ in 0..5 {
        wire.send(&vec![b'A'; 1 << 20]);
    }
    let head = wire.head();
    assert_eq!(head.status, 429);
    let grown = proxy.process.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");
}

#[test]
fn a_proxy_that_drains_ends_its_watches_and_then_itself() {
    let etcd = Etcd::start();
    let mut proxy = Proxy::start(&etcd.endpoints());
    let mut wire = watch(proxy.address(), FOO);
    assert_eq!(proxy.terminate(), 0);
    let last = wire.line().expect("a last line");
    assert!(last.starts_with(r#"{"error":{"code":14,"#), "{last}");
    assert_eq!(wire.line(), None, "the answer is whole");
}
