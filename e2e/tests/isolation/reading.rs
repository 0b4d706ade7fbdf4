//! What else a profile promises: a reader changes nothing, leases of one's own work, refusals say which profile it was.

use etcd_proxy_e2e::{Etcd, Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, SnapshotRequest, TxnRequest, kv_client::KvClient,
    lease_client::LeaseClient, maintenance_client::MaintenanceClient, request_op::Request,
};
use etcd_proxy_proto::v3lockpb::{LockRequest, lock_client::LockClient};
use tonic::Code;
use tonic::transport::Channel;

fn proxy(etcd: &Etcd, flags: &[&str]) -> Proxy {
    Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flags(flags.iter().copied()).start()
}

fn put(key: &str, lease: i64) -> PutRequest {
    PutRequest { key: key.as_bytes().to_vec().into(), value: "v".into(), lease, ..PutRequest::default() }
}

fn txn(request: Request) -> TxnRequest {
    TxnRequest { success: vec![RequestOp { request: Some(request) }], ..TxnRequest::default() }
}

#[tokio::test]
async fn a_reader_reads_and_changes_nothing() {
    let etcd = Etcd::builder().start();
    let reader = proxy(&etcd, &["--namespace=a/", "--api-profile=read-only"]);
    let mut kv = KvClient::new(grpc::channel(reader.address()).await);
    KvClient::new(grpc::channel(etcd.address()).await).put(put("a/k", 0)).await.expect("etcd takes it");

    let get = RangeRequest { key: "k".into(), ..RangeRequest::default() };
    assert_eq!(kv.range(get.clone()).await.expect("a reader reads").into_inner().kvs.len(), 1);
    let read = txn(Request::RequestTxn(txn(Request::RequestRange(get))));
    assert_eq!(kv.txn(read).await.expect("a reader reads in transactions").into_inner().responses.len(), 1);

    let refused = kv.put(put("k", 0)).await.expect_err("a reader does not write");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("KV/Put") && refused.message().contains("\"read-only\""), "{refused}");
    let write = txn(Request::RequestTxn(txn(Request::RequestPut(put("k", 0)))));
    let refused = kv.txn(write).await.expect_err("nor in a transaction in a transaction");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("\"read-only\""), "{refused}");
}

#[tokio::test]
async fn a_tenants_own_leases_do_what_leases_do_through_any_of_its_proxies() {
    let etcd = Etcd::builder().start();
    let flags = ["--namespace=/a/", "--api-profile=tenant"];
    let (one, other) = (proxy(&etcd, &flags), proxy(&etcd, &flags));
    let (one, other) = (grpc::channel(one.address()).await, grpc::channel(other.address()).await);
    let mut leases = LeaseClient::new(one.clone());
    let id = leases.lease_grant(LeaseGrantRequest { ttl: 100, id: 0 }).await.expect("a lease").into_inner().id;
    assert!(id > 0);

    let mut elsewhere = LeaseClient::new(other.clone());
    KvClient::new(other.clone()).put(put("k", id)).await.expect("the lease is known to the other proxy");
    KvClient::new(one.clone()).txn(txn(Request::RequestPut(put("l", id)))).await.expect("in a transaction too");
    let seen = elsewhere.lease_time_to_live(LeaseTimeToLiveRequest { id, keys: true }).await.expect("it lives");
    let mut seen = seen.into_inner();
    assert!(seen.id == id && seen.ttl > 0 && seen.granted_ttl == 100);
    // etcd keeps them in no order.
    seen.keys.sort();
    assert_eq!(seen.keys, ["k", "l"]);
    let listed = elsewhere.lease_leases(LeaseLeasesRequest {}).await.expect("a list").into_inner().leases;
    assert_eq!(listed.iter().map(|lease| lease.id).collect::<Vec<_>>(), [id]);
    let renewed = elsewhere.lease_keep_alive(tokio_stream::once(LeaseKeepAliveRequest { id })).await;
    let renewed = renewed.expect("a stream").into_inner().message().await.expect("an answer").expect("one answer");
    assert_eq!((renewed.id, renewed.ttl), (id, 100));

    // One's own choice of an id is taken where it is one's own to choose.
    let taken = leases.lease_grant(LeaseGrantRequest { ttl: 100, id }).await.expect_err("it is there already");
    assert_eq!(taken.message(), "etcdserver: lease already exists");
    let refused = leases.lease_grant(LeaseGrantRequest { ttl: 100, id: 7 }).await.expect_err("7 is nobody's to choose");
    assert_eq!(refused.code(), Code::InvalidArgument);

    elsewhere.lease_revoke(LeaseRevokeRequest { id }).await.expect("it is one's own");
    let gone = leases.lease_revoke(LeaseRevokeRequest { id }).await.expect_err("it is gone");
    let never = leases.lease_revoke(LeaseRevokeRequest { id: 7 }).await.expect_err("it never was");
    assert_eq!((gone.code(), gone.message()), (never.code(), never.message()));
    let range = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
    let left = KvClient::new(one).range(range).await.expect("an answer").into_inner();
    assert_eq!(left.count, 0, "its keys go with it");
}

#[tokio::test]
async fn a_lock_without_a_lease_gets_one_that_is_the_tenants() {
    let etcd = Etcd::builder().start();
    let tenant = proxy(&etcd, &["--namespace=/a/", "--api-profile=tenant"]);
    let channel = grpc::channel(tenant.address()).await;
    let lock = LockRequest { name: "n".into(), lease: 0 };
    let key = LockClient::new(channel.clone()).lock(lock).await.expect("it is free").into_inner().key;
    let get = RangeRequest { key, ..RangeRequest::default() };
    let found = KvClient::new(channel.clone()).range(get).await.expect("an answer").into_inner().kvs;
    let listed = LeaseClient::new(channel).lease_leases(LeaseLeasesRequest {}).await.expect("a list").into_inner();
    assert_eq!(listed.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), [found[0].lease]);
}

async fn compact(channel: &Channel, revision: i64) -> Result<(), tonic::Status> {
    KvClient::new(channel.clone()).compact(CompactionRequest { revision, physical: false }).await.map(|_| ())
}

#[tokio::test]
async fn a_compaction_is_denied_ignored_or_done_and_methods_are_allowed_and_denied_by_name() {
    let etcd = Etcd::builder().start();
    let direct = grpc::channel(etcd.address()).await;
    for _ in 0..5 {
        KvClient::new(direct.clone()).put(put("/a/k", 0)).await.expect("etcd takes it");
    }
    let base = ["--namespace=/a/", "--api-profile=tenant"];
    let with = |more: &[&str]| proxy(&etcd, &[&base[..], more].concat());
    let (denies, ignores, allows) = (with(&[]), with(&["--api-compact=ignore"]), with(&["--api-compact=allow"]));
    let channel = async |proxy: &Proxy| grpc::channel(proxy.address()).await;

    let refused = compact(&channel(&denies).await, 3).await.expect_err("a tenant does not compact");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("KV/Compact") && refused.message().contains("\"tenant\""), "{refused}");

    let old = RangeRequest { key: "k".into(), revision: 2, ..RangeRequest::default() };
    let ignoring = channel(&ignores).await;
    compact(&ignoring, 3).await.expect("it is answered as if done");
    let future = compact(&ignoring, 1_000).await.expect_err("nothing can be done to the future");
    assert_eq!(future.message(), "etcdserver: mvcc: required revision is a future revision");
    KvClient::new(ignoring.clone()).range(old.clone()).await.expect("and not done");

    compact(&channel(&allows).await, 3).await.expect("it is done");
    let compacted = KvClient::new(ignoring).range(old).await.expect_err("it is gone");
    assert_eq!(compacted.message(), "etcdserver: mvcc: required revision has been compacted");

    let named = with(&["--api-allow=Maintenance/Snapshot", "--api-deny=KV/Put"]);
    let named = channel(&named).await;
    let refused = KvClient::new(named.clone()).put(put("k", 0)).await.expect_err("it is denied by name");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let snapshot = MaintenanceClient::new(named).snapshot(SnapshotRequest::default()).await.expect("it is allowed");
    assert!(snapshot.into_inner().message().await.expect("a piece").is_some());
}

#[tokio::test]
async fn a_namespace_without_a_profile_says_what_it_leaves_open() {
    let etcd = Etcd::builder().start();
    let open = proxy(&etcd, &["--namespace=/a/"]);
    let line = open
        .log()
        .into_iter()
        .find(|line| line["msg"].as_str().is_some_and(|msg| msg.starts_with("--namespace without --api-profile")));
    assert!(line.is_some(), "{:?}", open.log());
}
