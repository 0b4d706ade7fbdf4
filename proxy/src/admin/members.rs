//! `/metrics` and `/version`, which are an etcd member's.

use axum::body::Body;
use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Limited};

use super::{text, with_type};
use crate::upstream::{
    Upstream,
    pages::{PageBody, PageError},
};

/// etcd's versions have some hundred bytes.
const MAX_VERSION: usize = 64 << 10;

/// The metrics of one member, as it gives them.
pub async fn metrics(upstream: &Upstream) -> Response<Body> {
    match upstream.page("/metrics").await {
        Ok(page) => passed(page),
        Err(error) => refuse("/metrics", &error),
    }
}

/// The versions of one member, and ours beside them under a name that etcd does not use.
pub async fn version(upstream: &Upstream) -> Response<Body> {
    let page = match upstream.page("/version").await {
        Ok(page) if page.status() == StatusCode::OK => page,
        Ok(page) => return passed(page),
        Err(error) => return refuse("/version", &error),
    };
    let body = Limited::new(page.into_body(), MAX_VERSION).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    match with_ours(&body) {
        Some(versions) => with_type(StatusCode::OK, "application/json", versions),
        None => text(StatusCode::BAD_GATEWAY, "the /version of the etcd member is no JSON object; is it an etcd?\n"),
    }
}

/// Adds our version to a JSON object and leaves the rest as it is written.
fn with_ours(versions: &[u8]) -> Option<String> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(versions).ok()?;
    let open = std::str::from_utf8(versions).ok()?.trim_end().strip_suffix('}')?;
    let comma = if object.is_empty() { "" } else { "," };
    Some(format!("{open}{comma}\"etcdproxy\":\"{}\"}}", env!("CARGO_PKG_VERSION")))
}

/// The member's own status, type and body, without what belongs to the connection to it.
fn passed(page: Response<PageBody>) -> Response<Body> {
    let (head, body) = page.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = head.status;
    if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    response
}

fn refuse(path: &str, error: &PageError) -> Response<Body> {
    tracing::warn!(path, %error, "cannot pass on a page of etcd");
    text(
        error.http_status(),
        format!("{path} is an etcd member's, and {error}; this proxy's own metrics are at /proxy/metrics\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_version_stands_beside_those_of_etcd() {
        let ours = env!("CARGO_PKG_VERSION");
        assert_eq!(
            with_ours(br#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0"}"#),
            Some(format!(r#"{{"etcdserver":"3.7.3","etcdcluster":"3.7.0","etcdproxy":"{ours}"}}"#))
        );
        assert_eq!(with_ours(b"{ }"), Some(format!(r#"{{ "etcdproxy":"{ours}"}}"#)));
        for nonsense in ["", "[]", "null", "{", "<html></html>"] {
            assert_eq!(with_ours(nonsense.as_bytes()), None, "{nonsense}");
        }
    }
}
