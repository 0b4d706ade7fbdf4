//! One client's Watch stream: create, cancel, progress, and the sending of what its watches have to show.
//!
//! Everything that the client asks is answered in the order in which it asked, as etcd does, although the answers to
//! creates come from afar.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::{ResponseHeader, WatchRequest};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use prost::Message as _;
use tokio::time::Sleep;
mod asking;
mod resting;
mod showing;
mod turns;

use super::{
    bell::Bell,
    crowd::Crowds,
    cursor::Cursor,
    hub::Hub,
    inbox::{Heard, Inbox},
    live::{CatchUp, LiveFeed, LogUse},
    log::Seat,
    sessions::Place,
    watches::Watches,
};
use crate::{
    exchange::{Gone, Replies, Requests},
    rules::{
        caller::{Caller, Connection},
        status::{self, Status},
    },
};
use asking::Asked;
use resting::Resting;
use turns::Turns;

/// Bytes that are made ready for one client before its window is asked for more.
const OUT_HIGH_WATER: usize = 64 * 1024;
/// What an idle session keeps of the room for that.
const OUT_KEPT: usize = 1024;
/// The id of answers that speak of no watch, or of one that was not made.
const NO_WATCH: i64 = -1;
/// Requests of one client that wait for etcd; further ones are left unread until then.
const MAX_UNANSWERED: usize = 1024;

pub struct Session {
    hub: Arc<Hub>,
    connection: Arc<Connection>,
    feed: Arc<LiveFeed>,
    bell: Arc<Bell>,
    /// Where its stream may go while it has nothing to do; and the number of the stream that is there.
    crowds: Option<Arc<Crowds>>,
    resting: Option<Resting>,
    inbox: Arc<Inbox>,
    /// Among the sessions of its feed.
    place: Place,
    watches: Watches<Watch>,
    next_id: i64,
    /// What the client asked and has not been answered; none while there is nothing, which is nearly always.
    asked: Option<Box<FuturesOrdered<BoxFuture<'static, Asked>>>>,
    /// Whose turn it is to be read. Each watch is there once: a client that takes a byte at a time must not make the
    /// turns grow with every event.
    turns: Turns,
    /// Framed messages for the client: what other clients are told too, and after it what is said to this one.
    shared: Bytes,
    out: BytesMut,
    last_header: ResponseHeader,
    /// Why the stream must end, once that is known.
    lost: Option<Box<Status>>,
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
    /// In seconds of the process; it is asked for rarely.
    last_shown: u32,
    has_turn: bool,
}

/// Where a watch reads.
enum Source {
    Live {
        seat: Seat,
    },
    CatchUp(Box<CatchUp>),
    /// It does not: its stream is with others, who are told the same.
    Crowd,
}

/// What a session does next.
enum Step {
    /// Read, and send what was read.
    Turn,
    Answer(Asked),
    Request(Option<Result<Bytes, Status>>),
    End(Status),
}

impl Session {
    /// `bell` is that of the thread that serves the session.
    pub fn new(hub: &Arc<Hub>, bell: &Arc<Bell>, caller: &Caller, crowds: Option<Arc<Crowds>>) -> Self {
        hub.metrics.watch_streams.inc();
        let (feed, inbox) = (hub.feed(caller), Inbox::at(bell));
        Self {
            place: feed.sessions.enter(&inbox),
            feed,
            hub: hub.clone(),
            connection: caller.connection.clone(),
            bell: bell.clone(),
            crowds,
            resting: None,
            inbox,
            watches: Watches::default(),
            next_id: 0,
            asked: None,
            turns: Turns::default(),
            shared: Bytes::new(),
            out: BytesMut::new(),
            last_header: ResponseHeader::default(),
            lost: None,
        }
    }

    /// Serves until the client leaves or the stream has to end, and says with what. `passed` is its deadline.
    pub async fn run(
        &mut self,
        requests: &mut Requests,
        replies: &mut Replies,
        passed: &mut Option<Pin<Box<Sleep>>>,
    ) -> Result<Status, Gone> {
        replies.begin(http::HeaderMap::new())?;
        let stream_waker = Waker::from(self.inbox.clone());
        // What the stream must be asked for: whether the client is there still, and what it asks.
        let (mut look_for_client, mut look_for_requests) = (true, true);
        let mut half_closed = false;
        loop {
            // A client that is sent much, or asks for much, lets others have their turn.
            tokio::task::consume_budget().await;
            if self.resting.is_some() {
                self.rest(passed).await;
                self.rise(replies)?;
            }
            self.hear();
            self.fill();
            if let Some(status) = self.lost.take() {
                return Ok(*status);
            }
            let step = poll_fn(|context| {
                let stream = &mut Context::from_waker(&stream_waker);
                // Its requests are heard also while there is always more to send.
                let may_send_more = match self.poll_send(replies, stream) {
                    Poll::Ready(sent) => sent.map(|()| true)?,
                    Poll::Pending => false,
                };
                // To have sent something is a call too: whoever sends is told of the room that it has asked for.
                if self.inbox.take_call() {
                    (look_for_client, look_for_requests) = (true, true);
                }
                if std::mem::take(&mut look_for_client)
                    && let Poll::Ready(gone) = replies.poll_gone(stream)
                {
                    return Poll::Ready(Err(gone));
                }
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
                if look_for_requests
                    && !half_closed
                    && self.asked.as_ref().is_none_or(|asked| asked.len() < MAX_UNANSWERED)
                {
                    match requests.poll_next(stream) {
                        Poll::Ready(request) => return Poll::Ready(Ok(Step::Request(request))),
                        Poll::Pending => look_for_requests = false,
                    }
                }
                match has_room && !may_send_more {
                    true if self.lie_down(replies, half_closed || !look_for_requests) => Poll::Ready(Ok(Step::Turn)),
                    true => self.inbox.poll_heard(context).map(|()| Ok(Step::Turn)),
                    false if may_send_more => Poll::Ready(Ok(Step::Turn)),
                    false => self.inbox.poll_called(context).map(|()| Ok(Step::Turn)),
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

    /// Gives those their turn who have something to read.
    fn hear(&mut self) {
        let Heard { first, rest, progress } = self.inbox.hear();
        first.into_iter().chain(rest).for_each(|number| self.give_turn(number));
        if let Some(header) = progress {
            self.turns.push_progress(*header);
        }
    }

    /// The bytes that are ready for the client.
    fn waiting(&self) -> usize {
        self.shared.len() + self.out.len()
    }

    /// Sends as much as the client's windows take. Ready if more can be made ready then, or if the client is found gone.
    fn poll_send(&mut self, replies: &mut Replies, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        while self.waiting() > 0 {
            // All room that was found must be used: HTTP/2 says nothing more of what it has given already.
            let mut room = ready!(replies.poll_room(context, self.waiting()))?;
            while room > 0 && self.waiting() > 0 {
                let chunk = if self.shared.is_empty() {
                    // What was much is let go of: a crowd of watches is created in one go, and is idle then.
                    match self.out.len() {
                        len if len <= room && len > OUT_KEPT => std::mem::take(&mut self.out).freeze(),
                        len => self.out.split_to(room.min(len)).freeze(),
                    }
                } else {
                    self.shared.split_to(room.min(self.shared.len()))
                };
                room -= chunk.len();
                replies.send(chunk)?;
            }
        }
        if self.turns.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl Watch {
    /// Gives up its place in the shared log, if it has one.
    fn leave(&self) {
        if let Source::Live { seat } = self.source {
            self.live.log.unsubscribe(seat);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.leave_for_good();
        self.feed.sessions.leave(self.place);
        self.watches.numbers().for_each(|number| self.remove(number));
        self.hub.metrics.watch_streams.dec();
    }
}
