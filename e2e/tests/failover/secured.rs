//! The same with an etcd that speaks TLS, where Go's own HTTP/2 serves it: a refusal is then headers and trailers, not
//! trailers alone.

use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Pair, Proxy, Tls, Version};
use etcd_proxy_proto::etcdserverpb::{
    LeaseGrantRequest, RangeRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient, lease_client::LeaseClient,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::{Request, transport::Channel};

use super::load::{PATIENCE, Readers, channel, endpoints_are, eventually, put};

/// Two for each of three members.
const CLIENTS: usize = 6;
/// Enough reads per client that some were under way at any moment of a fault.
const SOME: u64 = 20;

struct Secured {
    etcd: Etcd,
    authority: Authority,
    own: Pair,
    _folder: TempDir,
}

fn secured(etcd: impl FnOnce(etcd_proxy_e2e::etcd::Builder, &Authority) -> etcd_proxy_e2e::etcd::Builder) -> Secured {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let tls = Tls { server: authority.server("etcd"), ca: authority.ca(), client_cert_auth: true };
    let etcd = etcd(Etcd::builder(), &authority).tls(tls).start();
    let own = authority.nameless_client("own");
    Secured { etcd, authority, own, _folder: folder }
}

impl Secured {
    fn proxy(&self, more: &[&str]) -> Proxy {
        Proxy::builder()
            .flag(format!("--endpoints={}", self.etcd.endpoints()))
            .flag(format!("--cacert={}", self.authority.ca().display()))
            .flag(format!("--cert={}", self.own.cert.display()))
            .flag(format!("--key={}", self.own.key.display()))
            .flags(more.iter().copied())
            .start()
    }
}

/// A read that a member without a leader refuses at once.
async fn demanding_read(channel: &Channel) -> Result<(), tonic::Status> {
    let mut request = Request::new(RangeRequest { key: "k".into(), serializable: true, ..RangeRequest::default() });
    request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
    let answer = tokio::time::timeout(PATIENCE, KvClient::new(channel.clone()).range(request)).await;
    answer.expect("a read ends in time").map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_tls_a_member_without_a_leader_is_passed_over_though_no_health_check_tells() {
    let rig = secured(|etcd, _| etcd.members(3).partitionable());
    // Who has no leader shows by its refusals only.
    let proxy = rig.proxy(&["--health-interval=1h"]);
    endpoints_are(&proxy, 3, |line| line["msg"] == "endpoint is serving").await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(channel(&proxy).await);
    }
    let mut watches = Vec::new();
    for client in &clients {
        let create = WatchCreateRequest { key: "watched".into(), ..WatchCreateRequest::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let asks = tokio_stream::once(create).chain(tokio_stream::pending());
        let mut request = Request::new(asks);
        request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
        let mut watch = WatchClient::new(client.clone()).watch(request).await.expect("it opens").into_inner();
        assert!(watch.message().await.expect("an answer").expect("a response").created);
        watches.push(watch);
    }
    let lost = (rig.etcd.leader() + 1) % 3;
    rig.etcd.isolate(lost);
    eventually("it has no leader", || async { rig.etcd.members()[lost].metric("etcd_server_has_leader") == Some(0.0) })
        .await;
    for client in &clients {
        for _ in 0..3 {
            demanding_read(client).await.expect("another member answers");
        }
    }
    // etcd ended the streams that want a leader; they went elsewhere, and see what is written there.
    let direct = Etcdctl::new(Version::default(), rig.etcd.endpoint(rig.etcd.leader()));
    direct.tls(&rig.authority.ca(), Some(&rig.own)).ok(&["put", "watched", "v"]);
    for watch in &mut watches {
        let next = tokio::time::timeout(PATIENCE, watch.message()).await.expect("in time");
        let events = next.expect("the watch goes on").expect("it does not end").events;
        assert_eq!(events.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_tls_reads_watches_and_leases_go_on_while_members_are_killed_and_restarted() {
    let mut rig = secured(|etcd, _| etcd.members(3));
    let proxy = rig.proxy(&[]);
    let readers = Readers::start(&proxy, CLIENTS).await;
    let mut watch = proxy.etcdctl().spawn(&["watch", "watched"]);
    eventually("the watch stands", || async { proxy.metric("etcd_proxy_client_watches") == Some(1.0) }).await;
    let any = channel(&proxy).await;
    let grant = LeaseGrantRequest { ttl: 60, id: 77 };
    LeaseClient::new(any.clone()).lease_grant(grant).await.expect("granted");
    let mut keeper = proxy.etcdctl().spawn(&["lease", "keep-alive", "4d"]);
    keeper.expect_stdout("keepalived");
    for index in 0..3 {
        rig.etcd.member(index).kill();
        readers.advance(SOME).await;
        // A put may meet an election; only reads are promised to pass it.
        eventually("the put succeeds", || async { put(&any, "watched", &format!("v{index}")).await.is_ok() }).await;
        watch.expect_stdout(&format!("v{index}"));
        rig.etcd.member(index).restart();
        readers.advance(SOME).await;
    }
    assert!(watch.exit().is_none());
    assert!(keeper.exit().is_none());
    readers.finish().await;
}

#[test]
fn behind_tls_the_proxy_s_own_user_outlives_every_change_of_rights() {
    // What a JSON web token says it was made at, so that each change makes all of them old.
    let rig = secured(|etcd, authority| {
        let pair = authority.nameless_client("signer");
        let (public, private) = (pair.cert.display(), pair.key.display());
        etcd.flag(format!("--auth-token=jwt,pub-key={public},priv-key={private},sign-method=ES256,ttl=10m"))
            .flag("--bcrypt-cost=4")
    });
    let direct = rig.etcd.etcdctl().tls(&rig.authority.ca(), Some(&rig.own));
    direct.ok(&["user", "add", "root:root"]);
    direct.ok(&["role", "add", "root"]);
    direct.ok(&["user", "grant-role", "root", "root"]);
    direct.ok(&["auth", "enable"]);
    let direct = direct.user("root:root");
    let proxy = rig.proxy(&["--user=root:root"]);
    for number in 0..5 {
        direct.ok(&["role", "add", &format!("role-{number}")]);
        let health = proxy.get("/health");
        assert_eq!(health.status, 200, "after change {number}: {health:?}");
    }
    let logins = proxy.metric("etcd_proxy_logins_total{result=\"success\"}").expect("it is counted");
    assert!(logins > 1.0, "the tokens never grew old: {logins}");
}
