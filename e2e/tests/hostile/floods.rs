//! Frames that carry nothing, in any number, and pings that come too often.

use crate::wire::{self, Client, END_HEADERS, END_STREAM, Heard, RANGE};
use crate::{check_unharmed, proxied};

/// HTTP/2's ENHANCE_YOUR_CALM.
const CALM: u32 = 11;
const RANGE_KEY: &[u8] = b"\x0a\x03key";

#[test]
fn a_client_that_pings_too_often_is_told_so_in_grpcs_words() {
    let (_etcd, mut proxy) = proxied(&["--grpc-keepalive-min-time=10s"]);
    let ping = wire::frame(wire::PING, 0, 0, &[7; 8]);
    let mut client = Client::start(proxy.address(), &[]);
    client.send(&wire::headers(1, RANGE)).expect("the proxy takes a call");
    client.flood(&ping, 4).expect("four pings are taken");
    assert_eq!(client.expect_end(), Some((CALM, "too_many_pings".to_owned())));

    let mut patient = Client::start(proxy.address(), &[]);
    patient.send(&wire::headers(1, RANGE)).expect("the proxy takes a call");
    patient.flood(&ping, 3).expect("three pings are taken");
    for _ in 0..3 {
        assert_eq!(patient.expect(wire::PING).flags, wire::ACK);
    }
    // Each answer forgives the pings before it.
    for stream in (3..100).step_by(2) {
        patient.send(&wire::call(stream, RANGE, RANGE_KEY)).expect("the proxy takes a call");
        patient.expect_stream_end(stream);
        patient.send(&ping).expect("a ping is taken");
        assert_eq!(patient.expect(wire::PING).flags, wire::ACK);
    }
    check_unharmed(&mut proxy, "pings");
}

#[test]
fn floods_end_the_connection_that_they_come_on_and_no_other() {
    let (_etcd, mut proxy) = proxied(&[]);
    let open_and_reset: Vec<u8> =
        [wire::headers(1, RANGE), wire::frame(wire::RST_STREAM, 0, 1, &8_u32.to_be_bytes())].concat();
    let floods: [(&str, Vec<u8>); 7] = [
        ("settings", wire::settings(&[(wire::INITIAL_WINDOW_SIZE, 70_000)])),
        ("pings", wire::frame(wire::PING, 0, 0, &[1; 8])),
        ("priorities", wire::frame(wire::PRIORITY, 0, 1, &[0, 0, 0, 0, 9])),
        ("window updates", wire::frame(wire::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("unknown frames", wire::frame(0xbe, 0, 0, &[])),
        ("empty data", wire::frame(wire::DATA, 0, 1, &[])),
        ("resets of one stream", open_and_reset),
    ];
    for (name, flood) in floods {
        let mut client = Client::start(proxy.address(), &[]);
        client.send(&wire::headers(1, RANGE)).expect("the proxy takes a call");
        // An error means that the proxy has closed the connection, which is what is wanted.
        let _ = client.flood(&flood, 1_000_000);
        client.expect_end();
        check_unharmed(&mut proxy, name);
    }
}

#[test]
fn headers_that_never_end_are_refused() {
    let (_etcd, mut proxy) = proxied(&[]);
    let mut client = Client::start(proxy.address(), &[]);
    client.send(&wire::frame(wire::HEADERS, 0, 1, &wire::call_block(RANGE))).expect("the proxy takes a frame");
    let more = wire::block(&[("x-filler", &"x".repeat(10_000))]);
    let _ = client.flood(&wire::frame(wire::CONTINUATION, 0, 1, &more), 10_000);
    client.expect_end();
    check_unharmed(&mut proxy, "endless headers");

    let mut client = Client::start(proxy.address(), &[]);
    client.send(&wire::frame(wire::HEADERS, 0, 1, &wire::call_block(RANGE))).expect("the proxy takes a frame");
    let _ = client.flood(&wire::frame(wire::CONTINUATION, 0, 1, &[]), 1_000_000);
    client.expect_end();
    check_unharmed(&mut proxy, "empty continuations");
}

#[test]
fn opening_and_resetting_streams_for_ever_is_refused_and_doing_so_in_bursts_is_not() {
    let (_etcd, mut proxy) = proxied(&[]);
    let burst = |first: u32, count: u32| -> Vec<u8> {
        let opened = (0..count).flat_map(|number| wire::call(first + 2 * number, RANGE, RANGE_KEY));
        let reset =
            (0..count).flat_map(|number| wire::frame(wire::RST_STREAM, 0, first + 2 * number, &8_u32.to_be_bytes()));
        opened.chain(reset).collect()
    };
    // A Go program whose context ends cancels all that it has open.
    let mut legitimate = Client::start(proxy.address(), &[]);
    for round in 0..3 {
        legitimate.send(&burst(1 + round * 2_000, 1_000)).expect("a burst of cancelled calls is taken");
    }
    legitimate.send(&wire::call(9_001, RANGE, RANGE_KEY)).expect("the proxy takes a call");
    legitimate.expect_stream_end(9_001);

    let mut hostile = Client::start(proxy.address(), &[]);
    let mut first = 1;
    while first < 1_000_000 && hostile.send(&burst(first, 1_000)).is_ok() {
        first += 2_000;
    }
    let farewell = hostile.expect_end();
    println!("rapid resets ended with {farewell:?} after {first}");
    assert!(first < 1_000_000, "rapid resets were never refused");
    check_unharmed(&mut proxy, "rapid resets");
}

#[test]
fn garbage_and_half_sentences_end_the_connection_only() {
    let (_etcd, mut proxy) = proxied(&["--connection-timeout=1s"]);
    let openings: [&[u8]; 8] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ",
        b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
        b"",
    ];
    for opening in openings {
        let mut client = Client::connect(proxy.address());
        client.send(opening).expect("the proxy takes the first bytes");
        client.expect_end();
    }
    check_unharmed(&mut proxy, "garbage");
}

#[test]
fn streams_are_never_taken_for_others() {
    let (_etcd, mut proxy) = proxied(&[]);
    let update = |stream: u32, increment: u32| wire::frame(wire::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
    let misuses: [(&str, Vec<u8>); 9] = [
        ("an even stream", wire::call(2, RANGE, RANGE_KEY)),
        ("stream zero", wire::headers(0, RANGE)),
        ("a stream that goes back", [wire::call(5, RANGE, RANGE_KEY), wire::call(3, RANGE, RANGE_KEY)].concat()),
        ("data for an idle stream", wire::frame(wire::DATA, END_STREAM, 7, &wire::message(RANGE_KEY))),
        ("a window that overflows", update(0, 0x7fff_ffff)),
        ("a window of zero", update(0, 0)),
        ("settings of an odd length", wire::frame(wire::SETTINGS, 0, 0, &[0, 1, 2])),
        ("a ping of nine bytes", wire::frame(wire::PING, 0, 0, &[0; 9])),
        ("a broken header block", wire::frame(wire::HEADERS, END_HEADERS, 1, &[0xff; 20])),
    ];
    for (name, misuse) in misuses {
        let mut client = Client::start(proxy.address(), &[]);
        // An error means that the proxy has closed the connection, which is what is wanted.
        let _ = client.send(&misuse);
        client.expect_end();
        check_unharmed(&mut proxy, name);
    }
}

#[test]
fn clients_with_tiny_windows_are_served_byte_by_byte_and_others_meanwhile() {
    let (etcd, mut proxy) = proxied(&[]);
    etcd.etcdctl().ok(&["put", "key", "value"]);
    let mut client = Client::start(proxy.address(), &[(wire::INITIAL_WINDOW_SIZE, 1)]);
    client.send(&wire::call(1, RANGE, RANGE_KEY)).expect("the proxy takes a call");
    let mut bytes = 0;
    loop {
        match client.hear(wire::PATIENCE) {
            Heard::Frame(frame) if frame.kind == wire::DATA && !frame.payload.is_empty() => {
                bytes += frame.payload.len();
                assert_eq!(frame.payload.len(), 1);
                client.send(&wire::frame(wire::WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())).expect("the proxy listens");
            }
            Heard::Frame(frame) if frame.flags & END_STREAM != 0 && frame.stream == 1 => break,
            Heard::Frame(_) => (),
            other => panic!("{other:?} after {bytes} bytes"),
        }
    }
    assert!(bytes > 20, "{bytes}");
    check_unharmed(&mut proxy, "tiny windows");
}

#[test]
fn streams_that_are_opened_and_never_ended_keep_nobody_else_from_being_served() {
    let (_etcd, mut proxy) = proxied(&["--max-concurrent-streams=1000"]);
    let mut client = Client::start(proxy.address(), &[]);
    for number in 0..1_500_u32 {
        client.send(&wire::headers(1 + 2 * number, RANGE)).expect("the proxy takes a call");
    }
    // Those over the limit are refused, each by itself.
    for _ in 0..500 {
        assert_eq!(client.expect(wire::RST_STREAM).payload, 7_u32.to_be_bytes());
    }
    // Those within it can still be brought to their end.
    client.send(&wire::frame(wire::DATA, END_STREAM, 1, &wire::message(RANGE_KEY))).expect("the proxy takes a message");
    assert_eq!(client.expect_stream_end(1).kind, wire::HEADERS);
    check_unharmed(&mut proxy, "streams without an end");
}
