//! Watch streams in numbers that nobody needs, and clients that do not read what they asked for.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::Proxy;

use crate::wire::{self, Client, DATA, Heard, WATCH};
use crate::{POLL, check_unharmed, proxied};

const WINDOW: u32 = 0x7fff_ffff;

/// `WatchRequest { create_request { key, watch_id } }`.
fn create(key: &[u8], watch_id: u32) -> Vec<u8> {
    let mut inner = [&[0x0a, u8::try_from(key.len()).expect("keys are short")], key].concat();
    if watch_id != 0 {
        inner.push(0x38);
        put_varint(&mut inner, watch_id);
    }
    request(0x0a, &inner)
}

/// `WatchRequest { cancel_request { watch_id } }`.
fn cancel(watch_id: u32) -> Vec<u8> {
    let mut inner = vec![0x08];
    put_varint(&mut inner, watch_id);
    request(0x12, &inner)
}

/// `WatchRequest { progress_request {} }`.
fn progress() -> Vec<u8> {
    request(0x1a, &[])
}

fn request(tag: u8, inner: &[u8]) -> Vec<u8> {
    let len = u8::try_from(inner.len()).expect("requests are short");
    wire::message(&[&[tag, len], inner].concat())
}

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 128 {
        out.push(u8::try_from(value % 128).expect("a remainder") | 128);
        value /= 128;
    }
    out.push(u8::try_from(value).expect("it is below 128"));
}

/// A client with one watch stream, which lets as much come as it can say.
fn watcher(proxy: &Proxy, window: u32) -> Client {
    let mut client = Client::start(proxy.address(), &[(wire::INITIAL_WINDOW_SIZE, window)]);
    client.send(&wire::frame(wire::WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes())).expect("a window is taken");
    client.send(&wire::headers(1, WATCH)).expect("the proxy takes a call");
    client
}

fn send(client: &mut Client, messages: impl Iterator<Item = Vec<u8>>) {
    let all: Vec<u8> = messages.flatten().collect();
    for piece in all.chunks(16_384) {
        client.send(&wire::frame(DATA, 0, 1, piece)).expect("the proxy takes data");
    }
}

/// Reads until this many whole messages have come on the stream.
fn expect_messages(client: &mut Client, wanted: usize) {
    let (mut bytes, mut seen) = (Vec::new(), 0);
    while seen < wanted {
        match client.hear(wire::PATIENCE) {
            Heard::Frame(frame) if frame.kind == DATA && frame.stream == 1 => bytes.extend_from_slice(&frame.payload),
            Heard::Frame(frame) => assert_ne!((frame.kind, frame.stream), (wire::RST_STREAM, 1), "{frame:?}"),
            other => panic!("{other:?} after {seen} of {wanted} messages"),
        }
        while let Some([_, size @ ..]) = bytes.first_chunk::<5>() {
            let end = 5 + u32::from_be_bytes(*size) as usize;
            if bytes.len() < end {
                break;
            }
            bytes.drain(..end);
            seen += 1;
        }
    }
}

/// Reads until this many bytes have come on the stream, in however many messages.
fn expect_bytes(client: &mut Client, wanted: usize) {
    let mut seen = 0;
    while seen < wanted {
        match client.hear(wire::PATIENCE) {
            Heard::Frame(frame) if frame.kind == DATA && frame.stream == 1 => seen += frame.payload.len(),
            Heard::Frame(frame) => assert_ne!((frame.kind, frame.stream), (wire::RST_STREAM, 1), "{frame:?}"),
            other => panic!("{other:?} after {seen} of {wanted} bytes"),
        }
    }
}

fn expect_metric(proxy: &Proxy, series: &str, wanted: f64) {
    let deadline = Instant::now() + wire::PATIENCE;
    while proxy.metric(series) != Some(wanted) {
        assert!(Instant::now() < deadline, "{series} is {:?}, not {wanted}", proxy.metric(series));
        std::thread::sleep(POLL);
    }
}

#[test]
fn ten_thousand_watches_on_one_stream_are_served_and_leave_nothing_behind() {
    let (_etcd, mut proxy) = proxied(&[]);
    let mut client = watcher(&proxy, WINDOW);
    send(&mut client, (0..10_000).map(|_| create(b"key", 0)));
    expect_messages(&mut client, 10_000);
    expect_metric(&proxy, "etcd_proxy_upstream_watches", 1.0);
    proxy.etcdctl().ok(&["put", "key", "value"]);
    expect_messages(&mut client, 10_000);
    drop(client);
    expect_metric(&proxy, "etcd_proxy_client_watches", 0.0);
    expect_metric(&proxy, "etcd_proxy_upstream_watches", 0.0);
    check_unharmed(&mut proxy, "ten thousand watches");
}

#[test]
fn storms_of_creates_cancels_and_progress_requests_are_answered() {
    let (_etcd, mut proxy) = proxied(&[]);
    let mut client = watcher(&proxy, WINDOW);
    send(&mut client, (1..5_000).flat_map(|id| [create(b"key", id), cancel(id), cancel(id)]));
    expect_messages(&mut client, 2 * 4_999);
    // An id that is taken is refused, which is an answer as well.
    send(&mut client, (0..5_000).map(|_| create(b"key", 7)));
    expect_messages(&mut client, 5_000);
    send(&mut client, (0..20_000).map(|_| progress()));
    expect_messages(&mut client, 1);
    expect_metric(&proxy, "etcd_proxy_client_watches", 1.0);
    drop(client);
    expect_metric(&proxy, "etcd_proxy_client_watches", 0.0);
    check_unharmed(&mut proxy, "storms on a watch stream");
}

#[test]
fn clients_that_never_read_cost_little_and_hold_up_nobody() {
    let (etcd, mut proxy) = proxied(&[]);
    let mut stuck: Vec<Client> = (0..200).map(|_| watcher(&proxy, 0)).collect();
    for client in &mut stuck {
        send(client, (0..20).map(|_| create(b"key", 0)).chain((0..50).map(|_| progress())));
    }
    expect_metric(&proxy, "etcd_proxy_client_watches", 4_000.0);
    let mut reading = watcher(&proxy, WINDOW);
    send(&mut reading, std::iter::once(create(b"key", 0)));
    expect_messages(&mut reading, 1);
    let before = proxy.process.resident_bytes() >> 20;
    let value = "v".repeat(100_000);
    for _ in 0..100 {
        etcd.etcdctl().ok(&["put", "key", &value]);
    }
    expect_bytes(&mut reading, 100 * value.len());
    let after = proxy.process.resident_bytes() >> 20;
    println!("200 clients that do not read: {before} MiB before 10 MB of events, {after} MiB after");
    etcd.etcdctl().ok(&["put", "key", "value"]);
    drop(stuck);
    expect_metric(&proxy, "etcd_proxy_client_watches", 1.0);
    check_unharmed(&mut proxy, "clients that never read");
}

#[test]
fn a_client_that_reads_nothing_for_longer_than_a_ping_may_take_is_not_cut_off_and_misses_nothing() {
    let (etcd, mut proxy) = proxied(&["--grpc-keepalive-timeout=1s"]);
    let mut client = watcher(&proxy, WINDOW);
    send(&mut client, std::iter::once(create(b"key", 0)));
    expect_messages(&mut client, 1);
    let value = "v".repeat(100_000);
    // More than its socket takes and its log holds.
    for _ in 0..100 {
        etcd.etcdctl().ok(&["put", "key", &value]);
    }
    // The kernel looks at it some times within this.
    let silent = Instant::now();
    while silent.elapsed() < Duration::from_secs(4) {
        proxy.etcdctl().ok(&["get", "key", "--keys-only"]);
    }
    expect_bytes(&mut client, 100 * value.len());
    etcd.etcdctl().ok(&["put", "key", "value"]);
    check_unharmed(&mut proxy, "a client that does not read for long");
}

#[test]
fn ranges_that_overlap_share_one_bound_of_memory() {
    let (etcd, mut proxy) = proxied(&[]);
    // Room for the answers to the creates, and for no event.
    let mut client = watcher(&proxy, 150_000);
    // From many keys on to the end of all keys: every event is on each of the ranges.
    let ranges = (0..2_000_u32).map(|number| {
        let key = format!("a{number:05}");
        request(0x0a, &[&[0x0a, 6], key.as_bytes(), &[0x12, 1, 0]].concat())
    });
    send(&mut client, ranges);
    expect_metric(&proxy, "etcd_proxy_client_watches", 2_000.0);
    let value = "v".repeat(100_000);
    for _ in 0..10 {
        etcd.etcdctl().ok(&["put", "key", &value]);
    }
    etcd.etcdctl().ok(&["put", "key", "value"]);
    // What all the ranges hold together is two gigabytes by now, had each its own bound only.
    check_unharmed(&mut proxy, "ranges that overlap");
}
