//! What no client library sends: unknown methods, bodies that are no messages, frames that are no frames, odd headers.

use std::io::Read;

use bytes::Bytes;
use etcd_proxy_e2e::Version;
use etcd_proxy_e2e::grpc::{flagged, frame};
use etcd_proxy_proto::etcdserverpb::{PutRequest, RangeRequest};
use prost::Message;

use crate::rpcs::{PUT, RANGE};
use crate::side::{Side, grpc_headers};

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

/// A method of each lane that the proxy has; none whose answer has an id that etcd makes up.
const LANES: [&str; 12] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Cluster/MemberList",
    "/v3lockpb.Lock/Unlock",
    "/v3electionpb.Election/Observe",
    "/grpc.health.v1.Health/Check",
];

/// Those of them, and others, that take one message and give one.
const UNARY: [&str; 10] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Cluster/MemberList",
    "/v3lockpb.Lock/Unlock",
    "/grpc.health.v1.Health/Check",
];

/// Streams may rightly wait for ever on an odd request; they are given this long.
const WAITING: &str = "500m";

fn headers_for(path: &str) -> Vec<(String, Vec<u8>)> {
    let waits = ["Watch", "Observe"].iter().any(|name| path.ends_with(name));
    if waits { with(grpc_headers(), "grpc-timeout", WAITING) } else { grpc_headers() }
}

pub async fn script(side: Side) {
    side.call("put", PUT, PutRequest { key: "k".into(), value: "v".into(), ..Default::default() }).await;
    unknown_methods(&side).await;
    bodies(&side).await;
    frames(&side).await;
    encodings(&side).await;
    content_types(&side).await;
    timeouts(&side).await;
    metadata(&side).await;
    side.call("it all left etcd alone", RANGE, RangeRequest { key: "k".into(), ..Default::default() }).await;
}

async fn unknown_methods(side: &Side) {
    for path in [
        "/etcdserverpb.KV/Nothing",
        "/etcdserverpb.KV/range",
        "/etcdserverpb.KV/",
        "/etcdserverpb.KV",
        "/etcdserverpb.Nothing/Range",
        "/nothing/at/all",
        "/",
        "/Range",
        "/etcdserverpb.KV/Range/",
        "/etcdserverpb.KV/Range?a=b",
        "/etcdserverpb.KV/%52ange",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/v3lockpb.Lock/TryLock",
    ] {
        // With TLS etcd resolves these to a Range, and the proxy does not.
        if !(side.has_tls() && path.contains(['?', '%'])) {
            side.raw(&format!("unknown {path}"), path, &grpc_headers(), &[frame(b"")], true).await;
        }
    }
}

async fn bodies(side: &Side) {
    let bodies: [(&str, &[u8]); 9] = [
        ("empty", b""),
        ("a field cut short", b"\x0a\x05ab"),
        ("a varint without end", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("a tag of zero", b"\x00\x00"),
        ("a wire type that is none", b"\x0f"),
        ("a group without end", b"\x0b"),
        ("an end without a group", b"\x0c"),
        ("an unknown field", b"\xfa\x3f\x01x"),
        ("no protobuf at all", b"this is text, and no message of any kind"),
    ];
    for path in LANES {
        for (name, body) in bodies {
            // The words for an unreadable body come from the Go library that read it, and the server that reads it is
            // the proxy as often as etcd: the code is etcd's.
            side.with_any_message()
                .with_either_end_of_a_deadline()
                .raw(&format!("{path}: {name}"), path, &headers_for(path), &[frame(body)], true)
                .await;
        }
    }
    let known = RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
    let with_unknown = [known.as_slice(), b"\xfa\x3f\x01x"].concat();
    side.raw("a field that nobody knows", RANGE.path, &grpc_headers(), &[frame(&with_unknown)], true).await;
    let twice = [b"\x0a\x05wrong".as_slice(), &known].concat();
    side.raw("a field that comes twice", RANGE.path, &grpc_headers(), &[frame(&twice)], true).await;
    let long_varint = [known.as_slice(), b"\x18\x81\x80\x80\x00"].concat();
    side.raw("a number in more bytes than it needs", RANGE.path, &grpc_headers(), &[frame(&long_varint)], true).await;
}

async fn frames(side: &Side) {
    let request = RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
    let whole = frame(&request);
    let bytes: Vec<Bytes> = whole.iter().map(|&byte| Bytes::copy_from_slice(&[byte])).collect();
    side.raw("a frame byte by byte", RANGE.path, &grpc_headers(), &bytes, true).await;
    for path in LANES {
        let side = side.with_either_end_of_a_deadline();
        side.raw(&format!("{path}: no message"), path, &headers_for(path), &[], true).await;
        for cut in [1, 4, 5, 6] {
            side.raw(&format!("{path}: {cut} bytes of a frame"), path, &headers_for(path), &[whole.slice(..cut)], true)
                .await;
        }
        // grpc-go tells of a length over its limit with both numbers.
        side.raw(
            &format!("{path}: a length of 4 GiB"),
            path,
            &headers_for(path),
            &[Bytes::from_static(b"\0\xff\xff\xff\xff")],
            true,
        )
        .await;
        side.raw(&format!("{path}: a flag of 2"), path, &headers_for(path), &[flagged(2, &request)], true).await;
        side.raw(&format!("{path}: a flag of 255"), path, &headers_for(path), &[flagged(255, &request)], true).await;
    }
    for path in LANES {
        let side = side.with_either_end_of_a_deadline();
        let prefix = [Bytes::from_static(b"\0\xff\xff\xff\xff")];
        side.raw(&format!("{path}: a length of 4 GiB, to be continued"), path, &headers_for(path), &prefix, false)
            .await;
    }
    // etcd begins when the message is here, and does not wait for the client to close its half.
    for path in UNARY {
        let request = if path.contains(".KV/") { whole.clone() } else { frame(b"") };
        let side = side.with_any_message();
        side.raw(&format!("{path}: never half-closed"), path, &grpc_headers(), &[request], false).await;
    }
    for path in ["/etcdserverpb.KV/Range", "/etcdserverpb.KV/Compact", "/etcdserverpb.Lease/LeaseRevoke"] {
        let twice = [whole.clone(), whole.clone()];
        side.raw(&format!("{path}: two messages"), path, &grpc_headers(), &twice, true).await;
        side.raw(
            &format!("{path}: a message and a half"),
            path,
            &grpc_headers(),
            &[whole.clone(), whole.slice(..7)],
            true,
        )
        .await;
    }
}

async fn encodings(side: &Side) {
    let request = RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
    for path in LANES {
        // A field of another type is an unknown one to Go's protobuf, and an error to others; so this fits each.
        let request = if path.contains(".KV/") { request.as_slice() } else { b"" };
        // The words for what does not inflate or decode are those of the library that tried.
        let side = side.with_either_end_of_a_deadline().with_any_message();
        side.raw(
            &format!("{path}: compressed, nobody says how"),
            path,
            &headers_for(path),
            &[flagged(1, request)],
            true,
        )
        .await;
        for encoding in ["identity", "gzip", "snappy", "none such"] {
            let headers = with(headers_for(path), "grpc-encoding", encoding);
            let compressed = [flagged(1, &gzip(request))];
            side.raw(&format!("{path}: compressed, {encoding}"), path, &headers, &compressed, true).await;
        }
    }
    for encoding in ["identity", "gzip", "none such"] {
        let headers = with(grpc_headers(), "grpc-encoding", encoding);
        side.raw(&format!("not compressed, {encoding}"), RANGE.path, &headers, &[frame(&request)], true).await;
    }
    let headers = with(grpc_headers(), "grpc-accept-encoding", "gzip, identity");
    side.raw("an answer may be compressed", RANGE.path, &headers, &[frame(&request)], true).await;
}

async fn content_types(side: &Side) {
    let request = [frame(&RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec())];
    for kind in
        ["application/grpc+proto", "application/grpc;charset=utf-8", "application/grpc+json", "application/grpc+none"]
    {
        let headers = [("content-type", kind), ("te", "trailers")].map(|(name, value)| (name.to_owned(), value.into()));
        side.raw(&format!("content type {kind}"), RANGE.path, &headers, &request, true).await;
    }
    // With TLS these are for etcd's HTTP server, which has no such pages.
    let others = if side.has_tls() {
        &[][..]
    } else {
        &["application/grpc-web", "application/grpcx", "application/json", "text/plain", ""]
    };
    for kind in others {
        let headers = [("content-type", *kind), ("te", "trailers")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.into()));
        side.raw(&format!("content type {kind}"), RANGE.path, &headers, &request, true).await;
    }
    if !side.has_tls() {
        side.raw("no content type", RANGE.path, &[("te".to_owned(), "trailers".into())], &request, true).await;
    }
    let headers = [("content-type".to_owned(), "application/grpc".into())];
    side.raw("no trailers wanted", RANGE.path, &headers, &request, true).await;
}

async fn timeouts(side: &Side) {
    let request = [frame(&RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec())];
    for timeout in [
        "10S",
        "1H",
        "5M",
        "10000m",
        "99999999u",
        "99999999n",
        "0S",
        "1n",
        "",
        "S",
        "10",
        "10X",
        "-1S",
        "1.5S",
        "999999999S",
    ] {
        let headers = with(grpc_headers(), "grpc-timeout", timeout);
        // etcd refuses some of these as HTTP, too.
        let side = side.with_any_http_status().with_either_end_of_a_deadline();
        side.raw(&format!("timeout {timeout:?}"), RANGE.path, &headers, &request, true).await;
    }
    // The request never ends, so that only the timeout can end it.
    for path in LANES.into_iter().filter(|path| !path.ends_with("Observe")) {
        let headers = with(grpc_headers(), "grpc-timeout", "300m");
        side.with_either_end_of_a_deadline()
            .raw(&format!("{path}: a timeout while the request is unfinished"), path, &headers, &[], false)
            .await;
    }
}

async fn metadata(side: &Side) {
    let request = RangeRequest { key: "k".into(), ..Default::default() };
    for hasleader in ["true", "false", "nonsense"] {
        side.with("hasleader", hasleader).call(&format!("hasleader {hasleader}"), RANGE, request.clone()).await;
    }
    // Auth is off, so any token is as good as none.
    for (name, value) in [("token", "nonsense"), ("authorization", "nonsense"), ("authorization", "Bearer nonsense")] {
        side.with(name, value).call(&format!("{name} {value} while auth is off"), RANGE, request.clone()).await;
    }
    side.with("client-api-version", "3.7").call("client-api-version", RANGE, request.clone()).await;
    side.with("trace-bin", "bm90IGEgdHJhY2U").call("binary metadata", RANGE, request.clone()).await;
    let any_status = side.with_any_http_status();
    any_status
        .with("trace-bin", "!!! no base64 !!!")
        .call("binary metadata that is none", RANGE, request.clone())
        .await;
    side.with("x-text", b"caf\xe9".to_vec()).call("metadata that is no ASCII", RANGE, request.clone()).await;
    side.with("grpc-tags-bin", "").call("empty metadata", RANGE, request.clone()).await;
    side.with("user-agent", "parity").call("user-agent", RANGE, request.clone()).await;
    // The proxy's own limit is a flag, and lower than the 16 MiB that etcd takes.
    for kib in [1, 8, 32] {
        side.with("x-large", vec![b'x'; kib << 10])
            .call(&format!("{kib} KiB of metadata"), RANGE, request.clone())
            .await;
    }
    let many = (0..200).fold(side.clone(), |side, index| side.with(&format!("x-{index}"), "value"));
    many.call("two hundred headers", RANGE, request).await;
}

fn with(mut headers: Vec<(String, Vec<u8>)>, name: &str, value: &str) -> Vec<(String, Vec<u8>)> {
    headers.push((name.to_owned(), value.into()));
    headers
}

fn gzip(message: &[u8]) -> Vec<u8> {
    let mut zipped = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(message, flate2::Compression::default());
    encoder.read_to_end(&mut zipped).expect("memory can be read");
    zipped
}
