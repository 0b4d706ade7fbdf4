//! Who may ask by HTTP at all, as etcd has it: which names the proxy answers to, and which web pages may read what it
//! says. gRPC needs neither, since no web page can speak it.

use axum::body::Body;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, HOST,
        ORIGIN, X_CONTENT_TYPE_OPTIONS,
    },
};

use crate::rules::status;

/// `--cors` and `--host-whitelist`. An empty list allows all, and so does `*` in one.
#[derive(Clone, Debug, Default)]
pub struct Access {
    pub origins: Vec<String>,
    pub hosts: Vec<String>,
}

const ANY: &str = "*";

impl Access {
    /// The headers that every answer to this request gets, or the answer that refuses it. Under TLS the certificate says
    /// whose the name is.
    pub fn judge<B>(&self, request: &Request<B>, is_secure: bool) -> Result<HeaderMap, Box<Response<Body>>> {
        let host = host_name(request);
        if !is_secure && !allows(&self.hosts, host) {
            tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
            return Err(Box::new(misdirected(host)));
        }
        let origin = request.headers().get(ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or_default();
        let allowed = match () {
            () if allows_any(&self.origins) => ANY,
            () if allows(&self.origins, origin) => origin,
            () => return Ok(HeaderMap::new()),
        };
        let mut headers = HeaderMap::with_capacity(3);
        let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        if let Ok(allowed) = HeaderValue::from_str(allowed) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        }
        let names = HeaderValue::from_static("accept, content-type, authorization");
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        Ok(headers)
    }
}

fn allows_any(list: &[String]) -> bool {
    list.is_empty() || list.iter().any(|allowed| allowed == ANY)
}

fn allows(list: &[String], one: &str) -> bool {
    allows_any(list) || list.iter().any(|allowed| allowed == one)
}

/// The name that the client knows the proxy by, without the port.
fn host_name<B>(request: &Request<B>) -> &str {
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    let header = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    without_port(authority.or_else(header).unwrap_or_default())
}

/// As Go's SplitHostPort, and the whole where that fails.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once("]:").map_or(host, |(name, _)| name);
    }
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

fn misdirected(host: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(status::unrecognized_host(host)));
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(origins: &[&str], hosts: &[&str], host: &str, origin: Option<&str>) -> Result<Option<String>, u16> {
        let list = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let access = Access { origins: list(origins), hosts: list(hosts) };
        let mut request = Request::get("/version").header(HOST, host);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        let request = request.body(()).expect("a request");
        let headers = access.judge(&request, false).map_err(|response| response.status().as_u16())?;
        let origin = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN);
        Ok(origin.map(|origin| origin.to_str().expect("printable").to_owned()))
    }

    #[test]
    fn pages_of_other_origins_read_what_they_may() {
        let star = Ok(Some("*".to_owned()));
        assert_eq!(judged(&[], &[], "a:1", None), star);
        assert_eq!(judged(&["*"], &["*"], "a:1", Some("http://x:1")), star);
        let one = ["http://x:1", "https://y:2"];
        assert_eq!(judged(&one, &[], "a:1", Some("https://y:2")), Ok(Some("https://y:2".to_owned())));
        assert_eq!(judged(&one, &[], "a:1", Some("http://z:1")), Ok(None));
        assert_eq!(judged(&one, &[], "a:1", None), Ok(None));
    }

    #[test]
    fn only_names_on_the_list_are_answered_to() {
        let star = Ok(Some("*".to_owned()));
        for host in ["etcd", "etcd:2379", "[::1]:2379"] {
            assert_eq!(judged(&[], &["etcd", "::1"], host, None), star, "{host}");
        }
        for host in ["evil", "evil:2379", "etcd.evil:1", "[::1]", "::1:2379", ""] {
            assert_eq!(judged(&[], &["etcd", "::1"], host, None), Err(421), "{host}");
        }
    }

    #[test]
    fn under_tls_the_certificate_says_whose_the_name_is() {
        let access = Access { origins: Vec::new(), hosts: vec!["etcd".to_owned()] };
        let request = Request::get("/version").header(HOST, "other").body(()).expect("a request");
        assert!(access.judge(&request, true).is_ok());
        assert!(access.judge(&request, false).is_err());
    }
}
