//! The watches of one connection that read on from the same place: one reads for all, and what it reads is written to
//! each stream as a frame below HTTP/2.
//!
//! Most clients have one watch on a stream, and most watches have seen all that there is. Such a session hands its
//! stream over and sleeps; the connection's own task reads and writes for it. It takes the stream back when anything but
//! events concerns it, and it is given it back when its client takes less than the others. So a session is exact and a
//! crowd is cheap: it knows events for those who are level, and nothing else.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use h2::SendStream;

mod members;
mod reading;
mod state;

use super::{
    bell::Bell,
    cursor::{Cursor, Wishes},
    hub::Hub,
    inbox::{Heard, Inbox},
    log::{Log, LogId, Seat},
    sayings::Saying,
    watches::Number,
};
use crate::{
    exchange::{
        books::{Below, Books, MAX_PAYLOAD},
        frames::HEAD_LEN,
    },
    metrics::Messages,
    rules::caller::Connection,
};
use members::Members;

/// The bytes of events that are read at once.
const MAX_RUN: u64 = 3 << 10;
/// What is written to each stream at once. More than that, each session sends by itself, piece by piece.
const MAX_SAID: usize = 2 * MAX_PAYLOAD;
/// What is paid for ahead of being written.
const PAID_AHEAD: usize = 64 << 10;
/// What is sent whole or not at all for as long as the client's window for the connection has no room.
const MAX_UNCUT: usize = 4 << 10;
/// What is written before the thread's other tasks have their turn.
const TURN_BYTES: usize = 1 << 20;
/// As which turning a stream out counts.
const TURNED_OUT: usize = 4 << 10;
/// Streams that are looked at in a turn for whether they can join. The others are as well off where they are.
const MAX_JOINS: usize = 256;
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
    /// Each is there once.
    joining: VecDeque<u32>,
    is_queued: HashSet<u32>,
    /// Crowds that may read on, in turn.
    busy: VecDeque<Number>,
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
            state.queue(stream);
        }
    }

    /// Whether a stream can ever be handed over, by what its client grants it.
    pub fn takes(&self, stream: u32) -> bool {
        self.books().may_take_below(stream)
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
        for crowd in state.crowds.iter().flatten() {
            crowd.log.unsubscribe(crowd.seat);
            crowd.members.wake_all();
        }
        for place in state.places.values() {
            if let Place::Joining(joining) = place {
                joining.log.unsubscribe(joining.seat);
                joining.member.inbox.wake(joining.member.watch);
            }
        }
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
        let Heard { first, rest, .. } = self.inbox.hear();
        while let Some(stream) = books.next_ended() {
            state.turn_out(&mut books, stream);
        }
        for _ in 0..state.joining.len().min(MAX_JOINS) {
            let Some(stream) = state.joining.pop_front() else { break };
            state.is_queued.remove(&stream);
            let is_here = matches!(state.places.get(&stream), Some(Place::Joining(_)));
            if is_here && !self.join(state, &mut books, stream) {
                state.queue(stream);
            }
        }
        for number in first.into_iter().chain(rest) {
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
            if *room < TURNED_OUT {
                context.waker().wake_by_ref();
                return Served::Part(Turn::Over);
            }
            *room -= TURNED_OUT;
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
