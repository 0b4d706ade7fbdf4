//! A request on its way up: its head, and a last look at what it stores.

use http::{HeaderValue, Method as HttpMethod, Request};

use super::endpoint::{Endpoint, Security};
use crate::{
    admission,
    rules::{
        caller::Caller,
        framing,
        methods::Method,
        namespace::Shape,
        status::{self, Status},
        tenant::policy,
    },
};

/// The request head: the caller's metadata under the endpoint's authority.
pub fn head(caller: &Caller, path: &str, endpoint: &Endpoint) -> Result<Request<()>, http::Error> {
    let scheme = if endpoint.security == Security::Always { "https" } else { "http" };
    let uri = http::Uri::builder().scheme(scheme).authority(endpoint.authority()).path_and_query(path).build()?;
    let mut request = Request::new(());
    *request.method_mut() = HttpMethod::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = uri;
    *request.headers_mut() = caller.metadata.clone();
    let headers = request.headers_mut();
    headers.entry(http::header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/grpc"));
    headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    Ok(request)
}

/// Whether there is still room for what a call stores that had to wait for its turn: whatever its tenant sent before it has
/// been let through since it was first looked at.
pub fn check_room(caller: &Caller, method: &Method, body: &[u8]) -> Result<(), Status> {
    let usage = &caller.tenant().usage;
    let stores = usage.has_quota()
        && match (method.keys.request, framing::parse_prefix(body)) {
            (Some(Shape::Put), _) => true,
            // What cannot be read here was judged by who could.
            (Some(Shape::Txn), Ok(Some((false, _)))) => policy::txn_puts(&body[framing::PREFIX_LEN..]).unwrap_or(true),
            _ => false,
        };
    if stores { usage.has_room(admission::now()).map_err(status::exhausted) } else { Ok(()) }
}
