//! Requests of every kind against a cached range, answered by etcd and from the cache: the bytes must be the same.

use etcd_proxy_e2e::{Etcd, Proxy, Version};
use etcd_proxy_proto::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, kv_client::KvClient,
    lease_client::LeaseClient,
};

use crate::raw::{Chance, Client, hits, prefix, revision, warm};

/// Requests for each version, each both ways.
const REQUESTS: usize = 600;
const LEASE: i64 = 7;

#[tokio::test(flavor = "multi_thread")]
async fn answers_from_the_cache_are_those_of_etcd_3_5() {
    compare(Version::V3_5, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_from_the_cache_are_those_of_etcd_3_6() {
    compare(Version::V3_6, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_from_the_cache_are_those_of_etcd_3_7_also_in_a_namespace() {
    compare(Version::V3_7, "").await;
    compare(Version::V3_7, "ns/").await;
}

async fn compare(version: Version, namespace: &str) {
    let etcd = Etcd::builder().version(version).start();
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let cached = Proxy::builder().flag(&endpoints).flag(format!("--namespace={namespace}")).start();
    // In a namespace, what etcd would say is told by a proxy without a cache.
    let plain =
        Proxy::builder().flags([&endpoints, "--cache-bytes=0"]).flag(format!("--namespace={namespace}")).start();
    let through = Client::dial(cached.address()).await;
    let (direct, other_way) = match namespace {
        "" => (Client::dial(etcd.address()).await, etcd.address()),
        _ => (Client::dial(plain.address()).await, plain.address()),
    };
    let writer = Client::dial(other_way).await;
    let grant = LeaseGrantRequest { ttl: 600, id: LEASE };
    LeaseClient::new(writer.channel.clone()).lease_grant(grant).await.expect("a lease is granted");
    let mut chance = Chance(0x5eed);
    for _ in 0..60 {
        write(&writer, &mut chance).await;
    }
    warm(&cached, &through, &prefix("k/", false)).await;
    let before = hits(&cached);
    for number in 0..REQUESTS {
        if number == REQUESTS / 2 {
            let revoke = LeaseRevokeRequest { id: LEASE };
            LeaseClient::new(writer.channel.clone()).lease_revoke(revoke).await.expect("it is revoked");
        } else if chance.below(3) == 0 {
            write(&writer, &mut chance).await;
        }
        let request = request(&mut chance);
        let (theirs, ours) = (direct.range_bytes(&request).await, through.range_bytes(&request).await);
        let (theirs, ours) = (theirs.map_err(|error| error.code()), ours.map_err(|error| error.code()));
        assert_eq!(theirs, ours, "request {number} of etcd {version:?}: {request:?}");
    }
    let answered = hits(&cached) - before;
    println!("{answered} of {REQUESTS} requests to {version:?} were answered from the cache");
    assert!(answered > REQUESTS as f64 / 3.0, "{answered} of {REQUESTS}");
}

const KEYS: [&str; 14] = [
    "k/",
    "k/a",
    "k/a/1",
    "k/a\0",
    "k/b",
    "k/b/1",
    "k/b/2",
    "k/c",
    "k/c\u{ff}",
    "k/long key that is longer",
    "k/x",
    "k/y",
    "k/z",
    "k/zz",
];

/// A put or a delete; now and then of a key outside.
async fn write(writer: &Client, chance: &mut Chance) {
    let mut kv = KvClient::new(writer.channel.clone());
    let key = if chance.below(8) == 0 { "other" } else { chance.one_of(&KEYS) };
    if chance.below(5) == 0 {
        let range_end = chance.one_of(&["", "", "k/b0", "k/a0"]);
        let request = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
        kv.delete_range(request).await.expect("a delete succeeds");
        return;
    }
    let value = match chance.below(6) {
        0 => String::new(),
        1 => "x".repeat(3000),
        _ => format!("value {}", chance.below(40)),
    };
    let lease = if chance.below(12) == 0 { LEASE } else { 0 };
    let mut request = PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() };
    // Once the lease has been revoked, etcd refuses it.
    if kv.put(request.clone()).await.is_err() {
        request.lease = 0;
        kv.put(request).await.expect("a put without a lease succeeds");
    }
}

fn request(chance: &mut Chance) -> RangeRequest {
    let (key, range_end) = match chance.below(5) {
        0 | 1 => ("k/", "k0"),
        2 => (chance.one_of(&KEYS), ""),
        _ => {
            let (one, other) = (chance.one_of(&KEYS), chance.one_of(&KEYS));
            (one.min(other), one.max(other))
        }
    };
    let mut request = RangeRequest { key: key.into(), range_end: range_end.into(), ..RangeRequest::default() };
    request.serializable = chance.below(2) == 0;
    request.limit = chance.one_of(&[0, 0, 0, 1, 2, 5, 100, i64::MAX]);
    request.keys_only = chance.below(6) == 0;
    request.count_only = chance.below(6) == 0;
    if chance.below(2) == 0 {
        (request.sort_order, request.sort_target) = (chance.one_of(&[0, 1, 2]), chance.one_of(&[0, 1, 2, 3, 4]));
    }
    let mut bound = || if chance.below(5) == 0 { i64::try_from(chance.below(120)).expect("a small number") } else { 0 };
    (request.min_mod_revision, request.max_mod_revision) = (bound(), bound());
    (request.min_create_revision, request.max_create_revision) = (bound(), bound());
    if chance.below(30) == 0 {
        request.revision = i64::try_from(chance.below(80)).expect("a small number");
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_switched_off_by_a_flag_and_by_metadata_and_holds_no_more_than_it_may() {
    const VALUE: usize = 100_000;
    let etcd = Etcd::start();
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let proxy = Proxy::builder().flags([&endpoints, "--cache-bytes=1000000"]).start();
    let client = Client::dial(proxy.address()).await;
    client.put("small/key", "v").await.expect("a put");
    warm(&proxy, &client, &prefix("small/", true)).await;
    let before = hits(&proxy);
    let aside = client.with("etcd-proxy-cache", "off");
    for _ in 0..20 {
        aside.range(&prefix("small/", true)).await.expect("a read");
    }
    assert_eq!(hits(&proxy), before);
    // More than a quarter of the cache is too much for it, and what has grown to that is given up.
    for number in 0..4 {
        client.put(&format!("small/large {number}"), &"x".repeat(VALUE)).await.expect("a put");
    }
    for _ in 0..30 {
        let answer = client.range(&prefix("small/", true)).await.expect("a read");
        assert_eq!((answer.count, revision(&answer)), (5, 6));
    }
    crate::raw::eventually("what has grown too large is given up", || async {
        proxy.metric("etcd_proxy_cache_ranges") == Some(0.0)
    })
    .await;
    let off = Proxy::builder().flags([&endpoints, "--cache-bytes=0"]).start();
    let client = Client::dial(off.address()).await;
    for _ in 0..30 {
        client.range(&prefix("small/", true)).await.expect("a read");
    }
    assert_eq!(hits(&off), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_has_seen_a_write_never_reads_what_was_before_it() {
    let etcd = Etcd::start();
    // Even where old knowledge is allowed, it may not be older than what the connection was shown.
    let proxy = Proxy::builder().flags([&format!("--endpoints={}", etcd.endpoints()), "--cache-staleness=1h"]).start();
    let client = Client::dial(proxy.address()).await;
    let bystander = Client::dial(proxy.address()).await;
    client.put("k/key", "v").await.expect("a put");
    warm(&proxy, &client, &prefix("k/", true)).await;
    let before = hits(&proxy);
    for number in 0..200 {
        let put =
            client.put(&format!("{}key", if number % 2 == 0 { "k/" } else { "other/" }), "w").await.expect("a put");
        let answer = client.range(&one_of_both(number)).await.expect("a read");
        assert!(revision(&answer) >= put, "{answer:?} after {put}");
        bystander.range(&one_of_both(number)).await.expect("a read");
    }
    assert!(hits(&proxy) - before > 200.0);
}

fn one_of_both(number: u32) -> RangeRequest {
    if number.is_multiple_of(3) { crate::raw::one("k/key", true) } else { prefix("k/", true) }
}
