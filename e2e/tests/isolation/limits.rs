//! Nobody starves the others: what a tenant has no more of is refused with the time to wait, or waits.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::process::PATIENCE;
use etcd_proxy_e2e::{Etcd, Proxy, grpc, wait};
use etcd_proxy_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
    WatchResponse, kv_client::KvClient, request_op::Request, watch_client::WatchClient, watch_request::RequestUnion,
};
use prost::Message as _;
use tonic::{Code, Status, Streaming, transport::Channel};

fn proxy(etcd: &Etcd, flags: &[&str]) -> Proxy {
    Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flags(flags.iter().copied()).start()
}

async fn kv(proxy: &Proxy) -> KvClient<Channel> {
    KvClient::new(grpc::channel(proxy.address()).await).max_decoding_message_size(usize::MAX)
}

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

fn put(key: &str, value: Vec<u8>) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.into(), ..PutRequest::default() }
}

fn all() -> RangeRequest {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() }
}

/// How often the proxy says that it refused something for this limit.
fn refused(proxy: &Proxy, limit: &str) -> f64 {
    let series = format!("etcd_proxy_tenant_refused_total{{limit=\"{limit}\",tenant=\"default\"}}");
    proxy.metric(&series).unwrap_or(0.0)
}

/// How long a refusal says to wait, in the way of gRPC.
fn wait(status: &Status) -> Duration {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Rich {
        #[prost(message, repeated, tag = "3")]
        details: Vec<Any>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Any {
        #[prost(string, tag = "1")]
        url: String,
        #[prost(bytes = "vec", tag = "2")]
        value: Vec<u8>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        delay: Option<Delay>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Delay {
        #[prost(int64, tag = "1")]
        seconds: i64,
        #[prost(int32, tag = "2")]
        nanos: i32,
    }
    let rich = Rich::decode(status.details()).expect("google.rpc.Status");
    assert_eq!(rich.details[0].url, "type.googleapis.com/google.rpc.RetryInfo");
    let delay = RetryInfo::decode(&rich.details[0].value[..]).expect("RetryInfo").delay.expect("a delay");
    Duration::new(delay.seconds.try_into().expect("seconds"), delay.nanos.try_into().expect("nanoseconds"))
}

#[tokio::test]
async fn who_asks_too_often_is_told_how_long_to_wait_and_is_served_then() {
    let etcd = Etcd::builder().start();
    let proxy = proxy(&etcd, &["--tenant-max-requests-per-second=1", "--tenant-request-burst=3"]);
    let mut kv = kv(&proxy).await;
    let status = loop {
        if let Err(status) = kv.range(get("k")).await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("etcdserver: too many requests"), "{status:?}");
    assert_eq!(status.metadata().get("retry-after").map(|value| value.as_bytes()), Some(&b"1"[..]));
    assert!(refused(&proxy, "requests_per_second") >= 1.0);
    tokio::time::sleep(wait(&status)).await;
    kv.range(get("k")).await.expect("it was waited as long as was said");
    // Who asks in JSON is told too, in the words of HTTP.
    let refused = loop {
        let answer = etcd_proxy_e2e::http::post(proxy.address(), "/v3/kv/range", r#"{"key":"aw=="}"#);
        let answer = answer.expect("an answer");
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(refused.status, 429, "{refused:?}");
}

/// A watch stream with what was asked on it.
async fn watch(
    channel: &Channel,
    creates: usize,
) -> Result<(tokio::sync::mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Status> {
    let (send, requests) = tokio::sync::mpsc::channel(16);
    for _ in 0..creates {
        send.send(create()).await.expect("there is room");
    }
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let answers = WatchClient::new(channel.clone()).watch(requests).await?.into_inner();
    Ok((send, answers))
}

fn create() -> WatchRequest {
    let create = WatchCreateRequest { key: "k".into(), ..WatchCreateRequest::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

async fn next(answers: &mut Streaming<WatchResponse>) -> WatchResponse {
    let next = tokio::time::timeout(PATIENCE, answers.message()).await.expect("an answer in time");
    next.expect("the stream goes on").expect("the stream goes on")
}

#[tokio::test]
async fn watches_and_streams_have_a_number_and_what_ends_makes_room() {
    let etcd = Etcd::builder().start();
    let proxy = proxy(&etcd, &["--tenant-max-watches=2", "--tenant-max-streams=1"]);
    let channel = grpc::channel(proxy.address()).await;
    let (send, mut answers) = watch(&channel, 3).await.expect("a stream");
    let (first, second) = (next(&mut answers).await, next(&mut answers).await);
    assert!(first.created && !first.canceled && second.created && !second.canceled);
    let third = next(&mut answers).await;
    assert!(third.created && third.canceled, "{third:?}");
    assert!(third.cancel_reason.contains("too many watches"), "{third:?}");
    assert_eq!(refused(&proxy, "watches"), 1.0);

    let status = match watch(&channel, 1).await {
        Ok((_send, mut answers)) => answers.message().await.expect_err("one stream too many"),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("too many streams"), "{status:?}");
    // Requests are no streams.
    KvClient::new(channel.clone()).range(get("k")).await.expect("there is no limit on requests");

    let cancel = etcd_proxy_proto::etcdserverpb::WatchCancelRequest { watch_id: first.watch_id };
    send.send(WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) }).await.expect("it listens");
    assert!(next(&mut answers).await.canceled);
    send.send(create()).await.expect("it listens");
    assert!(!next(&mut answers).await.canceled, "the place of the cancelled one is free");
}

#[tokio::test]
async fn a_connection_too_many_is_told_so_and_served_once_another_ends() {
    let etcd = Etcd::builder().start();
    let proxy = proxy(&etcd, &["--tenant-max-connections=1"]);
    let first = grpc::channel(proxy.address()).await;
    KvClient::new(first.clone()).range(get("k")).await.expect("the first is served");
    let mut second = kv(&proxy).await;
    let status = second.range(get("k")).await.expect_err("the second is one too many");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(wait(&status) >= Duration::from_secs(1));
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    // In between it was sent away, and comes again by itself.
    while let Err(status) = second.range(get("k")).await {
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused_and_its_pages_are_not() {
    let etcd = Etcd::builder().start();
    let values = [b'v'].repeat(100_000);
    let mut direct = KvClient::new(grpc::channel(etcd.address()).await);
    for number in 0..30 {
        direct.put(put(&format!("/a/{number:02}"), values.clone())).await.expect("etcd takes it");
    }
    let limited = proxy(&etcd, &["--namespace=/a/", "--tenant-max-answer-bytes=1000000", "--cache-bytes=0"]);
    let small_memory = proxy(&etcd, &["--namespace=/a/", "--max-answer-memory=1000000", "--cache-bytes=0"]);
    let without_namespace = proxy(&etcd, &["--tenant-max-answer-bytes=1000000"]);
    for (proxy, limit) in
        [(&limited, "answer_bytes"), (&small_memory, "answer_memory"), (&without_namespace, "answer_bytes")]
    {
        let mut kv = kv(proxy).await;
        let status = kv.range(all()).await.expect_err("three megabytes");
        assert_eq!(status.code(), Code::ResourceExhausted, "{limit}: {status:?}");
        assert!(status.message().contains("in pages"), "{limit}: {status:?}");
        let page = kv.range(RangeRequest { limit: 5, ..all() }).await.expect("half a megabyte").into_inner();
        assert_eq!((page.kvs.len(), page.more), (5, true));
    }
    assert_eq!(refused(&limited, "answer_bytes"), 1.0);
    let large_request = proxy(&etcd, &["--tenant-max-request-bytes=1000"]);
    let status = kv(&large_request).await.put(put("k", values)).await.expect_err("a request of 100 kB");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(refused(&large_request, "request_bytes"), 1.0);
}

#[tokio::test]
async fn bytes_beyond_the_rate_come_later_and_are_not_refused() {
    let etcd = Etcd::builder().start();
    let proxy = proxy(
        &etcd,
        &["--tenant-max-sent-bytes-per-second=200000", "--connection-max-received-bytes-per-second=200000"],
    );
    let mut kv = kv(&proxy).await;
    let value = [b'v'].repeat(100_000);
    let started = Instant::now();
    for _ in 0..5 {
        kv.put(put("k", value.clone())).await.expect("it is taken, late");
    }
    // 200 kB may come at once, and the last piece is paid for by the next.
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    let started = Instant::now();
    for _ in 0..5 {
        kv.range(get("k")).await.expect("it is sent, late");
    }
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
}

#[tokio::test]
async fn who_has_stored_as_much_as_he_may_can_still_read_and_delete() {
    let etcd = Etcd::builder().start();
    let mut direct = KvClient::new(grpc::channel(etcd.address()).await);
    for key in ["/a/0", "/a/1", "/b/0", "/a0"] {
        direct.put(put(key, b"v".to_vec())).await.expect("etcd takes it");
    }
    let flags = ["--namespace=/a/", "--api-profile=tenant", "--tenant-max-keys=4", "--tenant-max-stored-bytes=1000"];
    let proxy = proxy(&etcd, &flags);
    let keys = || proxy.metric("etcd_proxy_tenant_used{limit=\"keys\",tenant=\"default\"}");
    let bytes = || proxy.metric("etcd_proxy_tenant_used{limit=\"stored_bytes\",tenant=\"default\"}");
    let eventually = async |what: &str, condition: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "not in time: {what}, {:?} keys, {:?} bytes", keys(), bytes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    eventually("what was there is counted", &|| keys() == Some(2.0)).await;
    let mut kv = kv(&proxy).await;
    kv.put(put("2", b"v".to_vec())).await.expect("a third key");
    kv.put(put("3", b"v".to_vec())).await.expect("a fourth");
    eventually("four keys of two bytes each", &|| keys() == Some(4.0) && bytes() == Some(8.0)).await;

    let status = kv.put(put("4", b"v".to_vec())).await.expect_err("there are four");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("etcdserver: mvcc: database space exceeded"), "{status:?}");
    let nested = |request| TxnRequest { success: vec![RequestOp { request: Some(request) }], ..TxnRequest::default() };
    let write = nested(Request::RequestTxn(nested(Request::RequestPut(put("4", b"v".to_vec())))));
    let status = kv.txn(write).await.expect_err("nor in a transaction in a transaction");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(refused(&proxy, "keys"), 2.0);
    assert_eq!(kv.range(all()).await.expect("reading is free").into_inner().kvs.len(), 4);

    let delete = DeleteRangeRequest { key: "3".into(), ..DeleteRangeRequest::default() };
    kv.txn(nested(Request::RequestDeleteRange(delete))).await.expect("so is making room");
    eventually("the place is free", &|| keys() == Some(3.0) && bytes() == Some(6.0)).await;
    kv.put(put("3", [b'v'].repeat(2000))).await.expect("a large value");
    eventually("a large value is counted", &|| bytes() == Some(2007.0)).await;
    let delete = DeleteRangeRequest { key: "2".into(), ..DeleteRangeRequest::default() };
    kv.delete_range(delete).await.expect("so is making room");
    eventually("there is room for a key and for none of its bytes", &|| keys() == Some(3.0)).await;
    let status = kv.put(put("0", b"w".to_vec())).await.expect_err("bytes are used up");
    assert!(status.message().contains("stored as much as it may"), "{status:?}");
}

#[tokio::test]
async fn what_is_stored_is_counted_anew_when_etcd_is_put_back_to_a_backup() {
    let mut etcd = Etcd::builder().start();
    let mut direct = KvClient::new(grpc::channel(etcd.address()).await);
    direct.put(put("/a/0", b"v".to_vec())).await.expect("etcd takes it");
    etcd.member(0).back_up();
    let proxy = proxy(&etcd, &["--namespace=/a/", "--api-profile=tenant", "--tenant-max-keys=4"]);
    let mut kv = kv(&proxy).await;
    for key in ["1", "2", "3"] {
        kv.put(put(key, b"v".to_vec())).await.expect("there is room");
    }
    let keys = || proxy.metric("etcd_proxy_tenant_used{limit=\"keys\",tenant=\"default\"}");
    wait::eventually("four keys", || async { keys() == Some(4.0) }).await;
    etcd.member(0).put_back();
    wait::eventually("one key", || async { keys() == Some(1.0) }).await;
    kv.put(put("4", b"v".to_vec())).await.expect("there is room again");
}
