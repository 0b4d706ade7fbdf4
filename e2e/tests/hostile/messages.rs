//! Messages that are none, for every RPC that there is, with and without a namespace.

use crate::wire::{self, Client, DATA, END_STREAM, RANGE};
use crate::{check_unharmed, proxied};

const SERVICES: [(&str, &[&str]); 9] = [
    ("etcdserverpb.KV", &["Range", "RangeStream", "Put", "DeleteRange", "Txn", "Compact"]),
    ("etcdserverpb.Watch", &["Watch"]),
    ("etcdserverpb.Lease", &["LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"]),
    ("etcdserverpb.Cluster", &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"]),
    (
        "etcdserverpb.Maintenance",
        &["Alarm", "Status", "Defragment", "Hash", "HashKV", "Snapshot", "MoveLeader", "Downgrade"],
    ),
    ("etcdserverpb.Auth", &["AuthEnable", "AuthStatus", "Authenticate", "UserAdd", "UserGet", "RoleAdd", "RoleGet"]),
    ("v3lockpb.Lock", &["Lock", "Unlock"]),
    ("v3electionpb.Election", &["Campaign", "Proclaim", "Leader", "Observe", "Resign"]),
    ("grpc.health.v1.Health", &["Check", "Watch", "Nothing"]),
];

/// The length of a long key: a mebibyte with all that belongs to it.
const LONG: usize = (1 << 20) - 16;

/// The longest key of a bbolt bucket.
const BBOLT_KEY: usize = 32_768;

/// A transaction in a transaction, this deep. Each level is `success { request_txn { … } }`.
fn nested(depth: usize) -> Vec<u8> {
    let mut levels: Vec<Vec<u8>> = Vec::new();
    let mut len = 0;
    for _ in 0..depth {
        let inner = field(4, len);
        let outer = field(2, inner.len() + len);
        len += inner.len() + outer.len();
        levels.push([outer, inner].concat());
    }
    levels.into_iter().rev().flatten().collect()
}

/// The head of a length-delimited field.
fn field(number: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut rest = len;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).expect("a remainder") | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).expect("it is below 128"));
    bytes
}

/// What no client library sends, with its framing.
fn bodies() -> Vec<Vec<u8>> {
    let mut noise = 0x2545_f491_u32;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        noise.to_be_bytes()[0]
    })
    .take(300)
    .collect();
    // As long as a stream's window lets through without a wait.
    let key: Vec<u8> = [field(1, LONG), vec![b'k'; LONG]].concat();
    vec![
        Vec::new(),
        wire::message(&[]),
        wire::message(&random),
        wire::message(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        wire::message(&[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]),
        wire::message(&[0x0b, 0x0c, 0x07, 0xff]),
        wire::message(&nested(100)),
        wire::message(&nested(20_000)),
        wire::message(&key),
        vec![0, 0, 0],
        vec![0, 0, 0, 0, 200, 1, 2, 3],
        vec![0, 0xff, 0xff, 0xff, 0xff, 1],
        vec![1, 0, 0, 0, 3, 1, 2, 3],
        vec![9, 0, 0, 0, 3, 1, 2, 3],
        [wire::message(b"\x0a\x03key"), wire::message(b"\x0a\x03key")].concat(),
        [wire::message(b"\x0a\x03key"), vec![0, 0]].concat(),
    ]
}

fn send_all_to_all(flags: &[&str]) {
    let (_etcd, mut proxy) = proxied(flags);
    let bodies = bodies();
    for (service, methods) in SERVICES {
        for method in methods {
            let path = format!("/{service}/{method}");
            let mut client = Client::start(proxy.address(), &[]);
            // What is sent below is more than the window that a connection begins with.
            client.expect(wire::WINDOW_UPDATE);
            client
                .send(&wire::frame(wire::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()))
                .expect("a window is taken");
            let mut stream = 1;
            // etcd ends itself, for good, over the name of a user or a role that bbolt finds too long for a key.
            let limit = if service == "etcdserverpb.Auth" { BBOLT_KEY } else { usize::MAX };
            for body in bodies.iter().filter(|body| body.len() < limit) {
                client.send(&wire::headers(stream, &path)).expect("the proxy takes a call");
                let mut pieces = body.chunks(16_384).peekable();
                while let Some(piece) = pieces.next() {
                    let end = if pieces.peek().is_none() { END_STREAM } else { 0 };
                    client.send(&wire::frame(DATA, end, stream, piece)).expect("the proxy takes data");
                }
                if body.is_empty() {
                    client.send(&wire::frame(DATA, END_STREAM, stream, &[])).expect("the proxy takes an end");
                }
                stream += 2;
            }
            // A snapshot that nobody reads keeps etcd from a defragmentation, and that keeps it from all else: the
            // two must not meet.
            if *method == "Defragment" {
                client.expect_stream_ends((1..stream).step_by(2));
            }
            // Some of these RPCs wait for ever by their nature; what counts is that the connection still serves.
            client.send(&wire::call(stream, RANGE, b"\x0a\x03key")).expect("the proxy takes a call");
            client.expect_stream_end(stream);
        }
    }
    // Some of it was a DeleteRange of that key.
    proxy.etcdctl().ok(&["put", "key", "value"]);
    check_unharmed(&mut proxy, "malformed messages");
}

#[test]
fn no_message_to_any_method_harms_the_proxy() {
    send_all_to_all(&[]);
}

#[test]
fn no_message_to_any_method_harms_the_proxy_with_a_namespace() {
    send_all_to_all(&["--namespace=tenant/"]);
}
