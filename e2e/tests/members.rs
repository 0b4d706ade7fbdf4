//! MemberList: clients that follow the member list keep to proxies, and etcd says who may see it.

use etcd_proxy_e2e::{Etcd, Etcdctl, Proxy, Version, grpc};
use etcd_proxy_proto::etcdserverpb::{MemberListRequest, MemberListResponse, cluster_client::ClusterClient};
use tonic::Status;

async fn member_list(address: &str, linearizable: bool) -> Result<MemberListResponse, Status> {
    let mut client = ClusterClient::new(grpc::channel(address).await);
    client.member_list(MemberListRequest { linearizable }).await.map(|answer| answer.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_shows_itself_under_a_whole_header_with_an_id_that_stays() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    for linearizable in [true, false] {
        let direct = member_list(etcd.address(), linearizable).await.expect("etcd lists its members");
        let through = member_list(proxy.address(), linearizable).await.expect("the proxy lists itself");
        assert_eq!(through.header, direct.header);
        assert_eq!(through.members.len(), 1);
        let member = &through.members[0];
        assert_eq!(member.client_ur_ls, [proxy.address()]);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux knows its name");
        assert_eq!(member.name, host.trim_end());
        assert_ne!(member.id, 0);
        let another = Proxy::builder()
            .flag(format!("--endpoints={}", etcd.endpoints()))
            .flag(format!("--advertise-client-url={}", proxy.address()))
            .start();
        let shown = member_list(another.address(), linearizable).await.expect("it lists whom it advertises");
        assert_eq!(shown.members, through.members);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_advertised_url_etcds_own_members_are_shown() {
    let etcd = Etcd::builder().members(3).start();
    let proxy =
        Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--advertise-client-url=").start();
    let direct = member_list(etcd.address(), true).await.expect("etcd lists its members");
    let through = member_list(proxy.address(), true).await.expect("the proxy hands the list down");
    assert_eq!(through.members, direct.members);
}

#[test]
fn commands_for_the_whole_cluster_work_on_what_the_list_shows() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    for version in Version::ALL {
        let etcdctl = Etcdctl::new(version, proxy.address());
        let status = etcdctl.ok(&["endpoint", "status", "--cluster"]);
        assert!(status.starts_with(proxy.address()), "{version:?}: {status}");
        let health = etcdctl.run(&["endpoint", "health", "--cluster"]);
        assert_eq!(health.code, 0, "{version:?}: {health:?}");
        assert!(format!("{health:?}").contains(&format!("{} is healthy", proxy.address())), "{version:?}: {health:?}");
        let table = etcdctl.ok(&["member", "list"]);
        assert!(table.contains("started") && !table.contains("unstarted"), "{version:?}: {table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_see_the_members_is_refused_in_etcds_words() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    etcd.etcdctl().ok(&["user", "add", "root:pw"]);
    etcd.etcdctl().ok(&["user", "grant-role", "root", "root"]);
    etcd.etcdctl().ok(&["auth", "enable"]);
    for token in [None, Some("nonsense")] {
        let ask = async |address: &str| {
            let mut request = tonic::Request::new(MemberListRequest { linearizable: true });
            if let Some(token) = token {
                request.metadata_mut().insert("token", token.parse().expect("plain letters"));
            }
            let answered = ClusterClient::new(grpc::channel(address).await).member_list(request).await;
            answered.map(|_| ()).map_err(|status| (status.code(), status.message().to_owned()))
        };
        assert_eq!(ask(proxy.address()).await, ask(etcd.address()).await, "{token:?}");
    }
    proxy.etcdctl().user("root:pw").ok(&["member", "list"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_only_a_list_that_needs_none_is_shown() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    member_list(proxy.address(), true).await.expect("there is a quorum");
    for index in [1, 2] {
        etcd.member(index).kill();
        // As long as it thinks that another one is well, it asks there.
        proxy.expect_log("\"state\":\"unreachable\"");
    }
    member_list(proxy.address(), false).await.expect("any member may answer");
    let refused = member_list(proxy.address(), true).await.expect_err("nobody can vouch for it");
    let direct = member_list(etcd.address(), true).await.expect_err("nobody can vouch for it");
    assert_eq!((refused.code(), refused.message()), (direct.code(), direct.message()));
}
