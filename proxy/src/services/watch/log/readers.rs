//! Those who read a log, found by the keys that they read: an event reaches only those whose range holds its key.
//!
//! A reader of the whole log has every batch to read. A reader of a part knows the first and the last batch that hold
//! something for it; of what lies elsewhere it hears nothing, and does not fall off the log for it.

use std::sync::Arc;

use super::{
    super::{inbox::Inbox, ranges::Ranges, watches::Number},
    batch::Batch,
};
use crate::rules::keys::KeyRange;

/// A reader's place among those of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat(u32);

/// Who reads, and what.
pub struct Subscriber {
    pub inbox: Arc<Inbox>,
    /// Which of the inbox's watches it is.
    pub watch: Number,
    /// The part of the log's range, by the keys that clients see; `None` is all of it.
    pub part: Option<Arc<KeyRange>>,
    /// Whether it is to be told of progress.
    pub progress: bool,
}

pub struct Reader {
    pub subscriber: Subscriber,
    /// The first batch that holds something for it and that it has not read, and the one after the last such;
    /// not before `last` there is nothing to read.
    pub next: u64,
    pub last: u64,
    /// It has been shown all that it wants to see before this revision.
    pub since: i64,
    /// Where it stands among the readers of its range.
    index: u32,
}

impl Reader {
    pub fn has_something(&self) -> bool {
        self.next < self.last
    }

    /// Whether there is something for it in this batch.
    pub fn wants(&self, batch: &Batch) -> bool {
        match &self.subscriber.part {
            None => true,
            Some(_) if batch.events.is_empty() => self.subscriber.progress,
            Some(part) => batch.is_on(part),
        }
    }

    fn wake(&self) {
        self.subscriber.inbox.wake(self.subscriber.watch);
    }

    /// Notes that a batch is for it. Whoever has something to read already was woken for that.
    fn note(&mut self, number: u64, since: i64) {
        let was_idle = !self.has_something();
        if was_idle {
            self.next = number;
            self.since = self.since.max(since);
        }
        self.last = number + 1;
        if was_idle {
            self.wake();
        }
    }
}

#[derive(Default)]
pub struct Readers {
    seats: Vec<Option<Reader>>,
    free: Vec<u32>,
    whole: Vec<Seat>,
    parts: Ranges<Part>,
}

/// The readers of one part.
#[derive(Default)]
struct Part {
    members: Vec<Seat>,
    /// The last batch that they were told of, so that a batch with many events on the part tells them once.
    told: Option<u64>,
}

impl Readers {
    /// Takes in a reader that has what lies from `next` to before `last` to read.
    pub fn add(&mut self, subscriber: Subscriber, next: u64, last: u64, since: i64) -> Seat {
        let seat = self.free.pop().unwrap_or_else(|| {
            self.seats.push(None);
            u32::try_from(self.seats.len() - 1).expect("a billion readers do not fit into memory")
        });
        let seat = Seat(seat);
        let members = match &subscriber.part {
            None => &mut self.whole,
            Some(part) => &mut self.parts.or_insert_with(part, Part::default).members,
        };
        let index = u32::try_from(members.len()).expect("there are no more members than seats");
        members.push(seat);
        self.seats[seat.0 as usize] = Some(Reader { subscriber, next, last, since, index });
        seat
    }

    pub fn remove(&mut self, seat: Seat) {
        let Some(reader) = self.seats.get_mut(seat.0 as usize).and_then(Option::take) else { return };
        self.free.push(seat.0);
        let part = reader.subscriber.part.as_deref();
        let members = match part {
            None => &mut self.whole,
            Some(part) => match self.parts.get_mut(part) {
                Some(part) => &mut part.members,
                None => return,
            },
        };
        members.swap_remove(reader.index as usize);
        let moved = members.get(reader.index as usize).copied();
        let is_empty = members.is_empty();
        if let Some(moved) = moved.and_then(|moved| self.get_mut(moved)) {
            moved.index = reader.index;
        }
        if let Some(part) = part.filter(|_| is_empty) {
            self.parts.remove(part);
        }
    }

    pub fn get_mut(&mut self, seat: Seat) -> Option<&mut Reader> {
        self.seats.get_mut(seat.0 as usize)?.as_mut()
    }

    pub fn has_several_of_whole(&self) -> bool {
        self.whole.len() > 1
    }

    /// Whether anyone reads the whole log.
    pub fn has_whole(&self) -> bool {
        !self.whole.is_empty()
    }

    /// Tells those whom the batch of this number concerns. Says how many of its events nobody wants.
    pub fn tell(&mut self, number: u64, batch: &Batch, since: i64) -> usize {
        for seat in &self.whole {
            if let Some(reader) = &mut self.seats[seat.0 as usize] {
                reader.note(number, since);
            }
        }
        if self.parts.is_empty() {
            return 0;
        }
        if batch.events.is_empty() {
            let parts = self.seats.iter_mut().flatten().filter(|reader| reader.subscriber.part.is_some());
            parts.filter(|reader| reader.subscriber.progress).for_each(|reader| reader.note(number, since));
            return 0;
        }
        let Self { seats, parts, .. } = self;
        let mut unwanted = 0;
        for event in &batch.events {
            let mut is_wanted = false;
            parts.each_holding(batch.key(event), |part| {
                is_wanted = true;
                if part.told.replace(number) == Some(number) {
                    return;
                }
                for seat in &part.members {
                    if let Some(reader) = &mut seats[seat.0 as usize] {
                        reader.note(number, since);
                    }
                }
            });
            unwanted += usize::from(!is_wanted);
        }
        if self.has_whole() { 0 } else { unwanted }
    }

    /// Whether a reader of a part waits for notices of progress.
    pub fn awaits_progress(&self) -> bool {
        !self.parts.is_empty()
            && self.seats.iter().flatten().any(|reader| reader.subscriber.part.is_some() && reader.subscriber.progress)
    }

    /// The parts that are read.
    pub fn parts(&self) -> Vec<Arc<KeyRange>> {
        let first = |part: &Part| part.members.first().and_then(|seat| self.seats[seat.0 as usize].as_ref());
        self.parts.values().filter_map(first).filter_map(|reader| reader.subscriber.part.clone()).collect()
    }

    pub fn wake_all(&self) {
        self.seats.iter().flatten().for_each(Reader::wake);
    }
}
