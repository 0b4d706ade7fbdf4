//! The law of the books: whatever happens, no client is sent more than it granted, and when all streams are HTTP/2's
//! again, HTTP/2 believes what is true. Checked against a model of HTTP/2 and of a client that counts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::exchange::frames::Scanner;

/// A stream as its client and as HTTP/2 see it.
#[derive(Debug, Default)]
struct Stream {
    truth: i64,
    belief: i64,
    /// What HTTP/2 has to send: bytes of messages, or of nothing.
    queue: VecDeque<(i64, bool)>,
    given: u64,
    below: Option<Entry>,
}

#[derive(Debug)]
struct World {
    books: Books,
    streams: BTreeMap<u32, Stream>,
    next: u32,
    initial: i64,
    truth: i64,
    belief: i64,
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    /// Which stream, by its place among those that there are, and how much.
    Send(usize, i64),
    TakeBelow(usize),
    Write(usize, i64),
    GiveBack(usize),
    Grant(usize, i64),
    /// Before the stream is opened.
    GrantEarly(i64),
    GrantConnection(i64),
    Initial(i64),
    Reset(usize),
    Finish(usize),
    ReturnCredit,
    /// HTTP/2 has its turn.
    Turn,
}

fn window_update(stream: u32, increment: i64) -> Vec<u8> {
    let head = Head { len: 4, kind: kind::WINDOW_UPDATE, flags: 0, stream };
    let increment = u32::try_from(increment).expect("a step grants little");
    [head.write().as_slice(), &increment.to_be_bytes()].concat()
}

impl World {
    fn new() -> Self {
        let (streams, books) = Default::default();
        let (truth, belief) = (DEFAULT_WINDOW, DEFAULT_WINDOW);
        Self { books, streams, next: 1, initial: DEFAULT_WINDOW, truth, belief }
    }

    fn receive(&mut self, frames: &[u8]) {
        let mut scanner = Scanner::new(0);
        // However it is cut.
        frames.chunks(5).for_each(|piece| scanner.scan(piece, |part| self.books.received(part)));
    }

    fn nth(&self, place: usize) -> Option<u32> {
        let count = self.streams.len().max(1);
        self.streams.keys().nth(place % count).copied()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open => {
                assert!(self.books.follow(self.next));
                let early = self.streams.remove(&0).map_or(0, |early| early.truth);
                let window = self.initial + early;
                self.streams.insert(self.next, Stream { truth: window, belief: window, ..Stream::default() });
                self.next += 2;
            }
            Step::GrantEarly(increment) => {
                self.receive(&window_update(self.next, increment));
                // It is nobody's until the stream is there.
                self.streams.entry(0).or_default().truth += increment;
            }
            Step::GrantConnection(increment) => {
                self.receive(&window_update(0, increment));
                self.truth += increment;
                self.belief += increment;
            }
            Step::Initial(initial) => {
                let difference = initial - std::mem::replace(&mut self.initial, initial);
                let value = u32::try_from(initial).expect("a step sets what is allowed").to_be_bytes();
                let head = Head { len: 12, kind: kind::SETTINGS, flags: 0, stream: 0 };
                self.receive(&[head.write().as_slice(), &[0, 3, 0, 0, 0, 9, 0, 4], &value].concat());
                for (_, stream) in self.streams.iter_mut().filter(|(number, _)| **number > 0) {
                    stream.truth += difference;
                    stream.belief += difference;
                }
            }
            Step::ReturnCredit => self.books.return_credit(),
            Step::Turn => self.turn(),
            Step::Send(place, _)
            | Step::TakeBelow(place)
            | Step::Write(place, _)
            | Step::GiveBack(place)
            | Step::Grant(place, _)
            | Step::Reset(place)
            | Step::Finish(place) => {
                if let Some(number) = self.nth(place).filter(|number| *number > 0) {
                    self.step_of(number, step);
                }
            }
        }
    }

    fn step_of(&mut self, number: u32, step: Step) {
        let stream = self.streams.get_mut(&number).expect("it was found there");
        match step {
            Step::Send(_, len) if stream.below.is_none() => {
                stream.queue.push_back((len, true));
                stream.given += len as u64;
            }
            Step::TakeBelow(_) if stream.below.is_none() => {
                if let Some(entry) = self.books.flushed(number, stream.given) {
                    assert!(stream.queue.is_empty(), "something is before what will be written");
                    self.books.take_below(entry);
                    stream.below = Some(entry);
                }
            }
            Step::Write(_, len) => {
                let Some(entry) = stream.below else { return };
                let len = usize::try_from(len).expect("it is not negative");
                if self.books.takes(entry, len).is_none() {
                    return;
                }
                if self.books.has_credit(len) {
                    self.books.wrote(entry, len);
                    stream.truth -= len as i64;
                    self.truth -= len as i64;
                    assert!(stream.truth >= 0, "more than the stream was granted");
                    assert!(self.truth >= 0, "more than the connection was granted");
                    return;
                }
                let now = self.books.may_order(entry).min(self.books.lacks(len));
                self.books.order(entry, now);
                stream.queue.extend((now > 0).then_some((now as i64, false)));
            }
            Step::GiveBack(_) => {
                if let Some(entry) = stream.below.take() {
                    let owed = self.books.give_back(entry) as i64;
                    stream.queue.extend((owed > 0).then_some((owed, false)));
                }
            }
            Step::Grant(_, increment) => {
                stream.truth += increment;
                stream.belief += increment;
                self.receive(&window_update(number, increment));
            }
            Step::Reset(_) => {
                let below = stream.below;
                self.streams.remove(&number);
                let head = Head { len: 4, kind: kind::RST_STREAM, flags: 0, stream: number };
                self.receive(&[head.write().as_slice(), &[0, 0, 0, 8]].concat());
                if let Some(entry) = below {
                    assert_eq!(self.books.next_ended(), Some(number));
                    assert_eq!(self.books.give_back(entry), 0);
                }
            }
            // The end comes when all is sent.
            Step::Finish(_) if stream.below.is_none() && stream.queue.is_empty() => {
                self.streams.remove(&number);
                let head = Head { len: 9, kind: kind::HEADERS, flags: 5, stream: number };
                assert!(!self.books.sent(head));
            }
            _ => (),
        }
    }

    /// HTTP/2 reads what it is told and sends what it believes that it may.
    fn turn(&mut self) {
        let mut told = Vec::new();
        while self.books.for_http2() > 0 {
            self.books.read_for_http2(7, |bytes| told.extend_from_slice(bytes));
        }
        for frame in told.chunks(13) {
            let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
            let increment = i64::from(u32::from_be_bytes([frame[9], frame[10], frame[11], frame[12]]));
            match self.streams.get_mut(&stream) {
                _ if stream == 0 => self.belief += increment,
                Some(stream) => stream.belief += increment,
                None => (),
            }
        }
        for (number, stream) in &mut self.streams {
            while let Some((len, is_real)) = stream.queue.pop_front() {
                let now = len.min(stream.belief).min(self.belief).min(MAX_PAYLOAD as i64);
                if now < len {
                    stream.queue.push_front((len - now.max(0), is_real));
                }
                if now <= 0 {
                    break;
                }
                stream.belief -= now;
                self.belief -= now;
                let len = u32::try_from(now).expect("a frame is short");
                let is_swallowed = self.books.sent(Head { len, kind: kind::DATA, flags: 0, stream: *number });
                assert_eq!(is_swallowed, !is_real, "what HTTP/2 sends of its own passes, and nothing else");
                if is_real {
                    stream.truth -= now;
                    self.truth -= now;
                    assert!(stream.truth >= 0, "HTTP/2 sends more than the stream was granted");
                    assert!(self.truth >= 0, "HTTP/2 sends more than the connection was granted");
                }
            }
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let which = 0_usize..6;
    let len = prop_oneof![1_i64..300, Just(16_384)];
    prop_oneof![
        1 => Just(Step::Open),
        2 => (which.clone(), len.clone()).prop_map(|(which, len)| Step::Send(which, len)),
        4 => which.clone().prop_map(Step::TakeBelow),
        12 => (which.clone(), len).prop_map(|(which, len)| Step::Write(which, len)),
        2 => which.clone().prop_map(Step::GiveBack),
        3 => (which.clone(), 1_i64..40_000).prop_map(|(which, increment)| Step::Grant(which, increment)),
        1 => (1_i64..1000).prop_map(Step::GrantEarly),
        3 => (1_i64..60_000).prop_map(Step::GrantConnection),
        1 => (0_i64..100_000).prop_map(Step::Initial),
        1 => which.clone().prop_map(Step::Reset),
        1 => which.prop_map(Step::Finish),
        1 => Just(Step::ReturnCredit),
        6 => Just(Step::Turn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn nobody_is_sent_more_than_it_granted_and_in_the_end_all_believe_what_is_true(
        steps in prop::collection::vec(any_step(), 1..300),
    ) {
        let mut world = World::new();
        (0..3).for_each(|_| world.step(Step::Open));
        steps.into_iter().for_each(|step| world.step(step));
        // What is on its way of nothing comes, although no stream is granted more for it.
        world.step(Step::GrantConnection(10_000_000));
        world.books.lacks(0);
        world.turn();
        prop_assert!(!world.books.has_ordered());
        // The end: all streams are HTTP/2's again, and all that it has to send is granted.
        let places = 0..world.streams.len();
        places.clone().for_each(|place| world.step(Step::GiveBack(place)));
        places.for_each(|place| world.step(Step::Grant(place, 10_000_000)));
        world.turn();
        world.step(Step::ReturnCredit);
        world.turn();
        prop_assert!(!world.books.has_ordered());
        prop_assert_eq!(world.belief, world.truth);
        prop_assert_eq!(world.books.connection_window(), world.truth);
        for (number, stream) in world.streams.iter().filter(|(number, _)| **number > 0) {
            prop_assert!(stream.queue.is_empty(), "{}: {:?}", number, stream);
            prop_assert_eq!(stream.belief, stream.truth, "stream {}", number);
            prop_assert!(world.books.flushed(*number, stream.given).is_some());
        }
    }

    #[test]
    fn any_bytes_from_a_client_are_taken_without_a_panic(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
    ) {
        let (mut books, mut scanner) = (Books::default(), Scanner::new(0));
        books.follow(1);
        for piece in pieces {
            scanner.scan(&piece, |part| books.received(part));
        }
    }
}

#[test]
fn a_stream_of_which_not_all_is_known_is_left_to_http2() {
    let mut world = World::new();
    let strange = 2 * u32::try_from(MAX_EARLY).expect("few") + 3;
    for stream in (1..=strange).step_by(2) {
        world.receive(&window_update(stream, 5));
    }
    for (stream, is_known) in [(1, false), (3, false), (5, true), (strange, true)] {
        assert_eq!(world.books.follow(stream), is_known, "stream {stream}");
    }
    let known = world.books.flushed(strange, 0).expect("it is followed");
    assert!(world.books.takes(known, 65_540).is_some() && world.books.takes(known, 65_541).is_none());
}
