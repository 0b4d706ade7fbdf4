//! Reads, puts and deletes: what etcd's own tests of its leasing client hold, of this proxy.

use std::time::Duration;

use etcd_proxy_e2e::Etcd;
use etcd_proxy_proto::etcdserverpb::{
    LeaseGrantRequest, PutRequest, RangeRequest, lease_client::LeaseClient, range_request::SortOrder,
};
use tonic::Code;

use super::parts::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_one_proxy_writes_the_others_read() {
    let etcd = Etcd::builder().members(3).start();
    let mut clients = Vec::new();
    let mut proxies = Vec::new();
    for index in 0..3 {
        let proxy = leasing(&etcd.endpoint(index), &[]).await;
        clients.push(Client::of(&proxy).await);
        proxies.push(proxy);
    }
    assert_eq!(clients[0].value("abc").await, None);
    clients[0].put("abc", "def").await;
    assert_eq!(clients[1].value("abc").await.as_deref(), Some("def"));
    assert_eq!(clients[2].value("abc").await.as_deref(), Some("def"));
    clients[1].put("abc", "ghi").await;
    assert_eq!(clients[2].value("abc").await.as_deref(), Some("ghi"));
    // One that reads a key first owns it, and gives it up to a deleter as well.
    clients[0].put("k", "v").await;
    clients[1].get("k").await;
    assert_eq!(leased(&Client::past(&etcd).await).await, ["k"]);
    assert_eq!(clients[2].delete("k").await.deleted, 1);
    for client in &clients {
        assert_eq!(client.value("k").await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_owned_is_read_and_compared_without_etcd() {
    let mut etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[]).await;
    let (client, past) = (Client::of(&proxy).await, Client::past(&etcd).await);
    past.put("k", "abc").await;
    // The first read may be of any kind: the whole key is kept.
    client.range(RangeRequest { keys_only: true, ..one("k") }).await.expect("a read");
    client.get("nothing").await;
    let written = client.put("k", "def").await.header.expect("a header");
    let (whole, nothing) = (past.get("k").await, past.get("nothing").await);
    let before = hits(&proxy);
    etcd.member(0).pause();
    let shown = client.get("k").await;
    assert_eq!(shown, whole, "header and all");
    assert_eq!((shown.kvs[0].mod_revision, shown.kvs[0].version), (written.revision, 2));
    assert_eq!(client.get("nothing").await, nothing);
    for (request, values) in [
        (RangeRequest { keys_only: true, ..one("k") }, Some("")),
        (RangeRequest { count_only: true, ..one("k") }, None),
        (RangeRequest { limit: 1, ..one("k") }, Some("def")),
        (RangeRequest { min_create_revision: 1, ..one("k") }, Some("def")),
        (RangeRequest { min_mod_revision: written.revision + 1, ..one("k") }, None),
        (RangeRequest { sort_order: SortOrder::Descend.into(), ..one("k") }, Some("def")),
        (RangeRequest { serializable: true, ..one("k") }, Some("def")),
    ] {
        let answer = client.range(request.clone()).await.expect("it is served here");
        assert_eq!((value_of(&answer).as_deref(), answer.count), (values, 1), "{request:?}");
    }
    assert_eq!(hits(&proxy) - before, 9.0);
    // Whatever is not one key as it is now is etcd's to answer.
    let brief = client.within(BRIEFLY);
    for request in [one("other"), many("k", "l"), RangeRequest { revision: 1, ..one("k") }] {
        assert_eq!(brief.range(request).await.expect_err("etcd is paused").code(), Code::DeadlineExceeded);
    }
    // A write whose end is not known ends the ownership.
    assert!(brief.put_request(put("k", "lost?")).await.is_err());
    assert!(brief.delete_request(delete("nothing", "")).await.is_err());
    assert!(brief.range(one("k")).await.is_err(), "nobody knows what it holds");
    etcd.member(0).resume();
    for key in ["k", "nothing"] {
        // Either write may still be on its way.
        eventually("both read the same", || async { client.get(key).await.kvs == past.get(key).await.kvs }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_would_acquire_its_key_moves_on_when_its_member_hangs() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = leasing(&etcd.endpoints(), &["--health-interval=100ms", "--health-timeout=300ms"]).await;
    let follower = (etcd.leader() + 1) % 3;
    let mut clients = Vec::new();
    for _ in 0..6 {
        // Connections are dealt to the members in turn.
        let client = Client::of(&proxy).await;
        client.get("warm").await;
        clients.push(client);
    }
    etcd.member(follower).pause();
    let reads = clients.iter().enumerate().map(|(number, client)| {
        let client = client.within(Duration::from_secs(20));
        tokio::spawn(async move { client.range(one(&format!("cold/{number}"))).await })
    });
    for read in reads.collect::<Vec<_>>() {
        assert_eq!(read.await.expect("it ends").expect("another member answers").count, 0);
    }
    etcd.member(follower).resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_etcd() {
    let etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[]).await;
    let (client, past) = (Client::of(&proxy).await, Client::past(&etcd).await);
    let same = async |key: &str| assert_eq!(client.get(key).await.kvs, past.get(key).await.kvs, "{key}");

    // Intervals, also where a key of the interval is owned.
    for key in ["abc/a", "abc/b", "abc/a/a"] {
        past.put(key, "v").await;
    }
    client.get("abc/a").await;
    assert_eq!(client.range(many("abc/", "abc0")).await.expect("a read").count, 3);
    assert_eq!(client.range(many("abc/a", "abc/b")).await.expect("a read").count, 2);

    // Previous values, old revisions.
    let first = past.put("p", "1").await.header.expect("a header").revision;
    client.get("p").await;
    let answer = client.put_request(PutRequest { prev_kv: true, ..put("p", "2") }).await.expect("a put");
    assert_eq!(answer.prev_kv.map(|pair| pair.value), Some("1".into()));
    let old = client.range(RangeRequest { revision: first, ..one("p") }).await.expect("a read");
    assert_eq!((value_of(&old).as_deref(), client.value("p").await.as_deref()), (Some("1"), Some("2")));

    // A put without a value of its own, deletes, and writes after them.
    client.put_request(PutRequest { ignore_value: true, ..put("p", "") }).await.expect("a put");
    same("p").await;
    assert_eq!(client.value("p").await.as_deref(), Some("2"));
    assert_eq!((client.delete("p").await.deleted, client.delete("p").await.deleted), (1, 0));
    same("p").await;
    client.put("p", "3").await;
    same("p").await;
    assert_eq!(client.get("p").await.kvs[0].version, 1);

    // What etcd refuses it refuses in its own words.
    for request in [
        put("", "v"),
        PutRequest { ignore_value: true, ..put("p", "v") },
        PutRequest { ignore_value: true, ..put("missing", "") },
        PutRequest { lease: 4711, ..put("p", "v") },
    ] {
        let (ours, etcds) = (client.put_request(request.clone()).await, past.put_request(request.clone()).await);
        let words = |status: tonic::Status| (status.code(), status.message().to_owned());
        assert_eq!(ours.map_err(words), etcds.map_err(words), "{request:?}");
    }
    same("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_lease_can_delete_is_nobodys() {
    let etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[]).await;
    let (client, past) = (Client::of(&proxy).await, Client::past(&etcd).await);
    let mut leases = LeaseClient::new(etcd_proxy_e2e::grpc::channel(etcd.address()).await);
    let granted = leases.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("a lease").into_inner();
    past.put_request(PutRequest { lease: granted.id, ..put("mortal", "v") }).await.expect("a put");
    assert_eq!(client.value("mortal").await.as_deref(), Some("v"));
    client.get("becomes mortal").await;
    assert_eq!(leased(&past).await, ["becomes mortal"]);
    client.put_request(PutRequest { lease: granted.id, ..put("becomes mortal", "v") }).await.expect("a put");
    eventually("the key is given up", || async { leased(&past).await.is_empty() }).await;
    assert_eq!(client.value("becomes mortal").await.as_deref(), Some("v"));
    etcd.etcdctl().ok(&["lease", "revoke", &format!("{:x}", granted.id)]);
    for key in ["mortal", "becomes mortal"] {
        assert_eq!(client.value(key).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_deleted_with_the_leasing_keys_of_all_owners() {
    let mut etcd = Etcd::start();
    let (deleter, owner) = (leasing(&etcd.endpoints(), &[]).await, leasing(&etcd.endpoints(), &[]).await);
    let (deleting, owning, past) = (Client::of(&deleter).await, Client::of(&owner).await, Client::past(&etcd).await);
    for (key, range_end) in [("key/", "key0"), ("kd", "\0")] {
        for number in 0..8 {
            past.put(&format!("key/{number}"), "123").await;
        }
        deleting.get("key/0").await;
        owning.get("key/1").await;
        owning.get("key/9").await;
        owning.get("a").await;
        assert_eq!(deleting.delete_request(delete(key, range_end)).await.expect("a delete").deleted, 8);
        for number in 0..10 {
            for client in [&deleting, &owning, &past] {
                assert_eq!(client.value(&format!("key/{number}")).await, None, "after {key}");
            }
        }
        // The leasing key of `a` is in the open range, though `a` is not.
        assert_eq!(leased(&past).await.contains(&"a".to_owned()), range_end == "key0");
    }
    // Owners of keys beside the range keep them.
    past.put("j", "123").await;
    past.put("m", "123").await;
    owning.get("j").await;
    owning.get("m").await;
    deleting.delete_request(delete("k", "l")).await.expect("a delete");
    let kept = leased(&past).await;
    assert!(kept.contains(&"j".to_owned()) && kept.contains(&"m".to_owned()), "{kept:?}");
    etcd.member(0).pause();
    assert_eq!(owning.value("j").await.as_deref(), Some("123"));
    assert_eq!(owning.value("m").await.as_deref(), Some("123"));
    etcd.member(0).resume();
    // "All keys" holds the leasing keys too.
    assert!(deleting.delete_request(delete("\0", "\0")).await.expect("a delete").deleted >= 2);
    for client in [&deleting, &owning, &past] {
        assert_eq!((client.value("j").await, client.value("m").await), (None, None));
    }
}
