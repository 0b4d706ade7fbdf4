//! What no client library does: other spellings of a method, messages compressed or doubled or of a lying length, forged
//! metadata, the other doors. Whatever comes back, head and trailers too, holds nothing of the neighbour's, and nothing
//! of the prefix under which the attacker lives.

use std::io::Write as _;

use bytes::{BufMut, Bytes};
use etcd_proxy_e2e::{Etcd, Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient, lease_client::LeaseClient,
    request_op::Request, watch_request::RequestUnion,
};
use flate2::{Compression, write::GzEncoder, write::ZlibEncoder};
use http::{HeaderMap, Method};
use prost::Message;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// In each key of the neighbour's, and in its values.
const SECRET: &str = "TOPSECRET";
/// The attacker's prefix. It stands in nothing that a client sends.
const PREFIX: &str = "/attackers-place/";
/// What it has itself.
const OWN: &str = "own-value";
/// A stream that is silent for so long has said all.
const SILENCE: std::time::Duration = std::time::Duration::from_millis(300);

const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut framed = vec![flag];
    framed.put_u32(u32::try_from(message.len()).expect("what is sent is short"));
    framed.extend_from_slice(message);
    framed
}

fn gzip(message: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(message).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}

fn deflate(message: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(message).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}

/// Sends this as it is, in pieces of `piece` bytes, and takes all that comes back.
async fn ask(address: &str, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8], piece: usize) -> String {
    let socket = TcpStream::connect(address).await.expect("the proxy listens");
    let (client, connection) = h2::client::handshake(socket).await.expect("the proxy speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let mut request = http::Request::builder().method(method).uri(format!("http://proxy{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("the request can be written");
    let mut client = client.ready().await.expect("a stream is free");
    let (response, mut send) = client.send_request(request, false).expect("it is sent");
    for (index, part) in body.chunks(piece.max(1)).enumerate() {
        let is_last = (index + 1) * piece.max(1) >= body.len();
        // It may have been refused before all was sent.
        if send.send_data(Bytes::copy_from_slice(part), is_last && path != WATCH).is_err() {
            break;
        }
    }
    let mut shown = Vec::new();
    let show = |headers: &HeaderMap, shown: &mut Vec<u8>| {
        for (name, value) in headers {
            shown.extend_from_slice(name.as_str().as_bytes());
            shown.extend_from_slice(value.as_bytes());
        }
    };
    if let Ok(Ok(response)) = timeout(SILENCE * 10, response).await {
        show(response.headers(), &mut shown);
        let mut body = response.into_body();
        while let Ok(Some(Ok(data))) = timeout(SILENCE, body.data()).await {
            shown.extend_from_slice(&data);
            let _ = body.flow_control().release_capacity(data.len());
        }
        if let Ok(Ok(Some(trailers))) = timeout(SILENCE, body.trailers()).await {
            show(&trailers, &mut shown);
        }
    }
    driver.abort();
    String::from_utf8_lossy(&shown).into_owned()
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const TE: (&str, &str) = ("te", "trailers");

fn all() -> Vec<u8> {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() }.encode_to_vec()
}

fn own() -> Vec<u8> {
    RangeRequest { key: "k".into(), ..RangeRequest::default() }.encode_to_vec()
}

fn watch() -> Vec<u8> {
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: 1,
        prev_kv: true,
        ..Default::default()
    };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }.encode_to_vec()
}

/// Refusals of all kinds, which must not name the prefix.
fn refusals(lease: i64) -> Vec<(&'static str, Vec<u8>)> {
    let put =
        || RequestOp { request: Some(Request::RequestPut(PutRequest { key: "k".into(), ..PutRequest::default() })) };
    vec![
        ("/etcdserverpb.KV/Txn", TxnRequest { success: vec![put(), put()], ..TxnRequest::default() }.encode_to_vec()),
        (RANGE, RangeRequest { key: "k".into(), revision: i64::MAX, ..RangeRequest::default() }.encode_to_vec()),
        (RANGE, RangeRequest { key: "k".into(), sort_order: 99, ..RangeRequest::default() }.encode_to_vec()),
        (
            "/etcdserverpb.KV/Put",
            PutRequest { key: "k".into(), ignore_value: true, value: "v".into(), ..Default::default() }.encode_to_vec(),
        ),
        ("/etcdserverpb.KV/Put", PutRequest { key: "k".into(), lease, ..PutRequest::default() }.encode_to_vec()),
        ("/etcdserverpb.KV/Put", PutRequest { key: "".into(), ..PutRequest::default() }.encode_to_vec()),
        ("/etcdserverpb.KV/Compact", CompactionRequest { revision: 1, physical: false }.encode_to_vec()),
        ("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id: lease }.encode_to_vec()),
        ("/etcdserverpb.Lease/LeaseTimeToLive", LeaseTimeToLiveRequest { id: lease, keys: true }.encode_to_vec()),
        ("/v3electionpb.Election/Leader", own()),
        ("/etcdserverpb.Auth/Authenticate", Vec::new()),
        ("/etcdserverpb.KV/Range", vec![0x0a, 0xff]),
    ]
}

#[tokio::test]
async fn no_trick_on_the_wire_shows_or_changes_what_is_a_neighbours() {
    let etcd = Etcd::start();
    let direct = grpc::channel(etcd.address()).await;
    let granted = LeaseClient::new(direct.clone()).lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await;
    let lease = granted.expect("etcd grants").into_inner().id;
    let mut kv = KvClient::new(direct.clone());
    for (key, value, lease) in [
        (format!("/b/{SECRET}"), SECRET, lease),
        (format!("/attackers-place0{SECRET}"), SECRET, 0),
        (format!("{PREFIX}k"), OWN, 0),
    ] {
        let put = PutRequest { key: key.into(), value: value.into(), lease, ..PutRequest::default() };
        kv.put(put).await.expect("etcd takes it");
    }
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag(format!("--namespace={PREFIX}"))
        .flag("--api-profile=tenant")
        .start();
    let address = proxy.address();
    let check = |what: String, shown: &str| {
        assert!(!shown.contains(SECRET), "{what} shows what is a neighbour's: {shown}");
        assert!(!shown.contains("attackers-place"), "{what} shows the prefix: {shown}");
    };
    let grpc = [GRPC, TE];

    // The tools work: what is one's own is shown.
    let shown = ask(address, Method::POST, RANGE, &grpc, &frame(0, &own()), 1).await;
    assert!(shown.contains(OWN), "{shown}");
    let shown = ask(address, Method::POST, WATCH, &grpc, &frame(0, &watch()), 3).await;
    assert!(shown.contains(OWN), "{shown}");
    check("a watch of all keys".into(), &shown);

    // Compressed, said to be, or not said to be.
    for (encoding, flag, message) in [
        ("gzip", 1, gzip(&all())),
        ("deflate", 1, deflate(&all())),
        ("snappy", 1, all()),
        ("identity", 1, all()),
        ("gzip", 0, all()),
        ("gzip", 2, gzip(&all())),
        ("GZIP", 1, gzip(&all())),
        ("identity,gzip", 1, gzip(&all())),
    ] {
        let headers = [GRPC, TE, ("grpc-encoding", encoding)];
        for path in [RANGE, "/etcdserverpb.KV/RangeStream", "/etcdserverpb.KV/DeleteRange"] {
            let shown = ask(address, Method::POST, path, &headers, &frame(flag, &message), 7).await;
            check(format!("{path} in {encoding} with the flag {flag}"), &shown);
        }
        let revoke = LeaseRevokeRequest { id: lease }.encode_to_vec();
        let revoke = if flag == 1 && encoding.ends_with("gzip") { gzip(&revoke) } else { revoke };
        ask(address, Method::POST, "/etcdserverpb.Lease/LeaseRevoke", &headers, &frame(flag, &revoke), 100).await;
    }
    // Two messages, or one that is longer or shorter than it says.
    let mut long = frame(0, &own());
    long.extend_from_slice(&all());
    let mut short = frame(0, &all());
    short[4] += 1;
    for body in
        [[frame(0, &own()), frame(0, &all())].concat(), [frame(0, &all()), frame(0, &own())].concat(), long, short]
    {
        for path in [RANGE, "/etcdserverpb.KV/RangeStream", WATCH] {
            check(format!("{path} of {body:?}"), &ask(address, Method::POST, path, &grpc, &body, 5).await);
        }
    }
    // Other spellings of what is refused or rewritten.
    for path in [
        "/etcdserverpb.KV/Range?x=1",
        "//etcdserverpb.KV/Range",
        "/etcdserverpb.KV//Range",
        "/etcdserverpb.KV/Range/",
        "/etcdserverpb.KV/%52ange",
        "/etcdserverpb.kv/range",
        "/x/../etcdserverpb.KV/Range",
        "/etcdserverpb.Maintenance/Snapshot?",
        "/etcdserverpb.Maintenance/snapshot",
        "/etcdserverpb.Maintenance%2FSnapshot",
        "/etcdserverpb.Lease/LeaseLeases?",
        "/leasepb.Lease/LeaseTimeToLive",
        "/v3lockpb.Lock/Lock?",
        "/etcdserverpb.KV/Unheard",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        for method in [Method::POST, Method::GET, Method::PUT] {
            let shown = ask(address, method, path, &grpc, &frame(0, &all()), 100).await;
            check(path.to_owned(), &shown);
        }
    }
    // Metadata that some gateway might believe.
    for (name, value) in [
        ("token", "x.y"),
        ("authorization", "root"),
        ("authorization", "Bearer x"),
        ("grpcgateway-accept", "*/*"),
        ("grpcgateway-authorization", "root"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-client-cert", "Subject=\"CN=root\""),
        ("x-remote-user", "root"),
        ("etcd-proxy-namespace", "/b/"),
        ("etcd-proxy-cache", "off"),
        ("hasleader", "true"),
        ("host", "etcd"),
        ("client-api-version", "3.7"),
        ("grpc-timeout", "0n"),
        ("grpc-accept-encoding", "gzip,deflate"),
    ] {
        let headers = [GRPC, TE, (name, value)];
        for path in [RANGE, "/etcdserverpb.Lease/LeaseLeases", "/etcdserverpb.Cluster/MemberList"] {
            let shown = ask(address, Method::POST, path, &headers, &frame(0, &all()), 100).await;
            check(format!("{path} with {name}: {value}"), &shown);
        }
    }
    // The other doors.
    let json = [("content-type", "application/json"), ("grpc-metadata-token", "x.y")];
    for (path, body) in [
        ("/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#.to_owned()),
        ("/v3/kv/range", r#"{"key":"AA==","rangeEnd":"AA==","range_end":"AA=="}"#.to_owned()),
        ("/v3beta/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#.to_owned()),
        ("/v3/watch", r#"{"create_request":{"key":"AA==","range_end":"AA==","start_revision":"1"}}"#.to_owned()),
        ("/v3/kv/deleterange", r#"{"key":"L2Iv","range_end":"AA==","prev_kv":true}"#.to_owned()),
        ("/v3/maintenance/snapshot", "{}".to_owned()),
        ("/v3/lease/leases", "{}".to_owned()),
        ("/v3/lease/revoke", format!(r#"{{"ID":"{lease}"}}"#)),
        ("/v3/kv/lease/revoke", format!(r#"{{"ID":"{lease}"}}"#)),
        ("/v3/auth/user/list", "{}".to_owned()),
        ("/v2/keys/?recursive=true", String::new()),
        ("/debug/vars", String::new()),
        ("/debug/requests", String::new()),
        ("/status.json", String::new()),
        ("/", String::new()),
        ("/proxy/health", String::new()),
    ] {
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        check(format!("{path} of {body}"), &ask(address, method, path, &json, body.as_bytes(), 1000).await);
    }
    for (path, message) in refusals(lease) {
        check(format!("{path} refused"), &ask(address, Method::POST, path, &grpc, &frame(0, &message), 100).await);
    }
    // Nobody has lost anything.
    let range = RangeRequest { key: format!("/b/{SECRET}").into(), ..RangeRequest::default() };
    let found = kv.range(range).await.expect("etcd answers").into_inner().kvs;
    assert!(found.len() == 1 && found[0].lease == lease, "{found:?}");
}
