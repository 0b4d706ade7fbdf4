//! Owners of both kinds on one prefix: this proxy, and etcd's own proxy, which leases by clientv3's `leasing.NewKV`.
//! `e2e/clients/go` has the same with `leasing.NewKV` by itself.

use std::path::Path;
use std::process::Command;

use etcd_proxy_e2e::{Etcd, Process};

use super::parts::*;

#[tokio::test(flavor = "multi_thread")]
async fn owners_of_both_kinds_give_way_to_each_other() {
    let mut etcd = Etcd::start();
    let namespace = "--namespace=ns/";
    let ours = leasing(&etcd.endpoints(), &[namespace]).await;
    let theirs = original(&etcd.endpoints(), &[namespace]);
    let (our, their) = (Client::of(&ours).await, Client::of(&theirs).await);
    let past = Client::past(&etcd).await;
    let owner = async |key: &str| past.get(&format!("ns/{PREFIX}{key}")).await.kvs.first().map(|pair| pair.lease);

    // Ours owns, theirs writes.
    for (key, range_end) in [("a", ""), ("b/1", "b/2")] {
        our.put(key, "1").await;
        our.get(key).await;
        assert!(owner(key).await.is_some());
        their.put(key, "2").await;
        assert_eq!(our.value(key).await.as_deref(), Some("2"));
        their.delete_request(delete(key, range_end)).await.expect("a delete");
        assert_eq!(our.value(key).await, None);
    }
    our.get("t").await;
    their.txn(then(vec![putting("t", "3"), reading(one("t"))])).await.expect("a transaction");
    assert_eq!(our.value("t").await.as_deref(), Some("3"));

    // Theirs owns, ours writes.
    for (key, range_end) in [("c", ""), ("d/1", "d/2"), ("e", "\0")] {
        their.put(key, "1").await;
        their.get(key).await;
        let since = owner(key).await;
        assert!(since.is_some(), "it is leased");
        our.put(key, "2").await;
        assert_eq!(their.value(key).await.as_deref(), Some("2"));
        our.delete_request(delete(key, range_end)).await.expect("a delete");
        assert_eq!(their.value(key).await, None, "after a delete up to {range_end:?}");
    }
    their.put("u", "1").await;
    their.get("u").await;
    our.txn(then(vec![putting("u", "2"), putting("v", "2")])).await.expect("a transaction");
    assert_eq!(their.value("u").await.as_deref(), Some("2"));

    // What one owns the other does not: it reads from etcd, and so what the owner writes.
    our.put("w", "1").await;
    our.get("w").await;
    assert_eq!(their.value("w").await.as_deref(), Some("1"));
    our.put("w", "2").await;
    assert_eq!(their.value("w").await.as_deref(), Some("2"));
    their.put("x", "1").await;
    their.get("x").await;
    assert_eq!(our.value("x").await.as_deref(), Some("1"));
    their.put("x", "2").await;
    assert_eq!(our.value("x").await.as_deref(), Some("2"));
    etcd.member(0).pause();
    assert_eq!(our.value("w").await.as_deref(), Some("2"));
    assert!(our.within(BRIEFLY).range(one("x")).await.is_err(), "it is theirs");
    etcd.member(0).resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn leasing_keys_and_their_values_are_spelled_as_the_original_spells_them() {
    let etcd = Etcd::start();
    let past = Client::past(&etcd).await;
    let mut spelled = Vec::new();
    for ours in [true, false] {
        let key = format!("k-{ours}");
        let proxy = match ours {
            true => leasing(&etcd.endpoints(), &["--namespace=ns/"]).await,
            false => original(&etcd.endpoints(), &["--namespace=ns/"]),
        };
        Client::of(&proxy).await.get(&key).await;
        let found = past.get(&format!("ns/{PREFIX}{key}")).await;
        let pair = &found.kvs[0];
        let lease = etcd.etcdctl().ok(&["lease", "timetolive", &format!("{:x}", pair.lease)]);
        let (_, ttl) = lease.split_once("granted with ").expect("etcdctl tells the TTL");
        spelled.push((pair.value.clone(), pair.version, ttl.split(',').next().map(str::to_owned)));
        // Asked to give it up, as by `leasing.NewKV`.
        let asked = format!("ns/{PREFIX}{key}");
        etcd.etcdctl().ok(&["put", &asked, "REVOKE", "--ignore-lease"]);
        eventually("it is given up", || async { past.get(&asked).await.kvs.is_empty() }).await;
    }
    assert_eq!(spelled[0], spelled[1]);
    assert_eq!(spelled[0].2.as_deref(), Some("TTL(60s)"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clientv3s_leasing_and_this_proxy_share_a_prefix() {
    let etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &["--namespace=ns/"]).await;
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/setup.sh");
    let prepared = Command::new(setup).arg("go").output().expect("the script runs");
    assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    let mut program = Command::new(String::from_utf8_lossy(&prepared.stdout).trim());
    program.arg("leasing").env("PROXY", proxy.address()).env("ETCD", etcd.address());
    program.env("NAMESPACE", "ns/").env("LEASING", PREFIX).env_remove("CA");
    let mut program = tokio::task::spawn_blocking(move || {
        let mut process = Process::spawn("Go", &mut program, b"");
        process.wait();
        process
    })
    .await
    .expect("it ends");
    program.stdout.wait_for_end();
    program.stderr.wait_for_end();
    let (stdout, stderr) = (program.stdout.text(), program.stderr.text());
    assert!(program.wait() == 0 && stdout.contains("ok "), "{stdout}\n{stderr}");
}
