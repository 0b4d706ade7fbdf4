//! One client's Watch stream: create, cancel, progress, and the sending of what its watches have to show.
//!
//! Everything that the client asks is answered in the order in which it asked, as etcd does, although the answers to
//! creates come from afar.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::{
    ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType,
    watch_request::RequestUnion,
};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use prost::Message as _;
use tokio::time::Instant;

use super::{
    bell::Bell,
    cursor::{Cursor, Wishes},
    hub::{Hub, JoinError, Joined, Wanted},
    inbox::{Inbox, NumberHash},
    live::{CatchUp, LiveFeed, LogUse},
    log::{End, Read, Refused, Seat, Subscriber},
};
use crate::{
    admission,
    exchange::{Gone, Replies, Requests, passed},
    rules::{
        caller::{Caller, Connection},
        framing,
        keys::KeyRange,
        status::{self, Status},
        tenant::limits::{Exceeded, Limit},
    },
};

/// Ids of one client, up to which those are kept that it has not cancelled though their watches have ended.
const MAX_ENDED_IDS: usize = 10_000;
/// Bytes that are made ready for one client before its window is asked for more.
const OUT_HIGH_WATER: usize = 64 * 1024;
/// Requests of one client that wait for etcd; further ones are left unread until then.
const MAX_UNANSWERED: usize = 1024;
/// The id of answers that speak of no watch, or of one that was not made.
const NO_WATCH: i64 = -1;
/// How long a watch whose filters let nothing through may go without a word, if it asked for progress: what etcd's
/// `--watch-progress-notify-interval` is by default.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

pub struct Session {
    hub: Arc<Hub>,
    connection: Arc<Connection>,
    feed: Arc<LiveFeed>,
    inbox: Arc<Inbox>,
    watches: HashMap<u64, Watch, NumberHash>,
    /// The client's ids for its watches.
    ids: HashMap<i64, u64>,
    next_key: u64,
    next_id: i64,
    /// What the client asked and has not been answered.
    asked: FuturesOrdered<BoxFuture<'static, Asked>>,
    /// Whose turn it is to be read.
    turns: VecDeque<Turn>,
    /// The watches among the turns, each of which is there once: a client that takes a byte at a time must not make
    /// the turns grow with every event.
    has_turn: HashSet<u64, NumberHash>,
    /// Framed messages for the client.
    out: BytesMut,
    last_header: ResponseHeader,
    shown: Shown,
    /// Why the stream must end, once that is known.
    lost: Option<Status>,
}

/// What a turn has made ready for the client.
#[derive(Default)]
struct Shown {
    events: u64,
    /// Of the newest event, and of the newest header or event.
    event_revision: i64,
    revision: i64,
}

struct Watch {
    cursor: Cursor,
    start_revision: i64,
    live: LogUse,
    source: Source,
    last_shown: Instant,
}

/// Where a watch reads.
enum Source {
    Live { seat: Seat },
    CatchUp(CatchUp),
}

/// A request of the client's whose answer is ready to be given.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, for a moment; most are creates")]
enum Asked {
    Create {
        created: Create,
        joined: Result<Joined, JoinError>,
    },
    /// A create for which there was no room.
    Full {
        header: ResponseHeader,
    },
    Cancel {
        watch_id: i64,
    },
    Progress,
}

struct Create {
    watch_id: i64,
    start_revision: i64,
    wishes: Wishes,
}

#[derive(Clone, Copy)]
enum Turn {
    Watch(u64),
    /// Everything before is in the turns before this one.
    Progress(ResponseHeader),
}

impl Session {
    /// `bell` is that of the thread that serves the session.
    pub fn new(hub: &Arc<Hub>, bell: &Arc<Bell>, caller: &Caller) -> Self {
        hub.metrics.watch_streams.inc();
        Self {
            feed: hub.feed(caller),
            hub: hub.clone(),
            connection: caller.connection.clone(),
            inbox: Inbox::at(bell),
            watches: HashMap::default(),
            ids: HashMap::new(),
            next_key: 0,
            next_id: 0,
            asked: FuturesOrdered::new(),
            turns: VecDeque::new(),
            has_turn: HashSet::default(),
            out: BytesMut::new(),
            last_header: ResponseHeader::default(),
            shown: Shown::default(),
            lost: None,
        }
    }

    /// Serves until the client leaves or the stream has to end, and says with what.
    pub async fn run(
        &mut self,
        requests: &mut Requests,
        replies: &mut Replies,
        deadline: Option<std::time::Instant>,
    ) -> Result<Status, Gone> {
        replies.begin(http::HeaderMap::new())?;
        let feed = self.feed.clone();
        let failed = feed.failed();
        tokio::pin!(failed);
        let late = passed(deadline);
        tokio::pin!(late);
        let mut drain = self.hub.drain();
        let mut half_closed = false;
        let mut ready = Vec::new();
        loop {
            let progress = self.inbox.take(&mut ready);
            ready.drain(..).for_each(|key| self.give_turn(key));
            self.turns.extend(progress.map(Turn::Progress));
            self.fill();
            if let Some(status) = self.lost.take() {
                return Ok(status);
            }
            let wanted = self.out.len();
            tokio::select! {
                sent = send_some(replies, &mut self.out) => sent?,
                () = drain.signaled() => return Ok(status::draining()),
                status = &mut failed => return Ok(status),
                () = &mut late => return Ok(status::deadline_exceeded()),
                Some(asked) = self.asked.next(), if wanted < OUT_HIGH_WATER => self.answer(asked),
                request = requests.next(), if !half_closed && self.asked.len() < MAX_UNANSWERED => match request {
                    Some(Ok(message)) => match WatchRequest::decode(message) {
                        Ok(request) => self.ask(request),
                        Err(error) => return Ok(status::malformed(error)),
                    },
                    Some(Err(status)) => return Ok(status),
                    // etcd goes on sending to a client that has nothing more to ask.
                    None => half_closed = true,
                },
                () = self.inbox.heard(), if wanted < OUT_HIGH_WATER => (),
            }
        }
    }

    /// Takes in a request of the client's.
    fn ask(&mut self, request: WatchRequest) {
        let asked: BoxFuture<'static, Asked> = match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.ask_create(create),
            Some(RequestUnion::CancelRequest(cancel)) => {
                Box::pin(std::future::ready(Asked::Cancel { watch_id: cancel.watch_id }))
            }
            Some(RequestUnion::ProgressRequest(_)) => Box::pin(std::future::ready(Asked::Progress)),
            // etcd passes over a request without content.
            None => return,
        };
        self.asked.push_back(asked);
    }

    fn ask_create(&self, create: WatchCreateRequest) -> BoxFuture<'static, Asked> {
        // etcd need not be asked for what cannot be had.
        let is_full = admission::watches_are_full(&self.connection);
        let wishes = Wishes {
            no_put: create.filters.contains(&(FilterType::Noput as i32)),
            no_delete: create.filters.contains(&(FilterType::Nodelete as i32)),
            prev_kv: create.prev_kv,
            progress_notify: create.progress_notify,
            fragment: create.fragment,
        };
        let range = KeyRange::of_watch(create.key, create.range_end);
        let wanted = Wanted {
            range: self.connection.tenant.namespace.prefix_range(&range),
            start_revision: create.start_revision,
            prev_kv: create.prev_kv,
        };
        let created = Create { watch_id: create.watch_id, start_revision: create.start_revision, wishes };
        let (hub, feed) = (self.hub.clone(), self.feed.clone());
        let header = ResponseHeader { revision: self.last_header.revision.max(hub.seen()), ..self.last_header };
        Box::pin(async move {
            if is_full {
                return Asked::Full { header };
            }
            let joined = hub.join(&feed, &wanted).await;
            Asked::Create { created, joined }
        })
    }

    /// Gives the answer whose turn has come.
    fn answer(&mut self, asked: Asked) {
        match asked {
            Asked::Create { created, joined: Ok(joined) } => self.create(&created, joined),
            Asked::Create { joined: Err(JoinError::Refused(refused)), .. } => self.refuse_create(refused),
            Asked::Full { header } => self.refuse_for_want_of_room(header),
            // The feed's own end is about to end the session.
            Asked::Create { joined: Err(JoinError::Lost), .. } => (),
            Asked::Cancel { watch_id } => self.cancel(watch_id),
            Asked::Progress if !self.watches.is_empty() => self.feed.ask_progress(&self.inbox),
            Asked::Progress => (),
        }
    }

    fn create(&mut self, created: &Create, joined: Joined) {
        let Joined { header, next_revision, live } = joined;
        if self.ids.contains_key(&created.watch_id) && created.watch_id != 0 {
            let reason = status::DUPLICATE_WATCH_ID_REASON.to_owned();
            return self.refuse_create(Refused { header, reason });
        }
        if let Err(exceeded) = admission::take_watch(&self.connection) {
            let reason = status::exhausted(exceeded).message().to_owned();
            return self.refuse_create(Refused { header, reason });
        }
        let watch_id = self.take_id(created.watch_id);
        let key = self.next_key;
        self.next_key += 1;
        self.ids.insert(watch_id, key);
        self.hub.metrics.client_watches.inc();
        self.say(WatchResponse { header: Some(header), watch_id, created: true, ..WatchResponse::default() });
        let mut cursor = Cursor { watch_id, next_revision, wishes: created.wishes, part: None };
        let source = self.locate(&live, &mut cursor, key);
        let start_revision = created.start_revision;
        self.watches.insert(key, Watch { cursor, start_revision, live, source, last_shown: Instant::now() });
        self.give_turn(key);
    }

    /// The id for a new watch: the client's own, which is free, or the next free one.
    fn take_id(&mut self, wanted: i64) -> i64 {
        if wanted != 0 {
            return wanted;
        }
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn refuse_for_want_of_room(&mut self, header: ResponseHeader) {
        let exceeded = self.connection.tenant.usage.refused(Exceeded::of(Limit::Watches));
        self.refuse_create(Refused { header, reason: status::exhausted(exceeded).message().to_owned() });
    }

    fn refuse_create(&mut self, refused: Refused) {
        let Refused { header, reason } = refused;
        self.say(WatchResponse {
            header: Some(header),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..WatchResponse::default()
        });
    }

    /// Finds the place in the shared log, or begins to catch up with it.
    fn locate(&self, live: &LogUse, cursor: &mut Cursor, key: u64) -> Source {
        let subscriber = || Subscriber {
            inbox: self.inbox.clone(),
            watch: key,
            part: live.part.clone(),
            progress: cursor.wishes.progress_notify,
        };
        let seat = live.log.subscribe(cursor.next_revision, subscriber());
        let source = match seat {
            Some(seat) => Source::Live { seat },
            None => Source::CatchUp(live.catch_up(cursor.next_revision, subscriber())),
        };
        cursor.part = live.part.clone().filter(|_| seat.is_some());
        source
    }

    fn cancel(&mut self, watch_id: i64) {
        // etcd says nothing about an id that it does not know.
        let Some(key) = self.ids.get(&watch_id).copied() else { return };
        self.remove(key);
        self.ids.remove(&watch_id);
        let header = ResponseHeader { revision: self.last_header.revision.max(self.hub.seen()), ..self.last_header };
        self.say(WatchResponse { header: Some(header), watch_id, canceled: true, ..WatchResponse::default() });
    }

    fn remove(&mut self, key: u64) {
        if let Some(watch) = self.watches.remove(&key) {
            watch.leave();
            admission::give_back_watch(&self.connection);
            self.ids.remove(&watch.cursor.watch_id);
            self.hub.metrics.client_watches.dec();
        }
    }

    fn give_turn(&mut self, key: u64) {
        if self.has_turn.insert(key) {
            self.turns.push_back(Turn::Watch(key));
        }
    }

    /// Reads for those whose turn it is, until there is enough to send.
    fn fill(&mut self) {
        while self.out.len() < OUT_HIGH_WATER {
            match self.turns.pop_front() {
                None => break,
                Some(Turn::Progress(header)) => self.show_progress(header),
                Some(Turn::Watch(key)) => {
                    if self.read(key) {
                        // There is more: it goes on first, so that a notice of progress behind it stays true.
                        self.turns.push_front(Turn::Watch(key));
                    } else {
                        self.has_turn.remove(&key);
                    }
                }
            }
        }
        self.tell_what_was_shown();
    }

    /// Notes what was made ready, before any of it goes out; once per turn, since all threads note it in one place.
    fn tell_what_was_shown(&mut self) {
        let Shown { events, event_revision, revision } = std::mem::take(&mut self.shown);
        if events > 0 {
            self.hub.metrics.watch_events_delivered.inc_by(events);
        }
        if revision > 0 {
            self.hub.saw(event_revision);
            self.connection.shown.note(revision);
        }
    }

    /// Shows one watch's next batch. Says whether there may be another.
    fn read(&mut self, key: u64) -> bool {
        let Some(watch) = self.watches.get_mut(&key) else { return false };
        let (log, seat) = match &watch.source {
            Source::Live { seat } => (&watch.live.log, *seat),
            Source::CatchUp(own) => (&own.log, own.seat),
        };
        match log.read(seat) {
            Read::Wait => false,
            Read::Batch(batch) => {
                match watch.cursor.show(&batch, &mut self.out) {
                    Some(count) => {
                        if watch.cursor.wishes.progress_notify {
                            watch.last_shown = Instant::now();
                        }
                        self.shown.events += count as u64;
                    }
                    None if watch.cursor.wishes.progress_notify && watch.cursor.wishes.filters() => {
                        watch.show_late_progress(batch.header, &mut self.out);
                    }
                    None => (),
                }
                if batch.header.revision >= self.last_header.revision {
                    self.last_header = batch.header;
                }
                self.shown.event_revision = self.shown.event_revision.max(batch.last_revision());
                self.shown.revision = self.shown.event_revision.max(self.shown.revision).max(batch.header.revision);
                true
            }
            Read::Fallen { next_revision } => {
                self.hub.metrics.watch_falls.inc();
                self.relocate(key, next_revision);
                true
            }
            Read::Ended(End::Continue { next_revision }) => {
                self.relocate(key, next_revision);
                true
            }
            // etcd was asked again because a member was lost, and the rights have run out meanwhile. A client of that
            // member would have lost its stream and come back with fresh ones, so that is what this one is told.
            Read::Ended(End::Canceled { reason, .. }) if status::asks_for_login(&reason) => {
                self.lost = Some(status::broken(reason));
                false
            }
            Read::Ended(End::Canceled { header, compact_revision, reason }) => {
                let watch_id = watch.cursor.watch_id;
                self.remove(key);
                // As at etcd, the id of a watch that a compaction ended is taken until the client cancels it.
                if compact_revision != 0 && self.ids.len() < MAX_ENDED_IDS {
                    self.ids.insert(watch_id, key);
                }
                self.say(WatchResponse {
                    header: Some(header),
                    watch_id,
                    canceled: true,
                    compact_revision,
                    cancel_reason: reason,
                    ..WatchResponse::default()
                });
                false
            }
            // The feed has failed, which ends the session.
            Read::Ended(End::Closed) => false,
        }
    }

    /// Looks for a watch's place anew, when what it read from has ended or dropped what comes next. It has been shown
    /// all before `next_revision`.
    fn relocate(&mut self, key: u64, next_revision: i64) {
        let Some(mut watch) = self.watches.remove(&key) else { return };
        watch.leave();
        watch.live.look_again();
        watch.cursor.next_revision = watch.cursor.next_revision.max(next_revision);
        watch.source = self.locate(&watch.live, &mut watch.cursor, key);
        self.watches.insert(key, watch);
    }

    /// Tells the client that it has seen everything up to here; as etcd, only if that is so for all its watches.
    fn show_progress(&mut self, header: ResponseHeader) {
        let level =
            |watch: &Watch| matches!(watch.source, Source::Live { .. }) && watch.start_revision <= header.revision;
        if self.watches.is_empty() || !self.watches.values().all(level) {
            return;
        }
        for watch in self.watches.values_mut() {
            watch.cursor.next_revision = watch.cursor.next_revision.max(header.revision + 1);
        }
        self.say(WatchResponse { header: Some(header), watch_id: NO_WATCH, ..WatchResponse::default() });
    }

    fn say(&mut self, response: WatchResponse) {
        if let Some(header) = response.header.filter(|header| header.revision >= self.last_header.revision) {
            self.last_header = header;
            self.hub.saw(header.revision);
            self.connection.shown.note(header.revision);
        }
        framing::put_frame(&mut self.out, &response.encode_to_vec());
    }
}

impl Watch {
    /// Gives up its place in the shared log, if it has one.
    fn leave(&self) {
        if let Source::Live { seat } = self.source {
            self.live.log.unsubscribe(seat);
        }
    }

    /// A watch that filters away all that happens is told now and then how far it is.
    fn show_late_progress(&mut self, header: ResponseHeader, out: &mut BytesMut) {
        if self.last_shown.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.last_shown = Instant::now();
        let header = ResponseHeader { revision: self.cursor.next_revision - 1, ..header };
        let response =
            WatchResponse { header: Some(header), watch_id: self.cursor.watch_id, ..WatchResponse::default() };
        framing::put_frame(out, &response.encode_to_vec());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let keys: Vec<u64> = self.watches.keys().copied().collect();
        for key in keys {
            self.remove(key);
        }
        self.hub.metrics.watch_streams.dec();
    }
}

/// Sends as much as the client's windows take, if there is anything to send; fails when the client is gone.
async fn send_some(replies: &mut Replies, out: &mut BytesMut) -> Result<(), Gone> {
    let room = poll_fn(|context| match replies.poll_gone(context) {
        Poll::Ready(gone) => Poll::Ready(Err(gone)),
        Poll::Pending if out.is_empty() => Poll::Pending,
        Poll::Pending => replies.poll_room(context, out.len()),
    });
    let room = room.await?;
    let chunk: Bytes = out.split_to(room.min(out.len())).freeze();
    replies.send(chunk)
}
