//! One upstream watch as a bounded log of encoded events; clients are positions in it.
//!
//! A log knows which revisions it covers: every event on its range from `covered_from` on is in it or yet to come, and
//! every event up to `covered_to` has come. What is dropped to keep within the bound moves `covered_from` up.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use tokio::sync::{Notify, watch};

use super::inbox::Inbox;
use crate::rules::{
    event::EventKind,
    namespace::{Broken, Namespace},
    wire,
};

/// The field `events` of a `WatchResponse`.
const EVENTS_FIELD: u32 = 11;

/// The events of one or more whole revisions, encoded once for all who read them; or none, for a progress notice.
#[derive(Debug)]
pub struct Batch {
    pub header: ResponseHeader,
    pub events: Vec<Event>,
    /// All events, each as a whole field of a `WatchResponse`.
    encoded: Bytes,
    /// The same without previous values, made when first asked for.
    without_prev_kv: OnceLock<(Bytes, Vec<usize>)>,
}

/// What a reader must know of one event.
#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    pub mod_revision: i64,
    /// Where the field ends in the batch's bytes; it begins where the one before ends.
    end: usize,
    /// Where, inside the field, the event's own bytes begin, and where its previous value begins (or the event ends).
    body: usize,
    prev_kv: usize,
}

impl Batch {
    /// A notice that everything up to the header's revision has come.
    pub fn progress(header: ResponseHeader) -> Self {
        Self { header, events: Vec::new(), encoded: Bytes::new(), without_prev_kv: OnceLock::new() }
    }

    pub fn last_revision(&self) -> i64 {
        self.events.last().map_or(self.header.revision, |event| event.mod_revision)
    }

    /// All events as fields of a `WatchResponse`, and where each ends.
    pub fn fields(&self, prev_kv: bool) -> (&Bytes, impl Fn(usize) -> usize + '_) {
        if prev_kv || self.events.iter().all(|event| event.prev_kv == event.end) {
            let ends: &[usize] = &[];
            return (&self.encoded, FieldEnds { events: &self.events, ends }.into_fn());
        }
        let (bytes, ends) = self.without_prev_kv.get_or_init(|| self.strip_prev_kv());
        (bytes, FieldEnds { events: &self.events, ends }.into_fn())
    }

    fn strip_prev_kv(&self) -> (Bytes, Vec<usize>) {
        let mut out = BytesMut::with_capacity(self.encoded.len());
        let mut ends = Vec::with_capacity(self.events.len());
        for event in &self.events {
            let body = &self.encoded[event.body..event.prev_kv];
            wire::put_bytes_header(&mut out, EVENTS_FIELD, body.len());
            out.extend_from_slice(body);
            ends.push(out.len());
        }
        (out.freeze(), ends)
    }

    /// One event without its previous value, as an encoded `mvccpb.Event`.
    pub fn event(&self, event: &Event) -> &[u8] {
        &self.encoded[event.body..event.prev_kv]
    }

    /// What the batch counts against the log's bound: its bytes and its bookkeeping.
    pub fn weight(&self) -> usize {
        self.encoded.len() + self.events.len() * size_of::<Event>() + size_of::<Self>()
    }
}

struct FieldEnds<'a> {
    events: &'a [Event],
    ends: &'a [usize],
}

impl<'a> FieldEnds<'a> {
    fn into_fn(self) -> impl Fn(usize) -> usize + 'a {
        move |index| self.ends.get(index).copied().unwrap_or_else(|| self.events[index].end)
    }
}

/// Collects the events of an upstream response, or of several fragments of one, into batches of whole revisions.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    events: Vec<Event>,
    encoded: BytesMut,
    scratch: BytesMut,
}

impl BatchBuilder {
    /// Adds one encoded `mvccpb.Event`, its keys stripped of the namespace.
    pub fn push(&mut self, namespace: &Namespace, event: &[u8]) -> Result<(), Broken> {
        self.scratch.clear();
        let view = namespace.strip_event(event, &mut self.scratch)?;
        let body = &self.scratch[view.event.clone()];
        wire::put_bytes_header(&mut self.encoded, EVENTS_FIELD, body.len());
        let start = self.encoded.len();
        self.encoded.extend_from_slice(body);
        let prev_kv = start + (view.without_prev_kv().end - view.event.start);
        self.events.push(Event {
            kind: view.kind,
            mod_revision: view.mod_revision,
            end: self.encoded.len(),
            body: start,
            prev_kv,
        });
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// All that has been collected.
    pub fn finish(&mut self, header: ResponseHeader) -> Option<Batch> {
        (!self.events.is_empty()).then(|| Batch {
            header,
            events: std::mem::take(&mut self.events),
            encoded: self.encoded.split().freeze(),
            without_prev_kv: OnceLock::new(),
        })
    }

    /// What is whole while more fragments follow: everything before the last revision, which may go on.
    pub fn finish_whole_revisions(&mut self, header: ResponseHeader) -> Option<Batch> {
        let last = self.events.last()?.mod_revision;
        let count = self.events.iter().position(|event| event.mod_revision == last)?;
        if count == 0 {
            return None;
        }
        let rest = self.events.split_off(count);
        let cut = self.events.last().map_or(0, |event| event.end);
        let encoded = self.encoded.split_to(cut).freeze();
        let whole = std::mem::replace(&mut self.events, rest);
        for event in &mut self.events {
            event.end -= cut;
            event.body -= cut;
            event.prev_kv -= cut;
        }
        Some(Batch { header, events: whole, encoded, without_prev_kv: OnceLock::new() })
    }
}

/// Why nothing more will come.
#[derive(Clone, Debug)]
pub enum End {
    /// etcd ended the watch: what it said, with the id left out.
    Canceled { header: ResponseHeader, compact_revision: i64, reason: String },
    /// A catch-up has shown everything before this revision, and the reader goes on elsewhere.
    Continue { next_revision: i64 },
    /// The reader must ask again for where it stands; etcd could not be asked, or closed the log for want of readers.
    Closed,
}

/// What is at a position.
pub enum Read {
    Batch(Arc<Batch>),
    /// Nothing yet.
    Wait,
    /// It was dropped to keep the log within its bound.
    Fallen,
    Ended(End),
}

/// The opening of the upstream watch: how etcd answered the create.
pub type Opened = Result<ResponseHeader, Refused>;

/// etcd's refusal of a create.
#[derive(Clone, Debug)]
pub struct Refused {
    pub header: ResponseHeader,
    pub reason: String,
}

pub struct Log {
    max_bytes: usize,
    state: Mutex<State>,
    opened: watch::Sender<Option<Opened>>,
    /// Tells the one who fills a catch-up that there is room again.
    room: Notify,
    /// What all shared logs hold together; a catch-up waits for its reader instead.
    budget: Option<Arc<Budget>>,
}

/// How much the shared logs hold together, and may. Clients may watch any number of ranges that overlap, and each
/// range's log holds the events for itself.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    pub fn is_over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.max
    }
}

struct State {
    batches: VecDeque<Arc<Batch>>,
    /// The number of the first batch held.
    first: u64,
    bytes: usize,
    covered_from: i64,
    covered_to: i64,
    end: Option<End>,
    readers: Vec<Reader>,
}

struct Reader {
    inbox: Arc<Inbox>,
    watch: u64,
}

impl Log {
    /// `covered_from` is the upstream watch's start, if it is known before etcd answers.
    pub fn new(max_bytes: usize, covered_from: i64) -> Arc<Self> {
        Arc::new(Self::make(max_bytes, covered_from))
    }

    fn make(max_bytes: usize, covered_from: i64) -> Self {
        let state = State {
            batches: VecDeque::new(),
            first: 0,
            bytes: 0,
            covered_from,
            covered_to: covered_from - 1,
            end: None,
            readers: Vec::new(),
        };
        let (state, opened) = (Mutex::new(state), watch::Sender::new(None));
        Self { max_bytes, state, opened, room: Notify::new(), budget: None }
    }

    /// A log that shares a budget with others.
    pub fn within(max_bytes: usize, covered_from: i64, budget: &Arc<Budget>) -> Arc<Self> {
        let mut log = Self::make(max_bytes, covered_from);
        log.budget = Some(budget.clone());
        Arc::new(log)
    }

    /// Notes etcd's answer to the create. A watch from now begins after the revision of that answer; one that is
    /// refused ends.
    pub fn note_opened(&self, opened: Opened, from_now: bool) {
        if let (Ok(header), true) = (&opened, from_now) {
            let mut state = self.lock();
            state.covered_from = header.revision + 1;
            state.covered_to = header.revision;
        }
        // Whoever waits must find the answer before it finds the end.
        let refused = opened.clone().err();
        self.opened.send_replace(Some(opened));
        if let Some(Refused { header, reason }) = refused {
            self.end(End::Canceled { header, compact_revision: 0, reason });
        }
    }

    pub fn is_opened(&self) -> bool {
        self.opened.borrow().is_some()
    }

    /// Waits for etcd's answer to the create; `None` if the log was closed before.
    pub async fn opened(&self) -> Option<Opened> {
        let mut opened = self.opened.subscribe();
        opened.wait_for(|opened| opened.is_some() || self.has_ended()).await.ok()?.clone()
    }

    pub fn covered_from(&self) -> i64 {
        self.lock().covered_from
    }

    /// Where an upstream watch that replaces a broken one must begin.
    pub fn resume_revision(&self) -> i64 {
        self.lock().covered_to + 1
    }

    /// Adds events, unless all of them have come before. What a batch repeats in part no reader shows twice.
    pub fn append(&self, batch: Batch) {
        let mut state = self.lock();
        if batch.last_revision() <= state.covered_to || state.end.is_some() {
            return;
        }
        state.covered_to = batch.last_revision();
        self.push(&mut state, batch);
    }

    /// Notes that everything up to the header's revision has come, for readers who want to be told.
    pub fn append_progress(&self, header: ResponseHeader) {
        let mut state = self.lock();
        if header.revision < state.covered_to || state.end.is_some() {
            return;
        }
        state.covered_to = header.revision;
        self.push(&mut state, Batch::progress(header));
    }

    /// Notes that everything up to this revision has come, for no reader in particular.
    pub fn cover(&self, revision: i64) {
        let mut state = self.lock();
        state.covered_to = state.covered_to.max(revision);
    }

    /// Whether a catch-up should pause until its reader has taken more.
    pub fn is_full(&self) -> bool {
        self.lock().bytes >= self.max_bytes
    }

    /// Returns when a reader of a catch-up has taken something.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    pub fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(end);
            wake(&state.readers);
        }
        drop(state);
        // Those who wait for the opening look again and find the end.
        self.opened.send_modify(|_| ());
    }

    pub fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Lets no new reader begin where etcd would refuse it. Those that are here keep their place, as a watcher of
    /// etcd's does that has been sent its events already.
    pub fn compacted(&self, revision: i64) {
        let mut state = self.lock();
        state.covered_from = state.covered_from.max(revision.min(state.covered_to + 1));
    }

    /// A new reader's position: the first batch that holds `revision` or what comes after it. `None` if that has been
    /// dropped already.
    pub fn subscribe(&self, revision: i64, inbox: &Arc<Inbox>, watch: u64) -> Option<u64> {
        let mut state = self.lock();
        if revision < state.covered_from {
            return None;
        }
        let skipped = state.batches.partition_point(|batch| batch.last_revision() < revision);
        state.readers.push(Reader { inbox: inbox.clone(), watch });
        Some(state.first + skipped as u64)
    }

    /// The place of one who looks by himself and is not woken; `None` if that has been dropped already.
    pub fn position(&self, revision: i64) -> Option<u64> {
        let state = self.lock();
        let skipped = state.batches.partition_point(|batch| batch.last_revision() < revision);
        (revision >= state.covered_from).then_some(state.first + skipped as u64)
    }

    pub fn unsubscribe(&self, inbox: &Arc<Inbox>, watch: u64) {
        let mut state = self.lock();
        let found = state.readers.iter().position(|reader| reader.watch == watch && Arc::ptr_eq(&reader.inbox, inbox));
        if let Some(index) = found {
            state.readers.swap_remove(index);
        }
    }

    pub fn read(&self, position: u64) -> Read {
        let state = self.lock();
        let Some(index) = position.checked_sub(state.first) else { return Read::Fallen };
        match state.batches.get(usize::try_from(index).unwrap_or(usize::MAX)) {
            Some(batch) => Read::Batch(batch.clone()),
            None => state.end.clone().map_or(Read::Wait, Read::Ended),
        }
    }

    /// Drops what the one reader of a catch-up has taken.
    pub fn release_before(&self, position: u64) {
        let mut state = self.lock();
        while state.first < position && !state.batches.is_empty() {
            self.drop_first(&mut state);
        }
        drop(state);
        self.room.notify_one();
    }

    /// Drops everything. Whoever has not read it yet catches up.
    pub fn forget(&self) {
        let mut state = self.lock();
        while !state.batches.is_empty() {
            self.drop_first(&mut state);
        }
        wake(&state.readers);
    }

    fn push(&self, state: &mut State, batch: Batch) {
        let weight = batch.weight();
        state.bytes += weight;
        if let Some(budget) = &self.budget {
            budget.used.fetch_add(weight, Ordering::Relaxed);
        }
        state.batches.push_back(Arc::new(batch));
        // One batch is kept whatever its size: it is on its way to the readers that are awake.
        while state.batches.len() > 1 && (state.bytes > self.max_bytes || self.is_over_budget()) {
            self.drop_first(state);
        }
        wake(&state.readers);
    }

    fn is_over_budget(&self) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.is_over())
    }

    fn drop_first(&self, state: &mut State) {
        if let Some(batch) = state.batches.pop_front() {
            state.bytes -= batch.weight();
            if let Some(budget) = &self.budget {
                budget.used.fetch_sub(batch.weight(), Ordering::Relaxed);
            }
            state.first += 1;
            state.covered_from = state.covered_from.max(batch.last_revision() + 1);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a log")
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.used.fetch_sub(self.lock().bytes, Ordering::Relaxed);
        }
    }
}

fn wake(readers: &[Reader]) {
    for reader in readers {
        reader.inbox.wake(reader.watch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_that_share_a_budget_keep_within_it_and_give_back_what_they_held() {
        let header = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
        let one = Batch::progress(header(1)).weight();
        let budget = Budget::new(4 * one);
        let logs: Vec<_> = (0..4).map(|_| Log::within(usize::MAX, 1, &budget)).collect();
        for revision in 1..100 {
            logs.iter().for_each(|log| log.append_progress(header(revision)));
            assert!(budget.used.load(Ordering::Relaxed) <= 5 * one, "after revision {revision}");
        }
        let inbox = Arc::default();
        assert!(logs[0].subscribe(50, &inbox, 0).is_none(), "what was dropped is not promised");
        let position = logs[0].subscribe(100, &inbox, 0).expect("what is to come is");
        logs[0].forget();
        logs[0].append_progress(header(100));
        assert!(matches!(logs[0].read(position), Read::Batch(batch) if batch.header.revision == 100));
        drop(logs);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
