//! A cache of reads that is fed by the shared watches, so that a reader cannot tell it from etcd; and one question to
//! etcd for all who ask the same at the same time.
//!
//! Nothing is shared among callers whom etcd could tell apart. What is read often is held as a range of keys at a known
//! revision ([`entry`]) and answered here; what is not is forwarded, once for those who wait together ([`forwarded`]).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, RwLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use http::{HeaderMap, HeaderName, header::CONTENT_TYPE};
use prost::Message as _;

mod entry;
mod flights;
mod forwarded;
mod frequency;
mod keeping;
mod load;
pub mod rounds;

use entry::{Answer, Entry, Feeding, NoAnswer, Rights};
use flights::{Flights, Key};
use forwarded::Read;
use frequency::Frequency;
use keeping::{Candidate, Room};
use load::{Load, NotLoaded};

use super::{
    calls::{Forward, fail},
    watch::hub::Hub,
};
use crate::{
    admission::{self, shares::Shares},
    exchange::{Outcome, Replies, Requests, until},
    metrics::Metrics,
    rules::{
        cache::Query,
        caller::{Caller, Credentials},
        framing,
        keys::KeyRange,
        methods::Method,
        status::{self, Code},
        wire,
    },
    upstream::Upstream,
};

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What the cached ranges may take of memory together; zero is no cache.
    pub max_bytes: usize,
    /// How old the knowledge may be on which a serializable read is answered.
    pub staleness: Duration,
    /// Whether etcd knows this proxy by a certificate, and so may judge callers that show nothing of their own.
    pub has_certificate: bool,
}

/// Metadata by which a caller keeps a read away from the cache.
pub const SWITCH: HeaderName = HeaderName::from_static("etcd-proxy-cache");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// How long a read waits to be answered from the cache before it is sent to etcd. Longer than anything takes in a
/// cluster that is well, and soon enough for a caller when the member that feeds the cache hangs.
const PATIENCE: Duration = Duration::from_secs(1);
/// Reads of a range within about [`FADING`] after which it is worth a watch and a place in memory.
const READ_OFTEN: u16 = 10;
/// How often what was counted is halved.
const FADING: Duration = Duration::from_secs(10);
/// Ranges that are held at a time, each of which may be a watch on etcd.
const MAX_ENTRIES: usize = 256;
/// Loads under way at a time, so that they do not crowd out calls.
const MAX_LOADS: usize = 4;
/// The part of the memory that one range may take.
const MAX_PART: usize = 4;
/// A range that nobody has read for so long is given up, and its watch with it.
const MAX_IDLE: Duration = Duration::from_secs(60);
/// How soon a range that was lost or could not be loaded may be loaded again, and one that is too large.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const TOO_LARGE_FOR: Duration = Duration::from_secs(60);
/// Ranges that are remembered for that; when there are more, some are forgotten and tried too early.
const MAX_PUT_OFF: usize = 1024;
/// How often the cache is looked through for what is idle or too much.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Shorter answers are copied into one piece with their header.
const SMALL_BODY: usize = 8 * 1024;

pub struct Cache {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    config: Config,
    shelves: RwLock<HashMap<Credentials, Shelf>>,
    frequency: Frequency,
    shares: Arc<Shares>,
    /// Ranges and reads that are not to be tried before a time.
    put_off: Mutex<HashMap<u64, Instant>>,
    loads: AtomicUsize,
    flights: Arc<Flights>,
}

/// The cached ranges of those who share credentials.
#[derive(Default)]
struct Shelf {
    entries: HashMap<KeyRange, Arc<Entry>>,
    /// Those of more than one key, which may answer for ranges within them.
    wide: Vec<Arc<Entry>>,
    /// Where etcd does not judge by who asks, one question speaks for all.
    rights: Arc<Rights>,
}

impl Cache {
    pub fn new(hub: Arc<Hub>, metrics: Arc<Metrics>, config: Config, shares: Arc<Shares>) -> Option<Arc<Self>> {
        if config.max_bytes == 0 {
            return None;
        }
        metrics.cache_max_bytes.set(i64::try_from(config.max_bytes).unwrap_or(i64::MAX));
        let cache = Arc::new(Self {
            hub,
            metrics,
            config,
            shelves: RwLock::default(),
            frequency: Frequency::default(),
            shares,
            put_off: Mutex::default(),
            loads: AtomicUsize::new(0),
            flights: Arc::default(),
        });
        tokio::spawn(sweep(Arc::downgrade(&cache)));
        Some(cache)
    }

    /// Serves a Range: from the cache, together with others, or alone.
    pub async fn serve(
        self: &Arc<Self>,
        forward: &Forward<'_>,
        caller: &Caller,
        method: &'static Method,
        mut requests: Requests,
        mut replies: Replies,
        deadline: Option<Instant>,
    ) -> Outcome {
        let body = tokio::select! {
            biased;
            body = until(deadline, requests.collect()) => body,
            gone = replies.gone() => return Err(gone),
        };
        let body = match body {
            Ok(body) => body,
            Err(status) => return Ok(fail(replies, &status)),
        };
        let Some(message) = plain_message(caller, &body, deadline) else {
            return forward.send(caller, method, requests, body, replies, deadline, ()).await;
        };
        let credentials = caller.credentials();
        let endpoint = forward.upstream.endpoint_of(caller);
        if let Some(query) = Query::parse(&message) {
            let cached = self.find(&credentials, &query.range);
            // The member that would answer is the one that is shown; it is asked until it has told its id.
            let member = endpoint.as_ref().and_then(|endpoint| endpoint.member());
            if let (Some(entry), Some(member)) = (&cached, member) {
                let answer = self.answer(entry, forward.upstream, caller, &query, &message);
                let answer = tokio::select! {
                    biased;
                    answer = until(deadline, async { Ok(answer.await) }) => answer,
                    gone = replies.gone() => return Err(gone),
                };
                match answer {
                    // As etcd does, which looks at the clock once more when it has an answer.
                    Ok(Some(_)) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                        return Ok(fail(replies, &status::deadline_exceeded()));
                    }
                    Ok(Some(answer)) => return self.reply(caller, member, answer, replies).await,
                    Ok(None) => (),
                    Err(status) => return Ok(fail(replies, &status)),
                }
            } else if cached.is_none() {
                self.consider(forward.upstream, caller, method, &credentials, query.range);
            }
        }
        self.metrics.cache_misses.inc();
        let key = Key { credentials, message, endpoint: endpoint.map(|endpoint| endpoint.id) };
        let read = Read { forward, caller, method, requests, body, replies, deadline };
        Box::pin(self.fly(read, key)).await
    }

    // === hits ===

    fn find(&self, credentials: &Credentials, range: &KeyRange) -> Option<Arc<Entry>> {
        let shelves = self.shelves.read().expect("nothing panics while it holds the shelves");
        let shelf = shelves.get(credentials)?;
        let found = shelf.entries.get(range).or_else(|| shelf.wide.iter().find(|entry| entry.range.covers(range)));
        found.cloned()
    }

    async fn answer(
        &self,
        entry: &Arc<Entry>,
        upstream: &Upstream,
        caller: &Caller,
        query: &Query,
        message: &Bytes,
    ) -> Option<Answer> {
        let floor = caller.connection.shown.revision();
        let answer = entry.answer(upstream, query, message, floor, self.config.staleness);
        match tokio::time::timeout(PATIENCE, answer).await {
            // What is too large to be taken from etcd is refused in the words that are used then.
            Ok(Ok(answer)) if answer.body.len() > upstream.limits().max_answer.saturating_sub(MAX_HEADER) => None,
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(NoAnswer::Unsure)) => None,
            Ok(Err(NoAnswer::Lost)) | Err(_) => {
                self.drop_entry(entry);
                None
            }
        }
    }

    async fn reply(&self, caller: &Caller, member_id: u64, answer: Answer, mut replies: Replies) -> Outcome {
        self.metrics.cache_hits.inc();
        self.metrics.served_stale_by(answer.age);
        caller.connection.shown.note(answer.header.revision);
        self.hub.saw(answer.header.revision);
        let Answer { header, body, .. } = answer;
        if let Err(exceeded) = admission::check_answer(&caller.connection, body.len()) {
            return Ok(fail(replies, &status::exhausted(exceeded)));
        }
        let header = ResponseHeader { member_id, ..header };
        replies.begin(HeaderMap::new())?;
        let mut head = framed_head(&header, body.len());
        if body.len() <= SMALL_BODY {
            head.extend_from_slice(&body);
            replies.data(head.freeze()).await?;
        } else {
            replies.data(head.freeze()).await?;
            replies.data(body).await?;
        }
        replies.succeed();
        Ok(Code::Ok)
    }

    // === what is cached ===

    /// Counts a read that was not cached, and has its range loaded if there are many of them.
    fn consider(
        self: &Arc<Self>,
        upstream: &Upstream,
        caller: &Caller,
        method: &'static Method,
        credentials: &Credentials,
        range: KeyRange,
    ) {
        let name = self.frequency.name((credentials, &range));
        if self.frequency.count(name) < READ_OFTEN || self.is_put_off(name) {
            return;
        }
        if self.loads.fetch_add(1, Ordering::Relaxed) >= MAX_LOADS {
            self.loads.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        // Whoever reads it meanwhile does not begin again.
        self.put_off(name, RETRY_AFTER);
        let load = Load {
            hub: self.hub.clone(),
            upstream: upstream.clone(),
            caller: Caller { connection: caller.connection.clone(), metadata: credentials.metadata() },
            method,
            range,
            max_weight: self.config.max_bytes / MAX_PART,
        };
        let (cache, credentials) = (self.clone(), credentials.clone());
        tokio::spawn(async move {
            let loaded = load.run().await;
            cache.loads.fetch_sub(1, Ordering::Relaxed);
            match loaded {
                Ok(loaded) => cache.keep(credentials, loaded),
                Err(NotLoaded::TooLarge) => cache.put_off(name, TOO_LARGE_FOR),
                Err(NotLoaded::Failed) => cache.put_off(name, RETRY_AFTER),
            }
        });
    }

    fn keep(&self, credentials: Credentials, loaded: entry::Loaded) {
        let is_judged = self.config.has_certificate || credentials.tenant.user.is_some() || credentials.has_token();
        {
            let mut shelves = self.shelves.write().expect("nothing panics while it holds the shelves");
            let shelf = shelves.entry(credentials).or_default();
            let rights = if is_judged { Arc::default() } else { shelf.rights.clone() };
            let feed = loaded.reader.feed();
            let of_same_feed = shelf.entries.values().map(|entry| entry.feeding());
            let feeding = of_same_feed.into_iter().find(|feeding| Arc::ptr_eq(&feeding.feed, feed)).cloned();
            let feeding = feeding.unwrap_or_else(|| Feeding::new(feed.clone()));
            let entry = Entry::new(loaded, rights, feeding, is_judged);
            shelf.remove(&entry.range);
            if !entry.range.is_single() {
                shelf.wide.push(entry.clone());
            }
            shelf.entries.insert(entry.range.clone(), entry);
        }
        self.shrink();
    }

    fn drop_entry(&self, entry: &Arc<Entry>) {
        let mut shelves = self.shelves.write().expect("nothing panics while it holds the shelves");
        let mut dropped = Vec::new();
        for (credentials, shelf) in shelves.iter_mut() {
            if shelf.entries.get(&entry.range).is_some_and(|found| Arc::ptr_eq(found, entry)) {
                self.put_off(self.frequency.name((credentials, &entry.range)), RETRY_AFTER);
                dropped.extend(shelf.remove(&entry.range));
            }
        }
        drop(shelves);
        self.metrics.cache_drops.inc_by(dropped.len() as u64);
        // What was dropped closes its watch after the lock was let go.
    }

    /// Gives up what is idle, and what was read longest ago while there is too much.
    fn shrink(&self) {
        let mut shelves = self.shelves.write().expect("nothing panics while it holds the shelves");
        let mut held = Vec::new();
        for (credentials, shelf) in shelves.iter() {
            for entry in shelf.entries.values() {
                let name = (credentials.clone(), entry.range.clone());
                let (owner, (bytes, _)) = (credentials.tenant.clone(), entry.weight());
                held.push(Candidate { owner, name, idle: entry.idle(), bytes });
            }
        }
        let of_all = Room { bytes: self.config.max_bytes, ranges: MAX_ENTRIES };
        let of_one = Room { bytes: self.shares.of_one(of_all.bytes), ranges: self.shares.of_one(of_all.ranges) };
        let surplus = keeping::surplus(held, MAX_IDLE, of_all, of_one).into_iter();
        let dropped: Vec<_> =
            surplus.filter_map(|(credentials, range)| shelves.get_mut(&credentials)?.remove(&range)).collect();
        let (mut bytes, mut keys, mut ranges) = (0, 0, 0);
        for entry in shelves.values().flat_map(|shelf| shelf.entries.values()) {
            let (weight, count) = entry.weight();
            (bytes, keys, ranges) = (bytes + weight, keys + count, ranges + 1);
        }
        shelves.retain(|_, shelf| !shelf.entries.is_empty());
        drop(shelves);
        self.metrics.cache_drops.inc_by(dropped.len() as u64);
        self.metrics.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.metrics.cache_keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
        self.metrics.cache_ranges.set(ranges);
    }

    fn is_put_off(&self, name: u64) -> bool {
        let put_off = self.put_off.lock().expect("nothing panics while it holds the names");
        put_off.get(&name).is_some_and(|until| *until > Instant::now())
    }

    fn put_off(&self, name: u64, time: Duration) {
        let mut put_off = self.put_off.lock().expect("nothing panics while it holds the names");
        if put_off.len() >= MAX_PUT_OFF {
            put_off.clear();
        }
        put_off.insert(name, Instant::now() + time);
    }
}

/// The message of a request that may be answered here: one that is not compressed, of a caller who did not ask for
/// etcd's own answer. Metadata that etcd may have something to say about goes to etcd.
fn plain_message(caller: &Caller, body: &Bytes, deadline: Option<Instant>) -> Option<Bytes> {
    let metadata = &caller.metadata;
    let has_odd_timeout = metadata.contains_key(TIMEOUT) && deadline.is_none();
    let is_plain = metadata.get(CONTENT_TYPE).is_some_and(|value| value == "application/grpc")
        && !metadata.contains_key(ENCODING)
        && metadata.keys().all(|name| !name.as_str().ends_with("-bin"));
    if has_odd_timeout || !is_plain || metadata.get(SWITCH).is_some_and(|value| value == "off") {
        return None;
    }
    match framing::parse_prefix(body) {
        Ok(Some((false, size))) if body.len() == framing::PREFIX_LEN + size => Some(body.slice(framing::PREFIX_LEN..)),
        _ => None,
    }
}

/// The most that the header of an answer takes: its four numbers with their tags, and its own.
const MAX_HEADER: usize = 2 + 4 * 11;

/// The frame of an answer and its header; `body_len` bytes are to follow.
fn framed_head(header: &ResponseHeader, body_len: usize) -> BytesMut {
    let header_len = header.encoded_len();
    let len = wire::bytes_field_len(HEADER, header_len) + body_len;
    let mut head = BytesMut::with_capacity(framing::PREFIX_LEN + MAX_HEADER + body_len.min(SMALL_BODY));
    head.put_u8(0);
    head.put_u32(u32::try_from(len).expect("what is cached is bounded far below 4 GiB"));
    wire::put_bytes_header(&mut head, HEADER, header_len);
    header.encode_raw(&mut head);
    head
}

/// The field of every answer that holds its header.
const HEADER: u32 = 1;

impl Shelf {
    fn remove(&mut self, range: &KeyRange) -> Option<Arc<Entry>> {
        self.wide.retain(|entry| entry.range != *range);
        self.entries.remove(range)
    }
}

async fn sweep(cache: Weak<Cache>) {
    let mut faded = Instant::now();
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(cache) = cache.upgrade() else { return };
        if faded.elapsed() >= FADING {
            faded = Instant::now();
            cache.frequency.halve();
        }
        cache.shrink();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_its_header_first_and_its_length_before() {
        let header = ResponseHeader { cluster_id: u64::MAX, member_id: u64::MAX, revision: 7, raft_term: 2 };
        let body = b"\x20\x05";
        let mut framed = framed_head(&header, body.len());
        assert!(framed.len() <= framing::PREFIX_LEN + MAX_HEADER);
        framed.extend_from_slice(body);
        assert!(framing::is_whole(&framed));
        let response = etcd_proxy_proto::etcdserverpb::RangeResponse::decode(&framed[framing::PREFIX_LEN..]);
        let response = response.expect("a RangeResponse");
        assert_eq!((response.header, response.count), (Some(header), 5));
    }
}
