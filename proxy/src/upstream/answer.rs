//! What etcd answers: headers, then messages bit by bit or collected, then trailers.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, TRAILER},
};

use super::{channel::Place, endpoint::Endpoint, users::Pass};
use crate::{
    admission::{
        gate::Bill,
        memory::{Held, Share, UNASKED},
    },
    rules::{
        framing,
        status::{self, Code, Status},
    },
};

/// What etcd's HTTP server adds to each answer with TLS, beside the names of the trailers to come, and never without.
/// Which web pages may read an answer of this proxy is for `--cors` to say.
const OF_HTTP: [HeaderName; 3] =
    [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_HEADERS];

/// An answer whose headers are here and whose messages are on their way.
pub struct Answer {
    pub endpoint: Arc<Endpoint>,
    pub headers: HeaderMap,
    pub body: Body,
    pub(super) memory: Option<Share>,
}

/// The messages of an answer and then its trailers. Dropped early, it tells etcd to stop.
pub struct Body {
    stream: RecvStream,
    /// A piece that was looked at and not taken.
    first: Option<Bytes>,
    /// What a call was begun with whose end nobody waits for before its answer is handed on.
    pass: Option<Pass>,
    /// What is to be said of its size to who deals out the turns.
    pub(super) bill: Option<Bill>,
    place: Place,
}

/// The one message of a unary answer.
#[derive(Clone)]
pub struct Collected {
    pub headers: HeaderMap,
    /// Without framing; `None` when the call failed.
    pub message: Option<Bytes>,
    pub trailers: HeaderMap,
    /// Its part of the memory for large answers, if it is one.
    pub held: Option<Arc<Held>>,
}

impl Answer {
    /// A proxy or load balancer before etcd, or the HTTP server that is etcd's with TLS, may answer with an HTTP error
    /// that is no gRPC answer at all.
    pub(super) fn checked(mut self, http_status: StatusCode) -> Self {
        if self.headers.remove(TRAILER).is_some() {
            OF_HTTP.iter().for_each(|name| drop(self.headers.remove(name)));
        }
        if !http_status.is_success() && !self.headers.contains_key(Status::GRPC_STATUS) {
            self.headers = status::trailers(&status::not_grpc_answer(http_status));
        }
        self
    }

    /// Waits for what comes after the headers. With TLS etcd sends a refusal as headers and trailers, without TLS as
    /// trailers only; here both become the latter, so that whoever looks for a refusal finds it in one place.
    pub(super) async fn begun(mut self) -> Result<Self, h2::Error> {
        if self.code().is_some() {
            return Ok(self);
        }
        if let Some(data) = self.body.stream.data().await {
            self.body.first = Some(data?);
        } else if let Some(trailers) = self.body.stream.trailers().await? {
            self.headers.extend(trailers);
        }
        Ok(self)
    }

    /// The status, if the answer has no messages and its headers are its trailers.
    pub fn code(&self) -> Option<Code> {
        code_of(&self.headers)
    }

    /// Waits for the one message of a unary answer.
    pub async fn collect(mut self, limit: usize) -> Result<Collected, Status> {
        if self.code().is_some() {
            return Ok(Collected { headers: HeaderMap::new(), message: None, trailers: self.headers, held: None });
        }
        let mut whole: Option<Bytes> = None;
        let mut joined = BytesMut::new();
        let mut held: Option<Held> = None;
        while let Some(data) = self.body.data().await {
            let data = data?;
            let size = joined.len() + whole.as_ref().map_or(0, Bytes::len) + data.len();
            if size > limit.saturating_add(framing::PREFIX_LEN) {
                return Err(status::message_too_large(size, limit));
            }
            if size > UNASKED
                && let Some(memory) = &self.memory
            {
                held.get_or_insert_with(|| memory.hold()).grow(size).map_err(status::exhausted)?;
            }
            match whole.take() {
                None if joined.is_empty() => whole = Some(data),
                first => {
                    joined.extend_from_slice(first.as_deref().unwrap_or_default());
                    joined.extend_from_slice(&data);
                }
            }
        }
        let trailers = self.body.trailers().await?.unwrap_or_default();
        let body = whole.unwrap_or_else(|| joined.freeze());
        let message = unframe_one(body)?;
        Ok(Collected { headers: self.headers, message, trailers, held: held.map(Arc::new) })
    }
}

impl Collected {
    pub fn code(&self) -> Code {
        code_of(&self.trailers).unwrap_or(Code::Unknown)
    }

    /// Whether it ended as gRPC calls end: with a status, and with a message if that is OK.
    pub fn is_grpc(&self) -> bool {
        code_of(&self.trailers).is_some_and(|code| code != Code::Ok || self.message.is_some())
    }

    /// The message, or the status with which the call failed.
    pub fn into_message(self) -> Result<Bytes, Status> {
        match (self.code(), self.message) {
            (Code::Ok, Some(message)) => Ok(message),
            (Code::Ok, None) => Err(status::unreadable_answer("no message")),
            _ => Err(status::of_trailers(&self.trailers).unwrap_or_else(|| Status::unknown("no status in the answer"))),
        }
    }
}

/// The status code that trailers carry.
pub fn code_of(trailers: &HeaderMap) -> Option<Code> {
    trailers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

fn unframe_one(body: Bytes) -> Result<Option<Bytes>, Status> {
    match framing::parse_prefix(&body) {
        Ok(None) if body.is_empty() => Ok(None),
        Ok(Some((false, size))) if body.len() == framing::PREFIX_LEN + size => {
            Ok(Some(body.slice(framing::PREFIX_LEN..)))
        }
        Ok(Some((true, _))) => Err(status::unreadable_answer("it is compressed, which was not asked for")),
        Ok(_) => Err(status::unreadable_answer("it is not one whole message")),
        Err(error) => Err(status::unreadable_answer(error)),
    }
}

impl Body {
    pub(super) fn new(stream: RecvStream, place: Place, pass: Option<Pass>) -> Self {
        Self { stream, first: None, pass, bill: None, place }
    }

    /// The next piece of the answer; etcd may send more as soon as it is taken.
    pub async fn data(&mut self) -> Option<Result<Bytes, Status>> {
        std::future::poll_fn(|context| self.poll_data(context)).await
    }

    /// The first piece of the answer to a request that was complete, until it is taken.
    pub fn first(&self) -> Option<&Bytes> {
        self.first.as_ref()
    }

    pub fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let data = match self.first.take() {
            Some(data) => data,
            None => match ready!(self.stream.poll_data(context)) {
                Some(data) => data.map_err(status::broken)?,
                None => return Poll::Ready(None),
            },
        };
        self.place.note_heard();
        if let Some(bill) = &mut self.bill {
            bill.add(data.len());
        }
        // It fails only for a stream that is gone, which the next poll reports.
        let _ = self.stream.flow_control().release_capacity(data.len());
        Poll::Ready(Some(Ok(data)))
    }

    pub async fn trailers(&mut self) -> Result<Option<HeaderMap>, Status> {
        std::future::poll_fn(|context| self.poll_trailers(context)).await
    }

    pub fn poll_trailers(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, Status>> {
        let trailers = ready!(self.stream.poll_trailers(context)).map_err(status::broken)?;
        if let (Some(pass), Some(trailers)) = (&self.pass, &trailers) {
            pass.is_refused_in(trailers);
        }
        Poll::Ready(Ok(trailers))
    }

    pub fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.stream.is_end_stream()
    }
}
