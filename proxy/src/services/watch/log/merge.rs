//! Readers who stand at one place become one reader: who reads for a crowd of them takes their seats.

use std::sync::Arc;

use super::{
    super::{inbox::Inbox, watches::Number},
    Log, Seat, State,
};

impl State {
    /// Whether a reader has read all that there is, and wants all that is to come of the log.
    fn is_level_with(&mut self, seat: Seat, next_revision: i64) -> bool {
        self.end.is_none()
            && next_revision <= self.covered_to.saturating_add(1)
            && self
                .readers
                .get_mut(seat)
                .is_some_and(|reader| !reader.has_something() && reader.subscriber.part.is_none())
    }
}

impl Log {
    /// The revision before which all that a reader wants has been read.
    pub fn since(&self, seat: Seat) -> Option<i64> {
        let mut state = self.lock();
        let covered = state.covered_to.saturating_add(1);
        let reader = state.readers.get_mut(seat)?;
        Some(if reader.has_something() { reader.since } else { reader.since.max(covered) })
    }

    /// Gives a seat to another inbox, if its reader has nothing to read and wants all from `next_revision` on, which is
    /// not yet to come.
    pub fn hand_over(&self, seat: Seat, next_revision: i64, inbox: &Arc<Inbox>, watch: Number) -> bool {
        let mut state = self.lock();
        if !state.is_level_with(seat, next_revision) {
            return false;
        }
        if let Some(reader) = state.readers.get_mut(seat) {
            (reader.subscriber.inbox, reader.subscriber.watch) = (inbox.clone(), watch);
        }
        true
    }

    /// Gives up a seat for another one, whose reader reads for both from now on, if both have nothing to read.
    pub fn merge(&self, seat: Seat, next_revision: i64, into: Seat) -> bool {
        let mut state = self.lock();
        if !state.is_level_with(seat, next_revision) || !state.is_level_with(into, next_revision) {
            return false;
        }
        let since = state.readers.get_mut(seat).map_or(0, |reader| reader.since);
        if let Some(reader) = state.readers.get_mut(into) {
            reader.since = reader.since.max(since);
        }
        state.readers.remove(seat);
        true
    }
}
