//! No write is applied twice, no acknowledged one is lost, and leases are kept alive when members die.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use etcd_proxy_e2e::{Etcd, Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, compare,
    kv_client::KvClient, lease_client::LeaseClient, request_op::Request,
};
use tonic::{Status, transport::Channel};

use super::load::{channel, eventually, range};

const CLIENTS: usize = 6;
/// Calls that one client has under way, so that a dying member takes some with it.
const AT_ONCE: usize = 4;

/// The odd ones through a transaction, which is a write as well.
async fn write_once(channel: &Channel, key: String, number: u64) -> Result<(), Status> {
    let mut client = KvClient::new(channel.clone());
    let put = PutRequest { key: key.clone().into(), value: "v".into(), ..PutRequest::default() };
    if number.is_multiple_of(2) {
        return client.put(put).await.map(drop);
    }
    // It is true before and after, so that a second application would show as a second version.
    let always = Compare {
        key: "never written".into(),
        target: compare::CompareTarget::Version.into(),
        result: compare::CompareResult::Equal.into(),
        target_union: Some(compare::TargetUnion::Version(0)),
        ..Compare::default()
    };
    let success = vec![RequestOp { request: Some(Request::RequestPut(put)) }];
    client.txn(TxnRequest { compare: vec![always], success, failure: vec![] }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_applied_twice_and_none_that_was_acknowledged_is_lost() {
    let mut etcd = Etcd::builder().members(3).start();
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let proxy = Proxy::builder().flags([&endpoints, "--health-interval=500ms", "--health-timeout=500ms"]).start();
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for client in 0..CLIENTS {
        let channel = channel(&proxy).await;
        for task in 0..AT_ONCE {
            let (stop, channel, written) = (stop.clone(), channel.clone(), written.clone());
            writers.push(tokio::spawn(async move {
                let mut outcomes = HashMap::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("w/{client}/{task}/{number}");
                    let outcome = write_once(&channel, key.clone(), number).await;
                    written.fetch_add(u64::from(outcome.is_ok()), Ordering::Relaxed);
                    outcomes.insert(key, outcome);
                }
                outcomes
            }));
        }
    }
    let more = async || {
        let goal = written.load(Ordering::Relaxed) + 200;
        eventually("writes go on", || async { written.load(Ordering::Relaxed) >= goal }).await;
    };
    more().await;
    for index in 0..3 {
        etcd.member(index).kill();
        more().await;
        etcd.member(index).restart();
        more().await;
        etcd.member(index).stop();
        more().await;
        etcd.member(index).restart();
        more().await;
    }
    let leader = etcd.leader();
    for index in [(leader + 1) % 3, leader] {
        etcd.member(index).pause();
        proxy.expect_log("\"state\":\"unreachable\"");
        more().await;
        etcd.member(index).resume();
        more().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut outcomes = HashMap::new();
    for writer in writers {
        outcomes.extend(writer.await.expect("a writer does not panic"));
    }

    let direct = grpc::endpoint(etcd.address()).connect_lazy();
    let all = RangeRequest { key: "w/".into(), range_end: "w0".into(), ..RangeRequest::default() };
    let mut client = KvClient::new(direct).max_decoding_message_size(usize::MAX);
    let found = client.range(all).await.expect("etcd answers").into_inner().kvs;
    let versions: HashMap<String, i64> =
        found.into_iter().map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.version)).collect();
    let twice: Vec<_> = versions.iter().filter(|(_, version)| **version != 1).collect();
    assert!(twice.is_empty(), "applied more than once: {twice:?}");
    let lost: Vec<_> =
        outcomes.iter().filter(|(key, outcome)| outcome.is_ok() && !versions.contains_key(*key)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let failed: HashMap<String, usize> =
        outcomes.values().filter_map(|outcome| outcome.as_ref().err()).fold(HashMap::new(), |mut counts, status| {
            *counts.entry(format!("{:?} {}", status.code(), status.message())).or_default() += 1;
            counts
        });
    println!("{} writes, {} in etcd, failures: {failed:#?}", outcomes.len(), versions.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_elsewhere_when_they_were_not_sent() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let follower = (etcd.leader() + 1) % 3;
    etcd.member(follower).kill();
    // Among six clients in turn are some whose member is dead, and nothing can be sent to it.
    for client in 0..CLIENTS {
        let channel = channel(&proxy).await;
        write_once(&channel, format!("k{client}"), client as u64).await.expect("a living member takes it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_keepalive_stream_goes_on_while_each_follower_dies() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let mut lease = LeaseClient::new(channel(&proxy).await);
    let id = lease.lease_grant(LeaseGrantRequest { ttl: 30, id: 0 }).await.expect("granted").into_inner().id;
    let (asks, receiver) = tokio::sync::mpsc::channel(4);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    asks.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
    let mut answers = lease.lease_keep_alive(stream).await.expect("the stream opens").into_inner();
    let mut renewed = async || {
        let answer = tokio::time::timeout(super::load::PATIENCE, answers.message()).await.expect("an answer in time");
        let answer = answer.expect("the stream goes on").expect("the stream does not end");
        assert_eq!((answer.id, answer.ttl), (id, 30));
    };
    renewed().await;
    let leader = etcd.leader();
    for follower in [(leader + 1) % 3, (leader + 2) % 3] {
        etcd.member(follower).kill();
        for _ in 0..5 {
            asks.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
            renewed().await;
        }
        etcd.member(follower).restart();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_a_client_keeps_alive_outlives_every_member_in_turn() {
    const TTL: &str = "4";
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let granted = proxy.etcdctl().ok(&["lease", "grant", TTL]);
    let id = granted.split_whitespace().nth(1).expect("etcdctl tells the id").to_owned();
    proxy.etcdctl().ok(&["put", "kept", "v", &format!("--lease={id}")]);
    let mut keeper = proxy.etcdctl().spawn(&["lease", "keep-alive", &id]);
    let any = channel(&proxy).await;
    for index in 0..3 {
        etcd.member(index).kill();
        // Three renewals at a third of the TTL are longer than the lease would last without them.
        for _ in 0..4 {
            keeper.expect_stdout("keepalived");
        }
        etcd.member(index).restart();
        assert_eq!(range(&any, "kept", false).await.expect("a member answers").count, 1, "after member {index}");
    }
    assert!(keeper.exit().is_none());
    // And without its keeper it does not.
    keeper.kill();
    eventually("the lease expires", || async {
        range(&any, "kept", false).await.is_ok_and(|answer| answer.count == 0)
    })
    .await;
}
