//! The law over many logs: whoever joins, leaves, lags, is moved to a wider watch or back, whatever breaks or is
//! compacted, each client is shown what its own watch on etcd would have shown, and what another watch covers is closed.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use prometheus::IntGauge;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::{
    super::{
        cursor::{Cursor, Wishes},
        directory::Opening,
        feed::{Command, Feed, Parts},
        hub::Wanted,
        inbox::Inbox,
        live::{LiveFeed, LogUse, Settings},
        log::{Budget, End, Read, Refused, Seat, Subscriber},
        reader::Opened,
        sayings::Sayings,
    },
    ID, PREFIX, Store, events_of,
    kept::Kept,
    stores, wishes,
};
use crate::{
    admission::shares::Places,
    metrics::Metrics,
    rules::{
        caller::{Caller, Connection},
        keys::KeyRange,
        namespace::Namespace,
        tenant::Tenant,
    },
    upstream::{Limits, Upstream, channel, endpoints::Endpoints, users::Users},
};

/// More logs than this below a prefix are gathered.
const THRESHOLD: usize = 2;
/// A batch of each log and some more.
const ROUNDS: usize = 200;

#[derive(Clone, Debug)]
enum Step {
    Write(i64),
    /// The upstream watch of this number sends up to so many revisions, cut in two there.
    Send(usize, i64, usize),
    Progress,
    Join {
        range: usize,
        start: i64,
        wishes: Wishes,
    },
    Leave(usize),
    Read(usize, usize),
    Keep {
        range: usize,
    },
    Look(usize),
    Break,
    Compact(i64),
    Settle,
    Weigh,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1_i64..4).prop_map(Step::Write),
        4 => (0_usize..8, 1_i64..6, 0_usize..6).prop_map(|(number, count, cut)| Step::Send(number, count, cut)),
        2 => Just(Step::Progress),
        4 => (0_usize..RANGES.len(), -1_i64..45, wishes())
            .prop_map(|(range, start, wishes)| Step::Join { range, start, wishes }),
        1 => (0_usize..20).prop_map(Step::Leave),
        4 => (0_usize..20, 1_usize..4).prop_map(|(reader, batches)| Step::Read(reader, batches)),
        2 => (0_usize..RANGES.len()).prop_map(|range| Step::Keep { range }),
        2 => (0_usize..20).prop_map(Step::Look),
        1 => Just(Step::Break),
        1 => (0_i64..45).prop_map(Step::Compact),
        3 => Just(Step::Settle),
        1 => Just(Step::Weigh),
    ]
}

/// As clients ask for them.
const RANGES: [(&str, &str); 9] = [
    ("a/0", ""),
    ("a/1", ""),
    ("a/2", ""),
    ("a/b/3", ""),
    ("a/1", "a/3"),
    ("a/", "a0"),
    ("a/b/", "a/b0"),
    ("\0", "\0"),
    ("c", ""),
];

/// etcd and the feed's task, as far as the law goes.
struct Etcd {
    store: Store,
    current: i64,
    compacted: i64,
    /// Whether watches of whole prefixes are refused, as for one who has rights to single keys only.
    refuses_prefixes: bool,
    commands: mpsc::UnboundedReceiver<Command>,
    watches: Vec<Upstreamed>,
}

struct Upstreamed {
    opening: Opening,
    /// The next revision that is sent; `None` until the create is answered.
    next: Option<i64>,
}

impl Etcd {
    fn header(&self) -> ResponseHeader {
        ResponseHeader { revision: self.current, ..ResponseHeader::default() }
    }

    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Open(opening) => self.watches.push(Upstreamed { opening, next: None }),
                Command::Close(log) => {
                    self.watches.retain(|watch| !Arc::ptr_eq(&watch.opening.log, &log));
                    log.end(End::Closed);
                }
                Command::Probe { .. } | Command::Progress(_) | Command::Cover => (),
            }
        }
    }

    /// Answers creates, those of streams that broke too.
    fn answer(&mut self) {
        let (header, compacted) = (self.header(), self.compacted);
        let is_prefix = |range: &KeyRange| range.key().ends_with(b"/");
        self.watches.retain_mut(|watch| {
            let Opening { range, log, start_revision, .. } = &watch.opening;
            if watch.next.is_some() {
                return true;
            }
            if self.refuses_prefixes && is_prefix(range) {
                log.note_opened(Err(Refused { header, reason: "etcdserver: permission denied".to_owned() }), 0);
                return false;
            }
            let start = if log.is_opened() { log.resume_revision() } else { *start_revision };
            log.note_opened(Ok(header), start);
            if start > 0 && start < compacted {
                log.end(End::Canceled { header, compact_revision: compacted, reason: String::new() });
                return false;
            }
            watch.next = Some(if start == 0 { header.revision + 1 } else { start });
            true
        });
    }

    fn send(&mut self, number: usize, count: i64, cut: usize) {
        let Some(watch) = self.watches.get_mut(number) else { return };
        let Some(next) = watch.next else { return };
        let to = (next.saturating_add(count) - 1).min(self.current);
        if to >= next {
            self.store.send_range(&watch.opening.log, &watch.opening.range, next, to, cut);
            watch.next = Some(to + 1);
        }
    }

    /// As etcd, says nothing while a watch lags.
    fn progress(&self) {
        if self.watches.iter().all(|watch| watch.next.is_some_and(|next| next > self.current)) {
            self.watches.iter().for_each(|watch| watch.opening.log.cover(self.header()));
        }
    }
}

struct Client {
    live: LogUse,
    /// With the namespace.
    range: KeyRange,
    start: i64,
    cursor: Cursor,
    source: Source,
    out: BytesMut,
    /// The compaction that ended it.
    cancelled: Option<i64>,
}

#[derive(Clone, Copy)]
enum Source {
    Live(Seat),
    CatchUp,
}

impl Client {
    fn locate(&mut self) {
        let part = self.live.part.clone();
        let subscriber = Subscriber { inbox: Arc::<Inbox>::default(), watch: 0, part: part.clone(), progress: false };
        let seat = self.live.log.subscribe(self.cursor.next_revision, subscriber);
        self.source = seat.map_or(Source::CatchUp, Source::Live);
        self.cursor.part = part.filter(|_| seat.is_some());
    }

    fn relocate(&mut self, next_revision: i64) {
        self.leave();
        self.live.look_again();
        self.cursor.next_revision = self.cursor.next_revision.max(next_revision);
        self.locate();
    }

    fn leave(&self) {
        if let Source::Live(seat) = self.source {
            self.live.log.unsubscribe(seat);
        }
    }

    /// Reads one batch, or a run of them, as a session does. Says whether there may be more.
    fn read(&mut self, etcd: &Etcd, sayings: &mut Sayings) -> bool {
        if self.cancelled.is_some() {
            return false;
        }
        let Source::Live(seat) = self.source else {
            if self.cursor.next_revision < etcd.compacted {
                self.cancelled = Some(etcd.compacted);
                return false;
            }
            etcd.store.catch_up(&mut self.cursor, &self.range, etcd.current, &mut self.out);
            let next_revision = self.cursor.next_revision;
            if next_revision >= self.live.log.covered_from() || self.live.log.has_ended() {
                self.relocate(next_revision);
                return true;
            }
            return false;
        };
        if let Some((saying, may_be_more)) = sayings.read(&self.live.log, seat, &mut self.cursor, 64 << 10) {
            self.out.extend_from_slice(&saying.bytes);
            return may_be_more;
        }
        match self.live.log.read(seat) {
            Read::Batch(batch) => {
                self.cursor.show(&batch, &mut self.out);
                true
            }
            Read::Fallen { next_revision } | Read::Ended(End::Continue { next_revision }) => {
                self.relocate(next_revision);
                true
            }
            Read::Ended(End::Canceled { compact_revision, .. }) => {
                assert!(self.live.part.is_none(), "what is said of a wider watch was said to a client");
                assert!(compact_revision > 0, "a watch that was granted was refused");
                self.cancelled = Some(compact_revision);
                false
            }
            Read::Wait | Read::Ended(End::Closed) => false,
        }
    }

    fn check(&self, store: &Store, upto: i64) -> Result<(), TestCaseError> {
        let shown = events_of(&self.out, self.start);
        let wishes = self.cursor.wishes;
        match self.cancelled {
            None => {
                prop_assert_eq!(shown, store.expected_of(&self.range, self.start, upto, wishes), "{:?}", self.range)
            }
            Some(compacted) => {
                let next = self.cursor.next_revision;
                prop_assert!(next < compacted, "a compaction at {compacted} ended what needed {next}");
                prop_assert_eq!(shown, store.expected_of(&self.range, self.start, next - 1, wishes));
            }
        }
        Ok(())
    }
}

struct World {
    etcd: Etcd,
    sayings: Sayings,
    feed: Arc<LiveFeed>,
    clients: Vec<Client>,
    kept: Vec<Kept>,
}

impl World {
    fn new(store: Store, max_log_bytes: usize, refuses_prefixes: bool) -> Self {
        let metrics = Arc::new(Metrics::new());
        let channel = Arc::new(channel::Config {
            tls: None,
            keepalive_time: Duration::ZERO,
            keepalive_timeout: Duration::ZERO,
            keepalive_without_stream: false,
            is_judge: true,
        });
        let limits = Limits { max_request: usize::MAX, max_answer: usize::MAX };
        let upstream = Upstream::new(
            Endpoints::new(Vec::new()),
            channel,
            Users::new(Vec::new(), &metrics),
            limits,
            metrics.clone(),
        );
        let whole = Tenant::whole();
        let tenant = Arc::new(Tenant::new("", Namespace::new(PREFIX), whole.policy.clone()));
        let caller = Caller { connection: Connection::new(None, 0, tenant), metadata: http::HeaderMap::new() };
        let settings = Settings {
            max_log_bytes,
            coalesce_threshold: THRESHOLD,
            budget: Budget::new(usize::MAX, IntGauge::new("used", "used").expect("a good name"), Arc::default()),
            catch_ups: Places::new(1, &Arc::default()),
        };
        let (feed, commands) = Feed::played();
        let feed = LiveFeed::with(
            feed,
            Parts { upstream, caller, metrics, rights_interval: None, seen: Arc::default() },
            settings,
        );
        let watches = Vec::new();
        let etcd = Etcd { store, current: 1, compacted: 0, refuses_prefixes, commands, watches };
        Self { etcd, sayings: Sayings::default(), feed, clients: Vec::new(), kept: Vec::new() }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Write(count) => self.etcd.current = (self.etcd.current + count).min(self.etcd.store.last_revision()),
            Step::Send(number, count, cut) => self.etcd.send(number, count, cut),
            Step::Progress => self.etcd.progress(),
            Step::Join { range, start, wishes } => self.join(range, start.max(0), wishes),
            Step::Leave(number) if number < self.clients.len() => {
                let client = self.clients.swap_remove(number);
                client.leave();
            }
            Step::Read(number, batches) => {
                if let Some(client) = self.clients.get_mut(number) {
                    for _ in 0..batches {
                        client.read(&self.etcd, &mut self.sayings);
                        self.etcd.obey();
                    }
                }
            }
            Step::Keep { range } => self.keep(range),
            Step::Look(number) => self.look(number),
            Step::Break => self.etcd.watches.iter_mut().for_each(|watch| watch.next = None),
            Step::Compact(revision) => {
                self.etcd.compacted = self.etcd.compacted.max(revision.min(self.etcd.current));
                self.feed.logs().iter().for_each(|log| log.compacted(self.etcd.compacted));
            }
            Step::Settle => self.feed.settle(false),
            Step::Weigh => self.feed.settle(true),
            Step::Leave(_) => (),
        }
        self.etcd.obey();
        if !matches!(step, Step::Break) {
            self.etcd.answer();
        }
    }

    /// As the hub does it.
    fn log(&mut self, range: usize, start_revision: i64, prev_kv: bool) -> Option<(LogUse, KeyRange)> {
        let (key, end) = RANGES[range];
        let own = KeyRange::of_watch(key.into(), end.into());
        let range = Namespace::new(PREFIX).prefix_range(&own);
        if self.etcd.refuses_prefixes && range.key().ends_with(b"/") {
            return None;
        }
        let wanted = Wanted { range: range.clone(), start_revision, prev_kv };
        loop {
            let (live, _) = self.feed.log(&wanted, self.etcd.current, true);
            self.etcd.obey();
            self.etcd.answer();
            if !live.log.has_ended() || live.part.is_none() {
                return Some((live, range));
            }
            live.note_refused();
        }
    }

    /// As the cache does it.
    fn keep(&mut self, range: usize) {
        let Some((live, range)) = self.log(range, 0, false) else { return };
        self.kept.extend(Kept::new(Opened::new(live, self.feed.clone(), range), self.etcd.current));
    }

    fn look(&mut self, number: usize) {
        if let Some(kept) = self.kept.get_mut(number)
            && kept.look(&self.etcd.store).is_none()
        {
            self.kept.swap_remove(number);
        }
    }

    fn join(&mut self, range: usize, start: i64, wishes: Wishes) {
        let Some((live, range)) = self.log(range, start, wishes.prev_kv) else { return };
        let start = if start == 0 { self.etcd.current + 1 } else { start };
        let cursor = Cursor { watch_id: ID, next_revision: start, told_revision: start, wishes, part: None };
        let (source, out) = (Source::CatchUp, BytesMut::new());
        let mut client = Client { live, range, start, cursor, source, out, cancelled: None };
        client.locate();
        self.clients.push(client);
    }

    /// Until nothing is left to be sent or read.
    fn come_to_rest(&mut self) {
        // A settle that only changes what a log is for is seen in what the next one does.
        let mut calm = 0;
        for _ in 0..ROUNDS {
            self.etcd.obey();
            self.etcd.answer();
            for number in 0..self.etcd.watches.len() {
                self.etcd.send(number, i64::MAX / 2, usize::MAX);
            }
            self.etcd.progress();
            let mut is_busy = false;
            self.kept.retain_mut(|kept| kept.look(&self.etcd.store).is_some());
            self.etcd.obey();
            for client in &mut self.clients {
                while client.read(&self.etcd, &mut self.sayings) {
                    is_busy = true;
                    self.etcd.obey();
                }
            }
            let before = self.etcd.watches.len();
            self.feed.settle(false);
            self.etcd.obey();
            let is_calm =
                !is_busy && before == self.etcd.watches.len() && self.etcd.watches.iter().all(|w| w.next.is_some());
            calm = if is_calm { calm + 1 } else { 0 };
            if calm == 2 {
                return;
            }
        }
        panic!("it does not come to rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn whatever_is_shared_each_client_is_shown_what_its_own_watch_would_have_shown(
        store in stores(),
        steps in proptest::collection::vec(step(), 1..120),
        max_bytes in 1_usize..3000,
        refuses_prefixes: bool,
    ) {
        let mut world = World::new(store, max_bytes, refuses_prefixes);
        for step in steps {
            world.take(step);
        }
        world.come_to_rest();
        for kept in &mut world.kept {
            prop_assert_eq!(kept.look(&world.etcd.store), Some(world.etcd.current));
        }
        for client in &world.clients {
            client.check(&world.etcd.store, world.etcd.current)?;
        }
        for one in &world.etcd.watches {
            let covered = world.etcd.watches.iter().find(|other| {
                let is_other = !Arc::ptr_eq(&one.opening.log, &other.opening.log);
                is_other && other.opening.range.covers(&one.opening.range) && other.opening.prev_kv >= one.opening.prev_kv
            });
            prop_assert!(covered.is_none(), "{:?} stands beside {:?}", one.opening.range, covered.map(|c| &c.opening.range));
        }
        world.clients.clear();
        world.kept.clear();
        world.etcd.obey();
        let left: Vec<_> = world.etcd.watches.iter().map(|watch| &watch.opening.range).collect();
        prop_assert!(left.len() <= 2, "nobody reads any more, and yet there are {left:?}");
    }
}
