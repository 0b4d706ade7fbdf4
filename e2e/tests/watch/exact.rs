//! What a watch shows through the proxy: everything, once and in order, whatever happens to members and readers.

use std::{collections::BTreeMap, time::Duration};

use etcd_proxy_e2e::{Etcd, Proxy};
use etcd_proxy_proto::etcdserverpb::{
    PutRequest, RangeRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, kv_client::KvClient,
    watch_request::RequestUnion,
};
use tokio::time::timeout;
use tonic::Code;

use crate::client::{PATIENCE, Watcher, channel, compact, key, prefix, put, revisions, standing_watchers, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_watchers_on_one_range_cost_etcd_one_watcher() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let put_channel = channel(&proxy).await;
    let first = put(&put_channel, "p/0", "old").await;
    let mut watchers = Vec::new();
    for index in 0..20 {
        let channel = channel(&proxy).await;
        let watcher = Watcher::open(&channel).await;
        for number in 0..50 {
            // Some from now, some from the past.
            let start_revision = if (index + number) % 2 == 0 { 0 } else { first };
            watcher.ask(RequestUnion::CreateRequest(WatchCreateRequest { start_revision, ..prefix("p/") })).await;
        }
        watchers.push(watcher);
    }
    for watcher in &mut watchers {
        let (mut created, mut old) = (0, 0);
        while created < 50 || old < 25 {
            let response = watcher.next().await;
            created += usize::from(response.created);
            old += response.events.len();
        }
    }
    wait_until("the watches have become one", || standing_watchers(&etcd) == 1.0).await;
    let revision = put(&put_channel, "p/1", "new").await;
    for watcher in &mut watchers {
        assert_eq!(revisions(&watcher.events(50).await), vec![revision; 50]);
    }
    drop(watchers);
    wait_until("a watch that nobody reads is closed", || standing_watchers(&etcd) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_now_never_shows_the_client_its_own_earlier_write() {
    let etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let channel = channel(&proxy).await;
    let mut standing = Watcher::open(&channel).await;
    standing.create(prefix("k")).await;
    for round in 0..100 {
        let revision = put(&channel, "k", format!("{round}")).await;
        let mut watcher = Watcher::open(&channel).await;
        let created = watcher.create(prefix("k")).await.header.expect("every answer has one");
        assert!(created.revision >= revision, "created at {} after a write at {revision}", created.revision);
        let next = put(&channel, "k", "next").await;
        assert_eq!(revisions(&watcher.events(1).await), [next]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_are_whole_while_members_are_killed_paused_and_restarted() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flags(["--health-interval=500ms", "--health-timeout=500ms", "--namespace=ns/"])
        .start();
    let channel = channel(&proxy).await;
    let mut readers = Vec::new();
    for index in 0..10 {
        let mut watcher = Watcher::open(&channel).await;
        watcher.create(WatchCreateRequest { prev_kv: index % 2 == 0, ..prefix("h/") }).await;
        readers.push(tokio::spawn(async move {
            let mut all = Vec::new();
            while all.last().is_none_or(|(key, _)| key != "h/end") {
                for event in watcher.events(1).await {
                    let kv = event.kv.expect("every event has one");
                    all.push((String::from_utf8(kv.key.to_vec()).expect("ASCII"), kv.mod_revision));
                }
            }
            all
        }));
    }
    // A writer that goes on until it is told to stop; failed puts may have happened or not, so etcd tells in the end.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writer_channel = channel.clone();
    let writer = tokio::spawn(async move {
        for number in 0.. {
            let request = PutRequest { key: format!("h/{number:05}").into(), ..PutRequest::default() };
            let _ = timeout(Duration::from_secs(2), KvClient::new(writer_channel.clone()).put(request)).await;
            if stopped.try_recv().is_ok() {
                return;
            }
        }
    });
    let count = async || {
        let request = RangeRequest {
            key: "h/".into(),
            range_end: "h0".into(),
            count_only: true,
            serializable: true,
            ..Default::default()
        };
        KvClient::new(channel.clone()).range(request).await.map_or(0, |answer| answer.into_inner().count)
    };
    for round in 0..6 {
        let before = count().await;
        let index = round % 3;
        match round % 2 {
            0 => etcd.member(index).kill(),
            _ => etcd.member(index).pause(),
        }
        timeout(PATIENCE, async {
            while count().await < before + 20 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("writes go on with two members");
        match round % 2 {
            0 => etcd.member(index).restart(),
            _ => etcd.member(index).resume(),
        }
        etcd.member(index).wait_until_healthy();
    }
    stop.send(()).expect("the writer goes on until now");
    writer.await.expect("the writer ends");
    timeout(PATIENCE, async {
        loop {
            let request = PutRequest { key: "h/end".into(), ..PutRequest::default() };
            if KvClient::new(channel.clone()).put(request).await.is_ok() {
                break;
            }
        }
    })
    .await
    .expect("the last put succeeds");
    let request = RangeRequest { key: "h/".into(), range_end: "h0".into(), ..RangeRequest::default() };
    let truth = KvClient::new(channel.clone()).range(request).await.expect("the range succeeds").into_inner();
    let truth: BTreeMap<i64, String> =
        truth.kvs.into_iter().map(|kv| (kv.mod_revision, String::from_utf8(kv.key.to_vec()).expect("ASCII"))).collect();
    assert!(truth.len() > 100, "{} writes", truth.len());
    for reader in readers {
        let history = timeout(PATIENCE, reader).await.expect("the history ends").expect("the reader ends well");
        let mut shown: Vec<(i64, String)> = history.into_iter().map(|(key, revision)| (revision, key)).collect();
        assert!(shown.is_sorted(), "events came out of order");
        // A put that was retried by nobody is there once; keys are never written twice.
        let count = shown.len();
        shown.dedup();
        assert_eq!(count, shown.len(), "an event came twice");
        // `h/end` may have been written more than once until it was seen to succeed.
        let until = shown.last().expect("not empty").0;
        let mut expected: Vec<(i64, String)> =
            truth.clone().into_iter().filter(|(revision, _)| *revision <= until).collect();
        expected.retain(|(_, key)| key != "h/end");
        shown.retain(|(_, key)| key != "h/end");
        assert_eq!(shown, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_sleeps_harms_nobody_and_misses_nothing() {
    let etcd = Etcd::start();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag("--watch-log-max-bytes=1048576")
        .start();
    let channel = channel(&proxy).await;
    let sleeper_channel = etcd_proxy_e2e::grpc::channel(proxy.address()).await;
    let mut sleeper = Watcher::open(&sleeper_channel).await;
    sleeper.create(prefix("big")).await;
    let mut awake = Watcher::open(&channel).await;
    awake.create(prefix("big")).await;
    let before = proxy.process.resident_bytes();
    // 200 MB: far more than windows and the log together can hold.
    let mut all = Vec::new();
    for number in 0..200 {
        let revision = put(&channel, &format!("big{}", number % 7), vec![1; 1 << 20]).await;
        assert_eq!(revisions(&awake.events(1).await), [revision]);
        all.push(revision);
    }
    let grown = proxy.process.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "the proxy holds {grown} bytes for a reader that sleeps");
    assert_eq!(revisions(&sleeper.events(200).await), all);
    assert!(proxy.metric("etcd_proxy_watch_catch_ups_total").unwrap_or(0.0) >= 1.0);
    let revision = put(&channel, "big", "small").await;
    assert_eq!(revisions(&sleeper.events(1).await), [revision]);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_when_everything_before_has_been_shown() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let channel = channel(&proxy).await;
    let mut watcher = Watcher::open(&channel).await;
    watcher.create(prefix("a")).await;
    watcher.create(key("other")).await;
    for round in 0..50 {
        put(&channel, "a", format!("{round}")).await;
        let revision = put(&channel, "elsewhere", "x").await;
        watcher.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        let (mut events, mut progress) = (0, None);
        while progress.is_none_or(|progress| progress < revision) {
            let response = watcher.next().await;
            if response.events.is_empty() {
                assert_eq!(response.watch_id, -1);
                progress = response.header.map(|header| header.revision);
                assert!(progress < Some(revision) || events == 1, "progress came before the event");
                if progress < Some(revision) {
                    watcher.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
                }
            }
            events += response.events.len();
        }
        assert_eq!(events, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_goes_on_after_a_compaction_when_its_client_asks_for_more() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let channel = channel(&proxy).await;
    let mut quiet = Watcher::open(&channel).await;
    quiet.create(prefix("q")).await;
    let first = put(&channel, "q", "1").await;
    assert_eq!(revisions(&quiet.events(1).await), [first]);
    let mut other = Watcher::open(&channel).await;
    other.create(prefix("q")).await;
    let mut last = first;
    for _ in 0..5 {
        last = put(&channel, "elsewhere", "x").await;
    }
    // Now the proxy knows that nothing has happened to either watch, and etcd forgets that it has not.
    let mut told = first;
    while told < last {
        other.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        told = other.next().await.header.expect("a header").revision;
    }
    compact(&channel, last).await;
    quiet.create(prefix("r")).await;
    let next = put(&channel, "q", "2").await;
    assert_eq!(revisions(&quiet.events(1).await), [next]);
    assert_eq!(revisions(&other.events(1).await), [next]);
    assert_eq!(proxy.metric("etcd_proxy_watch_catch_ups_total"), Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_start_is_refused_though_the_log_still_holds_it() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let channel = channel(&proxy).await;
    let mut standing = Watcher::open(&channel).await;
    standing.create(key("c")).await;
    let first = put(&channel, "c", "1").await;
    let last = put(&channel, "c", "2").await;
    standing.events(2).await;
    compact(&channel, last).await;
    let mut late = Watcher::open(&channel).await;
    let created = late.create(WatchCreateRequest { start_revision: first, ..key("c") }).await;
    assert!(!created.canceled);
    let canceled = late.next().await;
    assert!(canceled.canceled && canceled.compact_revision == last, "{canceled:?}");
    let revision = put(&channel, "c", "3").await;
    assert_eq!(revisions(&standing.events(1).await), [revision]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_is_resumed_after_a_compaction_that_it_slept_through() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let channel = channel(&proxy).await;
    let mut quiet = Watcher::open(&channel).await;
    quiet.create(key("quiet")).await;
    let mut busy = Watcher::open(&channel).await;
    busy.create(key("busy")).await;
    for round in 0..50 {
        put(&channel, "busy", format!("{round}")).await;
    }
    busy.events(50).await;
    // The feed learns how far it is from the answer to any progress request on it.
    busy.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let covered = busy.next().await.header.expect("every answer has one").revision;
    compact(&channel, covered).await;
    for index in 0..3 {
        etcd.member(index).restart();
        etcd.member(index).wait_until_healthy();
    }
    let revision = timeout(PATIENCE, async {
        loop {
            let request = PutRequest { key: "quiet".into(), ..PutRequest::default() };
            if let Ok(answer) = KvClient::new(channel.clone()).put(request).await {
                break answer.into_inner().header.expect("every answer has one").revision;
            }
        }
    });
    let revision = revision.await.expect("etcd is back");
    assert_eq!(revisions(&quiet.events(1).await).last(), Some(&revision));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_requires_a_leader_ends_when_there_is_none() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flags(["--health-interval=500ms", "--health-timeout=500ms"])
        .start();
    let channel = channel(&proxy).await;
    let mut careful = Watcher::open_with(&channel, |request| {
        request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
    })
    .await;
    careful.create(key("k")).await;
    let mut patient = Watcher::open(&channel).await;
    patient.create(key("k")).await;
    etcd.member(0).kill();
    etcd.member(1).kill();
    let end = careful.try_next().await.expect_err("the stream ends");
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "etcdserver: no leader"));
    etcd.member(0).launch();
    etcd.member(1).restart();
    let revision = timeout(PATIENCE, async {
        loop {
            let request = PutRequest { key: "k".into(), ..PutRequest::default() };
            if let Ok(answer) = KvClient::new(channel.clone()).put(request).await {
                break answer.into_inner().header.expect("every answer has one").revision;
            }
        }
    });
    let revision = revision.await.expect("etcd is back");
    assert_eq!(revisions(&patient.events(1).await).last(), Some(&revision));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_the_clients_own_and_free_again_after_a_cancel() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let channel = channel(&proxy).await;
    let mut watcher = Watcher::open(&channel).await;
    assert_eq!(watcher.create(WatchCreateRequest { watch_id: 7, ..key("a") }).await.watch_id, 7);
    let twice = watcher.create(WatchCreateRequest { watch_id: 7, ..key("a") }).await;
    assert_eq!((twice.watch_id, twice.canceled), (-1, true));
    assert_eq!(twice.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    watcher.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 7 })).await;
    let canceled = watcher.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled), (7, true));
    assert!(canceled.header.is_some_and(|header| header.revision > 0 && header.member_id != 0));
    assert_eq!(watcher.create(WatchCreateRequest { watch_id: 7, ..key("a") }).await.watch_id, 7);
    let revision = put(&channel, "a", "1").await;
    assert_eq!(revisions(&watcher.events(1).await), [revision]);
}
