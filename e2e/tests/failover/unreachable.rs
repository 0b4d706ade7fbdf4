//! No etcd at all, or one that hangs: calls end in time and say why, and service is back as soon as etcd is.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Forwarder, Proxy};
use etcd_proxy_proto::etcdserverpb::{PutRequest, RangeRequest};
use tonic::{Code, Status};

use super::load::{channel, eventually, put, range};
use super::raw;

/// Longer than any refusal on loopback takes, and shorter than any timeout of the proxy.
const QUICK: Duration = Duration::from_secs(2);

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";

fn read() -> RangeRequest {
    RangeRequest { key: "k".into(), ..RangeRequest::default() }
}

fn assert_names(status: &Status, address: &str) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains(address), "{status:?} does not name {address}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_calls_fail_quickly_with_its_address_and_succeed_as_soon_as_it_is_back() {
    let mut etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let channel = channel(&proxy).await;
    put(&channel, "k", "v").await.expect("etcd is up");
    etcd.member(0).kill();
    for _ in 0..3 {
        let started = Instant::now();
        let address = etcd.address();
        assert_names(&range(&channel, "k", false).await.expect_err("no etcd"), address);
        assert_names(&put(&channel, "k", "v").await.expect_err("no etcd"), address);
        assert!(started.elapsed() < QUICK, "took {:?}", started.elapsed());
    }
    etcd.member(0).restart();
    // The first call after its return, without a retry and without a pause.
    assert_eq!(range(&channel, "k", false).await.expect("etcd is back").count, 1);
    put(&channel, "k", "v").await.expect("etcd is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_starts_before_any_etcd_serves_when_one_comes() {
    let mut etcd = Etcd::builder().members(3).start();
    for index in 0..3 {
        etcd.member(index).kill();
    }
    let proxy = Proxy::start(&etcd.endpoints());
    let channel = channel(&proxy).await;
    assert_eq!(range(&channel, "k", false).await.expect_err("no etcd").code(), Code::Unavailable);
    // Two members need each other for health, so both are launched before either is waited for.
    etcd.member(0).launch();
    etcd.member(1).launch();
    etcd.member(0).wait_until_healthy();
    assert_eq!(range(&channel, "k", false).await.expect("etcd came").count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_an_address_does_not_stand_in_the_way_of_the_others() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&format!("http://no-such-host.invalid:2379,{}", etcd.endpoints()));
    for _ in 0..4 {
        let channel = channel(&proxy).await;
        let started = Instant::now();
        put(&channel, "k", "v").await.expect("the other endpoint takes it");
        assert_eq!(range(&channel, "k", false).await.expect("the other endpoint answers").count, 1);
        println!("took {:?}", started.elapsed());
    }
    // Once it is known to have no address it costs nothing.
    let channel = channel(&proxy).await;
    let started = Instant::now();
    put(&channel, "k", "v").await.expect("the other endpoint takes it");
    assert!(started.elapsed() < QUICK, "took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_kept_when_etcd_hangs() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    let mut etcd = Etcd::start();
    // So slow a health check that only the deadline can end the call.
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let proxy = Proxy::builder().flags([&endpoints, "--health-interval=1m", "--health-timeout=1m"]).start();
    let channel = channel(&proxy).await;
    put(&channel, "k", "v").await.expect("etcd is up");
    etcd.member(0).pause();
    let write = PutRequest { key: "k".into(), ..PutRequest::default() };
    let ended = [
        raw::call(proxy.address(), RANGE, &read(), "700m").await,
        raw::call(proxy.address(), PUT, &write, "700m").await,
    ];
    for ended in ended {
        assert_eq!((ended.code.as_str(), ended.message.as_str()), ("4", "context deadline exceeded"), "{ended:?}");
        assert!((TIMEOUT..TIMEOUT + QUICK).contains(&ended.took), "{ended:?}");
    }
    etcd.member(0).resume();
    assert_eq!(range(&channel, "k", false).await.expect("etcd goes on").count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_deadline_a_call_to_an_etcd_that_hangs_ends_when_that_is_known() {
    let mut etcd = Etcd::start();
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let proxy = Proxy::builder().flags([&endpoints, "--health-interval=300ms", "--health-timeout=300ms"]).start();
    let channel = channel(&proxy).await;
    put(&channel, "k", "v").await.expect("etcd is up");
    etcd.member(0).pause();
    assert_eq!(range(&channel, "k", false).await.expect_err("etcd hangs").code(), Code::Unavailable);
    // It is known by now, and still every call ends.
    assert_names(&range(&channel, "k", false).await.expect_err("etcd hangs"), etcd.address());
    assert_names(&put(&channel, "k", "v").await.expect_err("etcd hangs"), etcd.address());
    etcd.member(0).resume();
    eventually("etcd is taken back", || async { range(&channel, "k", false).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keepalive_pings_find_a_peer_that_is_gone_without_a_word() {
    let etcd = Etcd::builder().members(2).start();
    let hop = Forwarder::start(etcd.members()[0].address());
    let endpoints = format!("--endpoints=http://{},{}", hop.address(), etcd.endpoint(1));
    // Health checks so slow that only the pings can find it.
    let proxy = Proxy::builder()
        .flags([&endpoints, "--dial-keepalive-time=1s", "--dial-keepalive-timeout=1s"])
        .flags(["--health-interval=10m", "--health-timeout=10m"])
        .start();
    let mut channels = Vec::new();
    for _ in 0..4 {
        let channel = channel(&proxy).await;
        put(&channel, "k", "v").await.expect("etcd is up");
        channels.push(channel);
    }
    hop.freeze();
    let started = Instant::now();
    let reads = channels.iter().map(|channel| range(channel, "k", false));
    for read in reads {
        assert_eq!(read.await.expect("the other member answers").count, 1);
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "took {took:?}");
    proxy.expect_log("endpoint is not serving");
    // From now on nobody waits for it, writers neither.
    let started = Instant::now();
    for channel in &channels {
        put(channel, "k", "v").await.expect("the other member takes it");
    }
    assert!(started.elapsed() < QUICK, "took {:?}", started.elapsed());
}
