//! Large answers and large requests: streamed in constant memory, limited where the flags say, refused in etcd's words.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{
    PutRequest, RangeRequest, RangeResponse, SnapshotRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use tonic::{Code, Status, transport::Channel};

const MIB: usize = 1 << 20;
/// Just below etcd's limit of 1.5 MiB for a request.
const VALUE: usize = 1_468_000;
/// Eight GiB, so that no quota stands in the way.
const QUOTA: &str = "--quota-backend-bytes=8589934592";

async fn put(channel: &Channel, key: &str, bytes: usize) -> Result<(), Status> {
    let request = PutRequest { key: key.to_owned().into(), value: vec![b'v'; bytes].into(), ..PutRequest::default() };
    KvClient::new(channel.clone()).put(request).await.map(drop)
}

/// Values of `VALUE` bytes until there are `total` bytes of them.
async fn fill(channel: &Channel, total: usize) -> usize {
    let count = total.div_ceil(VALUE);
    for number in 0..count {
        put(channel, &format!("big/{number:04}"), VALUE).await.expect("etcd takes it");
    }
    count
}

/// What a whole snapshot was, read without keeping it.
struct Snapshot {
    bytes: u64,
    /// The hash that etcd sends behind the database, and the one of what came before it.
    hashes: [String; 2],
    /// The most that `resident` told meanwhile.
    most: u64,
}

/// SHA-256, with which etcd ends a snapshot.
const HASH: usize = 32;

async fn snapshot(channel: Channel, resident: impl Fn() -> u64) -> Snapshot {
    let mut hasher = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum is part of every Linux");
    let mut hashed = hasher.stdin.take().expect("stdin is piped");
    let mut client = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut stream = client.snapshot(SnapshotRequest {}).await.expect("the snapshot begins").into_inner();
    let (mut bytes, mut most, mut looked) = (0, resident(), Instant::now());
    // The end is withheld from the hasher, since it may be the hash.
    let mut end = Vec::new();
    while let Some(piece) = stream.message().await.expect("the snapshot goes on") {
        bytes += piece.blob.len() as u64;
        end.extend_from_slice(&piece.blob);
        let rest = end.split_off(end.len().saturating_sub(HASH));
        hashed.write_all(&end).expect("the hasher reads");
        end = rest;
        if looked.elapsed() > Duration::from_millis(20) {
            most = most.max(resident());
            looked = Instant::now();
        }
    }
    drop(hashed);
    let output = hasher.wait_with_output().expect("the hasher ends").stdout;
    let computed = String::from_utf8_lossy(&output).split_whitespace().next().expect("a hash").to_owned();
    let sent = end.iter().map(|byte| format!("{byte:02x}")).collect();
    Snapshot { bytes, hashes: [sent, computed], most: most.max(resident()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_gibibyte_of_snapshot_streams_through_in_constant_memory() {
    const MOST_GROWTH: u64 = 40 << 20;
    let etcd = Etcd::builder().flag(QUOTA).start();
    let direct = grpc::channel(etcd.address()).await;
    fill(&direct, 500 * MIB).await;
    let proxy = Proxy::start(&etcd.endpoints());
    let through = grpc::channel(proxy.address()).await;
    put(&through, "warm", 10).await.expect("etcd takes it");
    let before = proxy.process.resident_bytes();
    let through = snapshot(through, || proxy.process.resident_bytes()).await;
    let direct = snapshot(direct, || 0).await;
    let grown = through.most.saturating_sub(before);
    println!("{} bytes; resident before {before}, grown by {grown}", through.bytes);
    assert!(through.bytes > 500 << 20);
    assert_eq!(through.bytes, direct.bytes);
    for Snapshot { hashes: [sent, computed], .. } in [through, direct] {
        assert_eq!(sent, computed);
    }
    assert!(grown < MOST_GROWTH, "grew by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_hundred_mebibytes_and_its_stream_are_whole() {
    let etcd = Etcd::builder().flag(QUOTA).start();
    let direct = grpc::channel(etcd.address()).await;
    let count = fill(&direct, 100 * MIB).await;
    let proxy = Proxy::start(&etcd.endpoints());
    let through = grpc::channel(proxy.address()).await;
    let all = RangeRequest { key: "big/".into(), range_end: "big0".into(), ..RangeRequest::default() };
    let range = async |channel: &Channel| -> RangeResponse {
        let mut client = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        client.range(all.clone()).await.expect("etcd answers").into_inner()
    };
    let answer = range(&through).await;
    assert_eq!((answer.count, answer.kvs.len()), (count as i64, count));
    assert_eq!(answer, range(&direct).await);

    let mut client = KvClient::new(through.clone()).max_decoding_message_size(usize::MAX);
    let mut stream = client.range_stream(all.clone()).await.expect("etcd streams").into_inner();
    let (mut kvs, mut pieces) = (Vec::new(), 0);
    while let Some(piece) = stream.message().await.expect("the stream goes on") {
        kvs.extend(piece.range_response.expect("each piece has a part").kvs);
        pieces += 1;
    }
    assert!(pieces > 1, "all came in one piece");
    assert_eq!(kvs, answer.kvs);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_pass_up_to_etcds_limit_and_get_its_own_errors_beyond() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let (direct, through) = (grpc::channel(etcd.address()).await, grpc::channel(proxy.address()).await);
    for bytes in [VALUE, 1_572_000, 1_572_864, 1_700_000, 2 * MIB - 100, 2 * MIB, 3 * MIB, 5 * MIB] {
        let outcome = async |channel| put(channel, "k", bytes).await.map_err(|s| (s.code(), s.message().to_owned()));
        let (theirs, ours) = (outcome(&direct).await, outcome(&through).await);
        assert_eq!(ours, theirs, "a value of {bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_the_flags_hold_in_both_directions_in_the_words_of_grpc_go() {
    // etcd's own limit counts the request, and gRPC's words count half a MiB more.
    const MAX_SEND: usize = 100_000;
    const OVERHEAD: usize = 512 * 1024;
    const MAX_RECV: usize = 300_000;
    let etcd = Etcd::start();
    let flags = [
        format!("--endpoints={}", etcd.endpoints()),
        format!("--max-send-bytes={MAX_SEND}"),
        format!("--max-recv-bytes={MAX_RECV}"),
    ];
    let proxy = Proxy::builder().flags(flags.iter().map(String::as_str)).start();
    let (direct, through) = (grpc::channel(etcd.address()).await, grpc::channel(proxy.address()).await);
    put(&through, "k", MAX_SEND).await.expect("below the limit");
    let refused = put(&through, "k", MAX_SEND + OVERHEAD + 1).await.expect_err("above the limit");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let start = "grpc: received message larger than max (";
    assert!(refused.message().starts_with(start), "{refused:?}");
    assert!(refused.message().ends_with(&format!(" vs. {})", MAX_SEND + OVERHEAD)), "{refused:?}");

    put(&direct, "k", MAX_RECV - 1000).await.expect("etcd takes it");
    let get = async || {
        let request = RangeRequest { key: "k".into(), ..RangeRequest::default() };
        KvClient::new(through.clone()).range(request).await
    };
    assert_eq!(get().await.expect("below the limit").into_inner().count, 1);
    put(&direct, "k", MAX_RECV).await.expect("etcd takes it");
    let refused = get().await.expect_err("above the limit");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().starts_with(start), "{refused:?}");
    assert!(refused.message().ends_with(&format!(" vs. {MAX_RECV})")), "{refused:?}");
}
