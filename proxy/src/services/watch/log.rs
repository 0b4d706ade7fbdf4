//! One upstream watch as a bounded log of encoded events; clients are positions in it.
//!
//! A log knows which revisions it covers: every event on its range from `covered_from` on is in it or yet to come, and
//! every event up to `covered_to` has come. What is dropped to keep within the bound moves `covered_from` up.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

mod batch;
mod budget;
mod merge;
mod readers;
mod run;

pub use batch::{Batch, BatchBuilder, Event};
pub use budget::Budget;
pub use readers::{Seat, Subscriber};
pub use run::{Run, RunOf};

use crate::rules::keys::KeyRange;
use readers::Readers;

/// How often a reader of a part, which hears nothing of what lies elsewhere, is told how far it is if it asked for that.
/// etcd would tell it each `--watch-progress-notify-interval`, which is 10 minutes unless set otherwise, often to 5 s.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// Why nothing more will come.
#[derive(Clone, Debug)]
pub enum End {
    /// etcd ended the watch: what it said, with the id left out.
    Canceled { header: ResponseHeader, compact_revision: i64, reason: String },
    /// Everything before this revision has been shown, and the reader goes on elsewhere.
    Continue { next_revision: i64 },
    /// The reader must ask again for where it stands; etcd could not be asked, or closed the log for want of readers.
    Closed,
}

/// What is there for a reader.
pub enum Read {
    Batch(Arc<Batch>),
    /// Nothing yet.
    Wait,
    /// It was dropped to keep the log within its bound. All before this revision has been shown.
    Fallen {
        next_revision: i64,
    },
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

/// A log's number among all that there ever were.
static LOGS: AtomicU64 = AtomicU64::new(0);

/// Tells a log from all others that there are at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub(super) usize);

pub struct Log {
    number: u64,
    max_bytes: usize,
    state: Mutex<State>,
    opened: watch::Sender<Option<Opened>>,
    /// Tells the one who fills a catch-up that there is room again.
    room: Notify,
    /// What all shared logs hold together. A catch-up has none: it holds only what its one reader has not taken, and
    /// waits for it.
    budget: Option<Arc<Budget>>,
}

/// A batch in its place.
struct Held {
    batch: Arc<Batch>,
    /// The bytes of all events of the log before it.
    begins: u64,
}

struct State {
    batches: VecDeque<Held>,
    /// The number of the first batch held.
    first: u64,
    bytes: usize,
    /// The bytes of all events that ever came.
    passed: u64,
    /// The first batch from which on each holds events, and none of a revision that the one before holds.
    plain_from: u64,
    covered_from: i64,
    covered_to: i64,
    /// The newest revision of the store in a header of events.
    told_revision: i64,
    /// Whether etcd has reached the present on it. A watch from now is there from its start.
    is_level: bool,
    end: Option<End>,
    readers: Readers,
    last_notice: Instant,
    /// Events that came while nobody read the whole log, and those of them that nobody wanted.
    sample: Sample,
}

/// What came of late, and how much of it nobody wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub events: usize,
    pub unwanted: usize,
}

impl Log {
    /// A log for one reader that catches up, from this revision on.
    pub fn catching_up(max_bytes: usize, from: i64) -> Arc<Self> {
        Arc::new(Self::make(max_bytes, from, None))
    }

    /// A log for all, which shares a budget with others. What it covers is known when etcd has answered the create.
    pub fn shared(max_bytes: usize, budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self::make(max_bytes, i64::MAX, Some(budget.clone())))
    }

    fn make(max_bytes: usize, covered_from: i64, budget: Option<Arc<Budget>>) -> Self {
        let state = State {
            batches: VecDeque::new(),
            first: 0,
            bytes: 0,
            passed: 0,
            plain_from: 0,
            covered_from,
            covered_to: covered_from - 1,
            told_revision: 0,
            is_level: false,
            end: None,
            readers: Readers::default(),
            last_notice: Instant::now(),
            sample: Sample::default(),
        };
        let (state, opened) = (Mutex::new(state), watch::Sender::new(None));
        let number = LOGS.fetch_add(1, Ordering::Relaxed);
        Self { number, max_bytes, state, opened, room: Notify::new(), budget }
    }

    /// Notes etcd's answer to the create of a watch that begins at this revision; zero is now, which is after the
    /// revision of the answer. A watch that is refused ends.
    pub fn note_opened(&self, opened: Opened, start_revision: i64) {
        if let (Ok(header), false) = (&opened, self.is_opened()) {
            let mut state = self.lock();
            state.is_level = start_revision == 0;
            state.covered_from = if state.is_level { header.revision + 1 } else { start_revision };
            state.covered_to = state.covered_from - 1;
        }
        // Whoever waits must find the answer before it finds the end.
        let refused = opened.clone().err();
        self.opened.send_replace(Some(opened));
        if let Some(Refused { header, reason }) = refused {
            self.end(End::Canceled { header, compact_revision: 0, reason });
        }
    }

    pub fn id(self: &Arc<Self>) -> LogId {
        LogId(Arc::as_ptr(self).addr())
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

    /// Whether etcd has shown everything up to some present.
    pub fn is_level(&self) -> bool {
        self.lock().is_level
    }

    /// Adds events, unless all of them have come before. What a batch repeats in part no reader shows twice. A member
    /// that takes over may be behind what the one before said of the store; no header goes back for that.
    pub fn append(&self, mut batch: Batch) {
        let mut state = self.lock();
        if batch.last_revision() <= state.covered_to || state.end.is_some() {
            return;
        }
        state.told_revision = state.told_revision.max(batch.header.revision);
        batch.header.revision = state.told_revision;
        let since = std::mem::replace(&mut state.covered_to, batch.last_revision()) + 1;
        self.push(&mut state, batch, since);
    }

    /// Notes that everything up to the header's revision has come, for readers who want to be told.
    pub fn append_progress(&self, header: ResponseHeader) {
        let mut state = self.lock();
        if header.revision < state.covered_to || state.end.is_some() {
            return;
        }
        let since = std::mem::replace(&mut state.covered_to, header.revision) + 1;
        self.push_progress(&mut state, header, since);
    }

    /// Notes that everything up to the header's revision has come, for no reader in particular.
    pub fn cover(&self, header: ResponseHeader) {
        let mut state = self.lock();
        if header.revision < state.covered_to || state.end.is_some() {
            return;
        }
        let since = std::mem::replace(&mut state.covered_to, header.revision) + 1;
        state.is_level = true;
        if state.last_notice.elapsed() >= NOTICE_INTERVAL && state.readers.awaits_progress() {
            self.push_progress(&mut state, header, since);
        }
    }

    fn push_progress(&self, state: &mut State, header: ResponseHeader, since: i64) {
        state.last_notice = Instant::now();
        self.push(state, Batch::progress(header), since);
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
            state.readers.wake_all();
        }
        drop(state);
        // Those who wait for the opening look again and find the end.
        self.opened.send_modify(|_| ());
    }

    /// Sends all readers elsewhere, once they have read what is here.
    pub fn send_away(&self) {
        self.end(End::Continue { next_revision: self.resume_revision() });
    }

    pub fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Whether a reader of the whole log or of a part of it shall look for another log.
    pub fn has_sent_away(&self, is_part: bool) -> bool {
        match &self.lock().end {
            Some(End::Continue { .. }) => true,
            Some(End::Canceled { compact_revision, .. }) => is_part || *compact_revision > 0,
            Some(End::Closed) | None => false,
        }
    }

    /// Lets no new reader begin where etcd would refuse it, or at `revision` itself, whose events have lost what was
    /// before them. Those that are here keep their place, as a watcher of etcd's does that has been sent its events
    /// already.
    pub fn compacted(&self, revision: i64) {
        let mut state = self.lock();
        state.covered_from = state.covered_from.max(revision.min(state.covered_to).saturating_add(1));
    }

    /// A new reader's seat, from which it reads what is of `revision` or after it. `None` if that has been dropped
    /// already, or if it is not known yet where the log begins.
    pub fn subscribe(&self, revision: i64, subscriber: Subscriber) -> Option<Seat> {
        let mut state = self.lock();
        if revision < state.covered_from {
            return None;
        }
        let skipped = state.batches.partition_point(|held| held.batch.last_revision() < revision);
        let next = state.first + skipped as u64;
        let since = revision;
        let last = state.first + state.batches.len() as u64;
        let seat = state.readers.add(subscriber, next, last, since);
        state.seek(seat);
        Some(seat)
    }

    pub fn unsubscribe(&self, seat: Seat) {
        self.lock().readers.remove(seat);
    }

    /// Takes what is next for a reader.
    pub fn read(&self, seat: Seat) -> Read {
        let mut guard = self.lock();
        let state = &mut *guard;
        let (first, covered_to) = (state.first, state.covered_to);
        let Some(reader) = state.readers.get_mut(seat) else { return Read::Wait };
        if !reader.has_something() {
            let is_part = reader.subscriber.part.is_some();
            reader.since = reader.since.max(covered_to.saturating_add(1));
            return match state.end.clone() {
                None => Read::Wait,
                // What etcd says of a wider watch than this reader's own, or of one that began earlier, is not said to it.
                Some(End::Canceled { compact_revision, .. })
                    if is_part || (compact_revision > 0 && reader.since >= compact_revision) =>
                {
                    Read::Ended(End::Continue { next_revision: reader.since })
                }
                Some(end) => Read::Ended(end),
            };
        }
        let Some(index) = reader.next.checked_sub(first) else {
            return Read::Fallen { next_revision: reader.since };
        };
        let Some(held) = state.batches.get(usize::try_from(index).unwrap_or(usize::MAX)) else {
            return Read::Wait;
        };
        let batch = held.batch.clone();
        if let Some(reader) = state.readers.get_mut(seat) {
            reader.since = reader.since.max(batch.last_revision() + 1);
            reader.next += 1;
        }
        state.seek(seat);
        if self.budget.is_none() {
            while state.first <= first + index && !state.batches.is_empty() {
                self.drop_first(state);
            }
            drop(guard);
            self.room.notify_one();
        }
        Read::Batch(batch)
    }

    /// The parts of the log that have readers.
    pub fn parts(&self) -> Vec<Arc<KeyRange>> {
        self.lock().readers.parts()
    }

    /// What came of late while nobody read the whole log, if it was so many events; the count then begins anew.
    pub fn sample(&self, events: usize) -> Option<Sample> {
        let mut state = self.lock();
        if state.readers.has_whole() {
            state.sample = Sample::default();
        }
        (state.sample.events >= events).then(|| std::mem::take(&mut state.sample))
    }

    /// Drops everything. Whoever has not read it yet catches up.
    pub fn forget(&self) {
        let mut state = self.lock();
        while !state.batches.is_empty() {
            self.drop_first(&mut state);
        }
    }

    fn push(&self, state: &mut State, batch: Batch, since: i64) {
        let weight = batch.weight();
        state.bytes += weight;
        if let Some(budget) = &self.budget {
            budget.take(weight);
        }
        let number = state.first + state.batches.len() as u64;
        if batch.first_revision().is_none_or(|first| first < since) {
            state.plain_from = number + 1;
        }
        let batch = Arc::new(batch);
        state.batches.push_back(Held { batch: batch.clone(), begins: state.passed });
        state.passed += batch.events_len() as u64;
        // One batch is kept whatever its size: it is on its way to the readers that are awake.
        while state.batches.len() > 1 && (state.bytes > self.max_bytes || self.is_over_budget()) {
            self.drop_first(state);
        }
        let unwanted = state.readers.tell(number, &batch, since);
        if !state.readers.has_whole() {
            state.sample.events += batch.events.len();
            state.sample.unwanted += unwanted;
        }
    }

    fn is_over_budget(&self) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.is_over())
    }

    fn drop_first(&self, state: &mut State) {
        if let Some(Held { batch, .. }) = state.batches.pop_front() {
            state.bytes -= batch.weight();
            if let Some(budget) = &self.budget {
                budget.give_back(batch.weight());
            }
            state.first += 1;
            state.covered_from = state.covered_from.max(batch.last_revision() + 1);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a log")
    }
}

impl State {
    /// Moves a reader over what holds nothing for it. It stays where something was dropped, since that is not known of
    /// what is gone. Only one that lags has more than one step to take.
    fn seek(&mut self, seat: Seat) {
        let (first, batches) = (self.first, &self.batches);
        let Some(reader) = self.readers.get_mut(seat) else { return };
        while reader.has_something() {
            let Some(index) = reader.next.checked_sub(first) else { return };
            match batches.get(usize::try_from(index).unwrap_or(usize::MAX)) {
                Some(held) if !reader.wants(&held.batch) => reader.next += 1,
                _ => return,
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.give_back(self.lock().bytes);
        }
    }
}
