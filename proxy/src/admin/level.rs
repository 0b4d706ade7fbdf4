//! `/log-level`: what is logged, read and changed while the proxy runs.

use axum::{BoxError, body::Body};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use tracing::Level;

use super::{method_not_allowed, text};
use crate::logging;

/// A level has five letters; whatever is larger is none.
const MAX_BODY: usize = 64;

const WANTED: &str = "the body must be one of: debug, info, warn, error";

/// Answers with the level that holds from now on.
pub async fn answer<B>(request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    match *request.method() {
        Method::GET | Method::HEAD => (),
        Method::PUT => {
            // Any error means the same to the sender: this is not a level.
            let body = Limited::new(Box::pin(request.into_body()), MAX_BODY).collect().await.ok();
            let level = body.and_then(|body| parse(&body.to_bytes()));
            let Some(level) = level else { return text(StatusCode::BAD_REQUEST, format!("{WANTED}\n")) };
            logging::set_level(level);
            tracing::info!(level = name(logging::level()), "log level changed");
        }
        _ => return method_not_allowed("GET, HEAD, PUT"),
    }
    text(StatusCode::OK, format!("{}\n", name(logging::level())))
}

fn parse(body: &[u8]) -> Option<Level> {
    match body.trim_ascii() {
        b"debug" => Some(Level::DEBUG),
        b"info" => Some(Level::INFO),
        b"warn" => Some(Level::WARN),
        b"error" => Some(Level::ERROR),
        _ => None,
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    }
}
