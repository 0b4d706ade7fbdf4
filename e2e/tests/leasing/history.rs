//! Linearizability: clients of two proxies of ours, with etcd's own leasing proxy writing between them, while members
//! are killed and cut off, and proxies lose their sessions. Every operation is recorded, and no one may be shown a state
//! that was over before they asked.
//!
//! The order of a key's states is etcd's: a watch from the first revision tells it. What remains to be shown is that
//! real time agrees with it: what ended before an operation began is not newer than what the operation saw.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Forwarder, Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{
    LeaseLeasesRequest, WatchCreateRequest, WatchRequest, lease_client::LeaseClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use etcd_proxy_proto::mvccpb::event::EventType;

use super::parts::*;

const KEYS: u64 = 96;
const READERS: usize = 4;
/// Of a call: far above what one takes, and below what a cluster without a leader lets it wait.
const CALL: Duration = Duration::from_millis(1500);
const READERS_BREATH: Duration = Duration::from_micros(500);
const WRITERS_BREATH: Duration = Duration::from_millis(40);

/// What an operation saw or made of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The revision of the put or delete that made it.
    At(i64),
    /// There was no key, at a revision that the answer does not tell.
    Absent,
}

#[derive(Clone, Debug)]
struct Operation {
    key: u64,
    began: Instant,
    ended: Instant,
    is_write: bool,
    state: State,
    by: &'static str,
}

/// A state of a key: the revision that began it, and whether the key is there.
type Order = HashMap<u64, Vec<(i64, bool)>>;

/// What contradicts real time, if anything does.
fn check(mut operations: Vec<Operation>, order: &Order) -> Result<(), String> {
    operations.sort_by_key(|operation| operation.began);
    let mut by_key: HashMap<u64, Vec<Operation>> = HashMap::new();
    for operation in operations {
        by_key.entry(operation.key).or_default().push(operation);
    }
    for (key, operations) in by_key {
        // Every key begins without a value, before all revisions.
        let mut states = vec![(0, false)];
        states.extend(order.get(&key).cloned().unwrap_or_default());
        // What has been seen or made by those that have ended, by the time of their end.
        let mut ended: Vec<(Instant, usize)> = Vec::new();
        for operation in &operations {
            let over = ended.iter().filter(|(at, _)| *at < operation.began).map(|(_, index)| *index);
            let newest = over.max().unwrap_or(0);
            let index = match operation.state {
                State::At(revision) => states.iter().position(|(at, _)| *at == revision),
                // The oldest that it may be leaves the most room to the others.
                State::Absent => (newest..states.len()).find(|index| !states[*index].1),
            };
            let Some(index) = index else {
                return Err(format!("{operation:?} saw what never was, or what was over; states {states:?}"));
            };
            let is_behind = if operation.is_write { index <= newest } else { index < newest };
            if is_behind {
                let before = operations.iter().filter(|other| other.ended < operation.began);
                let proof = before.max_by_key(|other| match other.state {
                    State::At(revision) => revision,
                    State::Absent => 0,
                });
                return Err(format!("{operation:?}, through {}, is behind {proof:?}", operation.by));
            }
            ended.push((operation.ended, index));
        }
    }
    Ok(())
}

#[test]
fn the_checker_finds_what_is_stale() {
    let start = Instant::now();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    let operation = |began, ended, is_write, state| Operation {
        key: 1,
        began: at(began),
        ended: at(ended),
        is_write,
        state,
        by: "a test",
    };
    let order = Order::from([(1, vec![(5, true), (7, true), (9, false)])]);
    let verdict = |operations: &[Operation]| check(operations.to_vec(), &order).is_ok();
    let put = operation(10, 20, true, State::At(7));
    let overlapping = operation(15, 30, false, State::At(5));
    let stale = operation(21, 30, false, State::At(5));
    let fresh = operation(21, 30, false, State::At(7));
    assert!(verdict(&[put.clone(), overlapping.clone(), fresh.clone()]));
    assert!(!verdict(&[put.clone(), stale]));
    // A reader that saw the new state makes it known, though the writer is still under way.
    assert!(!verdict(&[operation(1, 5, false, State::At(7)), operation(6, 8, false, State::At(5)), put.clone()]));
    // A key that is not there, before its first put, and after its delete.
    assert!(verdict(&[operation(1, 5, false, State::Absent), put.clone(), operation(40, 50, false, State::Absent)]));
    let gone = operation(30, 40, true, State::At(9));
    assert!(!verdict(&[put.clone(), gone.clone(), operation(41, 42, false, State::At(7))]));
    assert!(verdict(&[put.clone(), gone, operation(41, 42, false, State::Absent)]));
    assert!(!verdict(&[operation(1, 2, false, State::At(6))]), "it never was");
    assert!(!verdict(&[put, operation(21, 22, true, State::At(5))]), "a write before one that had ended");
}

struct Recorder {
    operations: Mutex<Vec<Operation>>,
    stop: AtomicBool,
    /// So that every value is written once.
    values: AtomicU64,
    newest: AtomicU64,
}

fn name(key: u64) -> String {
    format!("h/{key}")
}

impl Recorder {
    fn record(&self, key: u64, began: Instant, is_write: bool, state: State, by: &'static str) {
        let operation = Operation { key, began, ended: Instant::now(), is_write, state, by };
        self.operations.lock().expect("no worker panics here").push(operation);
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn read(self: Arc<Self>, client: Client, by: &'static str, seed: u64) {
        let mut random = seed;
        while !self.is_over() {
            random = next_random(random);
            // Half of the reads follow the writers.
            let key = if random & 1 == 0 { self.newest.load(Ordering::Relaxed) } else { (random >> 8) % KEYS };
            let began = Instant::now();
            if random & 30 == 0 {
                // Two keys at once, which must be of one moment each.
                let other = (key + 1) % KEYS;
                let both = then(vec![reading(one(&name(key))), reading(one(&name(other)))]);
                if let Ok(answer) = client.txn(both).await {
                    for (key, read) in [key, other].into_iter().zip(reads(&answer)) {
                        self.record(key, began, false, state_of(read), by);
                    }
                }
            } else if let Ok(answer) = client.range(one(&name(key))).await {
                self.record(key, began, false, state_of(&answer), by);
            }
            tokio::time::sleep(READERS_BREATH).await;
        }
    }

    async fn write(self: Arc<Self>, client: Client, by: &'static str, seed: u64) {
        let mut random = seed;
        while !self.is_over() {
            random = next_random(random);
            let key = (random >> 8) % KEYS;
            let value = self.values.fetch_add(1, Ordering::Relaxed).to_string();
            self.newest.store(key, Ordering::Relaxed);
            let began = Instant::now();
            let made = match random % 8 {
                number @ (0 | 1) => {
                    let range_end = if number == 0 { String::new() } else { format!("{}\0", name(key)) };
                    let answer = client.delete_request(delete(&name(key), &range_end)).await;
                    answer.ok().map(|answer| (answer.header, answer.deleted > 0))
                }
                2 | 3 => {
                    let txn = then(vec![putting(&name(key), &value), reading(one(&name(key)))]);
                    client.txn(txn).await.ok().map(|answer| (answer.header, true))
                }
                _ => client.put_request(put(&name(key), &value)).await.ok().map(|answer| (answer.header, true)),
            };
            match made {
                Some((header, true)) => {
                    let revision = header.expect("every answer has a header").revision;
                    self.record(key, began, true, State::At(revision), by);
                }
                // There was nothing to delete.
                Some((_, false)) => self.record(key, began, false, State::Absent, by),
                None => (),
            }
            tokio::time::sleep(WRITERS_BREATH).await;
        }
    }
}

fn state_of(answer: &etcd_proxy_proto::etcdserverpb::RangeResponse) -> State {
    answer.kvs.first().map_or(State::Absent, |pair| State::At(pair.mod_revision))
}

/// xorshift: the same choices in every run with the same seed.
fn next_random(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    x
}

/// All states of all keys, as etcd's history has them.
async fn order(etcd: &Etcd) -> Order {
    let past = Client::past(etcd).await;
    let end = past.put("h/end", "").await.header.expect("a header").revision;
    let request = WatchCreateRequest {
        key: "h/".into(),
        range_end: "h0".into(),
        start_revision: 1,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
    let (send, receive) = tokio::sync::mpsc::channel(1);
    send.send(request).await.expect("the stream is open");
    let channel = grpc::channel(etcd.address()).await;
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut answers = WatchClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .watch(requests)
        .await
        .expect("a watch")
        .into_inner();
    let mut order = Order::new();
    loop {
        let answer = answers.message().await.expect("the watch goes on").expect("and does not end");
        for event in answer.events {
            let is_there = event.r#type() != EventType::Delete;
            let pair = event.kv.expect("every event has a key");
            if pair.mod_revision >= end {
                return order;
            }
            let key = String::from_utf8_lossy(&pair.key[2..]).parse().expect("the tests' keys are numbers");
            order.entry(key).or_default().push((pair.mod_revision, is_there));
        }
    }
}

/// Waits until etcd has ended one of the leases that it has.
async fn a_session_ends(etcd: &Etcd) {
    let client = LeaseClient::new(grpc::channel(etcd.address()).await);
    let leases = async || {
        let listed = client.clone().lease_leases(LeaseLeasesRequest {}).await.expect("etcd answers").into_inner();
        listed.leases.into_iter().map(|lease| lease.id).collect::<Vec<_>>()
    };
    let before = leases().await;
    eventually("a session ends", || async {
        let now = leases().await;
        before.iter().any(|lease| !now.contains(lease))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reader_is_shown_what_was_over_before_it_asked() {
    let mut etcd = Etcd::builder().members(3).partitionable().start();
    let hops: Vec<Forwarder> = etcd.members().iter().map(|member| Forwarder::start(member.address())).collect();
    let hopped: Vec<String> = hops.iter().map(|hop| format!("http://{}", hop.address())).collect();
    let quick = ["--leasing-ttl=2", "--health-interval=100ms", "--health-timeout=500ms"];
    let here = leasing(&etcd.endpoints(), &quick).await;
    let there = leasing(&hopped.join(","), &quick).await;
    let theirs = original(&etcd.endpoint(0), &[]);
    let recorder = Arc::new(Recorder {
        operations: Mutex::default(),
        stop: AtomicBool::new(false),
        values: AtomicU64::new(0),
        newest: AtomicU64::new(0),
    });
    let mut workers = tokio::task::JoinSet::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    for (proxy, by) in [(&here, "here"), (&there, "there")] {
        for _ in 0..READERS {
            seed = next_random(seed);
            workers.spawn(recorder.clone().read(Client::of(proxy).await.within(CALL), by, seed));
        }
        seed = next_random(seed);
        workers.spawn(recorder.clone().write(Client::of(proxy).await.within(CALL), by, seed));
    }
    seed = next_random(seed);
    workers.spawn(recorder.clone().write(Client::of(&theirs).await.within(CALL), "theirs", seed));

    let served = |proxy: &Proxy| {
        let before = hits(proxy);
        async move |proxy: &Proxy| eventually("it serves from memory", || async { hits(proxy) > before + 100.0 }).await
    };
    let both_serve = async || {
        let (first, second) = (served(&here), served(&there));
        first(&here).await;
        second(&there).await;
    };
    both_serve().await;
    // A member dies, then another is cut off, while it leads.
    etcd.member(1).kill();
    both_serve().await;
    etcd.member(1).restart();
    let leader = etcd.leader();
    etcd.isolate(leader);
    both_serve().await;
    etcd.heal();
    // A proxy is cut off from etcd for longer than its lease lasts, and then sleeps for as long.
    hops.iter().for_each(Forwarder::freeze);
    a_session_ends(&etcd).await;
    hops.iter().for_each(Forwarder::thaw);
    both_serve().await;
    there.process.signal(libc::SIGSTOP);
    a_session_ends(&etcd).await;
    there.process.signal(libc::SIGCONT);
    both_serve().await;

    recorder.stop.store(true, Ordering::Relaxed);
    workers.join_all().await;
    let operations = std::mem::take(&mut *recorder.operations.lock().expect("no worker panics here"));
    let writes = operations.iter().filter(|operation| operation.is_write).count();
    assert!(writes > 100, "{writes} writes");
    if let Err(contradiction) = check(operations, &order(&etcd).await) {
        panic!("{contradiction}");
    }
}
