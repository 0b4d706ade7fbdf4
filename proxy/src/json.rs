//! etcd's API as HTTP/JSON, `/v3/...`, as etcd serves it by grpc-gateway: by descriptor, with no code for any RPC.
//!
//! It is a client of this very process: each request becomes a gRPC call in memory, into the router of the connection
//! that it came by.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, LOCATION, TE, TRAILER, WWW_AUTHENTICATE},
};
use http_body::Frame;
use http_body_util::StreamBody;

use crate::{
    router::Router,
    rules::{
        caller::Connection,
        status::{self, Code, Status},
    },
};

mod call;
mod decode;
mod encode;
mod exchange;
#[cfg(test)]
mod foreign;
mod headers;
mod openapi;
pub mod path;
mod scan;
mod schema;
mod token;
mod websocket;

use call::{Calls, End};
use encode::Place;
use exchange::{Event, Exchange, Source, SourceEnd};
use schema::{Route, Schema};

pub use path::takes;
pub use websocket::Session;

/// What all connections share: the paths and their messages.
pub struct Api {
    schema: Schema,
    openapi: Bytes,
}

/// One client connection's way to the RPCs.
pub struct Door {
    api: Arc<Api>,
    calls: Calls,
}

/// What a request comes to.
pub enum Answer {
    Response(Response<Body>),
    /// The connection is to be handed over after this response.
    Upgrade(Response<Body>, Box<Session>),
}

/// JSON is longer than the message that it says, by a third for bytes in base64, and by blanks and names; beyond this
/// many times the largest message it is not held any more.
const TEXT_FACTOR: usize = 2;
/// The document that describes all paths.
const OPENAPI_PATH: &str = "/openapi.json";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METHOD_OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");
const FORM: &str = "application/x-www-form-urlencoded";

/// A request's way to its RPC, whatever brought it.
struct Asked {
    headers: HeaderMap,
    host: Option<String>,
    peer: Option<SocketAddr>,
    source: Source,
    source_end: SourceEnd,
}

/// What an RPC answered, before it is put into HTTP or WebSocket.
enum Answered {
    Whole {
        code: StatusCode,
        headers: HeaderMap,
        text: String,
        trailers: HeaderMap,
    },
    Stream {
        code: StatusCode,
        headers: HeaderMap,
        first: Option<String>,
        rest: Box<Exchange>,
    },
    /// Nobody is left to hear it.
    Gone,
}

impl Api {
    pub fn new() -> Self {
        let schema = Schema::of_etcd();
        let openapi = openapi::document(&schema).into();
        Self { schema, openapi }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self::new()
    }
}

impl Door {
    pub fn new(api: Arc<Api>, router: Arc<Router>, connection: Arc<Connection>) -> Self {
        Self { api, calls: Calls::new(router, connection) }
    }

    /// Answers a request to a path that [`takes`] takes.
    pub async fn answer<B>(self: &Arc<Self>, mut request: Request<B>) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let path = path::decoded(request.uri().path());
        if path == OPENAPI_PATH {
            return Answer::Response(self.openapi(request.method()));
        }
        let path = path::current(&path);
        if let Some(location) = path::cleaned(&path) {
            return Answer::Response(redirect(request.method(), &location, request.uri().query()));
        }
        if websocket::is_asked_for(request.headers()) {
            return websocket::accept(self.clone(), &mut request, path);
        }
        let wants_trailers = request
            .headers()
            .get_all(TE)
            .iter()
            .any(|value| value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("trailers")));
        let (mut head, body) = request.into_parts();
        let mut source: Source =
            Box::pin(Body::new(body).into_data_stream().map(|data| data.map_err(Into::into)).fuse());
        let is_form = head.headers.get(CONTENT_TYPE).is_some_and(|value| value == FORM);
        if head.method == Method::POST
            && is_form
            && let Some(method) = head.headers.get(METHOD_OVERRIDE)
        {
            head.method = Method::from_bytes(method.as_bytes().to_ascii_uppercase().as_slice()).unwrap_or(Method::GET);
            // Go reads the body as a form here, and then there is nothing left of it.
            source = Box::pin(stream::empty());
        }
        let host = head.uri.authority().map(ToString::to_string);
        let host = host.or_else(|| Some(head.headers.get(http::header::HOST)?.to_str().ok()?.to_owned()));
        let peer = self.calls.connection().peer;
        let asked = Asked { headers: head.headers, host, peer, source, source_end: SourceEnd::NothingMore };
        let answered = self.ask(&head.method, &path, asked).await;
        Answer::Response(in_http(answered, wants_trailers))
    }

    async fn ask(&self, method: &Method, path: &str, asked: Asked) -> Answered {
        match self.api.schema.find(path) {
            None => refused(&status::no_such_path()),
            Some(_) if method != Method::POST => refused(&status::method_not_allowed()),
            Some(route) => self.call(route, asked).await.unwrap_or_else(|refusal| refused(&refusal)),
        }
    }

    async fn call(&self, route: &Route, mut asked: Asked) -> Result<Answered, Status> {
        let metadata = headers::to_grpc(&asked.headers, asked.host.as_deref(), asked.peer)?;
        let deadline = metadata.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let limit = self.calls.max_request().saturating_mul(TEXT_FACTOR);
        let (source_end, source) = (asked.source_end, &mut asked.source);
        let mut exchange = if route.takes_stream {
            let call = self.calls.begin(route, metadata).await?;
            Exchange::fed_by(call, route, asked.source, source_end, limit)
        } else {
            let message = exchange::read_one(source, route, limit, source_end).await?;
            let Some(message) = message else { return Ok(Answered::Gone) };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                // An answer that is at hand would come sooner than the timer.
                return Err(status::deadline_exceeded());
            }
            let call = self.calls.begin(route, metadata).await?;
            Exchange::of_one(call, route, &message, asked.source, source_end)
        };
        let first = exchange.next().await;
        Ok(if route.gives_stream { begin_stream(exchange, first) } else { whole(exchange, route, first).await })
    }

    fn openapi(&self, method: &Method) -> Response<Body> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return in_http(refused(&status::method_not_allowed()), false);
        }
        let mut response = Response::new(Body::from(self.api.openapi.clone()));
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        response
    }
}

/// A refusal before any call was made.
fn refused(refusal: &Status) -> Answered {
    failed(refusal, &HeaderMap::new(), &HeaderMap::new())
}

fn failed(failure: &Status, metadata: &HeaderMap, trailers: &HeaderMap) -> Answered {
    let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, JSON)]);
    headers::to_http(metadata, &mut headers);
    if failure.code() == Code::Unauthenticated
        && let Ok(message) = HeaderValue::from_str(failure.message())
    {
        headers.insert(WWW_AUTHENTICATE, message);
    }
    let text = encode::status(failure, Place::Answer);
    Answered::Whole { code: http_code(failure), headers, text, trailers: headers::trailers(trailers) }
}

/// The answer of an RPC that gives one.
async fn whole(mut exchange: Exchange, route: &Route, first: Event) -> Answered {
    let (message, end) = match first {
        Event::Message(message) => match exchange.next().await {
            Event::End(end) => (Some(message), end),
            Event::Gone => return Answered::Gone,
            Event::Refused(refusal) => return refused(&refusal),
            Event::Message(_) => return refused(&status::unreadable_answer("a second message")),
        },
        Event::End(end) => (None, end),
        Event::Refused(refusal) => return refused(&refusal),
        Event::Gone => return Answered::Gone,
    };
    let End { outcome, trailers } = end;
    let written = outcome.and_then(|()| {
        let message = message.ok_or_else(|| status::unreadable_answer("no message"))?;
        encode::message(&route.output, message, Place::Answer).map_err(status::unreadable_answer)
    });
    match written {
        Err(failure) => failed(&failure, exchange.metadata(), &trailers),
        Ok(text) => {
            let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, JSON)]);
            headers::to_http(exchange.metadata(), &mut headers);
            Answered::Whole { code: StatusCode::OK, headers, text, trailers: headers::trailers(&trailers) }
        }
    }
}

/// The answer of an RPC that gives any number of messages. Its head waits for the first, as in etcd.
fn begin_stream(mut exchange: Exchange, first: Event) -> Answered {
    let code = match &first {
        Event::Message(_) | Event::End(End { outcome: Ok(()), .. }) => StatusCode::OK,
        Event::End(End { outcome: Err(failure), .. }) => http_code(failure),
        Event::Refused(refusal) => return refused(refusal),
        Event::Gone => return Answered::Gone,
    };
    let mut headers = HeaderMap::new();
    headers::to_http(exchange.metadata(), &mut headers);
    let first = exchange.line(first);
    if first.is_some() {
        headers.insert(CONTENT_TYPE, JSON);
    }
    Answered::Stream { code, headers, first, rest: Box::new(exchange) }
}

fn http_code(status: &Status) -> StatusCode {
    StatusCode::from_u16(status::http_status(status.code())).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn in_http(answered: Answered, wants_trailers: bool) -> Response<Body> {
    let (code, mut headers, body) = match answered {
        Answered::Whole { code, headers, text, .. } if !wants_trailers => (code, headers, Body::from(text)),
        Answered::Whole { code, mut headers, text, trailers } => {
            for name in trailers.keys() {
                headers.extend(HeaderValue::try_from(headers::canonical(name)).map(|name| (TRAILER, name)));
            }
            let text = Some(Frame::data(Bytes::from(text)));
            let trailers = (!trailers.is_empty()).then(|| Frame::trailers(trailers));
            let frames = text.into_iter().chain(trailers).map(Ok::<_, BoxError>);
            (code, headers, Body::new(StreamBody::new(stream::iter(frames))))
        }
        Answered::Stream { code, headers, first, rest } => {
            let rest = stream::unfold(rest, |mut rest| async move { Some((rest.next_line().await?, rest)) });
            let lines = stream::iter(first).chain(rest).map(Ok::<_, BoxError>);
            (code, headers, Body::from_stream(lines))
        }
        Answered::Gone => (StatusCode::BAD_REQUEST, HeaderMap::new(), Body::empty()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    std::mem::swap(response.headers_mut(), &mut headers);
    response
}

/// Go's multiplexer sends a client on to the path as it should be.
fn redirect(method: &Method, location: &str, query: Option<&str>) -> Response<Body> {
    let location = path::escaped(location) + &query.map(|query| format!("?{query}")).unwrap_or_default();
    let is_shown = matches!(*method, Method::GET | Method::HEAD);
    let shown = location.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
    let body = format!("<a href=\"{shown}\">Temporary Redirect</a>.\n\n");
    let mut response = Response::new(if is_shown { Body::from(body) } else { Body::empty() });
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    if is_shown {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    }
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
