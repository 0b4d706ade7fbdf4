//! SIGTERM: who is served goes on being served, who watches is told to go elsewhere, and nobody holds up the end.

use std::time::{Duration, Instant};

use crate::wire::{self, Client, GOAWAY, RST_STREAM, WATCH};
use crate::{POLL, proxied};

/// An end that waits for nothing comes within this time even on a loaded machine.
const SOON: Duration = Duration::from_secs(10);
/// What a GOAWAY says of an end that is nobody's fault.
const NO_ERROR: u32 = 0;

#[test]
fn without_calls_the_end_comes_at_once_although_clients_are_connected() {
    let (_etcd, mut proxy) = proxied(&["--drain-timeout=60s"]);
    let mut idle = Client::start(proxy.address(), &[]);
    idle.expect(wire::SETTINGS);
    let silent = Client::connect(proxy.address());
    let started = Instant::now();
    proxy.process.signal(libc::SIGTERM);
    assert_eq!(idle.expect_end(), Some((NO_ERROR, String::new())));
    assert_eq!(proxy.process.wait(), 0);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert!(proxy.log().iter().any(|line| line["msg"] == "drained, every call has ended"));
    drop(silent);
}

#[test]
fn a_call_under_way_is_finished_and_a_watch_ends_before_the_process_does() {
    let (mut etcd, mut proxy) = proxied(&["--drain-timeout=60s"]);
    let watch = proxy.etcdctl().spawn(&["watch", "key", "--rev=1"]);
    watch.expect_stdout("value");
    etcd.member(0).pause();
    let before = proxy.metric(&started_series("Put")).unwrap_or(0.0);
    let put = proxy.etcdctl().spawn(&["put", "key", "later", "--command-timeout=50s"]);
    let deadline = Instant::now() + SOON;
    while proxy.metric(&started_series("Put")).unwrap_or(0.0) <= before {
        assert!(Instant::now() < deadline, "the put does not reach the proxy");
        std::thread::sleep(POLL);
    }
    proxy.process.signal(libc::SIGTERM);
    proxy.expect_log("received SIGTERM, draining");
    etcd.member(0).resume();
    put.expect_stdout("OK");
    assert_eq!(proxy.process.wait(), 0);
    assert!(proxy.log().iter().any(|line| line["msg"] == "drained, every call has ended"));
    assert_eq!(etcd.etcdctl().ok(&["get", "key", "--print-value-only"]), "later");
}

fn started_series(method: &str) -> String {
    format!(
        "grpc_server_started_total{{grpc_method=\"{method}\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}}"
    )
}

#[test]
fn a_client_that_takes_nothing_holds_up_the_end_no_longer_than_the_timeout() {
    let (_etcd, mut proxy) = proxied(&["--drain-timeout=1s"]);
    // It watches, and grants no byte of window, not even for the trailers' way through the queue.
    let mut stuck = Client::start(proxy.address(), &[(wire::INITIAL_WINDOW_SIZE, 0)]);
    stuck.send(&wire::headers(1, WATCH)).expect("the proxy takes a call");
    stuck.send(&wire::frame(wire::DATA, 0, 1, &wire::message(&create(b"key")))).expect("the proxy takes a message");
    let mut calling = Client::start(proxy.address(), &[]);
    calling.send(&wire::headers(1, wire::RANGE)).expect("the proxy takes a call");
    calling.expect(wire::SETTINGS);
    let started = Instant::now();
    proxy.process.signal(libc::SIGTERM);
    assert_eq!(proxy.process.wait(), 0);
    assert!(started.elapsed() >= Duration::from_secs(1), "a call that was begun is waited for");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert!(proxy.log().iter().any(|line| line["msg"] == "ending with calls under way"));
}

/// `WatchRequest { create_request { key } }`.
fn create(key: &[u8]) -> Vec<u8> {
    let len = u8::try_from(key.len()).expect("keys are short");
    [&[0x0a, len + 2, 0x0a, len], key].concat()
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (_etcd, mut proxy) = proxied(&["--drain-timeout=600s"]);
    let mut calling = Client::start(proxy.address(), &[]);
    calling.send(&wire::headers(1, wire::RANGE)).expect("the proxy takes a call");
    calling.send(&wire::call(3, wire::RANGE, b"\x0a\x03key")).expect("the proxy takes a call");
    // The first call is known to be open once the second is answered.
    calling.expect_stream_end(3);
    proxy.process.signal(libc::SIGTERM);
    calling.expect(GOAWAY);
    let started = Instant::now();
    proxy.process.signal(libc::SIGTERM);
    assert_eq!(proxy.process.wait(), 0);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn a_watch_is_ended_with_trailers_and_not_with_a_broken_connection() {
    let (_etcd, mut proxy) = proxied(&["--drain-timeout=60s"]);
    let mut watching = Client::start(proxy.address(), &[]);
    watching.send(&wire::headers(1, WATCH)).expect("the proxy takes a call");
    watching.send(&wire::frame(wire::DATA, 0, 1, &wire::message(&create(b"key")))).expect("the proxy takes a message");
    watching.expect(wire::DATA);
    proxy.process.signal(libc::SIGTERM);
    let end = watching.expect_stream_end(1);
    assert_ne!(end.kind, RST_STREAM, "{end:?}");
    watching.expect_end();
    assert_eq!(proxy.process.wait(), 0);
}
