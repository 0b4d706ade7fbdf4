//! A call and what feeds it: the client's JSON goes in as messages, its answers come out as lines of JSON, each held
//! back by whoever does not take it.

use std::{
    error::Error,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::BoxError;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use prost_reflect::MessageDescriptor;

use super::{
    call::{Call, End, Next},
    decode, encode,
    scan::{Broken, Values},
    schema::Route,
};
use crate::rules::{
    framing,
    status::{self, Status},
};

/// A client's bytes.
pub type Source = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// What the end of a client's bytes means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceEnd {
    /// It has said all that it wants to say, and waits for answers.
    NothingMore,
    /// It is gone.
    Gone,
}

/// The one request of a call that takes one; none if the client has left. Whatever comes after it is passed over, as Go
/// does it.
pub async fn read_one(
    source: &mut Source,
    route: &Route,
    limit: usize,
    end: SourceEnd,
) -> Result<Option<Vec<u8>>, Status> {
    let mut values = Values::new(limit);
    let mut first: Option<Vec<u8>> = None;
    let mut passed_over = 0;
    while let Some(data) = source.next().await {
        let data = data.map_err(|error| broken(&*error))?;
        if first.is_some() {
            passed_over += data.len();
            if passed_over > limit {
                break;
            }
            continue;
        }
        values.push(&data);
        first = values.next().map_err(|broken| refuse(broken, limit))?;
        if first.is_some() && end == SourceEnd::Gone {
            // It waits for the answer and will not end before that.
            break;
        }
    }
    let text = match first {
        Some(text) => text,
        None if end == SourceEnd::Gone => return Ok(None),
        None => match values.finish().map_err(|broken| refuse(broken, limit))? {
            Some(text) => text,
            // As in etcd, nothing at all is an empty message.
            None => return Ok(Some(Vec::new())),
        },
    };
    decode::message(&route.input, &text).map(Some).map_err(status::undecodable)
}

/// Why a body could not be read: it is not what its head said it would be, in Go's words, or its client is gone.
fn broken(error: &(dyn Error + Send + Sync + 'static)) -> Status {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(one) = cause {
        match one.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
                return status::undecodable("invalid byte in chunk length");
            }
            _ => cause = one.source(),
        }
    }
    status::client_gone(error)
}

fn refuse(broken: Broken, limit: usize) -> Status {
    match broken {
        Broken::Malformed(error) => status::undecodable(error),
        Broken::TooLarge(size) => status::message_too_large(size, limit),
    }
}

/// A call under way.
pub struct Exchange {
    call: Call,
    input: MessageDescriptor,
    output: MessageDescriptor,
    source: Option<Source>,
    source_end: SourceEnd,
    values: Values,
    limit: usize,
    /// A framed message on its way.
    outbox: Bytes,
    /// Whether what the client sends is still a request.
    takes_more: bool,
    /// Whether anything was sent, after which a client that errs is not refused any more.
    has_sent: bool,
    is_finished: bool,
    is_over: bool,
}

/// What an exchange comes to next.
#[derive(Debug)]
pub enum Event {
    Message(Bytes),
    End(End),
    /// What the client sent first was no request.
    Refused(Status),
    /// The client is gone.
    Gone,
}

impl Exchange {
    /// A call that takes any number of messages.
    pub fn fed_by(call: Call, route: &Route, source: Source, source_end: SourceEnd, limit: usize) -> Self {
        Self {
            call,
            input: route.input.clone(),
            output: route.output.clone(),
            source: Some(source),
            source_end,
            values: Values::new(limit),
            limit,
            outbox: Bytes::new(),
            takes_more: true,
            has_sent: false,
            is_finished: false,
            is_over: false,
        }
    }

    /// A call that takes one message. What else its client sends is passed over, and watched for its end.
    pub fn of_one(call: Call, route: &Route, message: &[u8], source: Source, source_end: SourceEnd) -> Self {
        let outbox = framing::frame(message);
        Self { outbox, takes_more: false, has_sent: true, ..Self::fed_by(call, route, source, source_end, 0) }
    }

    /// What came before the first message.
    pub fn metadata(&self) -> &HeaderMap {
        &self.call.metadata
    }

    pub async fn next(&mut self) -> Event {
        poll_fn(|context| {
            if let Poll::Ready(event) = self.poll_feed(context) {
                return Poll::Ready(event);
            }
            self.call.poll_next(context).map(|next| match next {
                Next::Message(message) => Event::Message(message),
                Next::End(end) => Event::End(end),
            })
        })
        .await
    }

    /// The next line for the client; none after the last.
    pub async fn next_line(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        let event = self.next().await;
        self.line(event)
    }

    /// How an event is told to the client.
    pub fn line(&mut self, event: Event) -> Option<String> {
        let failure = match event {
            Event::Message(message) => match encode::result_line(&self.output, message) {
                Ok(line) => return Some(line),
                Err(error) => status::unreadable_answer(error),
            },
            Event::End(End { outcome: Err(failure), .. }) | Event::Refused(failure) => failure,
            Event::End(_) | Event::Gone => {
                self.is_over = true;
                return None;
            }
        };
        self.is_over = true;
        Some(encode::error_line(&failure))
    }

    /// Moves what the client sends. It is ready only for what ends the call.
    fn poll_feed(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        loop {
            if !self.outbox.is_empty() && ready!(self.call.poll_send(context, &mut self.outbox)).is_err() {
                // The call takes no more, and its status tells why.
                self.outbox = Bytes::new();
                self.takes_more = false;
            }
            if !self.takes_more && !std::mem::replace(&mut self.is_finished, true) {
                self.call.finish();
            }
            let Some(source) = &mut self.source else { return Poll::Pending };
            let text = match if self.takes_more { self.values.next() } else { Ok(None) } {
                Ok(None) => match ready!(source.as_mut().poll_next(context)) {
                    Some(Ok(data)) if self.takes_more => {
                        self.values.push(&data);
                        continue;
                    }
                    Some(Ok(_)) => continue,
                    Some(Err(_)) => return Poll::Ready(Event::Gone),
                    None if self.source_end == SourceEnd::Gone => return Poll::Ready(Event::Gone),
                    None => {
                        self.source = None;
                        if self.takes_more { self.values.finish() } else { Ok(None) }
                    }
                },
                found => found,
            };
            let text = text.map_err(|broken| refuse(broken, self.limit));
            match text.and_then(|text| text.map(|text| self.decode(&text)).transpose()) {
                Ok(Some(message)) => {
                    self.outbox = framing::frame(&message);
                    self.has_sent = true;
                    // After the end there was but one more.
                    self.takes_more &= self.source.is_some();
                }
                // As in etcd, what was asked before stays, and nothing else is taken.
                Err(refusal) if !self.has_sent => return Poll::Ready(Event::Refused(refusal)),
                Ok(None) | Err(_) => self.takes_more = false,
            }
        }
    }

    fn decode(&self, text: &[u8]) -> Result<Vec<u8>, Status> {
        decode::message(&self.input, text).map_err(status::undecodable)
    }
}
