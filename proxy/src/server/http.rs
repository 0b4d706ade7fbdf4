//! What is not gRPC on a connection: first whether it may ask at all, then the API in JSON, or the pages.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST, TRANSFER_ENCODING},
};
use http_body_util::BodyExt;

use super::{Front, received::Received};
use crate::{
    admin,
    exchange::Replies,
    json::{self, Answer, Door},
    rules::caller::Connection,
};

/// One connection's HTTP.
pub struct Http {
    front: Arc<Front>,
    is_secure: bool,
    /// Whether this client may see the pages that tell of everybody.
    sees_everybody: bool,
    /// The connection's identity towards the router.
    connect: Box<dyn Fn() -> Arc<Connection> + Send + Sync>,
    /// Made by the first request for JSON: most who speak HTTP here are probes, which need no way to etcd.
    door: OnceLock<Arc<Door>>,
    /// What the connection becomes when HTTP lets go of it.
    handover: Mutex<Option<Box<json::Session>>>,
}

impl Http {
    /// `connect` makes the connection's identity towards the router, once.
    pub fn new(
        front: Arc<Front>,
        is_secure: bool,
        sees_everybody: bool,
        connect: impl Fn() -> Arc<Connection> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (connect, door, handover) = (Box::new(connect), OnceLock::new(), Mutex::new(None));
        Arc::new(Self { front, is_secure, sees_everybody, connect, door, handover })
    }

    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if let Some(refusal) = refuse(&request) {
            return refusal;
        }
        let Some(access) = &self.front.access else { return self.dispatch(request).await };
        let headers = match access.judge(&request, self.is_secure) {
            Ok(headers) => headers,
            Err(refusal) => return *refusal,
        };
        let mut response = match *request.method() {
            // A browser asks for nothing else by it, and etcd answers it so for every path.
            Method::OPTIONS => Response::default(),
            _ => self.dispatch(request).await,
        };
        response.headers_mut().extend(headers);
        response
    }

    async fn dispatch<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let door = json::takes(request.uri().path()).then(|| self.door()).flatten();
        match door {
            Some(door) => match door.answer(request).await {
                Answer::Response(response) => response,
                Answer::Upgrade(response, session) => {
                    *self.handover.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
                    response
                }
            },
            None if self.sees_everybody || admin::tells_of_nobody(request.uri().path()) => {
                self.front.admin.answer(request).await
            }
            None => admin::kept_from_tenants(request.uri().path()),
        }
    }

    fn door(&self) -> Option<&Arc<Door>> {
        let (api, router) = (self.front.json.as_ref()?, self.front.router.as_ref()?);
        Some(self.door.get_or_init(|| Arc::new(Door::new(api.clone(), router.clone(), (self.connect)()))))
    }

    /// What the connection has become, once HTTP has let go of it.
    pub fn take_handover(&self) -> Option<Box<json::Session>> {
        self.handover.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Answers a request that came by HTTP/2.
    pub async fn serve_http2(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let is_head = request.method() == Method::HEAD;
        let mut replies = Replies::new(respond);
        let response = tokio::select! {
            response = self.answer(request.map(Received::new)) => response,
            _ = replies.gone() => return,
        };
        let (head, mut body) = response.into_parts();
        if replies.begin_http(head).is_err() {
            return;
        }
        if is_head {
            return replies.finish_http();
        }
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                _ = replies.gone() => return,
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if replies.data(data).await.is_err() {
                            return;
                        }
                    }
                    Err(frame) => return replies.finish(frame.into_trailers().unwrap_or_default()),
                },
                // Dropped without an end, the stream is reset, so that nobody takes a part for the whole.
                Some(Err(error)) => return tracing::debug!(%error, "an answer over HTTP broke off"),
                None => break,
            }
        }
        replies.finish_http();
    }
}

/// What Go's server refuses whatever is asked for.
fn refuse<B>(request: &Request<B>) -> Option<Response<Body>> {
    let headers = request.headers();
    let expects = headers.get(EXPECT).filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let is_nameless =
        request.version() == Version::HTTP_11 && !headers.contains_key(HOST) && request.uri().authority().is_none();
    let mut hosts = headers.get_all(HOST).iter();
    let is_misnamed = hosts.next().is_some_and(|host| !host.as_bytes().iter().all(may_stand_in_host));
    let is_strange =
        headers.get_all(TRANSFER_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    let (code, text) = match () {
        // Two readers of one request could take it for two different ones.
        () if hosts.next().is_some() => (StatusCode::BAD_REQUEST, "400 Bad Request"),
        () if is_strange => (StatusCode::NOT_IMPLEMENTED, "Unsupported transfer encoding"),
        () if is_misnamed => (StatusCode::BAD_REQUEST, "400 Bad Request: malformed Host header"),
        () if is_nameless => (StatusCode::BAD_REQUEST, "400 Bad Request: missing required Host header"),
        () if expects.is_some() => (StatusCode::EXPECTATION_FAILED, ""),
        () => return None,
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    if !text.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    Some(response)
}

/// What Go's server takes in a Host header: the characters of names, addresses and ports, and some for the sake of peace.
fn may_stand_in_host(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(byte)
}
