//! One gRPC exchange with a client: its messages come in here and ours go out, under HTTP/2's flow control.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use h2::{SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

use crate::{
    admission::throttle::Throttle,
    metrics::Messages,
    rules::{
        framing::Skimmer,
        status::{self, Code, Status},
    },
};

pub mod books;
pub mod frames;
mod requests;

pub use requests::Requests;

/// Where answers go. Dropped without a status it resets the stream, or says that there was a panic.
pub struct Replies {
    client: Client,
    /// Bytes of messages that HTTP/2 was given.
    given: u64,
    sent: FrameCount,
    volume: Option<Arc<Volume>>,
    throttle: Option<Box<Throttle>>,
}

/// The bytes of one call's messages, framing included, for those who log calls.
#[derive(Debug, Default)]
pub struct Volume {
    received: AtomicU64,
    sent: AtomicU64,
}

/// The client's end of the stream, before and after our headers.
struct Client {
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
}

/// The client is gone; nothing more can be said to it.
#[derive(Debug)]
pub struct Gone;

/// How an exchange ended: with which status, or with nobody left to hear it.
pub type Outcome = Result<Code, Gone>;

/// Waits for a piece of work until the caller's deadline. What is ready only then is late: etcd takes no call whose
/// deadline has passed, and resets what it serves when it passes.
pub async fn until<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let Some(deadline) = deadline else { return work.await };
    if is_late(deadline) {
        return Err(status::deadline_exceeded());
    }
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(outcome) if !is_late(deadline) => outcome,
        _ => Err(status::deadline_exceeded()),
    }
}

fn is_late(deadline: Instant) -> bool {
    Instant::now() >= deadline
}

/// A failure as the caller should hear of it. At the deadline etcd resets what it serves, and if that is heard of before
/// our own timer fires, the deadline is still what ended the call.
pub fn in_time(deadline: Option<Instant>, status: Status) -> Status {
    if deadline.is_some_and(is_late) { status::deadline_exceeded() } else { status }
}

/// Returns when the caller's deadline passes, which without one is never.
pub async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

impl Replies {
    pub fn new(respond: SendResponse<Bytes>) -> Self {
        Self {
            client: Client { respond, send: None },
            given: 0,
            sent: FrameCount::default(),
            volume: None,
            throttle: None,
        }
    }

    /// Counts the messages of this call.
    pub fn counted(self, messages: Messages) -> Self {
        Self { sent: FrameCount { messages, ..FrameCount::default() }, ..self }
    }

    /// Measures the bytes of this call.
    pub fn measured(self, volume: Option<Arc<Volume>>) -> Self {
        Self { volume, ..self }
    }

    /// Holds what goes to the client to its limits.
    pub fn throttled(self, throttle: Option<Box<Throttle>>) -> Self {
        Self { throttle, ..self }
    }

    fn note_sent(&mut self, data: &[u8]) {
        self.given += data.len() as u64;
        self.sent.pass(data);
        if let Some(throttle) = &mut self.throttle {
            throttle.charge(data.len());
        }
        if let Some(volume) = &self.volume {
            volume.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    }

    /// Sends the headers that come before messages.
    pub fn begin(&mut self, headers: HeaderMap) -> Result<(), Gone> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        response.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/grpc"));
        self.client.send = Some(self.client.respond.send_response(response, false).map_err(|_| Gone)?);
        Ok(())
    }

    pub fn has_begun(&self) -> bool {
        self.client.send.is_some()
    }

    /// Sends framed messages, waiting as long as the client's windows are full.
    pub async fn data(&mut self, data: Bytes) -> Result<(), Gone> {
        if self.throttle.is_some() {
            poll_fn(|context| self.poll_earned(context)).await?;
        }
        self.note_sent(&data);
        let send = self.client.send.as_mut().ok_or(Gone)?;
        send_all(send, data).await.map_err(|_| Gone)
    }

    /// Ready when what was sent is earned, or the client is gone.
    fn poll_earned(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if let Some(throttle) = &mut self.throttle
            && throttle.poll_ready(context).is_pending()
        {
            return self.poll_gone(context).map(Err);
        }
        Poll::Ready(Ok(()))
    }

    /// Asks for room to send, and gets what there is; `Pending` until there is some.
    pub fn poll_room(&mut self, context: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Gone>> {
        if ready!(self.poll_earned(context)).is_err() {
            return Poll::Ready(Err(Gone));
        }
        let Some(send) = self.client.send.as_mut() else { return Poll::Ready(Err(Gone)) };
        send.reserve_capacity(wanted);
        send.poll_capacity(context).map(|capacity| match capacity {
            Some(Ok(capacity)) => Ok(capacity),
            _ => Err(Gone),
        })
    }

    /// Sends what [`Replies::poll_room`] has found room for.
    pub fn send(&mut self, data: Bytes) -> Result<(), Gone> {
        self.note_sent(&data);
        let send = self.client.send.as_mut().ok_or(Gone)?;
        send.send_data(data, false).map_err(|_| Gone)
    }

    /// The stream's number, and how many bytes of messages it was given.
    pub fn stream(&self) -> (u32, u64) {
        (self.client.respond.stream_id().as_u32(), self.given)
    }

    /// By what the messages of this call are counted.
    pub fn messages(&self) -> Messages {
        self.sent.messages
    }

    /// Lends the stream to somebody who sends on it without being held to limits and without being measured.
    pub fn lend(&mut self) -> Option<SendStream<Bytes>> {
        if self.throttle.is_some() || self.volume.is_some() { None } else { self.client.send.take() }
    }

    /// Takes back what was lent.
    pub fn take_back(&mut self, send: SendStream<Bytes>) {
        self.client.send = Some(send);
    }

    /// Ends with these trailers; before any message they are the whole answer.
    pub fn finish(mut self, trailers: HeaderMap) {
        self.client.finish(trailers);
    }

    /// Ends with a status of ours.
    pub fn fail(self, status: &Status) {
        self.finish(status::trailers(status));
    }

    /// Refuses a request that is not gRPC, in a way that HTTP understands too.
    pub fn refuse_http(mut self, code: StatusCode, status: &Status) {
        let mut response = Response::new(());
        *response.status_mut() = code;
        *response.headers_mut() = status::trailers(status);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        // An error means that the client is gone and no one is there to be told.
        let _ = self.client.respond.send_response(response, true);
    }

    /// Ends well.
    pub fn succeed(self) {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        trailers.insert("grpc-message", HeaderValue::from_static(""));
        self.finish(trailers);
    }

    /// Sends the head of an answer that is not gRPC.
    pub fn begin_http(&mut self, head: http::response::Parts) -> Result<(), Gone> {
        let response = Response::from_parts(head, ());
        self.client.send = Some(self.client.respond.send_response(response, false).map_err(|_| Gone)?);
        Ok(())
    }

    /// Ends an answer that is not gRPC.
    pub fn finish_http(mut self) {
        if let Some(send) = &mut self.client.send {
            // An error means that the client is gone and no one is there to be told.
            let _ = send.send_data(Bytes::new(), true);
        }
    }

    /// Returns when the client gives the call up.
    pub async fn gone(&mut self) -> Gone {
        poll_fn(|context| self.poll_gone(context)).await
    }

    pub fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<Gone> {
        let reset = match &mut self.client.send {
            Some(send) => send.poll_reset(context),
            None => self.client.respond.poll_reset(context),
        };
        reset.map(|_| Gone)
    }
}

impl Client {
    fn finish(&mut self, trailers: HeaderMap) {
        // An error means that the client is gone and no one is there to be told.
        if let Some(send) = &mut self.send {
            let _ = send.send_trailers(trailers);
        } else {
            let mut response = Response::new(());
            *response.headers_mut() = trailers;
            response.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/grpc"));
            let _ = self.respond.send_response(response, true);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let trailers = status::trailers(&status::panicked());
            // A panic inside h2 may have left its lock poisoned; a second panic would end the process.
            let _ = catch_unwind(AssertUnwindSafe(|| self.finish(trailers)));
        }
    }
}

impl Volume {
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Counts the messages in passing bytes, wherever these are cut.
#[derive(Default)]
struct FrameCount {
    messages: Messages,
    skimmer: Skimmer,
}

impl FrameCount {
    fn pass(&mut self, mut data: &[u8]) {
        if !self.messages.are_counted() {
            return;
        }
        let mut whole = 0;
        while self.skimmer.next_prefix(&mut data).is_some() {
            whole += 1;
        }
        if whole > 0 {
            self.messages.sent(whole);
        }
    }
}

/// Writes bytes, waiting until the peer's windows take them.
pub async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let available = match poll_fn(|context| send.poll_capacity(context)).await {
            Some(capacity) => capacity?,
            None => return Err(h2::Reason::CANCEL.into()),
        };
        let chunk = data.split_to(available.min(data.len()));
        send.send_data(chunk, false)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::framing;
    use crate::{
        metrics::{Metrics, Observed},
        rules::methods,
    };

    #[tokio::test]
    async fn what_is_ready_only_after_the_deadline_is_late() {
        let now = Instant::now();
        let ready = async |deadline| until(deadline, async { Ok(()) }).await.map_err(|status| status.code());
        assert_eq!(ready(None).await, Ok(()));
        assert_eq!(ready(now.checked_add(std::time::Duration::from_secs(60))).await, Ok(()));
        assert_eq!(ready(Some(now)).await, Err(Code::DeadlineExceeded));
    }

    #[test]
    fn messages_are_counted_once_wherever_their_bytes_are_cut() {
        let mut stream = framing::frame(&[1; 40]).to_vec();
        stream.extend_from_slice(&framing::frame(&[]));
        stream.extend_from_slice(&framing::frame(&[2; 41]));
        for step in 1..stream.len() {
            let metrics = Metrics::new();
            let call = metrics.started(methods::find("/etcdserverpb.Watch/Watch").expect("a row"));
            let mut count = FrameCount { messages: call.messages(), ..FrameCount::default() };
            stream.chunks(step).for_each(|chunk| count.pass(chunk));
            let text = metrics.text(&Observed::default()).expect("it can be encoded");
            let sent = text.lines().find(|line| line.starts_with("grpc_server_msg_sent_total{"));
            assert!(sent.is_some_and(|line| line.ends_with(" 3")), "cut into {step}: {sent:?}");
        }
    }

    #[tokio::test]
    async fn a_panic_in_a_call_ends_that_call_with_internal_and_the_connection_goes_on() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(async move {
            let mut connection = h2::server::handshake(server).await.expect("the client speaks HTTP/2");
            let mut number = 0;
            while let Some(accepted) = connection.accept().await {
                let (_, respond) = accepted.expect("a request");
                number += 1;
                tokio::spawn(async move {
                    let mut replies = Replies::new(respond);
                    if number == 2 {
                        replies.begin(HeaderMap::new()).expect("the client listens");
                    }
                    assert!(number > 2, "a defect in call {number}");
                    replies.succeed();
                });
            }
        });
        let (mut calls, connection) = h2::client::handshake(client).await.expect("the server speaks HTTP/2");
        tokio::spawn(connection);
        for expected in ["13", "13", "0"] {
            calls = calls.ready().await.expect("the connection goes on");
            let request = http::Request::post("http://proxy/etcdserverpb.KV/Put").body(()).expect("a request");
            let (answer, _) = calls.send_request(request, true).expect("the connection takes it");
            let (head, mut body) = answer.await.expect("an answer").into_parts();
            let trailers = match head.headers.contains_key("grpc-status") {
                true => head.headers,
                false => body.trailers().await.expect("an end").expect("trailers"),
            };
            assert_eq!(trailers.get("grpc-status").map(HeaderValue::as_bytes), Some(expected.as_bytes()));
        }
        serving.abort();
    }
}
