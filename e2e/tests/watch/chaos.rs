//! Three members that are killed, paused and cut off, compactions, clients that come, go and sleep: in the end the
//! history of each client is held against etcd's own.
//!
//! ETCD_PROXY_CHAOS_SECONDS makes it run longer, ETCD_PROXY_CHAOS_SEED repeats the choices of a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use etcd_proxy_e2e::{Etcd, Proxy, chance::Chance};
use etcd_proxy_proto::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCreateRequest,
        kv_client::KvClient, request_op::Request,
    },
    mvccpb::{Event, event::EventType},
};
use tokio::{
    sync::{RwLock, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::transport::Channel;

use crate::client::{PATIENCE, Watcher, key, prefix};

const SECONDS: u64 = 12;
const CLIENTS: u64 = 24;
const WRITERS: u64 = 3;
const KEYS: u64 = 20;
/// The value of each key's last write, by which a client knows that it has seen the end.
const END: &str = "end";
/// How far in the future a watch may begin.
const FUTURE: u64 = 30;
/// How far behind the newest revision is compacted.
const KEPT: i64 = 300;
/// A call that is not answered in this time may have been carried out or not, and is not waited for.
const CALL_PATIENCE: Duration = Duration::from_secs(2);

/// What happened at a revision to a key: whether it was deleted, and its value.
type Histories = BTreeMap<(i64, Vec<u8>), (bool, Vec<u8>)>;

fn name(number: u64) -> String {
    format!("c/{number:02}")
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_history_is_etcds_own_whatever_happens_to_members_and_clients() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    let seed = from_env("ETCD_PROXY_CHAOS_SEED").unwrap_or(now.subsec_nanos().into()).max(1);
    let seconds = from_env("ETCD_PROXY_CHAOS_SECONDS").unwrap_or(SECONDS);
    println!("ETCD_PROXY_CHAOS_SEED={seed} ETCD_PROXY_CHAOS_SECONDS={seconds}");
    let mut chance = Chance(seed);
    let mut etcd = Etcd::builder().members(3).partitionable().start();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flags(["--health-interval=300ms", "--health-timeout=300ms", "--namespace=ns/"])
        .flags(["--watch-log-max-bytes=65536", "--watch-coalesce-threshold=5"])
        .start();
    let newest = Arc::new(watch::Sender::new(1_i64));
    let (stop, stopped) = watch::channel(false);
    // Read by whoever opens a watch, so that none is opened after the last writes.
    let gate = Arc::new(RwLock::new(()));
    let mut seeds = 0;
    let mut next_seed = || {
        seeds += 1;
        Chance(seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seeds) | 1)
    };
    let clients: Vec<JoinHandle<Vec<History>>> = (0..CLIENTS)
        .map(|_| {
            let client = Client {
                address: proxy.address().to_owned(),
                chance: next_seed(),
                newest: newest.subscribe(),
                stopped: stopped.clone(),
                gate: gate.clone(),
            };
            tokio::spawn(client.run())
        })
        .collect();
    let channel = etcd_proxy_e2e::grpc::channel(proxy.address()).await;
    let writers: Vec<JoinHandle<()>> = (0..WRITERS)
        .map(|_| tokio::spawn(write(channel.clone(), next_seed(), newest.clone(), stopped.clone())))
        .collect();

    let mut kv = KvClient::new(channel);
    let mut compacted = 1;
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        let index = usize::try_from(chance.below(3)).expect("small");
        let trouble = chance.below(5);
        match trouble {
            0 => etcd.member(index).kill(),
            1 => etcd.member(index).pause(),
            2 => etcd.isolate(index),
            3 => {
                compacted = compacted.max(*newest.borrow() - KEPT);
                let request = CompactionRequest { revision: compacted, physical: false };
                // Whether it is carried out or not, the histories must be right.
                let _ = timeout(CALL_PATIENCE, kv.compact(request)).await;
            }
            _ => (),
        }
        tokio::time::sleep(Duration::from_millis(300 + chance.below(900))).await;
        match trouble {
            0 => etcd.member(index).restart(),
            1 => etcd.member(index).resume(),
            2 => etcd.heal(),
            _ => (),
        }
    }
    (0..3).for_each(|index| etcd.member(index).wait_until_healthy());
    stop.send(true).expect("the clients listen");
    for writer in writers {
        timeout(PATIENCE, writer).await.expect("the writer ends").expect("the writer ends well");
    }
    drop(timeout(PATIENCE, gate.write()).await.expect("the last watches are opened"));
    // Watches of the future are in the present after these.
    for _ in 0..2 * FUTURE {
        put(&mut kv, &name(0), "").await;
    }
    let mut last = 0;
    for number in 0..KEYS {
        last = put(&mut kv, &name(number), END).await;
    }
    let truth = truth(&etcd, compacted, last).await;
    let (mut count, mut ended) = (0, 0);
    for client in clients {
        let histories =
            timeout(PATIENCE, client).await.expect("a client reads to the end").expect("a client ends well");
        for history in histories {
            count += 1;
            ended += usize::from(history.is_compacted);
            history.check(&truth, compacted);
        }
    }
    let metric = |name: &str| proxy.metric(name).unwrap_or(0.0);
    println!(
        "{count} histories of {} events, {ended} ended by compactions, the last at {compacted} of {last}; {} moves, \
         {} falls, {} resumes",
        truth.len(),
        metric("etcd_proxy_watch_moves_total"),
        metric("etcd_proxy_watch_falls_total"),
        metric("etcd_proxy_watch_resumes_total"),
    );
    assert!(count > CLIENTS as usize && truth.len() > 50, "{count} histories of {} events say little", truth.len());
}

/// Writes until it is done.
async fn put(kv: &mut KvClient<Channel>, key: &str, value: &'static str) -> i64 {
    let writing = async {
        loop {
            let request = PutRequest { key: key.to_owned().into(), value: value.into(), ..PutRequest::default() };
            if let Ok(answer) = kv.put(request).await {
                return answer.into_inner().header.expect("every answer has one").revision;
            }
        }
    };
    timeout(PATIENCE, writing).await.expect("etcd takes a write in the end")
}

/// Puts, deletes and transactions by chance, as many as etcd takes.
async fn write(channel: Channel, mut chance: Chance, newest: Arc<watch::Sender<i64>>, stopped: watch::Receiver<bool>) {
    let mut kv = KvClient::new(channel);
    let mut number = 0_u64;
    while !*stopped.borrow() {
        number += 1;
        let put = |key: String, size: u64| PutRequest {
            key: key.into(),
            value: format!("{number} {}", "x".repeat(usize::try_from(size).expect("small"))).into(),
            ..PutRequest::default()
        };
        let delete = |key: String| DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
        let header = match chance.below(6) {
            0 => {
                let request = kv.delete_range(delete(name(chance.below(KEYS))));
                timeout(CALL_PATIENCE, request).await.ok().and_then(Result::ok).map(|answer| answer.into_inner().header)
            }
            1 => {
                // Keys of one transaction must differ.
                let first = chance.below(KEYS);
                let requests = [
                    Request::RequestPut(put(name(first), 10)),
                    Request::RequestDeleteRange(delete(name((first + 3) % KEYS))),
                    Request::RequestPut(put(name((first + 7) % KEYS), 10)),
                ];
                let success = requests.map(|request| RequestOp { request: Some(request) }).into();
                let request = kv.txn(TxnRequest { success, ..TxnRequest::default() });
                timeout(CALL_PATIENCE, request).await.ok().and_then(Result::ok).map(|answer| answer.into_inner().header)
            }
            _ => {
                let size = chance.below(2000);
                let request = kv.put(put(name(chance.below(KEYS)), size));
                timeout(CALL_PATIENCE, request).await.ok().and_then(Result::ok).map(|answer| answer.into_inner().header)
            }
        };
        if let Some(header) = header.flatten() {
            newest.send_modify(|newest| *newest = header.revision.max(*newest));
        }
    }
}

/// What happened from a revision on, as a member tells it itself.
async fn truth(etcd: &Etcd, from: i64, last: i64) -> Histories {
    let channel = etcd_proxy_e2e::grpc::channel(etcd.address()).await;
    let create = WatchCreateRequest { start_revision: from, ..prefix("ns/c/") };
    let mut watcher = Watcher::open_asking(&channel, Some(create), |_| ()).await;
    let created = watcher.next().await;
    assert!(!created.canceled, "{created:?}");
    let mut truth = Histories::new();
    while truth.last_key_value().is_none_or(|((revision, _), _)| *revision < last) {
        for event in watcher.events(1).await {
            let ((revision, key), what) = told(event);
            truth.insert((revision, key[b"ns/".len()..].to_vec()), what);
        }
    }
    truth
}

fn told(event: Event) -> ((i64, Vec<u8>), (bool, Vec<u8>)) {
    let kv = event.kv.expect("every event has one");
    ((kv.mod_revision, kv.key.to_vec()), (event.r#type == EventType::Delete as i32, kv.value.to_vec()))
}

/// What one watch was shown.
struct History {
    request: WatchCreateRequest,
    /// Where it began.
    start: i64,
    seen: Histories,
    /// It has been shown all up to this revision.
    upto: i64,
    is_compacted: bool,
}

impl History {
    fn wants(&self, key: &[u8]) -> bool {
        let (from, end) = (&self.request.key[..], &self.request.range_end[..]);
        if end.is_empty() { key == from } else { from <= key && key < end }
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            let (place, what) = told(event);
            assert!(place.0 >= self.start.max(self.upto), "{:?}: {place:?} after {}", self.request, self.upto);
            self.upto = place.0;
            assert_eq!(self.seen.insert(place, what), None, "{:?}: an event came twice", self.request);
        }
    }

    /// Whether it has been shown the last write to each of its keys.
    fn is_whole(&self) -> bool {
        let ends = self.seen.iter().filter(|(_, (_, value))| value == END.as_bytes());
        let ended: BTreeSet<&[u8]> = ends.map(|((_, key), _)| &key[..]).collect();
        (0..KEYS).map(name).filter(|key| self.wants(key.as_bytes())).all(|key| ended.contains(key.as_bytes()))
    }

    fn check(&self, truth: &Histories, known_from: i64) {
        let no_deletes = self.request.filters.contains(&1);
        let from = self.start.max(known_from);
        let expected: Histories = truth
            .iter()
            .filter(|((revision, key), (is_delete, _))| {
                (from..=self.upto).contains(revision) && self.wants(key) && !(*is_delete && no_deletes)
            })
            .map(|(place, what)| (place.clone(), what.clone()))
            .collect();
        // What is compacted since, etcd cannot tell any more.
        let shown: Histories = self
            .seen
            .iter()
            .filter(|((revision, _), _)| *revision >= from)
            .map(|(p, w)| (p.clone(), w.clone()))
            .collect();
        let places = |histories: &Histories| histories.keys().cloned().collect::<Vec<_>>();
        assert_eq!(places(&shown), places(&expected), "{:?} from {} up to {}", self.request, self.start, self.upto);
        assert!(shown == expected, "{:?} from {} was shown other values", self.request, self.start);
    }
}

struct Client {
    address: String,
    chance: Chance,
    newest: watch::Receiver<i64>,
    stopped: watch::Receiver<bool>,
    gate: Arc<RwLock<()>>,
}

impl Client {
    /// One watch after the other, each read for a while; the one that is open in the end is read to the end.
    async fn run(mut self) -> Vec<History> {
        let mut histories = Vec::new();
        while let Some((mut watcher, mut history)) = self.open().await {
            let patience = self.chance.below(300);
            while self.goes_on(&history, patience) {
                if self.chance.below(100) == 0 {
                    // A client that sleeps, while what it does not take piles up.
                    tokio::time::sleep(Duration::from_millis(self.chance.below(700))).await;
                }
                let response = tokio::select! {
                    response = watcher.next() => response,
                    // Nobody may write to its keys any more, and then it may leave.
                    _ = self.stopped.changed() => continue,
                };
                let header = response.header.expect("every answer has one");
                if response.canceled {
                    let needed = history.upto + 1;
                    assert!(needed < response.compact_revision, "{response:?} ended what needed {needed}");
                    history.is_compacted = true;
                    break;
                }
                history.take(response.events);
                assert!(header.revision >= history.upto || history.seen.is_empty(), "{header:?} < {}", history.upto);
            }
            histories.push(history);
        }
        histories
    }

    fn goes_on(&self, history: &History, events: u64) -> bool {
        if *self.stopped.borrow() { !history.is_whole() } else { (history.seen.len() as u64) < events }
    }

    async fn open(&mut self) -> Option<(Watcher, History)> {
        let gate = self.gate.clone();
        let _opening = gate.read().await;
        if *self.stopped.borrow() {
            return None;
        }
        let channel = etcd_proxy_e2e::grpc::channel(&self.address).await;
        let mut watcher = Watcher::open(&channel).await;
        let range = match self.chance.below(6) {
            0 => prefix("c/"),
            1 => prefix("c/1"),
            2 => WatchCreateRequest { range_end: "c/12".into(), ..key("c/03") },
            _ => key(&name(self.chance.below(KEYS))),
        };
        let newest = *self.newest.borrow();
        let start_revision = match self.chance.below(4) {
            0 => (newest - self.chance.small(60)).max(1),
            1 => newest + 1 + self.chance.small(FUTURE),
            _ => 0,
        };
        let request = WatchCreateRequest {
            start_revision,
            prev_kv: self.chance.below(3) == 0,
            filters: if self.chance.below(4) == 0 { vec![1] } else { Vec::new() },
            progress_notify: self.chance.below(2) == 0,
            ..range
        };
        let created = watcher.create(request.clone()).await;
        assert!(!created.canceled, "{created:?}");
        let created = created.header.expect("every answer has one").revision;
        let start = if start_revision == 0 { created + 1 } else { start_revision };
        Some((watcher, History { request, start, seen: Histories::new(), upto: start - 1, is_compacted: false }))
    }
}
