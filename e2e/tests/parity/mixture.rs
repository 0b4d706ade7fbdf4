//! A mixture of writes and watches by chance, the same on each side: whatever a watch was asked for and whenever, it
//! sees the same events in the same order.
//!
//! How events are packed into messages is etcd's own choice of the moment and is not compared.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Version, chance::Chance};
use etcd_proxy_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    request_op::Request, watch_request::RequestUnion,
};
use prost::Message;

use crate::rpcs::{COMPACT, DELETE_RANGE, LEASE_GRANT, LEASE_REVOKE, PUT, RANGE, TXN, WATCH};
use crate::side::{Side, show_bytes};
use crate::stream::Stream;
use crate::wire::PATIENCE;

/// Any numbers will do, as long as they stay the same.
const SEEDS: [u64; 4] = [1, 22, 333, 4444];

/// Writes and watches for each seed.
const STEPS: usize = 400;

/// Where some watch of a stream still lags, etcd does not report progress at all, so it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// etcd looks a previous value up when it sends an event, and sends the event without it if that fails, which it does now and
/// then under load. More than so many are not left out by chance.
const MAX_LEFT_OUT: usize = 2;

/// Client streams, each on a connection of its own.
const STREAMS: usize = 4;

const KEYS: [&str; 12] = ["a", "a/1", "a/2", "a/2/x", "a/3", "b", "b/1", "c", "\0", "z", "zz", "\u{ff}"];

/// How the cases begin that tell what a watch has seen.
pub const SEEN: &str = "seen by ";

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

pub async fn script(side: Side) {
    let mut compacted = 1;
    for seed in SEEDS {
        compacted = Mixture::new(&side, seed, compacted).await.run().await;
    }
    let everything = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    side.call("what is there in the end", RANGE, everything).await;
}

pub fn key(chance: &mut Chance) -> &'static str {
    chance.one_of(&KEYS)
}

pub fn range(chance: &mut Chance) -> (&'static str, &'static str) {
    match chance.below(4) {
        0 => (key(chance), ""),
        1 => (key(chance), "\0"),
        2 => ("\0", "\0"),
        _ => {
            let (one, other) = (key(chance), key(chance));
            (one.min(other), one.max(other))
        }
    }
}

/// Whether two watches have seen the same, but for a previous value that etcd has left out on one side.
pub fn have_seen_the_same(one: &str, other: &str) -> bool {
    let mut left_out = 0;
    let mut is_same = |(one, other): (&str, &str)| {
        let (short, long) = if one.len() < other.len() { (one, other) } else { (other, one) };
        // The previous value is the last field of an event, the third.
        let is_left_out = long.strip_prefix(short).is_some_and(|rest| rest.starts_with("1a"));
        left_out += usize::from(is_left_out);
        short == long || is_left_out
    };
    one.lines().count() == other.lines().count()
        && one.lines().zip(other.lines()).all(&mut is_same)
        && left_out <= MAX_LEFT_OUT
}

struct Mixture<'a> {
    side: &'a Side,
    chance: Chance,
    seed: u64,
    streams: Vec<Stream<WatchRequest, WatchResponse>>,
    /// What each watch has seen, by stream and id.
    seen: BTreeMap<(usize, i64), String>,
    /// Watches that were cancelled, which may or may not have seen the last events before that.
    cancelled: Vec<(usize, i64)>,
    next_id: i64,
    revision: i64,
    compacted: i64,
    /// The furthest revision that a watch begins at.
    latest_start: i64,
}

impl<'a> Mixture<'a> {
    async fn new(side: &'a Side, seed: u64, compacted: i64) -> Mixture<'a> {
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(side.on_a_new_connection().await.open(WATCH).await);
        }
        let side_now = side.fetch(RANGE, RangeRequest { key: "a".into(), ..Default::default() }).await;
        let revision = side_now.header.expect("etcd's answers have a header").revision;
        let (seen, cancelled) = (BTreeMap::new(), Vec::new());
        Mixture {
            side,
            chance: Chance(seed),
            seed,
            streams,
            seen,
            cancelled,
            next_id: 1,
            revision,
            compacted,
            latest_start: 0,
        }
    }

    /// Returns up to which revision it compacted.
    async fn run(mut self) -> i64 {
        for step in 0..STEPS {
            match self.chance.below(20) {
                0..12 => self.write().await,
                12..17 => self.watch(),
                17 => self.cancel(),
                18 => self.ask(),
                _ if step % 3 == 0 => self.compact().await,
                _ => (),
            }
        }
        self.catch_up().await;
        for ((stream, id), seen) in std::mem::take(&mut self.seen) {
            if !self.cancelled.contains(&(stream, id)) {
                self.side.note(&format!("{SEEN}seed {}, stream {stream}, watch {id}", self.seed), seen);
            }
        }
        self.compacted
    }

    async fn write(&mut self) {
        let key = key(&mut self.chance);
        let value = format!("{}", self.chance.below(1000));
        let put = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        let header = match self.chance.below(10) {
            0..6 => self.side.fetch(PUT, put).await.header,
            6 => {
                let (key, end) = range(&mut self.chance);
                let request = DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: false };
                self.side.fetch(DELETE_RANGE, request).await.header
            }
            7 => {
                let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
                self.side.fetch(DELETE_RANGE, request).await.header
            }
            8 => {
                let success = KEYS[..usize::try_from(1 + self.chance.below(6)).expect("a small number")]
                    .iter()
                    .map(|&key| match self.chance.below(3) {
                        0 => Request::RequestDeleteRange(DeleteRangeRequest { key: key.into(), ..Default::default() }),
                        _ => Request::RequestPut(PutRequest {
                            key: key.into(),
                            value: "txn".into(),
                            ..Default::default()
                        }),
                    })
                    .map(|request| RequestOp { request: Some(request) })
                    .collect();
                self.side.fetch(TXN, TxnRequest { success, ..Default::default() }).await.header
            }
            _ => {
                self.side.fetch(LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: 1 }).await;
                self.side.fetch(PUT, PutRequest { lease: 1, ..put }).await;
                self.side.fetch(LEASE_REVOKE, LeaseRevokeRequest { id: 1 }).await.header
            }
        };
        self.revision = header.expect("etcd's answers have a header").revision;
    }

    fn watch(&mut self) {
        let (key, end) = range(&mut self.chance);
        let past = self.revision - self.compacted;
        let start_revision = match self.chance.below(5) {
            0 | 1 => self.revision + 1,
            2 => self.revision + self.chance.small(20),
            // What is compacted already is refused, whatever else goes on.
            3 => 1 + self.chance.small(u64::try_from(self.revision).expect("revisions are positive")),
            _ => self.compacted + self.chance.small(1 + past.unsigned_abs()),
        };
        self.latest_start = self.latest_start.max(start_revision);
        let request = WatchCreateRequest {
            key: key.into(),
            range_end: end.into(),
            start_revision,
            watch_id: self.next_id,
            filters: [&[] as &[i32], &[], &[], &[0], &[1]]
                [usize::try_from(self.chance.below(5)).expect("a small number")]
            .into(),
            prev_kv: self.chance.below(3) == 0,
            fragment: self.chance.below(4) == 0,
            progress_notify: false,
        };
        let stream = self.any_stream();
        self.seen.insert((stream, self.next_id), format!("{request:?}"));
        self.next_id += 1;
        self.streams[stream].send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) });
    }

    fn cancel(&mut self) {
        let nth = usize::try_from(self.chance.below(1 + self.seen.len() as u64)).expect("there are few watches");
        let Some(&(stream, watch_id)) = self.seen.keys().nth(nth) else { return };
        self.cancelled.push((stream, watch_id));
        let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id });
        self.streams[stream].send(&WatchRequest { request_union: Some(cancel) });
    }

    fn ask(&mut self) {
        let stream = self.any_stream();
        let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
        self.streams[stream].send(&WatchRequest { request_union: Some(progress) });
    }

    fn any_stream(&mut self) -> usize {
        usize::try_from(self.chance.below(STREAMS as u64)).expect("there are few streams")
    }

    /// Compacts only after all watches have seen everything, so that none is caught by it by chance.
    async fn compact(&mut self) {
        self.catch_up().await;
        let revision = self.compacted + (self.revision - self.compacted) / 2;
        if revision > self.compacted {
            self.side.fetch(COMPACT, CompactionRequest { revision, physical: true }).await;
            self.compacted = revision;
        }
    }

    /// Reads until each stream has shown everything up to now: a watch made now sees a write made now, but only a
    /// progress report says so of those that had to catch up.
    async fn catch_up(&mut self) {
        // etcd reports no progress on a stream that has a watch of the future.
        while self.revision < self.latest_start {
            self.write().await;
        }
        for stream in 0..STREAMS {
            // A stream without a watch reports nothing, so each gets one that is to see nothing.
            let request =
                WatchCreateRequest { key: "no such key".into(), watch_id: self.next_id, ..Default::default() };
            let barrier = self.next_id;
            self.next_id += 1;
            self.cancelled.push((stream, barrier));
            self.streams[stream].send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) });
            let mut made = false;
            let deadline = Instant::now() + PATIENCE;
            loop {
                assert!(Instant::now() < deadline, "stream {stream} of seed {} does not catch up", self.seed);
                let Some(answer) = self.streams[stream].fetch_within(ASK_AGAIN).await else {
                    let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    self.streams[stream].send(&WatchRequest { request_union: Some(progress) });
                    continue;
                };
                made |= answer.created && answer.watch_id == barrier;
                let header = answer.header.expect("etcd's answers have a header");
                let report = answer.watch_id == -1 && answer.events.is_empty() && !answer.created && !answer.canceled;
                if report && made && header.revision >= self.revision {
                    break;
                }
                self.note(stream, answer);
            }
        }
    }

    fn note(&mut self, stream: usize, answer: WatchResponse) {
        let Some(seen) = self.seen.get_mut(&(stream, answer.watch_id)) else { return };
        for event in &answer.events {
            *seen += &format!("\n    {}", show_bytes(&event.encode_to_vec().into()));
        }
        if answer.canceled {
            if answer.compact_revision != 0 {
                // As Go's client does; etcd reports no progress on a stream that still has such a watch.
                let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id: answer.watch_id });
                self.streams[stream].send(&WatchRequest { request_union: Some(cancel) });
            }
            *seen += &format!("\n    cancelled at {}, {:?}", answer.compact_revision, answer.cancel_reason);
        }
        let newest = answer.events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        let header = answer.header.unwrap_or_default();
        if header.revision < newest || header.cluster_id == 0 || header.member_id == 0 || header.raft_term == 0 {
            *seen += &format!("\n    a header that cannot be: {header:?}, with events up to {newest}");
        }
    }
}
