//! What a client sends in one exchange: a whole request, its messages one by one, or its bytes as they stand.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, HeaderValue};

use super::Volume;
use crate::{
    admission::throttle::Throttle,
    audit::Note,
    metrics::Messages,
    rules::{
        framing::{self, Decoder},
        status::{self, Status},
    },
};

/// The client's messages.
pub struct Requests {
    stream: RecvStream,
    decoder: Decoder,
    /// Whether messages may be compressed as etcd takes them.
    is_gzip: bool,
    /// How else they may be, which etcd refuses. Boxed twice, since nobody does so, and watches are many.
    other_encoding: Option<Box<Box<str>>>,
    /// Whether the RPC takes one message and is carried out when it is here, whatever may follow.
    is_unary: bool,
    messages: Messages,
    volume: Option<Arc<Volume>>,
    /// A whole request that was collected, to be collected again. Boxed, since few are, and watches are many.
    put_back: Option<Box<Bytes>>,
    throttle: Option<Box<Throttle>>,
    note: Option<Arc<Note>>,
}

impl Requests {
    /// `limit` bounds one message, in bytes without framing.
    pub fn new(stream: RecvStream, headers: &HeaderMap, limit: usize) -> Self {
        let (is_gzip, other_encoding) = match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            None | Some(b"identity") => (false, None),
            Some(b"gzip") => (true, None),
            Some(other) => (false, Some(Box::new(String::from_utf8_lossy(other).into()))),
        };
        Self {
            stream,
            decoder: Decoder::new(limit),
            is_gzip,
            other_encoding,
            is_unary: false,
            messages: Messages::default(),
            volume: None,
            put_back: None,
            throttle: None,
            note: None,
        }
    }

    /// Of a unary RPC or of another.
    pub fn unary(self, is_unary: bool) -> Self {
        Self { is_unary, ..self }
    }

    /// Counts the messages of this call.
    pub fn counted(self, messages: Messages) -> Self {
        Self { messages, ..self }
    }

    /// Measures the bytes of this call.
    pub fn measured(self, volume: Option<Arc<Volume>>) -> Self {
        Self { volume, ..self }
    }

    /// Holds the client to its limits.
    pub fn throttled(self, throttle: Option<Box<Throttle>>) -> Self {
        Self { throttle, ..self }
    }

    /// Tells the audit log what is asked.
    pub fn noted(self, note: Option<Arc<Note>>) -> Self {
        Self { note, ..self }
    }

    /// The next message, or `None` when the client has closed its half.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if let Err(status) = self.check_encoding() {
            return Poll::Ready(Some(Err(status)));
        }
        loop {
            ready!(self.poll_earned(context));
            match self.decoder.next() {
                Ok(Some(message)) => {
                    if let Some(throttle) = &mut self.throttle {
                        throttle.charge_request();
                    }
                    if !message.compressed {
                        self.messages.received();
                    }
                    let message = if message.compressed { self.inflate(&message.bytes) } else { Ok(message.bytes) };
                    if let (Some(note), Ok(message)) = (&self.note, &message) {
                        note.message(message);
                    }
                    return Poll::Ready(Some(message));
                }
                Ok(None) => (),
                Err(error) => return Poll::Ready(Some(Err(self.refuse_frame(error)))),
            }
            match ready!(self.poll_data(context)) {
                Some(Ok(data)) => self.decoder.push(&data),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                // As in grpc-go, a frame that broke off before its length is none.
                None if self.decoder.is_before_a_message() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(status::request_cut_short()))),
            }
        }
    }

    /// The whole request of a call that sends one message, with its framing, as it stood on the wire. Like etcd, a unary
    /// call does not wait for the client to close its half.
    pub async fn collect(&mut self) -> Result<Bytes, Status> {
        if let Some(body) = self.put_back.take() {
            return Ok(*body);
        }
        let limit = self.decoder.limit();
        let mut first: Option<Bytes> = None;
        let mut joined = BytesMut::new();
        while let Some(data) = self.data().await {
            let data = data?;
            let held = joined.len() + first.as_ref().map_or(0, Bytes::len) + data.len();
            match first.take() {
                None if joined.is_empty() => first = Some(data),
                begun => {
                    joined.extend_from_slice(begun.as_deref().unwrap_or_default());
                    joined.extend_from_slice(&data);
                }
            }
            if let Some(size) = framing::announced(first.as_deref().unwrap_or(&joined)) {
                if size > limit {
                    return Err(self.too_large(size));
                }
                if self.is_unary && held >= framing::PREFIX_LEN + size {
                    break;
                }
            }
            if held > limit + framing::PREFIX_LEN {
                // Another message follows the first.
                return Err(self.too_large(held));
            }
        }
        let body = first.unwrap_or_else(|| joined.freeze());
        if !body.is_empty() {
            self.messages.received();
        }
        if let Some(note) = &self.note {
            note.collected(&body);
        }
        Ok(body)
    }

    /// Leaves a request that was collected to whoever collects it next.
    pub fn put_back(&mut self, body: Bytes) {
        self.put_back = Some(Box::new(body));
    }

    /// The one message of a request that must be understood.
    pub fn unframe(&self, body: &Bytes) -> Result<Bytes, Status> {
        self.check_encoding()?;
        match framing::parse_prefix(body) {
            // Like etcd, it passes over whatever comes after the first message.
            Ok(Some((compressed, size))) => match body[framing::PREFIX_LEN..].get(..size) {
                Some(message) if compressed => self.inflate(&body.slice_ref(message)),
                Some(message) => Ok(body.slice_ref(message)),
                None if size > self.decoder.limit() => Err(self.too_large(size)),
                None => Err(status::unary_request_cut_short()),
            },
            Ok(None) => Err(status::no_request()),
            Err(error) => Err(self.refuse_frame(error)),
        }
    }

    /// Ready when the client has earned what it sent.
    fn poll_earned(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.throttle.as_mut().map_or(Poll::Ready(()), |throttle| throttle.poll_ready(context))
    }

    /// The next piece of the request as it stood on the wire.
    pub async fn data(&mut self) -> Option<Result<Bytes, Status>> {
        poll_fn(|context| self.poll_data(context)).await
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        ready!(self.poll_earned(context));
        let Some(data) = ready!(self.stream.poll_data(context)) else { return Poll::Ready(None) };
        Poll::Ready(Some(data.map_err(|error| status::client_gone(&error)).inspect(|data| {
            if let Some(volume) = &self.volume {
                volume.received.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            if let Some(throttle) = &mut self.throttle {
                throttle.charge(data.len());
            }
            // It fails only for a stream that is gone, which the next read reports.
            let _ = self.stream.flow_control().release_capacity(data.len());
        })))
    }

    /// etcd takes gzip and nothing else, and refuses a request that may be compressed otherwise though it is not.
    fn check_encoding(&self) -> Result<(), Status> {
        self.other_encoding.as_ref().map_or(Ok(()), |encoding| Err(status::compressed(encoding)))
    }

    fn too_large(&self, size: usize) -> Status {
        if let Some(throttle) = &self.throttle {
            throttle.refused_for_size();
        }
        status::message_too_large(size, self.decoder.limit())
    }

    fn refuse_frame(&self, error: framing::FramingError) -> Status {
        match error {
            framing::FramingError::TooLarge { size, .. } => self.too_large(size),
            framing::FramingError::BadFlag(flag) => status::unknown_payload_format(flag),
        }
    }

    fn inflate(&self, message: &Bytes) -> Result<Bytes, Status> {
        if !self.is_gzip && self.other_encoding.is_none() {
            return Err(status::compressed_without_encoding());
        }
        let limit = self.decoder.limit();
        framing::gunzip(message, limit).map_err(|error| match error {
            framing::GunzipError::TooLarge => status::inflated_too_large(limit),
            framing::GunzipError::Broken(error) => status::undeflatable(error),
        })
    }
}
