//! Calls as raw bytes: whatever a client could put on the wire goes on it, and whatever comes back is kept.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Messages that are what they are.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

/// What came back.
#[derive(Debug, Default)]
pub struct Answer {
    pub messages: Vec<Bytes>,
    /// How it ended; nothing for a stream that was left open.
    pub status: Option<Status>,
}

impl Answer {
    pub fn is_ok(&self) -> bool {
        self.status.is_none()
    }

    /// Everything that the client was shown.
    pub fn text(&self) -> Vec<u8> {
        let mut shown: Vec<u8> = self.messages.iter().flatten().copied().collect();
        if let Some(status) = &self.status {
            shown.extend_from_slice(status.message().as_bytes());
            shown.extend_from_slice(status.details());
        }
        shown
    }
}

/// How long a stream may be silent until it is taken to have said all, and how long a call may block.
const SILENCE: Duration = Duration::from_millis(300);
/// A call that waits for somebody else.
pub const BLOCKED: &str = "blocked";

/// Sends one message and takes all that comes, until the end or until nothing more does.
pub async fn call(channel: &Channel, path: &'static str, message: Bytes, token: Option<&str>) -> Answer {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    if let Err(error) = grpc.ready().await {
        return Answer { status: Some(Status::unavailable(error.to_string())), ..Answer::default() };
    }
    // The stream stays open on our side, as a watcher's does; a unary call takes the first message and no more.
    let is_stream = path.ends_with("/Watch") || path.ends_with("/LeaseKeepAlive");
    let messages =
        tokio_stream::StreamExt::chain(tokio_stream::once(message), if is_stream { Rest::Pending } else { Rest::Over });
    let mut request = Request::new(messages);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().expect("a token is a header value"));
    }
    let mut answer = Answer::default();
    let path = http::uri::PathAndQuery::from_static(path);
    let opened = tokio::time::timeout(SILENCE * 3, grpc.streaming(request, path, RawCodec)).await;
    let mut stream = match opened {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Answer { status: Some(status), ..answer },
        Err(_) => return Answer { status: Some(Status::deadline_exceeded(BLOCKED)), ..answer },
    };
    loop {
        match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(message))) => answer.messages.push(message),
            Ok(Ok(None)) | Err(_) => return answer,
            Ok(Err(status)) => return Answer { status: Some(status), ..answer },
        }
    }
}

/// What follows the first message.
enum Rest {
    Over,
    Pending,
}

impl tokio_stream::Stream for Rest {
    type Item = Bytes;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Bytes>> {
        match *self {
            Rest::Over => std::task::Poll::Ready(None),
            Rest::Pending => std::task::Poll::Pending,
        }
    }
}
