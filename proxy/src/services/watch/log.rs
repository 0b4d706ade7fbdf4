//! One upstream watch as a bounded log of encoded events; clients are positions in it.
//!
//! A log knows which revisions it covers: every event on its range from `covered_from` on is in it or yet to come, and
//! every event up to `covered_to` has come. What is dropped to keep within the bound moves `covered_from` up.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use prometheus::IntGauge;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

mod batch;
mod readers;

pub use batch::{Batch, BatchBuilder, Event};
pub use readers::{Seat, Subscriber};

use crate::{admission::shares::Shares, rules::keys::KeyRange};
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

/// Batches that a reader of the whole log reads at once, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// Of all logs that there ever were, which a place in memory does not tell.
    log: u64,
    from: u64,
    upto: u64,
}

/// What a run holds.
pub enum RunOf<T> {
    Known(T),
    Batches(Run, Vec<Arc<Batch>>),
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

/// How much the shared logs hold together, and may. Clients may watch any number of ranges that overlap, and each
/// range's log holds the events for itself.
#[derive(Debug)]
pub struct Budget {
    used: IntGauge,
    max: usize,
    /// What one tenant's logs hold of it.
    own: AtomicUsize,
    shares: Arc<Shares>,
}

impl Budget {
    /// `used` shows how much is held.
    pub fn new(max: usize, used: IntGauge, shares: Arc<Shares>) -> Arc<Self> {
        Arc::new(Self { used, max, own: AtomicUsize::new(0), shares })
    }

    /// The same for another tenant.
    pub fn for_another(&self) -> Arc<Self> {
        Self::new(self.max, self.used.clone(), self.shares.clone())
    }

    /// Whether all tenants hold too much together, or this one does.
    pub fn is_over(&self) -> bool {
        self.used.get() > i64::try_from(self.max).unwrap_or(i64::MAX)
            || self.own.load(Ordering::Relaxed) > self.shares.of_one(self.max)
    }

    fn take(&self, bytes: usize) {
        self.used.add(signed(bytes));
        self.own.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: usize) {
        self.used.sub(signed(bytes));
        self.own.fetch_sub(bytes, Ordering::Relaxed);
    }
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

    /// Adds events, unless all of them have come before. What a batch repeats in part no reader shows twice.
    pub fn append(&self, batch: Batch) {
        let mut state = self.lock();
        if batch.last_revision() <= state.covered_to || state.end.is_some() {
            return;
        }
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

    /// Lets no new reader begin where etcd would refuse it. Those that are here keep their place, as a watcher of
    /// etcd's does that has been sent its events already.
    pub fn compacted(&self, revision: i64) {
        let mut state = self.lock();
        state.covered_from = state.covered_from.max(revision.min(state.covered_to.saturating_add(1)));
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

    /// Takes what is next for a reader of the whole log who wants all of it from `next_revision` on, if others read it
    /// too: some batches of events at once, about `max_bytes` of them. `known` may know already what a run holds. Says
    /// also whether there may be more. A catch-up, which has one reader, is read by [`Log::read`].
    pub fn read_run<T>(
        &self,
        seat: Seat,
        next_revision: i64,
        max_bytes: u64,
        known: impl FnOnce(Run) -> Option<T>,
    ) -> Option<(RunOf<T>, bool)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let (first, last) = (state.first, state.first + state.batches.len() as u64);
        if self.budget.is_none() || !state.readers.has_several_of_whole() {
            return None;
        }
        let reader = state.readers.get_mut(seat).filter(|reader| reader.subscriber.part.is_none())?;
        let from = reader.next;
        if !reader.has_something() || from < first || from < state.plain_from {
            return None;
        }
        let start = usize::try_from(from - first).ok()?;
        let next = state.batches.get(start)?;
        if next.batch.first_revision()? < next_revision {
            return None;
        }
        let bound = next.begins + max_bytes;
        let upto = match state.passed <= bound {
            true => last,
            // The first whatever its size, and the others as far as they end before the bound.
            false => {
                let beginning_within = state.batches.partition_point(|held| held.begins <= bound);
                (first + beginning_within as u64 - 1).max(from + 1)
            }
        };
        let end = usize::try_from(upto - first).ok()?;
        let shown = state.batches.get(end - 1)?.batch.last_revision();
        reader.since = reader.since.max(shown + 1);
        reader.next = upto;
        let may_be_more = reader.has_something() || state.end.is_some();
        let run = Run { log: self.number, from, upto };
        let content = match known(run) {
            Some(known) => RunOf::Known(known),
            None => RunOf::Batches(run, state.batches.range(start..end).map(|held| held.batch.clone()).collect()),
        };
        Some((content, may_be_more))
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

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).expect("memory is smaller than that")
}

#[cfg(test)]
mod tests {
    use super::{super::inbox::Inbox, *};
    use crate::rules::tenant::Tenant;

    #[test]
    fn logs_that_share_a_budget_keep_within_it_and_give_back_what_they_held() {
        let header = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
        let one = signed(Batch::progress(header(1)).weight());
        let used = IntGauge::new("used", "used").expect("a good name");
        let budget = Budget::new(4 * one as usize, used.clone(), Arc::default());
        let logs: Vec<_> = (0..4).map(|_| Log::shared(usize::MAX, &budget)).collect();
        logs.iter().for_each(|log| log.note_opened(Ok(header(0)), 0));
        for revision in 1..100 {
            logs.iter().for_each(|log| log.append_progress(header(revision)));
            assert!(used.get() <= 5 * one, "after revision {revision}");
        }
        let inbox = Arc::<Inbox>::default();
        let subscriber = || Subscriber { inbox: inbox.clone(), watch: 0, part: None, progress: true };
        assert!(logs[0].subscribe(50, subscriber()).is_none(), "what was dropped is not promised");
        let seat = logs[0].subscribe(100, subscriber()).expect("what is to come is");
        logs[0].forget();
        logs[0].append_progress(header(100));
        assert!(matches!(logs[0].read(seat), Read::Batch(batch) if batch.header.revision == 100));
        drop(logs);
        assert_eq!(used.get(), 0);
    }

    #[test]
    fn the_logs_of_one_tenant_leave_half_of_the_budget_to_the_others() {
        let header = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
        let one = Batch::progress(header(1)).weight();
        let used = IntGauge::new("used", "used").expect("a good name");
        let shares = Arc::new(Shares::default());
        shares.serve(&[Tenant::whole(), Tenant::nobody()]);
        let greedy = Budget::new(8 * one, used.clone(), shares);
        let modest = greedy.for_another();
        let log = |budget| {
            let log = Log::shared(usize::MAX, budget);
            log.note_opened(Ok(header(0)), 0);
            log
        };
        let (greedy_log, modest_log) = (log(&greedy), log(&modest));
        for revision in 1..4 {
            modest_log.append_progress(header(revision));
        }
        for revision in 1..100 {
            greedy_log.append_progress(header(revision));
        }
        assert!(modest_log.lock().bytes == 3 * one && greedy_log.lock().bytes <= 4 * one);
        drop((greedy_log, modest_log));
        assert_eq!((used.get(), greedy.own.load(Ordering::Relaxed)), (0, 0));
    }
}
