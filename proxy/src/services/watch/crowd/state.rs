//! Who is in which crowd, and how one leaves.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{hub::Hub, inbox::Inbox, watches::Number},
    Crowd, Left, Place, Stand, State, Told,
    members::{Rest, send_nothing},
};
use crate::exchange::books::Books;

impl Place {
    pub(super) fn member(crowd: Number, index: usize) -> Self {
        Self::Member { crowd, index: u32::try_from(index).expect("HTTP/2 has no more streams than that") }
    }
}

impl State {
    pub(super) fn crowd(&mut self, number: Number) -> &mut Crowd {
        self.crowds[number as usize].as_deref_mut().expect("a crowd that has its turn is there until the turn ends")
    }

    /// Has a stream looked at in the turns to come for whether it can join.
    pub(super) fn queue(&mut self, stream: u32) {
        if self.is_queued.insert(stream) {
            self.joining.push_back(stream);
        }
    }

    /// Takes a member out of its crowd, and settles its stream with HTTP/2. Says how its session is woken.
    pub(super) fn part(&mut self, books: &mut Books, number: Number, index: usize) -> (u32, Arc<Inbox>, Number, Left) {
        let crowd = self.crowds[number as usize].as_deref_mut().expect("whoever is a member is one of a crowd");
        let (mut reached, mut at) = (crowd.reached(), index);
        match &mut crowd.saying {
            // Those who have been told stand before those who have not.
            Some(said) if index < said.to => {
                let since = crowd.log.since(crowd.seat).unwrap_or(0);
                reached.next_revision = reached.next_revision.max(since);
                said.to -= 1;
                at = said.to;
                crowd.members.swap(index, at);
                if index != at {
                    set_place(&mut self.places, crowd, number, index);
                }
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
        // It fails only on a stream that ends, with which its entry goes.
        let _ = send_nothing(&mut send, books.give_back(entry));
        (stream, inbox, watch, Left { send, stand: Stand::Reached(reached) })
    }

    /// Gives a member back to its session, which hears of it.
    pub(super) fn turn_out_member(&mut self, books: &mut Books, number: Number, index: usize) {
        let (stream, inbox, watch, left) = self.part(books, number, index);
        self.places.insert(stream, Place::Out(Box::new(left)));
        inbox.wake(watch);
    }

    pub(super) fn turn_out(&mut self, books: &mut Books, stream: u32) {
        if let Some(Place::Member { crowd, index }) = self.places.get(&stream) {
            let (crowd, index) = (*crowd, *index as usize);
            self.turn_out_member(books, crowd, index);
        }
    }

    /// Does so with all members of a crowd that has its turn.
    pub(super) fn turn_all_out(&mut self, books: &mut Books, number: Number) {
        while let Some(last) = self.crowd(number).members.len().checked_sub(1) {
            self.turn_out_member(books, number, last);
        }
    }

    pub(super) fn close(&mut self, number: Number) {
        if let Some(crowd) = self.crowds[number as usize].take() {
            crowd.log.unsubscribe(crowd.seat);
            self.by_likeness.remove(&crowd.alike);
            self.free.push(number);
        }
    }

    /// Once per turn, since all threads note it in one place.
    pub(super) fn count_what_was_said(&mut self, hub: &Hub) {
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
