//! One client's Watch stream: create, cancel, progress, and the sending of what its watches have to show.
//!
//! Everything that the client asks is answered in the order in which it asked, as etcd does, although the answers to
//! creates come from afar.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
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
    inbox::Inbox,
    live::{CatchUp, LiveFeed, LogUse},
    log::{End, Read, Refused, Seat, Subscriber},
    sayings::Saying,
    sessions::Place,
    watches::{Number, Watches},
};
use crate::{
    admission,
    exchange::{Gone, Replies, Requests},
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
    bell: Arc<Bell>,
    inbox: Arc<Inbox>,
    /// Among the sessions of its feed.
    place: Place,
    watches: Watches<Watch>,
    next_id: i64,
    /// What the client asked and has not been answered; none while there is nothing, which is nearly always.
    asked: Option<Box<FuturesOrdered<BoxFuture<'static, Asked>>>>,
    /// Whose turn it is to be read. Each watch is there once: a client that takes a byte at a time must not make the
    /// turns grow with every event.
    turns: VecDeque<Turn>,
    /// Framed messages for the client: what other clients are told too, and after it what is said to this one.
    shared: Bytes,
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
    has_turn: bool,
}

/// Where a watch reads.
enum Source {
    Live { seat: Seat },
    CatchUp(Box<CatchUp>),
}

/// A request of the client's whose answer is ready to be given.
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

/// What a session does next.
enum Step {
    /// Read, and send what was read.
    Turn,
    Answer(Asked),
    Request(Option<Result<Bytes, Status>>),
    End(Status),
}

enum Turn {
    Watch(Number),
    /// Everything before is in the turns before this one.
    Progress(Box<ResponseHeader>),
}

impl Session {
    /// `bell` is that of the thread that serves the session.
    pub fn new(hub: &Arc<Hub>, bell: &Arc<Bell>, caller: &Caller) -> Self {
        hub.metrics.watch_streams.inc();
        let (feed, inbox) = (hub.feed(caller), Inbox::at(bell));
        Self {
            place: feed.sessions.enter(&inbox),
            feed,
            hub: hub.clone(),
            connection: caller.connection.clone(),
            bell: bell.clone(),
            inbox,
            watches: Watches::default(),
            next_id: 0,
            asked: None,
            turns: VecDeque::new(),
            shared: Bytes::new(),
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
        let mut passed = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())));
        let mut half_closed = false;
        let mut ready = Vec::new();
        loop {
            // A client that is sent much, or asks for much, lets others have their turn.
            tokio::task::consume_budget().await;
            let progress = self.inbox.take(&mut ready);
            ready.drain(..).for_each(|number| self.give_turn(number));
            self.turns.extend(progress.map(|header| Turn::Progress(Box::new(header))));
            self.fill();
            if let Some(status) = self.lost.take() {
                return Ok(status);
            }
            let step = poll_fn(|context| {
                // Its requests are heard also while there is always more to send.
                let may_send_more = match self.poll_send(replies, context) {
                    Poll::Ready(sent) => sent.map(|()| true)?,
                    Poll::Pending => false,
                };
                if self.inbox.must_end()
                    && let Some(why) = self.feed.sessions.why()
                {
                    return Poll::Ready(Ok(Step::End(why)));
                }
                if passed.as_mut().is_some_and(|passed| passed.as_mut().poll(context).is_ready()) {
                    return Poll::Ready(Ok(Step::End(status::deadline_exceeded())));
                }
                let has_room = self.waiting() < OUT_HIGH_WATER;
                if has_room && let Some(unanswered) = &mut self.asked {
                    match unanswered.poll_next_unpin(context) {
                        Poll::Ready(Some(asked)) => return Poll::Ready(Ok(Step::Answer(asked))),
                        Poll::Ready(None) => self.asked = None,
                        Poll::Pending => (),
                    }
                }
                if !half_closed
                    && self.asked.as_ref().is_none_or(|asked| asked.len() < MAX_UNANSWERED)
                    && let Poll::Ready(request) = requests.poll_next(context)
                {
                    return Poll::Ready(Ok(Step::Request(request)));
                }
                match has_room && !may_send_more {
                    true => self.inbox.poll_heard(context).map(|()| Ok(Step::Turn)),
                    false if may_send_more => Poll::Ready(Ok(Step::Turn)),
                    false => self.inbox.poll_over(context).map(|()| Ok(Step::Turn)),
                }
            });
            match step.await? {
                Step::Turn => (),
                Step::End(status) => return Ok(status),
                Step::Answer(asked) => self.answer(asked),
                Step::Request(Some(Ok(message))) => match WatchRequest::decode(message) {
                    Ok(request) => self.ask(request),
                    Err(error) => return Ok(status::malformed(error)),
                },
                Step::Request(Some(Err(status))) => return Ok(status),
                // etcd goes on sending to a client that has nothing more to ask.
                Step::Request(None) => half_closed = true,
            }
        }
    }

    /// The bytes that are ready for the client.
    fn waiting(&self) -> usize {
        self.shared.len() + self.out.len()
    }

    /// Sends as much as the client's windows take. Ready if more can be made ready then, or if the client is gone.
    fn poll_send(&mut self, replies: &mut Replies, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        while self.waiting() > 0 {
            // All room that was found must be used: HTTP/2 says nothing more of what it has given already.
            let mut room = ready!(replies.poll_room(context, self.waiting()))?;
            while room > 0 && self.waiting() > 0 {
                let chunk = if self.shared.is_empty() {
                    self.out.split_to(room.min(self.out.len())).freeze()
                } else {
                    self.shared.split_to(room.min(self.shared.len()))
                };
                room -= chunk.len();
                replies.send(chunk)?;
            }
        }
        if !self.turns.is_empty() {
            return Poll::Ready(Ok(()));
        }
        replies.poll_gone(context).map(Err)
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
        self.asked.get_or_insert_default().push_back(asked);
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
        if created.watch_id != 0 && self.watches.has_id(created.watch_id) {
            let reason = status::DUPLICATE_WATCH_ID_REASON.to_owned();
            return self.refuse_create(Refused { header, reason });
        }
        if let Err(exceeded) = admission::take_watch(&self.connection) {
            let reason = status::exhausted(exceeded).message().to_owned();
            return self.refuse_create(Refused { header, reason });
        }
        let watch_id = self.take_id(created.watch_id);
        let number = self.watches.reserve(watch_id);
        self.hub.metrics.client_watches.inc();
        self.say(WatchResponse { header: Some(header), watch_id, created: true, ..WatchResponse::default() });
        let mut cursor = Cursor { watch_id, next_revision, wishes: created.wishes, part: None };
        let source = self.locate(&live, &mut cursor, number);
        let start_revision = created.start_revision;
        let watch = Watch { cursor, start_revision, live, source, last_shown: Instant::now(), has_turn: false };
        self.watches.put(number, Box::new(watch));
        self.give_turn(number);
    }

    /// The id for a new watch: the client's own, which is free, or the next free one.
    fn take_id(&mut self, wanted: i64) -> i64 {
        if wanted != 0 {
            return wanted;
        }
        while self.watches.has_id(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn refuse_for_want_of_room(&mut self, header: ResponseHeader) {
        let exceeded = self.connection.tenant.usage.refused(Exceeded::of(Limit::Watches), admission::now());
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
    fn locate(&self, live: &LogUse, cursor: &mut Cursor, number: Number) -> Source {
        let subscriber = || Subscriber {
            inbox: self.inbox.clone(),
            watch: number,
            part: live.part.clone(),
            progress: cursor.wishes.progress_notify,
        };
        let seat = live.log.subscribe(cursor.next_revision, subscriber());
        let source = match seat {
            Some(seat) => Source::Live { seat },
            None => Source::CatchUp(Box::new(live.catch_up(cursor.next_revision, subscriber()))),
        };
        cursor.part = live.part.clone().filter(|_| seat.is_some());
        source
    }

    fn cancel(&mut self, watch_id: i64) {
        // etcd says nothing about an id that it does not know.
        match self.watches.find(watch_id) {
            Some(number) => self.remove(number),
            None if self.watches.give_back_id(watch_id) => (),
            None => return,
        }
        let header = ResponseHeader { revision: self.last_header.revision.max(self.hub.seen()), ..self.last_header };
        self.say(WatchResponse { header: Some(header), watch_id, canceled: true, ..WatchResponse::default() });
    }

    fn remove(&mut self, number: Number) {
        if let Some(id) = self.watches.get_mut(number).map(|watch| watch.cursor.watch_id)
            && let Some(watch) = self.watches.remove(number, id)
        {
            watch.leave();
            admission::give_back_watch(&self.connection);
            self.hub.metrics.client_watches.dec();
        }
    }

    fn give_turn(&mut self, number: Number) {
        if let Some(watch) = self.watches.get_mut(number)
            && !std::mem::replace(&mut watch.has_turn, true)
        {
            self.turns.push_back(Turn::Watch(number));
        }
    }

    /// Reads for those whose turn it is, until there is enough to send.
    fn fill(&mut self) {
        while self.waiting() < OUT_HIGH_WATER {
            match self.turns.pop_front() {
                None => break,
                Some(Turn::Progress(header)) => self.show_progress(*header),
                Some(Turn::Watch(number)) => {
                    if self.read(number) {
                        // There is more: it goes on first, so that a notice of progress behind it stays true.
                        self.turns.push_front(Turn::Watch(number));
                    } else if let Some(watch) = self.watches.get_mut(number) {
                        watch.has_turn = false;
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
    fn read(&mut self, number: Number) -> bool {
        let Some(watch) = self.watches.get_mut(number) else { return false };
        let (log, seat) = match &watch.source {
            Source::Live { seat } => (&watch.live.log, *seat),
            Source::CatchUp(own) => (&own.log, own.seat),
        };
        let said = self.bell.sayings().read(log, seat, &mut watch.cursor);
        if let Some((saying, may_be_more)) = said {
            if watch.cursor.wishes.progress_notify {
                watch.last_shown = Instant::now();
            }
            self.repeat(saying);
            return may_be_more;
        }
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
                self.relocate(number, next_revision);
                true
            }
            Read::Ended(End::Continue { next_revision }) => {
                self.relocate(number, next_revision);
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
                self.remove(number);
                // As at etcd, the id of a watch that a compaction ended is taken until the client cancels it.
                if compact_revision != 0 && self.watches.ids() < MAX_ENDED_IDS {
                    self.watches.keep_id(watch_id);
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

    /// Says what others are told too.
    fn repeat(&mut self, saying: Saying) {
        let Saying { bytes, events, header, last_revision } = saying;
        if header.revision >= self.last_header.revision {
            self.last_header = header;
        }
        self.shown.events += events;
        self.shown.event_revision = self.shown.event_revision.max(last_revision);
        self.shown.revision = self.shown.event_revision.max(self.shown.revision).max(header.revision);
        // Of many watches of one client the messages go out together; of one alone they need not be copied.
        if self.waiting() == 0 && self.watches.len() == 1 {
            self.shared = bytes;
        } else {
            self.out.extend_from_slice(&bytes);
        }
    }

    /// Looks for a watch's place anew, when what it read from has ended or dropped what comes next. It has been shown
    /// all before `next_revision`.
    fn relocate(&mut self, number: Number, next_revision: i64) {
        let Some(mut watch) = self.watches.take(number) else { return };
        watch.leave();
        watch.live.look_again();
        watch.cursor.next_revision = watch.cursor.next_revision.max(next_revision);
        watch.source = self.locate(&watch.live, &mut watch.cursor, number);
        self.watches.put(number, watch);
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
        self.feed.sessions.leave(self.place);
        self.watches.numbers().for_each(|number| self.remove(number));
        self.hub.metrics.watch_streams.dec();
    }
}
