//! Servers that stand where etcd should be and speak nonsense, or nothing.

use std::net::TcpListener;
use std::time::Instant;

use etcd_proxy_e2e::{Etcd, Proxy, ports};

use crate::wire::{self, CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Heard};
use crate::{POLL, check_unharmed};

/// What a server does with a connection, and then with each call.
#[derive(Clone, Copy)]
struct Misbehaviour {
    name: &'static str,
    greet: fn(&mut Client),
    answer: fn(&mut Client, u32),
}

fn settings(client: &mut Client) {
    say(client, &wire::settings(&[]));
}

/// An error means that the proxy has had enough of it.
fn say(client: &mut Client, bytes: &[u8]) {
    let _ = client.send(bytes);
}

fn nothing(_: &mut Client, _: u32) {}

fn head(stream: u32, status: &str, content_type: &str) -> Vec<u8> {
    let block = wire::block(&[(":status", status), ("content-type", content_type)]);
    wire::frame(HEADERS, END_HEADERS, stream, &block)
}

const GRPC: &str = "application/grpc";

fn misbehaviours() -> Vec<Misbehaviour> {
    vec![
        Misbehaviour { name: "garbage", greet: |client| say(client, &[0xff; 5000]), answer: nothing },
        Misbehaviour { name: "silence", greet: |_| (), answer: nothing },
        Misbehaviour { name: "half a frame", greet: |client| say(client, &[0, 0, 9, 4]), answer: nothing },
        Misbehaviour {
            name: "HTTP/1.1",
            greet: |client| say(client, b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 13\r\n\r\n<html></html>"),
            answer: nothing,
        },
        Misbehaviour {
            name: "goodbye at once",
            greet: |client| {
                settings(client);
                say(client, &wire::frame(GOAWAY, 0, 0, &[0; 8]));
            },
            answer: nothing,
        },
        Misbehaviour { name: "no answer", greet: settings, answer: nothing },
        Misbehaviour {
            name: "endless headers",
            greet: settings,
            answer: |client, stream| {
                let block = wire::block(&[(":status", "200"), ("x-filler", &"x".repeat(9000))]);
                say(client, &wire::frame(HEADERS, 0, stream, &block));
                let _ = client.flood(&wire::frame(CONTINUATION, 0, stream, &block), 3000);
            },
        },
        Misbehaviour {
            name: "a page of HTML",
            greet: settings,
            answer: |client, stream| {
                let page = wire::frame(DATA, END_STREAM, stream, b"<html>Bad Gateway</html>");
                say(client, &[head(stream, "502", "text/html"), page].concat());
            },
        },
        Misbehaviour {
            name: "no trailers",
            greet: settings,
            answer: |client, stream| {
                let data = wire::frame(DATA, END_STREAM, stream, &wire::message(b"\x08\x01"));
                say(client, &[head(stream, "200", GRPC), data].concat());
            },
        },
        Misbehaviour {
            name: "a message that never ends",
            greet: settings,
            answer: |client, stream| {
                let start = wire::frame(DATA, 0, stream, &[0, 0xff, 0xff, 0xff, 0xff]);
                say(client, &[head(stream, "200", GRPC), start].concat());
                // As much as a stream's window takes.
                for _ in 0..60 {
                    say(client, &wire::frame(DATA, 0, stream, &[7; 16_384]));
                }
            },
        },
        Misbehaviour {
            name: "a flag that is none and half a message",
            greet: settings,
            answer: |client, stream| {
                let data = wire::frame(DATA, 0, stream, &[200, 0, 0, 0, 9, 1, 2]);
                let trailers =
                    wire::frame(HEADERS, END_HEADERS | END_STREAM, stream, &wire::block(&[("grpc-status", "0")]));
                say(client, &[head(stream, "200", GRPC), data, trailers].concat());
            },
        },
        Misbehaviour {
            name: "success without a message",
            greet: settings,
            answer: |client, stream| {
                let trailers =
                    wire::frame(HEADERS, END_HEADERS | END_STREAM, stream, &wire::block(&[("grpc-status", "0")]));
                say(client, &[head(stream, "200", GRPC), trailers].concat());
            },
        },
        Misbehaviour {
            name: "statuses that are none",
            greet: settings,
            answer: |client, stream| {
                let block = wire::block(&[
                    (":status", "200"),
                    ("content-type", GRPC),
                    ("grpc-status", "99999999999999999999"),
                    ("grpc-message", "%%%zz%f"),
                    ("grpc-status-details-bin", "????"),
                ]);
                say(client, &wire::frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
            },
        },
        Misbehaviour {
            name: "a broken stream",
            greet: settings,
            answer: |client, stream| {
                let data = wire::frame(DATA, 0, stream, &wire::message(b"\x0a\x02\x18\x05")[..6]);
                let reset = wire::frame(wire::RST_STREAM, 0, stream, &2_u32.to_be_bytes());
                say(client, &[head(stream, "200", GRPC), data, reset].concat());
            },
        },
        Misbehaviour {
            name: "a broken connection",
            greet: settings,
            answer: |client, stream| {
                say(client, &head(stream, "200", GRPC));
                // An error means that it is broken already.
                let _ = client.socket.shutdown(std::net::Shutdown::Both);
            },
        },
        Misbehaviour {
            name: "floods",
            greet: |client| {
                settings(client);
                let _ = client.flood(&wire::settings(&[(wire::INITIAL_WINDOW_SIZE, 1)]), 20_000);
                let _ = client.flood(&wire::frame(wire::PING, 0, 0, &[1; 8]), 20_000);
            },
            answer: nothing,
        },
    ]
}

/// Listens until the test program ends, a thread for each connection.
fn serve(misbehaviour: Misbehaviour) -> String {
    let address = ports::free_address();
    let listener = TcpListener::bind(&address).expect("the port is free");
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut client = Client::accepted(socket);
                if !client.expect_preface() {
                    return;
                }
                (misbehaviour.greet)(&mut client);
                loop {
                    match client.hear(wire::PATIENCE) {
                        Heard::Frame(frame) if frame.kind == HEADERS => {
                            (misbehaviour.answer)(&mut client, frame.stream)
                        }
                        Heard::Frame(_) => (),
                        Heard::Closed | Heard::Silence => return,
                    }
                }
            });
        }
    });
    address
}

#[test]
fn behind_a_server_that_speaks_nonsense_calls_fail_and_the_proxy_lives() {
    for misbehaviour in misbehaviours() {
        let mut proxy = Proxy::builder()
            .flag(format!("--endpoints={}", serve(misbehaviour)))
            .flags(["--health-timeout=300ms", "--health-interval=300ms"])
            .start();
        let etcdctl = proxy.etcdctl().flag("--command-timeout=700ms");
        for arguments in [vec!["get", "key"], vec!["put", "key", "value"], vec!["lease", "grant", "10"], vec!["txn"]] {
            assert_ne!(etcdctl.run(&arguments).code, 0, "{arguments:?} with {}", misbehaviour.name);
        }
        let watch = etcdctl.spawn(&["watch", "key"]);
        let keeper = etcdctl.spawn(&["lease", "keep-alive", "1234"]);
        // Each of them has been through a few rounds by now.
        assert_ne!(etcdctl.run(&["get", "other"]).code, 0, "with {}", misbehaviour.name);
        drop((watch, keeper));
        assert_eq!(proxy.process.exit(), None, "with {}", misbehaviour.name);
        let resident = proxy.process.resident_bytes() >> 20;
        println!("with {}: {resident} MiB, {:?} of CPU", misbehaviour.name, proxy.process.cpu_time());
        assert!(resident < 300, "{resident} MiB with {}", misbehaviour.name);
        let panics: Vec<_> = proxy.log().into_iter().filter(|line| line["msg"] == "panicked").collect();
        assert!(panics.is_empty(), "with {}: {panics:?}", misbehaviour.name);
        assert_eq!(proxy.terminate(), 0, "with {}", misbehaviour.name);
    }
}

#[test]
fn beside_a_server_that_speaks_nonsense_a_good_one_serves() {
    let etcd = Etcd::start();
    etcd.etcdctl().ok(&["put", "key", "value"]);
    // One that answers every call with a status of its own choice cannot be told from an etcd with that trouble.
    for misbehaviour in misbehaviours().into_iter().filter(|other| other.name != "statuses that are none") {
        let mut proxy = Proxy::builder()
            .flag(format!("--endpoints={},{}", serve(misbehaviour), etcd.endpoints()))
            .flags(["--health-timeout=300ms", "--health-interval=300ms", "--drain-timeout=1s"])
            .start();
        let deadline = Instant::now() + wire::PATIENCE;
        while !proxy.log().iter().any(|line| line["msg"] == "endpoint is serving") {
            assert!(Instant::now() < deadline, "the good one is not found beside {}", misbehaviour.name);
            std::thread::sleep(POLL);
        }
        // Two failed checks in a row turn calls away from it; etcdctl itself goes on trying until then.
        for _ in 0..3 {
            proxy.etcdctl().ok(&["get", "key", "--print-value-only"]);
        }
        check_unharmed(&mut proxy, misbehaviour.name);
    }
}
