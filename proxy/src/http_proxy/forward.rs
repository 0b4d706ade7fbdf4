//! One request: what of it goes to a member, to which, and what of the answer comes back.

use std::{net::IpAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CONNECTION,
        CONTENT_TYPE, EXPECT, HOST, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};

use super::{
    director::Director,
    origin::Origin,
    pool::{Body, Failure, Pool},
};
use crate::metrics::http_proxy::{Drop, Metrics};

/// A body up to this size is kept until a member has answered, so that another one can be asked. etcd takes requests of
/// 1.5 MiB by default, which JSON makes longer by a third; what is larger streams through, and is sent once.
const MAX_KEPT_BODY: u64 = 2 << 20;

/// Headers that are between two neighbours only (RFC 9110, section 7.6.1), as in etcd.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    HeaderName::from_static("trailers"),
    TRANSFER_ENCODING,
    UPGRADE,
    // This proxy has answered it itself.
    EXPECT,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxy as one thread has it.
#[derive(Clone)]
pub struct Forward {
    pub director: Arc<Director>,
    pub pool: Pool,
    pub metrics: Arc<Metrics>,
    pub is_readonly: bool,
    /// Origins that browsers may ask from, or `*`.
    pub cors: Arc<Vec<String>>,
}

/// What is sent, once or as often as need be.
enum Content {
    Kept(Bytes),
    Streamed(Option<Body>),
}

impl Content {
    fn next(&mut self) -> Option<Body> {
        match self {
            Content::Kept(bytes) => Some(Full::new(bytes.clone()).map_err(|never| match never {}).boxed()),
            Content::Streamed(body) => body.take(),
        }
    }
}

impl Forward {
    /// Answers one request of a client at `peer`.
    pub async fn answer(&self, request: Request<Incoming>, peer: Option<IpAddr>) -> Response<Body> {
        if let Some(refused) = malformed(&request) {
            return refused;
        }
        if self.is_readonly && request.method() != Method::GET {
            return plain(StatusCode::NOT_IMPLEMENTED, "");
        }
        let allowed = self.allowed_origin(request.headers());
        let mut response = if request.method() == Method::OPTIONS {
            plain(StatusCode::OK, "")
        } else if request.uri().path() == "/v2/config/local/proxy" {
            self.configuration(request.method())
        } else {
            self.forward(request, peer).await
        };
        if let Some(origin) = allowed {
            let headers = response.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"));
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers
                .insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("accept, content-type, authorization"));
        }
        response
    }

    fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.cors.iter().any(|allowed| allowed == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = headers.get(ORIGIN)?;
        self.cors.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }

    /// Whom requests go to, as etcd's proxy tells it.
    fn configuration(&self, method: &Method) -> Response<Body> {
        if method != Method::GET {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return refused;
        }
        let endpoints = self.director.available();
        let urls: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.origin.url.as_str()).collect();
        plain(StatusCode::OK, format!("{}\n", serde_json::json!({ "endpoints": urls })))
    }

    async fn forward(&self, request: Request<Incoming>, peer: Option<IpAddr>) -> Response<Body> {
        let started = Instant::now();
        let (mut head, body) = request.into_parts();
        let method = head.method.clone();
        self.metrics.incoming(method.as_str());
        let mut content = match body.size_hint().exact() {
            Some(size) if size <= MAX_KEPT_BODY => match body.collect().await {
                Ok(body) => Content::Kept(body.to_bytes()),
                Err(error) => {
                    tracing::info!(%error, "failed to read request body");
                    let message = format!("failed to read request body: {error}");
                    return refusal(StatusCode::INTERNAL_SERVER_ERROR, &message);
                }
            },
            _ => Content::Streamed(Some(body.boxed())),
        };
        without_hops(&mut head.headers);
        forwarded_for(&mut head.headers, peer);
        // Who asks for a whole URL names the host there (RFC 9112, section 3.2.2), perhaps with a user before it.
        let named = head.uri.authority().map(|named| named.as_str().rsplit('@').next().unwrap_or_default());
        if let Some(Ok(host)) = named.map(HeaderValue::try_from) {
            head.headers.insert(HOST, host);
        }
        let endpoints = self.director.available();
        if endpoints.is_empty() {
            self.metrics.dropped(method.as_str(), Drop::ZeroEndpoints);
            tracing::info!("zero endpoints currently available");
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "zero endpoints currently available");
        }
        for endpoint in &endpoints {
            let Some(body) = content.next() else { break };
            match self.pool.send(&endpoint.origin, again(&head, body, &endpoint.origin)).await {
                Ok(response) => {
                    self.metrics.handled(method.as_str(), response.status().as_u16(), started.elapsed());
                    let mut response = response.map(|body| body.boxed());
                    // What the member speaks is between it and this proxy; the client's connection goes on.
                    *response.version_mut() = Version::HTTP_11;
                    without_hops(response.headers_mut());
                    return response;
                }
                Err(failure) => {
                    self.metrics.dropped(method.as_str(), Drop::FailedSendingRequest);
                    tracing::info!(url = endpoint.origin.url, error = %failure, "failed to direct request");
                    self.director.failed(endpoint);
                    match failure {
                        Failure::Unsent { request, .. } => {
                            if let Content::Streamed(body) = &mut content {
                                *body = Some(request.into_body());
                            }
                        }
                        // A member may have acted upon it, so that doing it elsewhere would do it twice.
                        Failure::Broken(_) if !method.is_safe() => break,
                        Failure::Broken(_) => (),
                    }
                }
            }
        }
        self.metrics.dropped(method.as_str(), Drop::FailedGettingResponse);
        let message = format!("unable to get response from {} endpoint(s)", endpoints.len());
        tracing::info!("{message}");
        refusal(StatusCode::BAD_GATEWAY, &message)
    }
}

/// What is refused before any member is asked, as by Go's server.
fn malformed<B>(request: &Request<B>) -> Option<Response<Body>> {
    let headers = request.headers();
    if request.method() == Method::CONNECT {
        return Some(plain(StatusCode::NOT_FOUND, "404 page not found\n"));
    }
    if request.version() == Version::HTTP_11 && !headers.contains_key(HOST) {
        let mut refused = plain(StatusCode::BAD_REQUEST, "400 Bad Request: missing required Host header");
        refused.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Some(refused);
    }
    let expects = headers.get(EXPECT)?;
    if expects.is_empty() || expects.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return None;
    }
    let mut refused = plain(StatusCode::EXPECTATION_FAILED, "");
    refused.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Some(refused)
}

/// The request for one more member: of its URI only the path, as the member is told by the connection. HTTP/1.0 knows
/// requests for no host in particular, which a health check of HAProxy is; members want to be named.
fn again(head: &Parts, body: Body, member: &Origin) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = head.headers.clone();
    if let Ok(host) = HeaderValue::try_from(member.authority()) {
        request.headers_mut().entry(HOST).or_insert(host);
    }
    *request.uri_mut() = head.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| path.clone().into());
    request
}

fn without_hops(headers: &mut HeaderMap) {
    // Those that this hop has named are its own as well.
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The client's address behind those of the proxies before this one.
fn forwarded_for(headers: &mut HeaderMap, peer: Option<IpAddr>) {
    let Some(peer) = peer else { return };
    let mut value = Vec::new();
    for prior in headers.get_all(FORWARDED_FOR) {
        value.extend_from_slice(prior.as_bytes());
        value.extend_from_slice(b", ");
    }
    value.extend_from_slice(peer.to_canonical().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&value) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// An error as etcd's proxy writes it.
fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    let text = serde_json::json!({ "message": format!("httpproxy: {message}") }).to_string();
    let mut response = plain(status, text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A text, or with none an answer that is only its head.
pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let text = text.into();
    let is_empty = text.is_empty();
    let mut response = Response::new(Full::new(text).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    if !is_empty {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        pairs.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    #[test]
    fn headers_of_one_hop_and_those_that_it_names_stay_behind() {
        let mut given = headers(&[
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("authorization", "Basic eA=="),
            ("accept", "*/*"),
        ]);
        without_hops(&mut given);
        assert_eq!(given, headers(&[("authorization", "Basic eA=="), ("accept", "*/*")]));
    }

    #[test]
    fn what_gos_server_refuses_reaches_no_member() {
        let request = |version, method: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().version(version).method(method).uri("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            malformed(&request.body(()).expect("a request")).map(|refused| refused.status().as_u16())
        };
        let host = ("host", "a");
        for (version, method, headers, expected) in [
            (Version::HTTP_11, "GET", vec![host], None),
            (Version::HTTP_11, "GET", vec![], Some(400)),
            (Version::HTTP_10, "GET", vec![], None),
            (Version::HTTP_11, "CONNECT", vec![host], Some(404)),
            (Version::HTTP_11, "PUT", vec![host, ("expect", "100-Continue")], None),
            (Version::HTTP_11, "PUT", vec![host, ("expect", "")], None),
            (Version::HTTP_11, "PUT", vec![host, ("expect", "200-ok")], Some(417)),
        ] {
            assert_eq!(request(version, method, &headers), expected, "{version:?} {method} {headers:?}");
        }
    }

    #[test]
    fn a_member_is_named_where_the_client_named_none() {
        let member = Origin::parse("http://a.example:2379").expect("a good URL");
        for (named, expected) in [(None, "a.example:2379"), (Some("b"), "b")] {
            let mut request = Request::get("/");
            if let Some(host) = named {
                request = request.header(HOST, host);
            }
            let (head, ()) = request.body(()).expect("a request").into_parts();
            let sent = again(&head, Full::default().map_err(|never| match never {}).boxed(), &member);
            assert_eq!(sent.headers()[HOST], expected);
        }
    }

    #[test]
    fn the_client_stands_behind_the_proxies_before_this_one() {
        let mut given = headers(&[("x-forwarded-for", "10.0.0.1"), ("x-forwarded-for", "10.0.0.2, 10.0.0.3")]);
        forwarded_for(&mut given, Some("::ffff:10.0.0.4".parse().expect("an address")));
        assert_eq!(given, headers(&[("x-forwarded-for", "10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4")]));
        let mut given = headers(&[]);
        forwarded_for(&mut given, None);
        assert_eq!(given, headers(&[]), "a unix socket has no address");
    }
}
