//! One call of this very proxy: HTTP/2 in memory, into the same router that serves gRPC.
//!
//! So namespaces, limits, sharing and the member that a connection keeps to are for JSON what they are for gRPC, and no
//! service knows the difference.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, HeaderValue, Request, header};
use tokio::sync::OnceCell;

use super::{
    headers::{self, Metadata},
    schema::Route,
};
use crate::{
    router::Router,
    rules::{
        caller::Connection,
        framing::{self, Decoder},
        status::{self, Status},
    },
};

/// Bytes that may be under way between the two ends.
const PIPE: usize = 64 << 10;
/// What one call may have been sent ahead of its reader. A watch whose client does not read holds this much and no more.
const STREAM_WINDOW: u32 = 256 << 10;
/// Each stream is held back by its own window, so that one that is not read cannot stall the others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Frames of this size need not be cut for a usual answer.
const FRAME_SIZE: u32 = 64 << 10;

/// The calls of one client connection.
pub struct Calls {
    router: Arc<Router>,
    connection: Arc<Connection>,
    sender: OnceCell<SendRequest<Bytes>>,
}

impl Calls {
    pub fn new(router: Arc<Router>, connection: Arc<Connection>) -> Self {
        Self { router, connection, sender: OnceCell::new() }
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The largest message that a call may send.
    pub fn max_request(&self) -> usize {
        self.router.upstream.limits().max_request
    }

    pub async fn begin(&self, route: &Route, metadata: Metadata) -> Result<Call, Status> {
        let mut request =
            Request::post(format!("http://proxy{}", route.grpc_path)).body(()).expect("the name of an RPC is a path");
        *request.headers_mut() = metadata.headers;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("etcd-proxy-json"));
        if let Some(timeout) = metadata.timeout {
            headers.insert("grpc-timeout", headers::grpc_timeout(timeout));
        }
        let sender = self.sender.get_or_try_init(|| self.connect()).await.map_err(status::broken)?.clone();
        let mut sender = sender.ready().await.map_err(status::broken)?;
        let (response, send) = sender.send_request(request, false).map_err(status::broken)?;
        let decoder = Decoder::new(self.router.upstream.limits().max_answer);
        Ok(Call { send, reply: Reply::Waiting(response), metadata: HeaderMap::new(), decoder })
    }

    /// Both ends end with the last handle to the client's: this and the calls that it has open.
    async fn connect(&self) -> Result<SendRequest<Bytes>, h2::Error> {
        let (near, far) = tokio::io::duplex(PIPE);
        let (router, connection) = (self.router.clone(), self.connection.clone());
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
            // Who asks too much has been judged where the client came in.
            builder.max_local_error_reset_streams(None).max_pending_accept_reset_streams(usize::MAX);
            builder.max_frame_size(FRAME_SIZE);
            let Ok(mut http2) = builder.handshake::<_, Bytes>(far).await else { return };
            while let Some(Ok((request, respond))) = http2.accept().await {
                let (router, connection) = (router.clone(), connection.clone());
                tokio::spawn(async move { router.serve(connection, request, respond, ()).await });
            }
        });
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        builder.max_frame_size(FRAME_SIZE).enable_push(false);
        let (sender, connection) = builder.handshake(near).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// One call. Dropped before its end it is taken back.
pub struct Call {
    send: SendStream<Bytes>,
    reply: Reply,
    /// What came before the first message.
    pub metadata: HeaderMap,
    decoder: Decoder,
}

enum Reply {
    Waiting(ResponseFuture),
    Reading(RecvStream),
    /// With the end, if nobody has been told of it.
    Over(Option<End>),
}

/// How a call ended: well, or with a status; and what came after its last message.
#[derive(Debug)]
pub struct End {
    pub outcome: Result<(), Status>,
    pub trailers: HeaderMap,
}

/// What comes next of an answer.
#[derive(Debug)]
pub enum Next {
    Message(Bytes),
    End(End),
}

impl Call {
    /// Sends as much of framed bytes as there is room for, and is ready when all of it was taken. An error means that
    /// the call takes no more, which is nothing wrong: its status tells why.
    pub fn poll_send(&mut self, context: &mut Context<'_>, bytes: &mut Bytes) -> Poll<Result<(), h2::Error>> {
        while !bytes.is_empty() {
            self.send.reserve_capacity(bytes.len());
            let Some(room) = ready!(self.send.poll_capacity(context)) else {
                return Poll::Ready(Err(h2::Reason::CANCEL.into()));
            };
            let part = bytes.split_to(room?.min(bytes.len()));
            self.send.send_data(part, false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Says that no more messages will be sent.
    pub fn finish(&mut self) {
        // An error means that the call takes no more anyway.
        let _ = self.send.send_data(Bytes::new(), true);
    }

    /// The next message of the answer, or its end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        loop {
            match &mut self.reply {
                Reply::Waiting(response) => match ready!(Pin::new(response).poll(context)) {
                    Ok(response) => self.begun(response.into_parts()),
                    Err(error) => return Poll::Ready(self.failed(status::broken(error))),
                },
                Reply::Reading(stream) => {
                    match self.decoder.next() {
                        Ok(Some(message)) if message.compressed => {
                            return Poll::Ready(self.failed(status::compressed_without_encoding()));
                        }
                        Ok(Some(message)) => return Poll::Ready(Next::Message(message.bytes)),
                        Ok(None) => (),
                        Err(framing::FramingError::TooLarge { size, limit }) => {
                            return Poll::Ready(self.failed(status::message_too_large(size, limit)));
                        }
                        Err(framing::FramingError::BadFlag(flag)) => {
                            return Poll::Ready(self.failed(status::unknown_payload_format(flag)));
                        }
                    }
                    match ready!(stream.poll_data(context)) {
                        Some(Ok(data)) => {
                            // It fails only for a stream that is gone, which the next read reports.
                            let _ = stream.flow_control().release_capacity(data.len());
                            self.decoder.push(&data);
                        }
                        Some(Err(error)) => return Poll::Ready(self.failed(status::broken(error))),
                        None => match ready!(stream.poll_trailers(context)) {
                            Ok(trailers) => {
                                let trailers = trailers.unwrap_or_default();
                                self.reply = Reply::Over(Some(End { outcome: outcome(&trailers), trailers }));
                            }
                            Err(error) => return Poll::Ready(self.failed(status::broken(error))),
                        },
                    }
                }
                Reply::Over(end) => {
                    let end = end.take().unwrap_or_else(|| End { outcome: Ok(()), trailers: HeaderMap::new() });
                    return Poll::Ready(Next::End(end));
                }
            }
        }
    }

    fn begun(&mut self, (head, stream): (http::response::Parts, RecvStream)) {
        // Headers that end the call are its trailers, and then nothing came before them.
        if head.headers.contains_key(Status::GRPC_STATUS) {
            let outcome = outcome(&head.headers);
            self.reply = Reply::Over(Some(End { outcome, trailers: head.headers }));
        } else {
            self.metadata = head.headers;
            self.reply = Reply::Reading(stream);
        }
    }

    fn failed(&mut self, failure: Status) -> Next {
        self.reply = Reply::Over(None);
        Next::End(End { outcome: Err(failure), trailers: HeaderMap::new() })
    }
}

fn outcome(trailers: &HeaderMap) -> Result<(), Status> {
    match status::of_trailers(trailers) {
        Some(status) if status.code() == status::Code::Ok => Ok(()),
        Some(status) => Err(status),
        None => Err(status::broken("the answer ended without a status")),
    }
}
