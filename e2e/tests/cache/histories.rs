//! Histories of many clients while members die, hang and lose each other, held against etcd's own history of every key.
//!
//! The rule is that of a register for each key, by revisions: whatever a read shows is exactly what the keys held at the
//! revision that it tells; a linearizable read tells a revision that is not before any that was acknowledged to anyone
//! when it began; and, with the flag for it, no connection is shown an older revision
//! than it has seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Proxy};
use etcd_proxy_proto::etcdserverpb::{
    DeleteRangeRequest, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, kv_client::KvClient,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use etcd_proxy_proto::mvccpb::Event;
use tokio::task::JoinHandle;

use crate::raw::{Chance, Client, eventually, hits, one, prefix, revision};

const SEED: u64 = 0x00c0_ffee;
const KEYS: [&str; 4] = ["h/a", "h/b", "h/c", "h/d"];
/// Readers at each of the ways to etcd.
const READERS: u64 = 4;
const WRITERS: u64 = 2;
/// The proxy that was not told to keep reads in order.
const UNORDERED: usize = 1;
/// A pause between the calls of one client, so that a cluster and all clients fit on one machine.
const BREATH: Duration = Duration::from_millis(2);
/// Reads that must succeed in each phase, over all readers.
const READS_IN_A_PHASE: u64 = 150;
/// A call that was lost with its member is given up after this.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// One read, and what was acknowledged when it began.
struct Read {
    way: usize,
    is_linearizable: bool,
    request: RangeRequest,
    acknowledged: i64,
    /// What its connection had been shown.
    shown: i64,
    answer: RangeResponse,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The newest revision that any call was answered with.
    acknowledged: AtomicI64,
    reads: AtomicU64,
}

impl Shared {
    fn acknowledge(&self, revision: i64) {
        self.acknowledged.fetch_max(revision, Ordering::SeqCst);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_is_what_was_there_whatever_becomes_of_members() {
    println!("seed {SEED}");
    let mut etcd = Etcd::builder().members(3).partitionable().start();
    let proxy = |flag: String| {
        let endpoints = format!("--endpoints={}", etcd.endpoints());
        Proxy::builder().flags([&*endpoints, "--health-interval=100ms", "--health-timeout=300ms", &flag]).start()
    };
    let proxies = [true, false].map(|orders| proxy(format!("--experimental-serializable-ordering={orders}")));
    let ways: Vec<String> = proxies.iter().map(|proxy| proxy.address().to_owned()).collect();
    let shared = Arc::new(Shared::default());
    let mut writers = Vec::new();
    let mut readers = Vec::new();
    for (way, address) in ways.iter().enumerate() {
        for number in 0..WRITERS {
            writers.push(write(address.clone(), SEED + number, shared.clone()));
        }
        for number in 0..READERS {
            readers.push(read(way, address.clone(), SEED ^ (number + 1), shared.clone()));
        }
    }
    for member in etcd.members() {
        writers.push(write(member.address().to_owned(), SEED + 99, shared.clone()));
    }
    let leader = etcd.leader();
    let follower = (leader + 1) % 3;
    progress(&shared).await;
    etcd.member(follower).kill();
    progress(&shared).await;
    etcd.member(follower).launch();
    progress(&shared).await;
    etcd.isolate(follower);
    progress(&shared).await;
    etcd.heal();
    etcd.member(leader).pause();
    progress(&shared).await;
    etcd.member(leader).resume();
    progress(&shared).await;
    let leader = etcd.leader();
    etcd.isolate(leader);
    progress(&shared).await;
    etcd.heal();
    progress(&shared).await;
    shared.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("no writer panics");
    }
    let mut reads = Vec::new();
    for reader in readers {
        reads.extend(reader.await.expect("no reader panics"));
    }
    let from_cache: f64 = proxies.iter().map(hits).sum();
    println!("{} reads, {from_cache} of them from a cache", reads.len());
    assert!(from_cache > reads.len() as f64 / 10.0, "{from_cache} of {}", reads.len());
    check(&reads, &history(&etcd).await);
}

/// Waits until the readers together have read so much more.
async fn progress(shared: &Shared) {
    let goal = shared.reads.load(Ordering::Relaxed) + READS_IN_A_PHASE;
    eventually("reads go on", || async { shared.reads.load(Ordering::Relaxed) >= goal }).await;
}

fn write(address: String, seed: u64, shared: Arc<Shared>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let client = Client::dial(&address).await;
        let mut chance = Chance(seed);
        while shared.goes_on() {
            let key = chance.one_of(&KEYS);
            let written = async {
                if chance.below(6) == 0 {
                    let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
                    let answer = KvClient::new(client.channel.clone()).delete_range(request).await?.into_inner();
                    return Ok(answer.header.expect("every answer has a header").revision);
                }
                client.put(key, &chance.below(u64::MAX).to_string()).await
            };
            // What failed may have been done all the same, which the history tells.
            if let Ok(Ok(revision)) = tokio::time::timeout(CALL_TIMEOUT, written).await {
                shared.acknowledge(revision);
            }
            tokio::time::sleep(BREATH * 4).await;
        }
    })
}

fn read(way: usize, address: String, seed: u64, shared: Arc<Shared>) -> JoinHandle<Vec<Read>> {
    tokio::spawn(async move {
        let client = Client::dial(&address).await;
        let mut chance = Chance(seed);
        let (mut reads, mut shown) = (Vec::new(), 0);
        while shared.goes_on() {
            let is_linearizable = chance.below(2) == 0;
            let request = match chance.below(2) {
                0 => prefix("h/", !is_linearizable),
                _ => one(chance.one_of(&KEYS), !is_linearizable),
            };
            let acknowledged = shared.acknowledged.load(Ordering::SeqCst);
            let answer = tokio::time::timeout(CALL_TIMEOUT, client.range(&request)).await;
            if let Ok(Ok(answer)) = answer {
                let revision = revision(&answer);
                if is_linearizable {
                    shared.acknowledge(revision);
                }
                reads.push(Read { way, is_linearizable, request, acknowledged, shown, answer });
                shown = shown.max(revision);
                shared.reads.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(BREATH).await;
        }
        reads
    })
}

/// Every event of all keys, from etcd itself.
async fn history(etcd: &Etcd) -> Vec<Event> {
    let client = Client::dial(etcd.address()).await;
    let end = loop {
        // The member may be about to hear of a new leader.
        match client.range(&prefix("h/", false)).await {
            Ok(answer) => break revision(&answer),
            Err(_) => tokio::time::sleep(BREATH).await,
        }
    };
    // An event that ends the history beyond doubt.
    let last = client.put("h/end", "").await.expect("a put to a cluster that is well");
    assert!(last > end);
    let create = WatchCreateRequest {
        key: "h/".into(),
        range_end: "h0".into(),
        start_revision: 1,
        ..WatchCreateRequest::default()
    };
    let requests = [WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }];
    let requests = tokio_stream::StreamExt::chain(tokio_stream::iter(requests), tokio_stream::pending());
    let mut answers = WatchClient::new(client.channel.clone()).watch(requests).await.expect("a watch").into_inner();
    let mut events = Vec::new();
    let deadline = Instant::now() + crate::raw::PATIENCE;
    while events.last().is_none_or(|event: &Event| event.kv.as_ref().is_none_or(|kv| kv.mod_revision < last)) {
        assert!(Instant::now() < deadline, "the history does not come");
        let answer = answers.message().await.expect("the watch goes on").expect("it does not end");
        events.extend(answer.events);
    }
    events
}

fn check(reads: &[Read], events: &[Event]) {
    let mut by_revision: Vec<&Read> = reads.iter().collect();
    by_revision.sort_by_key(|read| revision(&read.answer));
    let mut keys: BTreeMap<Vec<u8>, &etcd_proxy_proto::mvccpb::KeyValue> = BTreeMap::new();
    let mut events = events.iter().peekable();
    for read in by_revision {
        let at = revision(&read.answer);
        let of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        while let Some(event) = events.next_if(|event| of(event) <= at) {
            let kv = event.kv.as_ref().expect("an event is of a key");
            match event.r#type {
                0 => keys.insert(kv.key.to_vec(), kv),
                _ => keys.remove(&kv.key[..]),
            };
        }
        let wanted: Vec<_> = keys
            .iter()
            .filter(|(key, _)| {
                read.request.range_end.is_empty() && **key == read.request.key || !read.request.range_end.is_empty()
            })
            .map(|(_, kv)| (*kv).clone())
            .collect();
        let told = format!(
            "{} at {at}, through proxy {}",
            if read.is_linearizable { "linearizable" } else { "serializable" },
            read.way
        );
        assert_eq!(read.answer.kvs, wanted, "{told}: {:?}", read.request);
        assert_eq!(read.answer.count, i64::try_from(wanted.len()).expect("few keys"), "{told}");
        if read.is_linearizable {
            assert!(at >= read.acknowledged, "{told}, though {} was acknowledged", read.acknowledged);
        }
        // Without the flag a read may go back while only a member that lags can be reached.
        assert!(read.way == UNORDERED || at >= read.shown, "{told}, though its connection had seen {}", read.shown);
    }
}
