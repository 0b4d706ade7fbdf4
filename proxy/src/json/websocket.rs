//! The same API over WebSocket, as etcd's gateway has it: each text that the client sends is a request, each that it
//! gets is an answer. A browser, which cannot set headers there, brings its token as a subprotocol or a cookie.

use std::{sync::Arc, time::Duration};

use axum::{BoxError, body::Body};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, Stream, StreamExt, future};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_TYPE, COOKIE, ORIGIN, REFERER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, X_CONTENT_TYPE_OPTIONS,
    },
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{Answer, Answered, Asked, Door, TEXT_FACTOR, exchange::SourceEnd};

/// A WebSocket that is about to begin, when HTTP has let go of the connection.
pub struct Session {
    upgrade: OnUpgrade,
    door: Arc<Door>,
    path: String,
    headers: HeaderMap,
}

const VERSION: HeaderValue = HeaderValue::from_static("13");
const BEARER: &str = "Bearer";
/// How long a client that may not read any more has to take the goodbye.
const GOODBYE: Duration = Duration::from_secs(5);
/// The cookie that is a token.
const TOKEN_COOKIE: &str = "token";
/// What WebSocket asks a key to be.
const KEY_LENGTH: usize = 16;

/// Whether a request wants the connection for WebSocket.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, "websocket")
}

/// Agrees, or refuses in the way of etcd's gateway.
pub fn accept<B>(door: Arc<Door>, request: &mut Request<B>, path: String) -> Answer {
    let headers = request.headers();
    let code = match () {
        () if request.method() != Method::GET => StatusCode::METHOD_NOT_ALLOWED,
        () if !has_token(headers, &SEC_WEBSOCKET_VERSION, "13") => StatusCode::BAD_REQUEST,
        () if !is_key(headers.get(SEC_WEBSOCKET_KEY)) => StatusCode::BAD_REQUEST,
        () => StatusCode::SWITCHING_PROTOCOLS,
    };
    if code != StatusCode::SWITCHING_PROTOCOLS {
        return Answer::Response(refuse(code));
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    let answer = response.headers_mut();
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if let Ok(accepted) = HeaderValue::try_from(derive_accept_key(key)) {
        answer.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    }
    if headers.get(SEC_WEBSOCKET_PROTOCOL).is_some_and(|value| value.as_bytes().starts_with(BEARER.as_bytes())) {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
    }
    let headers = forwarded(headers);
    let upgrade = hyper::upgrade::on(request);
    Answer::Upgrade(response, Box::new(Session { upgrade, door, path, headers }))
}

impl Session {
    /// Serves the one call of the connection, until either side ends it.
    pub async fn run(self) {
        let Self { upgrade, door, path, headers } = self;
        let socket = match upgrade.await {
            Ok(socket) => TokioIo::new(socket),
            Err(error) => return tracing::debug!(%error, "a connection was not handed over to WebSocket"),
        };
        let limit = door.calls.max_request().saturating_mul(TEXT_FACTOR);
        let socket = serving(socket, limit).await;
        let (mut sink, stream) = socket.split();
        let peer = door.calls.connection().peer;
        let source = Box::pin(texts(stream));
        let asked = Asked { headers, host: None, peer, source, source_end: SourceEnd::Gone };
        let ended = match door.ask(&Method::POST, &path, asked).await {
            // It may have said goodbye first, and wants to hear the same.
            Answered::Gone => Ok(()),
            Answered::Whole { text, .. } => sink.send(Message::text(text)).await,
            Answered::Stream { first, mut rest, .. } => {
                let mut line = first;
                loop {
                    let Some(text) = line else { break Ok(()) };
                    if let Err(error) = sink.send(Message::text(text.trim_end())).await {
                        break Err(error);
                    }
                    line = rest.next_line().await;
                }
            }
        };
        // It fails when the client has gone, and then there is nobody to say goodbye to.
        if ended.is_ok() {
            let _ = tokio::time::timeout(GOODBYE, sink.close()).await;
        }
    }
}

/// Our end of a WebSocket on which a text may have so many bytes.
pub(super) async fn serving<S: AsyncRead + AsyncWrite + Unpin>(socket: S, limit: usize) -> WebSocketStream<S> {
    let config = WebSocketConfig::default().max_message_size(Some(limit)).max_frame_size(Some(limit));
    WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await
}

/// What the client says, a line for each text, until it leaves.
pub(super) fn texts(
    stream: impl Stream<Item = Result<Message, tungstenite::Error>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send {
    let until_closed =
        stream.take_while(|message| future::ready(matches!(message, Ok(message) if !message.is_close())));
    let lines = until_closed.filter_map(|message| {
        let data = match message {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => Some(message.into_data()),
            // Pings are answered where they are read.
            _ => None,
        };
        future::ready(data.map(|data| {
            let mut line = BytesMut::with_capacity(data.len() + 1);
            line.put_slice(&data);
            line.put_u8(b'\n');
            Ok(line.freeze())
        }))
    });
    lines.fuse()
}

/// Of the headers that opened the connection, those that speak for its call.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut forwarded = HeaderMap::new();
    for name in [ORIGIN, REFERER] {
        if let Some(value) = headers.get(&name) {
            forwarded.insert(name, value.clone());
        }
    }
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let protocol = text(&SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.split_once("Bearer,"));
    let token = protocol.map(|(_, token)| token.trim_matches(' '));
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookie = cookies.flat_map(|value| value.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == TOKEN_COOKIE).then(|| value.trim_matches('"'))
    });
    if let Some(token) = cookie.or(token)
        && let Ok(value) = HeaderValue::try_from(format!("{BEARER} {token}"))
    {
        forwarded.insert(AUTHORIZATION, value);
    }
    forwarded
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
}

fn is_key(key: Option<&HeaderValue>) -> bool {
    key.is_some_and(|key| STANDARD.decode(key.as_bytes()).is_ok_and(|key| key.len() == KEY_LENGTH))
}

fn refuse(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{}\n", code.canonical_reason().unwrap_or_default())));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_VERSION, VERSION);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_a_request_for_websocket_is_one() {
        for (connection, upgrade, expected) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, Upgrade", "WebSocket", true),
            ("keep-alive", "websocket", false),
            ("Upgrade", "h2c", false),
        ] {
            assert_eq!(is_asked_for(&headers(&[(CONNECTION, connection), (UPGRADE, upgrade)])), expected);
        }
        assert!(is_key(Some(&HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="))));
        assert!(!is_key(Some(&HeaderValue::from_static("dGhlIHNhbXBs"))));
        assert!(!is_key(None));
    }

    #[test]
    fn a_token_comes_by_subprotocol_or_cookie() {
        let token = |lines: &[(HeaderName, &'static str)]| {
            forwarded(&headers(lines)).get(AUTHORIZATION).map(|value| value.to_str().expect("printable").to_owned())
        };
        assert_eq!(token(&[(SEC_WEBSOCKET_PROTOCOL, "Bearer, abc.1")]).as_deref(), Some("Bearer abc.1"));
        assert_eq!(token(&[(SEC_WEBSOCKET_PROTOCOL, "Bearer,abc.1")]).as_deref(), Some("Bearer abc.1"));
        assert_eq!(token(&[(SEC_WEBSOCKET_PROTOCOL, "chat")]), None);
        let both = [(SEC_WEBSOCKET_PROTOCOL, "Bearer, abc.1"), (COOKIE, "a=b; token=xyz")];
        assert_eq!(token(&both).as_deref(), Some("Bearer xyz"));
        assert_eq!(token(&[]), None);
    }
}
