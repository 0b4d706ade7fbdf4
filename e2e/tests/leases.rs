//! LeaseLeases behind a namespace, on real clusters: who sees which lease, and what a list may cost.

use etcd_proxy_e2e::{Etcd, Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, PutRequest, kv_client::KvClient,
    lease_client::LeaseClient,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Long enough that no lease ends while a test runs.
const TTL: i64 = 600;
/// Grants under way at a time; etcd commits those that come together in one go.
const CONCURRENT_GRANTS: i64 = 256;
/// One more than the list is made for.
const TOO_MANY: i64 = 10_001;
const QUESTIONS: &str = r#"grpc_server_handled_total{grpc_code="OK",grpc_method="LeaseTimeToLive",grpc_service="etcdserverpb.Lease",grpc_type="unary"}"#;

async fn grant(channel: &Channel, id: i64) {
    let granted = LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { ttl: TTL, id }).await;
    assert_eq!(granted.expect("etcd grants").into_inner().error, "");
}

async fn put(channel: &Channel, key: &'static str, lease: i64) {
    let put = PutRequest { key: key.into(), value: "v".into(), lease, ..PutRequest::default() };
    KvClient::new(channel.clone()).put(put).await.expect("etcd takes the key");
}

async fn list(channel: &Channel) -> Result<LeaseLeasesResponse, Status> {
    LeaseClient::new(channel.clone()).lease_leases(LeaseLeasesRequest {}).await.map(|answer| answer.into_inner())
}

async fn ids(channel: &Channel) -> Vec<i64> {
    let mut ids: Vec<i64> = list(channel).await.expect("the list").leases.iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    ids
}

fn namespaced(endpoints: &str) -> Proxy {
    Proxy::builder().flag(format!("--endpoints={endpoints}")).flag("--namespace=ns/").start()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_sees_its_own_leases_and_those_without_keys_whichever_member_answers() {
    let etcd = Etcd::builder().members(3).start();
    let direct = grpc::channel(etcd.address()).await;
    for id in 1..=5 {
        grant(&direct, id).await;
    }
    put(&direct, "ns/mine", 1).await;
    put(&direct, "foreign", 2).await;
    put(&direct, "foreign too", 3).await;
    put(&direct, "ns/mine too", 3).await;
    // 4 has no keys, and 5 is gone.
    LeaseClient::new(direct.clone()).lease_revoke(LeaseRevokeRequest { id: 5 }).await.expect("etcd revokes");
    for index in 0..3 {
        let proxy = namespaced(&etcd.endpoint(index));
        let through = grpc::channel(proxy.address()).await;
        // A linearizable read makes the member catch up with what the first one was told.
        proxy.etcdctl().ok(&["get", "mine"]);
        assert_eq!(ids(&through).await, [1, 3, 4], "by member {index}");
        let (shown, whole) = (list(&through).await, list(&grpc::channel(etcd.members()[index].address()).await).await);
        assert_eq!(shown.expect("a list").header, whole.expect("a list").header, "by member {index}");
    }
    let proxy = Proxy::start(&etcd.endpoints());
    assert_eq!(ids(&grpc::channel(proxy.address()).await).await, [1, 2, 3, 4], "without a namespace all are seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_on_keys_that_the_caller_may_not_read_are_not_shown_and_strangers_are_refused_in_etcds_words() {
    let etcd = Etcd::start();
    let direct = grpc::channel(etcd.address()).await;
    for id in 1..=3 {
        grant(&direct, id).await;
    }
    put(&direct, "ns/open", 1).await;
    put(&direct, "ns/secret", 2).await;
    let root = etcd.etcdctl();
    for command in [
        &["user", "add", "root:pw"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "alice:pw"],
        &["role", "add", "open"],
        &["role", "grant-permission", "open", "readwrite", "ns/open"],
        &["user", "grant-role", "alice", "open"],
        &["auth", "enable"],
    ] {
        root.ok(command);
    }
    let proxy = namespaced(&etcd.endpoints());
    let leases = |printed: String| printed.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    let by_root = leases(proxy.etcdctl().user("root:pw").ok(&["lease", "list"]));
    assert_eq!(by_root.len(), 3, "{by_root:?}");

    // etcd refuses the whole list to who may not read all of it, and so it stays.
    for etcdctl in [proxy.etcdctl(), etcd.etcdctl()] {
        let refused = etcdctl.user("alice:pw").run(&["lease", "list"]);
        assert_eq!(refused.stderr.lines().last(), Some("Error: etcdserver: permission denied"), "{refused:?}");
    }
    let stranger = list(&grpc::channel(proxy.address()).await).await.expect_err("no token");
    let directly = list(&direct).await.expect_err("no token");
    assert_eq!((stranger.code(), stranger.message()), (directly.code(), directly.message()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_asks_about_each_lease_once_and_about_none_when_there_are_too_many() {
    let etcd = Etcd::start();
    let direct = grpc::channel(etcd.address()).await;
    let proxy = namespaced(&etcd.endpoints());
    let through = grpc::channel(proxy.address()).await;
    let grant_up_to = async |first: i64, last: i64| {
        for start in (first..=last).step_by(CONCURRENT_GRANTS as usize) {
            let granting: Vec<_> = (start..=last.min(start + CONCURRENT_GRANTS - 1))
                .map(|id| {
                    let direct = direct.clone();
                    tokio::spawn(async move { grant(&direct, id).await })
                })
                .collect();
            for granted in granting {
                granted.await.expect("it is granted");
            }
        }
    };
    let questions = || etcd.members()[0].metric(QUESTIONS).unwrap_or(0.0);

    grant_up_to(1, 1000).await;
    assert_eq!(ids(&through).await, (1..=1000).collect::<Vec<i64>>());
    assert_eq!(questions(), 1000.0);

    grant_up_to(1001, TOO_MANY).await;
    let refused = list(&through).await.expect_err("too many to ask about");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(questions(), 1000.0, "a refused list asks nothing");

    LeaseClient::new(direct.clone()).lease_revoke(LeaseRevokeRequest { id: TOO_MANY }).await.expect("etcd revokes");
    assert_eq!(list(&through).await.expect("just few enough").leases.len(), 10_000);
}
