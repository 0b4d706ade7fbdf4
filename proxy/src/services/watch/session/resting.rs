//! How a session rests: while its only watch is level and nobody asks anything, its stream is with others that are told
//! the same.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use tokio::time::Sleep;

use super::{
    super::{
        crowd::{Left, Member, Reached, Stand},
        watches::Number,
    },
    Session, Source,
};
use crate::exchange::{Gone, Replies};

/// A stream that is with others.
#[derive(Clone, Copy, Debug)]
pub struct Resting {
    stream: u32,
    watch: Number,
}

impl Session {
    /// Hands its stream over if nothing but events will concern it until it is woken. Says whether it did. `is_asked` says
    /// that its client has been asked what it wants.
    pub(super) fn lie_down(&mut self, replies: &mut Replies, is_asked: bool) -> bool {
        let (Some(crowds), Some(number), true) = (&self.crowds, self.watches.only(), is_asked) else { return false };
        let is_done = self.waiting() == 0 && self.turns.is_empty() && self.asked.is_none() && self.lost.is_none();
        let Some(watch) = self.watches.get_mut(number) else { return false };
        let is_plain = watch.cursor.part.is_none() && !watch.cursor.wishes.filters();
        let Source::Live { seat } = watch.source else { return false };
        // Who waits for a revision of the future is not shown what the others are.
        let is_present = watch.cursor.next_revision <= watch.live.log.resume_revision();
        if !is_done || !is_plain || !is_present || self.inbox.has_heard() {
            return false;
        }
        let (stream, sent) = replies.stream();
        let send = if crowds.takes(stream) { replies.lend() } else { None };
        let Some(send) = send else {
            // It is held to limits, or measured, or has too wide a window, to its end.
            self.crowds = None;
            return false;
        };
        let (messages, inbox) = (replies.messages(), self.inbox.clone());
        let member = Member { stream, sent, send, messages, inbox, watch: number };
        watch.source = Source::Crowd;
        crowds.hand_over(member, &watch.live.log, seat, &watch.cursor, self.last_header);
        self.resting = Some(Resting { stream, watch: number });
        true
    }

    /// Returns when something concerns it.
    pub(super) async fn rest(&mut self, passed: &mut Option<Pin<Box<Sleep>>>) {
        poll_fn(|context| {
            if passed.as_mut().is_some_and(|passed| passed.as_mut().poll(context).is_ready()) {
                return Poll::Ready(());
            }
            self.inbox.poll_heard(context)
        })
        .await;
    }

    /// Takes its stream back, and reads on from where the others have brought it.
    pub(super) fn rise(&mut self, replies: &mut Replies) -> Result<(), Gone> {
        let Some((Left { send, stand }, number)) = self.leave_the_others() else { return Err(Gone) };
        replies.take_back(send);
        match stand {
            Stand::Seat(seat) => {
                if let Some(watch) = self.watches.get_mut(number) {
                    watch.source = Source::Live { seat };
                }
            }
            Stand::Reached(Reached { next_revision, told_revision, header }) => {
                if header.revision >= self.last_header.revision {
                    self.last_header = header;
                }
                if let Some(watch) = self.watches.get_mut(number) {
                    watch.cursor.told_revision = watch.cursor.told_revision.max(told_revision);
                }
                self.relocate(number, next_revision);
            }
        }
        self.give_turn(number);
        Ok(())
    }

    fn leave_the_others(&mut self) -> Option<(Left, Number)> {
        let Resting { stream, watch } = self.resting.take()?;
        Some((self.crowds.as_ref()?.leave(stream)?, watch))
    }

    /// Ends where it rests.
    pub(super) fn leave_for_good(&mut self) {
        if let Some((Left { stand: Stand::Seat(seat), .. }, number)) = self.leave_the_others()
            && let Some(watch) = self.watches.get_mut(number)
        {
            watch.live.log.unsubscribe(seat);
        }
    }
}
