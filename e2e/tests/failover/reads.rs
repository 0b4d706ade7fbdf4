//! Reads go on without an error whatever happens to a minority of the members.

use std::process::Command;

use etcd_proxy_e2e::{Etcd, Process, Proxy, Version, ports};

use super::load::{Readers, channel, endpoints_are, eventually, put, range};

/// Enough that each of three members has two clients.
const CLIENTS: usize = 6;
/// Enough reads per client that some were under way at any moment of a fault.
const SOME: u64 = 30;

/// A proxy that finds out about silent members quickly.
fn watchful(etcd: &Etcd) -> Proxy {
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    Proxy::builder().flags([&endpoints, "--health-interval=500ms", "--health-timeout=500ms"]).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_members_are_killed_stopped_and_restarted() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let readers = Readers::start(&proxy, CLIENTS).await;
    readers.advance(SOME).await;
    for index in 0..3 {
        etcd.member(index).kill();
        readers.advance(SOME).await;
        etcd.member(index).restart();
        readers.advance(SOME).await;
    }
    let leader = etcd.leader();
    etcd.member(leader).stop();
    readers.advance(SOME).await;
    etcd.member(leader).restart();
    readers.advance(SOME).await;
    readers.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_a_member_answers_nothing() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = watchful(&etcd);
    let readers = Readers::start(&proxy, CLIENTS).await;
    readers.advance(SOME).await;
    let leader = etcd.leader();
    for index in [(leader + 1) % 3, leader] {
        etcd.member(index).pause();
        readers.advance(SOME).await;
        proxy.expect_log("\"state\":\"unreachable\"");
        readers.advance(SOME).await;
        etcd.member(index).resume();
        proxy.expect_log("endpoint is serving");
        readers.advance(SOME).await;
    }
    readers.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_a_member_is_cut_off_from_the_others() {
    let etcd = Etcd::builder().members(3).partitionable().start();
    let proxy = watchful(&etcd);
    let readers = Readers::start(&proxy, CLIENTS).await;
    readers.advance(SOME).await;
    let leader = etcd.leader();
    for index in [(leader + 1) % 3, leader] {
        etcd.isolate(index);
        proxy.expect_log("\"state\":\"no-leader\"");
        readers.advance(SOME).await;
        etcd.heal();
        proxy.expect_log("endpoint is serving");
        readers.advance(SOME).await;
    }
    readers.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_elsewhere_while_a_member_defragments() {
    const VALUES: usize = 200;
    const VALUE_BYTES: usize = 1_000_000;
    let etcd =
        Etcd::builder().version(Version::V3_6).members(2).flag("--feature-gates=StopGRPCServiceOnDefrag=true").start();
    let direct = etcd_proxy_e2e::grpc::channel(etcd.address()).await;
    let value = "x".repeat(VALUE_BYTES);
    for number in 0..VALUES {
        put(&direct, &format!("big/{number}"), &value).await.expect("etcd takes it");
    }
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let proxy = Proxy::builder().flags([&endpoints, "--health-interval=20ms", "--health-timeout=5s"]).start();
    let readers = Readers::start(&proxy, CLIENTS).await;
    readers.advance(SOME).await;
    let defragmenting = etcd.endpoint(0);
    let etcdctl = etcd_proxy_e2e::Etcdctl::new(Version::V3_6, &defragmenting).flag("--command-timeout=60s");
    let defrag = tokio::task::spawn_blocking(move || etcdctl.ok(&["defrag"]));
    proxy.expect_log("\"state\":\"not-serving\"");
    defrag.await.expect("defrag succeeds");
    readers.advance(SOME).await;
    readers.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_is_passed_over() {
    let etcd = Etcd::start();
    etcd.etcdctl().ok(&["put", "k", "v"]);
    let (client, peer) = (ports::free_address(), ports::free_address());
    let added = etcd.etcdctl().ok(&["member", "add", "learner", "--learner", &format!("--peer-urls=http://{peer}")]);
    let initial = added
        .lines()
        .find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER="))
        .expect("etcdctl tells the flags of the new member")
        .trim_matches('"');
    let mut command = Command::new(Version::V3_7.etcd());
    command.args([
        "--name=learner",
        &format!("--data-dir={}", etcd.folder().join("learner").display()),
        &format!("--listen-client-urls=http://{client}"),
        &format!("--advertise-client-urls=http://{client}"),
        &format!("--listen-peer-urls=http://{peer}"),
        &format!("--initial-advertise-peer-urls=http://{peer}"),
        &format!("--initial-cluster={initial}"),
        "--initial-cluster-state=existing",
        "--unsafe-no-fsync",
    ]);
    let learner = Process::spawn("etcd learner", &mut command, b"");
    learner.expect_stderr("serving client traffic insecurely");
    // The learner comes first, where every other client would go.
    let proxy = Proxy::start(&format!("http://{client},{}", etcd.endpoints()));
    endpoints_are(&proxy, 1, |line| line["state"] == "learner").await;
    for _ in 0..4 {
        let channel = channel(&proxy).await;
        for serializable in [false, true] {
            assert_eq!(range(&channel, "k", serializable).await.expect("a voter answers").count, 1);
        }
        put(&channel, "w", "x").await.expect("a voter takes it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_and_calls_move_when_the_cluster_is_rolled() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let mut watch = proxy.etcdctl().spawn(&["watch", "rolled"]);
    eventually("the watch stands", || async { proxy.metric("etcd_proxy_client_watches") == Some(1.0) }).await;
    for index in 0..3 {
        etcd.member(index).stop();
        etcd.member(index).restart();
        let key_channel = channel(&proxy).await;
        // A put may meet an election; only reads are promised to pass it.
        eventually("the put succeeds", || async { put(&key_channel, "rolled", &format!("v{index}")).await.is_ok() })
            .await;
        watch.expect_stdout(&format!("v{index}"));
    }
    assert!(watch.exit().is_none());
}
