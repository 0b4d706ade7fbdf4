//! Transactions: what etcd's own tests of its leasing client hold, of this proxy.

use etcd_proxy_e2e::Etcd;
use etcd_proxy_proto::etcdserverpb::{
    Compare, TxnRequest, compare::CompareResult, compare::CompareTarget, compare::TargetUnion, response_op::Response,
};
use tonic::Code;

use super::parts::*;

#[tokio::test(flavor = "multi_thread")]
async fn transactions_on_owned_keys_are_answered_without_etcd_as_etcd_would() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let mut etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[]).await;
    let (client, past) = (Client::of(&proxy).await, Client::past(&etcd).await);
    past.put("k", "abc").await;
    client.get("k").await;
    client.get("none").await;
    let revision = past.get("k").await.kvs[0].mod_revision;
    let mut cases: Vec<Vec<Compare>> = Vec::new();
    for key in ["k", "none"] {
        for result in [Equal, NotEqual, Greater, Less] {
            for number in [0, 1, revision] {
                cases.push(vec![compare(key, Version, result, TargetUnion::Version(number))]);
                cases.push(vec![compare(key, Create, result, TargetUnion::CreateRevision(number))]);
                cases.push(vec![compare(key, Mod, result, TargetUnion::ModRevision(number))]);
                cases.push(vec![compare(key, Lease, result, TargetUnion::Lease(number))]);
                // Of another target's kind.
                cases.push(vec![compare(key, Version, result, TargetUnion::ModRevision(number))]);
            }
            for value in ["", "abc", "abd"] {
                cases.push(vec![compare(key, Value, result, TargetUnion::Value(value.into()))]);
            }
        }
    }
    cases.push(vec![version("k", Equal, 1), version("k", Less, 1)]);
    cases.push(vec![]);
    let branches = [vec![reading(one("k"))], vec![reading(one("none")), reading(one("k"))]];
    let request = |compares: &Vec<Compare>| {
        let [success, failure] = branches.clone();
        TxnRequest { compare: compares.clone(), success, failure }
    };
    let mut expected = Vec::new();
    for compares in &cases {
        expected.push(past.txn(request(compares)).await.expect("etcd answers"));
    }
    etcd.member(0).pause();
    for (compares, expected) in cases.iter().zip(&expected) {
        assert_eq!(client.txn(request(compares)).await.expect("it is answered here"), *expected, "{compares:?}");
    }
    // A branch that is not taken may write; one that is may not, nor read what is not kept.
    let txn = TxnRequest { compare: vec![version("k", Equal, 1)], success: vec![reading(one("k"))], failure: vec![] };
    let unused = TxnRequest { failure: vec![putting("k", "1")], ..txn.clone() };
    assert!(client.txn(unused).await.expect("it is answered here").succeeded);
    let brief = client.within(BRIEFLY);
    for branch in [putting("k", "1"), reading(one("other")), reading(many("k", "l")), nested(txn.clone())] {
        let taken = TxnRequest { success: vec![branch], ..txn.clone() };
        assert_eq!(brief.txn(taken).await.expect_err("etcd is paused").code(), Code::DeadlineExceeded);
    }
    etcd.member(0).resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_write_keep_what_is_owned_level() {
    let mut etcd = Etcd::start();
    let (proxy, other) = (leasing(&etcd.endpoints(), &[]).await, leasing(&etcd.endpoints(), &[]).await);
    let (client, another, past) = (Client::of(&proxy).await, Client::of(&other).await, Client::past(&etcd).await);

    // Reads and deletes of ranges.
    for number in 0..5 {
        past.put(&format!("r-{number}"), "v").await;
        client.get(&format!("r-{number}")).await;
    }
    let answer = client.txn(then(vec![reading(many("r-", "r."))])).await.expect("a transaction");
    assert_eq!(reads(&answer)[0].kvs.len(), 5);
    client.txn(then(vec![deleting("r-0", ""), deleting("r-3", "r.")])).await.expect("a transaction");
    for number in 0..5 {
        let key = format!("r-{number}");
        assert_eq!(client.get(&key).await.kvs, past.get(&key).await.kvs, "{key}");
    }
    // A comparison of a range is etcd's.
    let compared = Compare { range_end: "r.".into(), ..version("r-", CompareResult::Equal, 7) };
    let answer = client.txn(TxnRequest { compare: vec![compared], ..TxnRequest::default() }).await;
    assert!(!answer.expect("a transaction").succeeded);

    // Another owner's keys, in a transaction within one, and a key of nobody's.
    past.put("k", "abc").await;
    past.put("k2", "123").await;
    client.get("k").await;
    client.get("k2").await;
    let inner = nested(then(vec![putting("k2", "456")]));
    let txn = TxnRequest {
        compare: vec![version("k", CompareResult::Greater, 0)],
        ..then(vec![inner, putting("k", "def"), putting("k3", "999")])
    };
    let answer = another.txn(txn).await.expect("a transaction");
    assert!(answer.succeeded && answer.responses.len() == 3, "{answer:?}");
    let revision = answer.header.expect("a header").revision;
    for (key, value) in [("k", "def"), ("k2", "456"), ("k3", "999")] {
        let read = client.get(key).await;
        assert_eq!((value_of(&read).as_deref(), read.kvs[0].mod_revision), (Some(value), revision));
    }
    // As many operations as etcd takes, on a key that is owned and others.
    let puts = (0..128).map(|number| putting(&format!("k{number}"), "x")).collect();
    client.get("k5").await;
    let answer = client.txn(then(puts)).await.expect("a transaction");
    assert!(answer.succeeded && answer.responses.len() == 128);
    for key in ["k2", "k5", "k127"] {
        assert_eq!(client.get(key).await.kvs, past.get(key).await.kvs, "{key}");
    }
    let refused = another.txn(then(vec![putting("twice", "1"), putting("twice", "2")])).await;
    assert_eq!(refused.expect_err("etcd refuses it").message(), "etcdserver: duplicate key given in txn request");
    // Nothing at all.
    assert!(client.txn(TxnRequest::default()).await.expect("a transaction").succeeded);

    // A tree of transactions, of which only some branches run: all owned keys are level without a look at etcd.
    let mut count = 0;
    let tree = tree(&mut count, 3);
    for number in 0..count {
        let key = format!("tree/{number}");
        past.put(&key, "a").await;
        client.get(&key).await;
    }
    client.txn(then(vec![tree])).await.expect("a transaction");
    let mut expected = Vec::new();
    for number in 0..count {
        expected.push(past.get(&format!("tree/{number}")).await.kvs);
    }
    assert!(expected.iter().any(|pairs| pairs[0].value == "leaf"));
    etcd.member(0).pause();
    for (number, expected) in expected.iter().enumerate() {
        assert_eq!(client.get(&format!("tree/{number}")).await.kvs, *expected);
    }
    etcd.member(0).resume();
}

/// Puts in both branches of transactions within transactions; those whose number is even take the first.
fn tree(count: &mut usize, depth: usize) -> etcd_proxy_proto::etcdserverpb::RequestOp {
    let number = *count;
    let key = format!("tree/{number}");
    *count += 1;
    if depth == 0 {
        return putting(&key, "leaf");
    }
    let result = if number.is_multiple_of(2) { CompareResult::Equal } else { CompareResult::Greater };
    nested(TxnRequest {
        compare: vec![version("nokey", result, 0)],
        success: vec![tree(count, depth - 1), putting(&key, "then")],
        failure: vec![tree(count, depth - 1), putting(&key, "else")],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_transaction_writes_is_read_whole_or_not_at_all() {
    const KEYS: usize = 8;
    let etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[]).await;
    let client = Client::of(&proxy).await;
    let puts = || (0..KEYS).map(|number| putting(&format!("k-{number}"), "v")).collect::<Vec<_>>();
    let gets = || (0..KEYS).map(|number| reading(one(&format!("k-{number}")))).collect::<Vec<_>>();
    client.txn(then(puts())).await.expect("a transaction");
    for number in 0..KEYS {
        client.get(&format!("k-{number}")).await;
    }
    let mut putters = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, puts) = (client.clone(), puts());
        putters.spawn(async move {
            for _ in 0..10 {
                client.txn(then(puts.clone())).await.expect("a transaction");
            }
        });
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut getters = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, gets, stopped) = (client.clone(), gets(), stopped.clone());
        getters.spawn(async move {
            while !*stopped.borrow() {
                let answer = client.txn(then(gets.clone())).await.expect("a transaction");
                let revisions: Vec<_> = reads(&answer).iter().map(|read| read.kvs[0].mod_revision).collect();
                assert!(revisions.windows(2).all(|pair| pair[0] == pair[1]), "{revisions:?}");
            }
        });
    }
    putters.join_all().await;
    stop.send(true).expect("the getters listen");
    getters.join_all().await;
    let last = client.txn(then(gets())).await.expect("a transaction");
    assert_eq!(reads(&last)[0].kvs[0].version, 81);
    assert!(hits(&proxy) > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_write_at_once_is_read_as_the_last_left_it() {
    let etcd = Etcd::start();
    let (proxy, other) = (leasing(&etcd.endpoints(), &[]).await, leasing(&etcd.endpoints(), &[]).await);
    let (client, another, past) = (Client::of(&proxy).await, Client::of(&other).await, Client::past(&etcd).await);
    client.get("k").await;
    let mut puts = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let client = client.clone();
        puts.spawn(async move { client.put("k", "abc").await.header.expect("a header").revision });
    }
    let newest = puts.join_all().await.into_iter().max();
    let shown = client.get("k").await;
    assert_eq!((Some(shown.kvs[0].mod_revision), shown.kvs[0].version), (newest, 16));
    assert!(hits(&proxy) > 0.0, "the owner's own writes do not cost it the key");

    // Puts, reads and deletes of one key by both proxies, and deletes of its range.
    let mut workers = tokio::task::JoinSet::new();
    for number in 0..8 {
        let client = if number % 2 == 0 { client.clone() } else { another.clone() };
        workers.spawn(async move {
            for _ in 0..6 {
                client.put("c/k", "abc").await;
                client.get("c/k").await;
                client.delete_request(delete("c/", if number < 4 { "c0" } else { "" })).await.expect("a delete");
                client.delete("c/k").await;
            }
        });
    }
    workers.join_all().await;
    for client in [&client, &another, &past] {
        assert_eq!(client.value("c/k").await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_gives_up_waiting_for_an_owner_has_written_nothing() {
    let etcd = Etcd::start();
    let (proxy, other) = (leasing(&etcd.endpoints(), &[]).await, leasing(&etcd.endpoints(), &[]).await);
    let (client, another, past) = (Client::of(&proxy).await, Client::of(&other).await, Client::past(&etcd).await);
    client.get("k").await;
    proxy.process.signal(libc::SIGSTOP);
    let late = another.within(BRIEFLY).txn(then(vec![putting("k", "v")])).await;
    assert_eq!(late.expect_err("the owner sleeps").code(), Code::DeadlineExceeded);
    assert_eq!(past.value("k").await, None);
    proxy.process.signal(libc::SIGCONT);
    eventually("the owner gives it up", || async { leased(&past).await.is_empty() }).await;
    let answer = another.txn(then(vec![putting("k", "v"), reading(one("k"))])).await.expect("a transaction");
    assert!(matches!(answer.responses[1].response, Some(Response::ResponseRange(_))), "{answer:?}");
    assert_eq!(client.value("k").await.as_deref(), Some("v"));
}
