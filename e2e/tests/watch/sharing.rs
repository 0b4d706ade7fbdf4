//! How few watches etcd has to keep for many, by its own count.

use etcd_proxy_e2e::{Etcd, Proxy};
use etcd_proxy_proto::etcdserverpb::{WatchCreateRequest, watch_request::RequestUnion};
use tonic::transport::Channel;

use crate::client::{Watcher, channel, key, prefix, put, revisions, standing_watchers, wait_until};

const STREAMS: i64 = 10;

/// Opens this many watches, by number, on a few streams, each on a connection of its own, and awaits their creation.
async fn watch_many(proxy: &Proxy, count: i64, create: impl Fn(i64) -> WatchCreateRequest) -> Vec<Watcher> {
    let mut watchers = Vec::new();
    for stream in 0..STREAMS {
        let mut watcher = Watcher::open(&channel(proxy).await).await;
        let numbers: Vec<i64> = (0..count).filter(|number| number % STREAMS == stream).collect();
        // Not all at once, as what comes must be taken meanwhile.
        for chunk in numbers.chunks(500) {
            for number in chunk {
                let request = WatchCreateRequest { watch_id: number + 1, ..create(*number) };
                watcher.ask(RequestUnion::CreateRequest(request)).await;
            }
            let mut created = 0;
            while created < chunk.len() {
                let response = watcher.next().await;
                assert!(!response.canceled, "{response:?}");
                created += usize::from(response.created);
                watcher.early.push(response);
            }
        }
        watchers.push(watcher);
    }
    watchers
}

/// Writes a key for each number through the proxy.
async fn put_all(channel: &Channel, count: i64, name: impl Fn(i64) -> String) -> Vec<i64> {
    let mut revisions = Vec::new();
    for number in 0..count {
        revisions.push(put(channel, &name(number), format!("{number}")).await);
    }
    revisions
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watches_on_one_prefix_in_mixed_revisions_become_one() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let writer = channel(&proxy).await;
    let first = put(&writer, "p/0", "old").await;
    put_all(&writer, 9, |number| format!("p/{number}")).await;
    let start = |number: i64| if number % 2 == 0 { 0 } else { first + number % 10 };
    let mut watchers = watch_many(&proxy, 10_000, |number| WatchCreateRequest {
        start_revision: start(number),
        prev_kv: number % 3 == 0,
        progress_notify: number % 5 == 0,
        ..prefix("p/")
    })
    .await;
    wait_until("the watches have become one", || standing_watchers(&etcd) == 1.0).await;
    let revision = put(&writer, "p/1", "new").await;
    for watcher in &mut watchers {
        let mut heard = std::collections::BTreeMap::<i64, Vec<i64>>::new();
        for response in watcher.until_each_has_seen(1000, revision).await {
            heard.entry(response.watch_id).or_default().extend(revisions(&response.events));
        }
        for (id, seen) in heard {
            let start = start(id - 1);
            let expected: Vec<i64> =
                if start == 0 { vec![revision] } else { (start..=first + 9).chain([revision]).collect() };
            assert_eq!(seen, expected, "watch {id} from {start}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watches_of_single_keys_below_one_prefix_become_one() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let writer = channel(&proxy).await;
    let mut watchers = watch_many(&proxy, 10_000, |number| key(&format!("keys/{number}"))).await;
    wait_until("one watch of the prefix is left", || standing_watchers(&etcd) == 1.0).await;
    // Those whose watch etcd has closed may not have looked yet where they read on.
    wait_until("all are contained in it", || proxy.metric("etcd_proxy_watches_contained") == Some(10_000.0)).await;
    let before = proxy.metric("etcd_proxy_watch_events_delivered_total").unwrap_or(0.0);
    let written = put_all(&writer, 200, |number| format!("keys/{}", number * 50)).await;
    put(&writer, "keys/nobody", "").await;
    // etcd orders what one watch is told, not what several on one stream are; all of these are on the first stream.
    let mut expected = std::collections::BTreeMap::new();
    for (number, revision) in written.into_iter().enumerate() {
        expected.insert(i64::try_from(number * 50).expect("small") + 1, vec![revision]);
    }
    let mut told = std::collections::BTreeMap::new();
    while told.len() < expected.len() {
        let response = watchers[0].next().await;
        assert_eq!(told.insert(response.watch_id, revisions(&response.events)), None, "a watch was told twice");
    }
    assert_eq!(told, expected);
    let delivered = proxy.metric("etcd_proxy_watch_events_delivered_total").unwrap_or(0.0) - before;
    assert_eq!(delivered, 200.0, "each event goes to the one watch on its key");
    drop(watchers);
    wait_until("a watch that nobody reads is closed", || standing_watchers(&etcd) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_within_a_watched_range_costs_nothing_and_outlives_the_wider_one() {
    let etcd = Etcd::start();
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--namespace=ns/").start();
    let writer = channel(&proxy).await;
    let mut narrow = Watcher::open(&writer).await;
    narrow.create(WatchCreateRequest { prev_kv: true, ..key("a/1") }).await;
    let mut wide = Watcher::open(&writer).await;
    wide.create(prefix("a/")).await;
    // The narrow one wants previous values, which the wide one has not.
    assert_eq!(standing_watchers(&etcd), 2.0);
    let mut wider = Watcher::open(&writer).await;
    wider.create(WatchCreateRequest { range_end: "\0".into(), prev_kv: true, ..key("\0") }).await;
    wait_until("all are served by the widest", || standing_watchers(&etcd) == 1.0).await;
    let mut within = Watcher::open(&writer).await;
    within.create(WatchCreateRequest { key: "a/1".into(), range_end: "a/3".into(), ..Default::default() }).await;
    wait_until("no other watch stays", || standing_watchers(&etcd) == 1.0).await;
    let mut written = Vec::new();
    for name in ["a/1", "a/2", "a/3", "b"] {
        written.push(put(&writer, name, "1").await);
    }
    assert_eq!(revisions(&narrow.events(1).await), written[..1]);
    assert_eq!(revisions(&within.events(2).await), written[..2]);
    assert_eq!(revisions(&wide.events(3).await), written[..3]);
    assert_eq!(revisions(&wider.events(4).await), written);
    drop(wider);
    let revision = put(&writer, "a/1", "2").await;
    for watcher in [&mut narrow, &mut within, &mut wide] {
        let events = watcher.events(1).await;
        assert_eq!(revisions(&events), [revision]);
    }
    assert!(standing_watchers(&etcd) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_that_brings_mostly_what_nobody_wants_is_given_up() {
    let etcd = Etcd::start();
    let proxy =
        Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--watch-coalesce-threshold=3").start();
    let writer = channel(&proxy).await;
    let mut watcher = Watcher::open(&writer).await;
    for number in 0..4 {
        watcher.create(key(&format!("busy/{number}"))).await;
    }
    wait_until("they are gathered", || standing_watchers(&etcd) == 1.0).await;
    let mut expected = Vec::new();
    let mut puts = 0;
    while standing_watchers(&etcd) != 4.0 {
        put(&writer, "busy/elsewhere", "x").await;
        puts += 1;
        if puts % 100 == 0 {
            expected.push(put(&writer, "busy/1", "x").await);
        }
        assert!(puts < 20_000, "it is not given up");
    }
    expected.push(put(&writer, "busy/1", "last").await);
    assert_eq!(
        revisions(&watcher.events(expected.len()).await),
        expected,
        "nothing is lost or doubled on the way back"
    );
    // It is not tried again at once.
    watcher.create(key("busy/5")).await;
    assert_eq!(proxy.metric("etcd_proxy_watches_gathered_total"), Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_watch_the_prefix_keeps_watches_of_single_keys() {
    let etcd = Etcd::start();
    let root = etcd.etcdctl();
    for command in [
        &["user", "add", "root:pw"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "alice:pw"],
        &["role", "add", "some"],
        &["role", "grant-permission", "some", "readwrite", "s/1", "s/8"],
        &["user", "grant-role", "alice", "some"],
        &["auth", "enable"],
    ] {
        root.ok(command);
    }
    let proxy =
        Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--watch-coalesce-threshold=2").start();
    let channel = channel(&proxy).await;
    let token = crate::client::token(&channel, "alice", "pw").await;
    let mut watcher = Watcher::open_with(&channel, |request| {
        request.metadata_mut().insert("token", token.parse().expect("ASCII"));
    })
    .await;
    for number in 1..8 {
        assert!(!watcher.create(key(&format!("s/{number}"))).await.canceled, "alice may watch s/{number}");
    }
    let refused = watcher.create(key("s/9")).await;
    assert!(refused.canceled && refused.cancel_reason.ends_with("etcdserver: permission denied"), "{refused:?}");
    assert_eq!(standing_watchers(&etcd), 7.0);
    proxy.etcdctl().user("alice:pw").ok(&["put", "s/3", "x"]);
    assert_eq!(watcher.events(1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_watch_of_the_past_takes_one_stream() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let writer = channel(&proxy).await;
    let first = put(&writer, "k", "1").await;
    let second = put(&writer, "k", "2").await;
    let streams = || etcd.members()[0].metric("etcd_debugging_mvcc_watch_stream_total").unwrap_or(0.0);
    let started =
        r#"grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}"#;
    let mut watcher = Watcher::open(&writer).await;
    watcher.create(WatchCreateRequest { start_revision: 1, ..key("k") }).await;
    assert_eq!(revisions(&watcher.events(2).await), [first, second]);
    assert_eq!((streams(), etcd.members()[0].metric(started)), (1.0, Some(1.0)));
    // Whoever comes while that is not level yet is not held up, and in the end one watch is left.
    let mut other = Watcher::open(&writer).await;
    other.create(key("k")).await;
    let third = put(&writer, "k", "3").await;
    assert_eq!(revisions(&other.events(1).await), [third]);
    assert_eq!(revisions(&watcher.events(1).await), [third]);
    wait_until("one watch is left", || standing_watchers(&etcd) == 1.0).await;
}
