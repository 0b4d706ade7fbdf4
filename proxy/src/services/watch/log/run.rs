//! Several batches that are read at once, so that what is made of them can be made once for all who read them.

use std::sync::Arc;

use super::{Batch, Log, Seat};

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

impl Log {
    /// Takes what is next for a reader of the whole log if others read it too: some batches of events at once, about
    /// `max_bytes` of them. The reader wants all of it from a revision on, and has been told of no revision of the store
    /// after that of its headers. `known` may know already what a run holds. Says also whether there may be more. A
    /// catch-up, which has one reader, is read by [`Log::read`].
    pub fn read_run<T>(
        &self,
        seat: Seat,
        (next_revision, told_revision): (i64, i64),
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
        if next.batch.first_revision()? < next_revision || next.batch.header.revision < told_revision {
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
}
