//! The watches of one connection that read on from the same place: one reads for all, and what it reads is written to
//! each stream as a frame below HTTP/2.
//!
//! Most clients have one watch on a stream, and most watches have seen all that there is. Such a session hands its
//! stream over and sleeps; the connection's own task reads and writes for it. It takes the stream back when anything but
//! events concerns it, and it is given it back when its client takes less than the others. So a session is exact and a
//! crowd is cheap: it knows events for those who are level, and nothing else.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use h2::SendStream;

mod members;

use super::{
    bell::Bell,
    cursor::{Cursor, Wishes},
    hub::Hub,
    inbox::Inbox,
    log::{Log, LogId, Read, Seat},
    sayings::Saying,
    watches::Number,
};
use crate::{
    exchange::{
        books::{Below, Books, Entry, MAX_PAYLOAD},
        frames::HEAD_LEN,
    },
    metrics::Messages,
    rules::{caller::Connection, framing::Skimmer},
};
use members::{Members, Rest, send_nothing};

/// The bytes of events that are read at once. With what stands before each message they fit into [`MAX_SAID`].
const MAX_RUN: u64 = 8 << 10;
/// What is written to each stream at once. More than that, each session sends by itself, piece by piece.
const MAX_SAID: usize = 2 * MAX_PAYLOAD;
/// What is paid for ahead of being written.
const PAID_AHEAD: usize = 256 << 10;
/// What is written before the thread's other tasks have their turn.
const TURN_BYTES: usize = 1 << 20;
/// Less than this is debited to a stream only if there is none that takes more.
const MIN_ORDER: usize = 4 << 10;
/// More than this is debited to several.
const MAX_ORDER: usize = 64 << 10;
/// Streams that are looked at for one to debit before all are.
const MAX_LOOKS: usize = 16;
/// One per connection.
pub struct Crowds {
    hub: Arc<Hub>,
    bell: Arc<Bell>,
    connection: Arc<Connection>,
    books: Arc<Mutex<Books>>,
    inbox: Arc<Inbox>,
    state: Mutex<State>,
}

/// A session's stream, and how the session is woken.
pub struct Member {
    pub stream: u32,
    /// What has been sent on it.
    pub sent: u64,
    pub send: SendStream<Bytes>,
    pub messages: Messages,
    pub inbox: Arc<Inbox>,
    pub watch: Number,
}

/// How far a watch has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    pub next_revision: i64,
    pub told_revision: i64,
    pub header: ResponseHeader,
}

/// What a session gets back.
pub struct Left {
    pub send: SendStream<Bytes>,
    pub stand: Stand,
}

/// Where its watch stands then.
pub enum Stand {
    /// At its own seat, since it had not joined yet.
    Seat(Seat),
    /// Where the crowd has brought it.
    Reached(Reached),
}

/// Those who are told the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Alike {
    log: LogId,
    watch_id: i64,
    wishes: Wishes,
}

/// One whose stream has not sent all yet that came before, or whose crowd is further.
struct Joining {
    member: Member,
    log: Arc<Log>,
    seat: Seat,
    cursor: Cursor,
    header: ResponseHeader,
}

#[derive(Default)]
struct State {
    crowds: Vec<Option<Box<Crowd>>>,
    free: Vec<Number>,
    by_likeness: HashMap<Alike, Number>,
    places: HashMap<u32, Place>,
    joining: Vec<u32>,
    /// Crowds that may read on, in turn.
    busy: VecDeque<Number>,
    ready: Vec<Number>,
    told: Told,
    is_closed: bool,
}

/// Where a stream is.
enum Place {
    Joining(Box<Joining>),
    Member {
        crowd: Number,
        index: u32,
    },
    /// To be fetched by its session.
    Out(Box<Left>),
}

struct Crowd {
    alike: Alike,
    log: Arc<Log>,
    seat: Seat,
    cursor: Cursor,
    header: ResponseHeader,
    members: Members,
    /// What is being said, to how many of the members it has been said, and how far they were before.
    saying: Option<Said>,
    /// Whose stream is debited next.
    payer: usize,
    is_busy: bool,
    messages: Messages,
}

struct Said {
    saying: Saying,
    messages: u64,
    to: usize,
    before: Reached,
}

/// What was said and not counted yet.
#[derive(Default)]
struct Told {
    events: u64,
    messages: u64,
    counter: Messages,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// HTTP/2 has something to do first.
    Again,
    Over,
}

/// How far a crowd came in a turn.
enum Served {
    /// It has said all that there is.
    All,
    /// It waits for room, or for HTTP/2.
    Part(Turn),
    /// It has nobody left.
    Nobody,
}

/// What a crowd has found in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Nothing,
    Said,
    /// What it would have read next has been dropped.
    Fallen,
    Ended,
}

impl Crowds {
    /// `bell` is that of the thread that serves the connection, and `books` are of its streams.
    pub fn new(hub: &Arc<Hub>, bell: &Arc<Bell>, connection: &Arc<Connection>, books: &Arc<Mutex<Books>>) -> Arc<Self> {
        Arc::new(Self {
            hub: hub.clone(),
            bell: bell.clone(),
            connection: connection.clone(),
            books: books.clone(),
            inbox: Inbox::at(bell),
            state: Mutex::default(),
        })
    }

    /// Hands over a stream and its only watch's seat, which are level, until the session is woken. Then that must take
    /// them back by [`Crowds::leave`].
    pub fn hand_over(&self, member: Member, log: &Arc<Log>, seat: Seat, cursor: &Cursor, header: ResponseHeader) {
        let mut state = self.lock();
        let stream = member.stream;
        if state.is_closed {
            return log.unsubscribe(seat);
        }
        let joining = Joining { member, log: log.clone(), seat, cursor: cursor.clone(), header };
        state.places.insert(stream, Place::Joining(Box::new(joining)));
        if !self.join(&mut state, &mut self.books(), stream) {
            state.joining.push(stream);
        }
    }

    /// Takes a stream back. None if the connection has ended.
    pub fn leave(&self, stream: u32) -> Option<Left> {
        let mut state = self.lock();
        match state.places.remove(&stream)? {
            Place::Out(left) => Some(*left),
            Place::Joining(joining) => Some(Left { send: joining.member.send, stand: Stand::Seat(joining.seat) }),
            Place::Member { crowd, index } => {
                let (_, _, _, left) = state.part(&mut self.books(), crowd, index as usize);
                // The books may have a word for HTTP/2, and the others may have waited for what this one pays.
                self.inbox.notify();
                Some(left)
            }
        }
    }

    /// The connection has ended, and with it all streams.
    pub fn close(&self) {
        let mut state = self.lock();
        state.crowds.iter().flatten().for_each(|crowd| crowd.log.unsubscribe(crowd.seat));
        state.places.values().for_each(|place| {
            if let Place::Joining(joining) = place {
                joining.log.unsubscribe(joining.seat);
            }
        });
        *state = State { is_closed: true, ..State::default() };
    }

    /// Says what there is to say, as far as there is room for it.
    pub fn turn(&self, context: &mut Context<'_>, below: &mut impl Below) -> Turn {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut books = self.books();
        let for_http2 = books.for_http2();
        // It is not asked whether it was this that woke the connection.
        let _ = self.inbox.poll_heard(context);
        self.inbox.take(&mut state.ready);
        while let Some(stream) = books.next_ended() {
            state.turn_out(&mut books, stream);
        }
        state.joining = std::mem::take(&mut state.joining)
            .into_iter()
            .filter(|stream| {
                matches!(state.places.get(stream), Some(Place::Joining(_))) && !self.join(state, &mut books, *stream)
            })
            .collect();
        for number in std::mem::take(&mut state.ready) {
            if let Some(crowd) = state.crowds.get_mut(number as usize).and_then(Option::as_mut)
                && !std::mem::replace(&mut crowd.is_busy, true)
            {
                state.busy.push_back(number);
            }
        }
        let (now, mut room) = (Instant::now(), TURN_BYTES);
        let turn = loop {
            let Some(number) = state.busy.front().copied() else {
                // Whatever was paid for in vain is HTTP/2's again.
                books.return_credit();
                break Turn::Over;
            };
            match self.serve(state, &mut books, number, (context, below, now, &mut room)) {
                Served::Part(turn) => break turn,
                Served::Nobody => state.close(number),
                Served::All => state.crowd(number).is_busy = false,
            }
            state.busy.pop_front();
        };
        state.count_what_was_said(&self.hub);
        if books.for_http2() > for_http2 { Turn::Again } else { turn }
    }

    fn serve(
        &self,
        state: &mut State,
        books: &mut Books,
        number: Number,
        (context, below, now, room): (&mut Context<'_>, &mut impl Below, Instant, &mut usize),
    ) -> Served {
        loop {
            let State { crowds, told, .. } = &mut *state;
            let Some(crowd) = crowds[number as usize].as_deref_mut() else { return Served::Nobody };
            if crowd.saying.is_none() && !crowd.members.is_empty() {
                match crowd.read(&self.bell) {
                    Reading::Nothing => return Served::All,
                    Reading::Said => self.note_shown(crowd),
                    over => {
                        if over == Reading::Fallen {
                            self.hub.metrics.watch_falls.inc_by(crowd.members.len() as u64);
                        }
                        state.turn_all_out(books, number);
                        return Served::Nobody;
                    }
                }
            }
            let Some(said) = &mut crowd.saying else { return Served::Nobody };
            told.counter = crowd.messages;
            let bytes = &said.saying.bytes;
            // The first frame's head is always thought of.
            let heads = bytes.len().div_ceil(MAX_PAYLOAD).saturating_sub(1) * HEAD_LEN;
            while said.to < crowd.members.len() {
                let entry = crowd.members.entry(said.to);
                let Some(stream) = books.takes(entry, bytes.len()).filter(|_| bytes.len() <= MAX_SAID) else { break };
                if !books.has_credit(bytes.len()) {
                    break;
                }
                if *room < bytes.len() {
                    context.waker().wake_by_ref();
                    return Served::Part(Turn::Over);
                }
                if !matches!(below.poll_room(context, bytes.len() + heads), Poll::Ready(Ok(()))) {
                    return Served::Part(Turn::Over);
                }
                bytes.chunks(MAX_PAYLOAD).for_each(|payload| below.put(stream, payload, now));
                books.wrote(entry, bytes.len());
                *room -= bytes.len();
                said.to += 1;
                told.events += said.saying.events;
                told.messages += said.messages;
            }
            if said.to == crowd.members.len() {
                crowd.saying = None;
                if crowd.members.is_empty() {
                    return Served::Nobody;
                }
                continue;
            }
            let (len, to) = (bytes.len(), said.to);
            let fits = len <= MAX_SAID && books.takes(crowd.members.entry(to), len).is_some();
            if fits && let Some(turn) = crowd.pay(books, len) {
                return Served::Part(turn);
            }
            // Its client takes less than this at once, or nothing.
            state.turn_out_member(books, number, to);
        }
    }

    /// Notes what is about to be said, before any of it goes out.
    fn note_shown(&self, crowd: &Crowd) {
        if let Some(said) = &crowd.saying {
            self.hub.saw(said.saying.last_revision);
            self.connection.shown.note(said.saying.last_revision.max(said.saying.header.revision));
        }
    }

    /// Lets a stream join those that are told the same, if all that was sent on it is out and all of them are level.
    fn join(&self, state: &mut State, books: &mut Books, stream: u32) -> bool {
        let State { crowds, free, by_likeness, places, .. } = state;
        let Some(place) = places.get_mut(&stream) else { return false };
        let Place::Joining(joining) = &*place else { return false };
        let Some(entry) = books.flushed(stream, joining.member.sent) else { return false };
        let Joining { log, seat, cursor, .. } = &**joining;
        let alike = Alike { log: log.id(), watch_id: cursor.watch_id, wishes: cursor.wishes };
        let number = match by_likeness.get(&alike).copied() {
            Some(number) => {
                let into = crowds[number as usize].as_deref().filter(|crowd| crowd.saying.is_none());
                if !into.is_some_and(|into| log.merge(*seat, cursor.next_revision, into.seat)) {
                    return false;
                }
                number
            }
            None => {
                let number = free.pop().unwrap_or_else(|| {
                    crowds.push(None);
                    Number::try_from(crowds.len() - 1).expect("there are no more crowds than streams")
                });
                if !log.hand_over(*seat, cursor.next_revision, &self.inbox, number) {
                    free.push(number);
                    return false;
                }
                crowds[number as usize] = Some(Box::new(Crowd::new(alike, joining)));
                by_likeness.insert(alike, number);
                number
            }
        };
        books.take_below(entry);
        let crowd = crowds[number as usize].as_deref_mut().expect("it was found, or made, just now");
        if let Place::Joining(joining) = std::mem::replace(place, Place::member(number, crowd.members.len())) {
            crowd.take_in(entry, *joining);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crowd {
    fn new(alike: Alike, first: &Joining) -> Self {
        Self {
            alike,
            log: first.log.clone(),
            seat: first.seat,
            cursor: first.cursor.clone(),
            header: first.header,
            members: Members::default(),
            saying: None,
            payer: 0,
            is_busy: false,
            messages: first.member.messages,
        }
    }

    /// What one has been told, the others may be told too: the store was there.
    fn take_in(&mut self, entry: Entry, joining: Joining) {
        let Joining { member, cursor, header, .. } = joining;
        self.cursor.next_revision = self.cursor.next_revision.max(cursor.next_revision);
        self.cursor.told_revision = self.cursor.told_revision.max(cursor.told_revision);
        if header.revision >= self.header.revision {
            self.header = header;
        }
        self.members.push(entry, member);
    }

    fn reached(&self) -> Reached {
        let Cursor { next_revision, told_revision, .. } = self.cursor;
        Reached { next_revision, told_revision, header: self.header }
    }

    /// Reads on, and has something to say or not.
    fn read(&mut self, bell: &Bell) -> Reading {
        let before = self.reached();
        let saying = loop {
            if let Some((saying, _)) = bell.sayings().read(&self.log, self.seat, &mut self.cursor, MAX_RUN) {
                break saying;
            }
            match self.log.read(self.seat) {
                Read::Wait => return Reading::Nothing,
                Read::Batch(batch) => {
                    let mut out = BytesMut::new();
                    let shown = self.cursor.show(&batch, &mut out);
                    let (header, last_revision) = (batch.header, batch.last_revision());
                    if let Some(events) = shown {
                        break Saying { bytes: out.freeze(), events: events as u64, header, last_revision };
                    }
                    if header.revision >= self.header.revision {
                        self.header = header;
                    }
                }
                Read::Fallen { next_revision } => {
                    self.cursor.next_revision = self.cursor.next_revision.max(next_revision);
                    return Reading::Fallen;
                }
                Read::Ended(_) => return Reading::Ended,
            }
        };
        if saying.header.revision >= self.header.revision {
            self.header = saying.header;
        }
        let (mut skimmer, mut rest, mut messages) = (Skimmer::default(), &saying.bytes[..], 0);
        while skimmer.next_prefix(&mut rest).is_some() {
            messages += 1;
        }
        self.saying = Some(Said { saying, messages, to: 0, before });
        Reading::Said
    }

    /// Has HTTP/2 debit what is to be written. None if no stream can be debited.
    fn pay(&mut self, books: &mut Books, len: usize) -> Option<Turn> {
        let said = self.saying.as_ref().map_or(0, |said| said.to);
        let wanted = (len * (self.members.len() - said)).min(PAID_AHEAD.max(len));
        let mut lacking = books.lacks(wanted);
        let mut has_ordered = false;
        let all = self.members.len();
        for least in [MIN_ORDER, 1] {
            let looks = if least == 1 { all } else { all.min(MAX_LOOKS) };
            for _ in 0..looks {
                if lacking == 0 {
                    break;
                }
                self.payer = (self.payer + 1) % all;
                let entry = self.members.entry(self.payer);
                let now = books.may_order(entry).min(lacking).min(MAX_ORDER);
                if now >= least.min(lacking) && now > 0 && self.members.send_nothing(self.payer, now) {
                    books.order(entry, now);
                    lacking -= now;
                    has_ordered = true;
                }
            }
            if has_ordered {
                return Some(Turn::Again);
            }
        }
        // What is on its way goes on when the client's window for the connection does.
        books.has_ordered().then_some(Turn::Over)
    }
}

impl Place {
    fn member(crowd: Number, index: usize) -> Self {
        Self::Member { crowd, index: u32::try_from(index).expect("HTTP/2 has no more streams than that") }
    }
}

impl State {
    fn crowd(&mut self, number: Number) -> &mut Crowd {
        self.crowds[number as usize].as_deref_mut().expect("a crowd that has its turn is there until the turn ends")
    }

    /// Takes a member out of its crowd, and settles its stream with HTTP/2. Says how its session is woken.
    fn part(&mut self, books: &mut Books, number: Number, index: usize) -> (u32, Arc<Inbox>, Number, Left) {
        let crowd = self.crowds[number as usize].as_deref_mut().expect("whoever is a member is one of a crowd");
        let (mut reached, mut at) = (crowd.reached(), index);
        match &mut crowd.saying {
            // Those who have been told stand before those who have not.
            Some(said) if index < said.to => {
                said.to -= 1;
                at = said.to;
                crowd.members.swap(index, at);
                set_place(&mut self.places, crowd, number, index);
            }
            Some(said) => reached = said.before,
            None => (),
        }
        let (entry, member) = crowd.members.swap_remove(at);
        if at < crowd.members.len() {
            set_place(&mut self.places, crowd, number, at);
        }
        if crowd.members.is_empty() && !crowd.is_busy {
            self.close(number);
        }
        let Rest { stream, mut send, inbox, watch } = member;
        // It fails only on a stream that has ended, whose books are closed.
        let _ = send_nothing(&mut send, books.give_back(entry));
        (stream, inbox, watch, Left { send, stand: Stand::Reached(reached) })
    }

    /// Gives a member back to its session, which hears of it.
    fn turn_out_member(&mut self, books: &mut Books, number: Number, index: usize) {
        let (stream, inbox, watch, left) = self.part(books, number, index);
        self.places.insert(stream, Place::Out(Box::new(left)));
        inbox.wake(watch);
    }

    fn turn_out(&mut self, books: &mut Books, stream: u32) {
        if let Some(Place::Member { crowd, index }) = self.places.get(&stream) {
            let (crowd, index) = (*crowd, *index as usize);
            self.turn_out_member(books, crowd, index);
        }
    }

    /// Does so with all members of a crowd that has its turn.
    fn turn_all_out(&mut self, books: &mut Books, number: Number) {
        while let Some(last) = self.crowd(number).members.len().checked_sub(1) {
            self.turn_out_member(books, number, last);
        }
    }

    fn close(&mut self, number: Number) {
        if let Some(crowd) = self.crowds[number as usize].take() {
            crowd.log.unsubscribe(crowd.seat);
            self.by_likeness.remove(&crowd.alike);
            self.free.push(number);
        }
    }

    /// Once per turn, since all threads note it in one place.
    fn count_what_was_said(&mut self, hub: &Hub) {
        let Told { events, messages, counter } = std::mem::take(&mut self.told);
        if events > 0 {
            hub.metrics.watch_events_delivered.inc_by(events);
        }
        if messages > 0 {
            counter.sent(messages);
        }
    }
}

fn set_place(places: &mut HashMap<u32, Place>, crowd: &Crowd, number: Number, index: usize) {
    let place = places.get_mut(&crowd.members.stream(index)).expect("each member has its place");
    *place = Place::member(number, index);
}
