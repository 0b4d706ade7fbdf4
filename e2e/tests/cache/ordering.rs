//! A connection whose members fail or lag: what it reads never goes back while any member can do better.

use etcd_proxy_e2e::{Etcd, Proxy};
use tonic::{Code, Status};

use crate::raw::{Client, eventually, one, revision};

const NO_GREATER: &str = "etcdclient: no cluster members have a revision higher than the previously received revision";

/// Three members of which one lags, a connection that has seen what the others know, and the place of each.
struct Lagging {
    etcd: Etcd,
    proxy: Proxy,
    client: Client,
    seen: i64,
    /// The connection's own, the one that it goes to next, which lags, and the third.
    own: usize,
    lagging: usize,
    third: usize,
}

/// A connection at each member in turn, since the first that comes goes where chance has it.
async fn at_member(proxy: &Proxy, etcd: &Etcd, wanted: usize) -> Client {
    let id = u64::from_str_radix(&etcd.members()[wanted].id(), 16).expect("ids are hexadecimal");
    for _ in 0..20 {
        let client = Client::dial(proxy.address()).await;
        let answer = client.range(&one("k", true)).await.expect("a read");
        if answer.header.expect("every answer has a header").member_id == id {
            return client;
        }
    }
    panic!("no connection came to member {wanted}");
}

async fn lagging(flags: &[&str]) -> Lagging {
    let etcd = Etcd::builder().members(3).partitionable().start();
    // Health is not asked again, so that the proxy has to find out by itself that a member is not well.
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--health-interval=1h");
    let proxy = proxy.flags(flags.iter().copied()).start();
    let leader = etcd.leader();
    // The connection's next member lags; it must not be the leader, which could not do without the others.
    let own = (0..3).find(|own| (own + 1) % 3 != leader).expect("two of three do not lead");
    let (lagging, third) = ((own + 1) % 3, (own + 2) % 3);
    let client = at_member(&proxy, &etcd, own).await;
    client.put("k", "before").await.expect("a put");
    let probe = Client::dial(etcd.members()[lagging].address()).await;
    eventually("the put has come everywhere", || async {
        probe.range(&one("k", true)).await.expect("a read").count == 1
    })
    .await;
    etcd.isolate(lagging);
    let seen = client.put("k", "after").await.expect("two of three members agree");
    let other = Client::dial(etcd.members()[third].address()).await;
    eventually("the put has come to the third", || async {
        revision(&other.range(&one("k", true)).await.expect("a read")) >= seen
    })
    .await;
    Lagging { etcd, proxy, client, seen, own, lagging, third }
}

impl Lagging {
    async fn read(&self) -> Result<i64, Status> {
        self.client.range(&one("k", true)).await.map(|answer| revision(&answer))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_would_come_back_older_is_asked_of_a_member_that_knows_more() {
    for flags in [&[][..], &["--experimental-serializable-ordering"]] {
        let mut cluster = lagging(flags).await;
        cluster.etcd.member(cluster.own).kill();
        for _ in 0..30 {
            assert!(cluster.read().await.expect("the third member answers") >= cluster.seen);
        }
        let id = cluster.etcd.members()[cluster.third].id();
        let answer = cluster.client.range(&one("k", true)).await.expect("a read");
        let member = answer.header.expect("every answer has a header").member_id;
        assert_eq!(member, u64::from_str_radix(&id, 16).expect("ids are hexadecimal"));
        // Whoever has seen nothing yet may read at the member that lags.
        let newcomer = at_member(&cluster.proxy, &cluster.etcd, cluster.lagging).await;
        assert!(revision(&newcomer.range(&one("k", true)).await.expect("a read")) < cluster.seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_only_a_member_that_lags_is_left_the_flag_refuses_what_is_answered_without_it() {
    for is_strict in [false, true] {
        let flag = format!("--experimental-serializable-ordering={is_strict}");
        let mut cluster = lagging(&[&flag]).await;
        cluster.etcd.member(cluster.own).kill();
        cluster.etcd.member(cluster.third).kill();
        match cluster.read().await {
            Ok(revision) => assert!(!is_strict && revision < cluster.seen, "{revision}"),
            Err(refused) => {
                assert!(is_strict, "{refused:?}");
                assert_eq!((refused.code(), refused.message()), (Code::Unknown, NO_GREATER));
            }
        }
        if is_strict {
            // It is refused no longer once the member has caught up.
            cluster.etcd.heal();
            for index in [cluster.own, cluster.third] {
                cluster.etcd.member(index).launch();
            }
            eventually("the read succeeds again", || async {
                cluster.read().await.is_ok_and(|revision| revision >= cluster.seen)
            })
            .await;
        }
    }
}
