//! The pages of a front door without gRPC on its metrics addresses: metrics, health, readiness and version.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    drain::{Observer, Watcher},
    server,
};

/// Prometheus, a probe and a few people have room in this; whoever opens more has lost track of them.
const MAX_CONNECTIONS: usize = 512;
/// How long a request's head may take, so that a reader that never asks does not hold one of the connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait after `accept` fails for want of file descriptors, so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// What the pages tell of.
pub trait Watched: Send + Sync + 'static {
    /// Prometheus' text.
    fn metrics(&self) -> String;
    /// Why no client can be served, if none can.
    fn failure(&self) -> Option<String>;
}

/// A listener for these pages.
pub struct Listener {
    listener: TcpListener,
    pub address: SocketAddr,
}

/// Binds before anything else starts, so that a bad address is a start-up error.
pub async fn bind(address: &str) -> std::io::Result<Listener> {
    let (listener, address) = server::bind(address).await?.into_parts();
    Ok(Listener { listener, address })
}

/// Serves the pages until the drain of the metrics addresses begins; `clients` tells whether clients are still served.
pub async fn serve(listener: Listener, watched: Arc<impl Watched>, clients: Observer, mut drain: Watcher) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.signaled() => return,
            accepted = listener.listener.accept() => accepted,
        };
        let Ok((socket, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            continue;
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!(%peer, limit = MAX_CONNECTIONS, "refused a connection to a metrics address, too many are open");
            continue;
        };
        let (watched, clients) = (watched.clone(), clients.clone());
        let mut end = drain.observer();
        tokio::spawn(async move {
            let _permit = permit;
            let answer = move |request: Request<hyper::body::Incoming>| {
                let answer = page(&request, watched.as_ref(), clients.is_signaled());
                async move { Ok::<_, Infallible>(answer) }
            };
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(socket), hyper::service::service_fn(answer));
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => drop(ended),
                () = end.signaled() => {
                    connection.as_mut().graceful_shutdown();
                    // A reader that is gone needs no answer.
                    let _ = connection.await;
                }
            }
        });
    }
}

fn page<B>(request: &Request<B>, watched: &impl Watched, draining: bool) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    }
    let failure = || if draining { Some("this proxy drains; go to another one".to_owned()) } else { watched.failure() };
    match request.uri().path() {
        "/metrics" | "/proxy/metrics" => {
            let mut page = text(StatusCode::OK, watched.metrics());
            page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
            page
        }
        "/health" | "/proxy/health" => match watched.failure() {
            None => text(StatusCode::OK, r#"{"health":"true","reason":""}"#),
            Some(reason) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                serde_json::json!({ "health": "false", "reason": reason }).to_string(),
            ),
        },
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match failure() {
            None => text(StatusCode::OK, "ok\n"),
            Some(why) => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("[-]ready failed: {why}\nreadyz check failed\n"))
            }
        },
        "/version" => text(StatusCode::OK, concat!(r#"{"etcd-proxy":""#, env!("CARGO_PKG_VERSION"), "\"}")),
        path => text(
            StatusCode::NOT_FOUND,
            format!("404 page not found: {path}; there are /metrics, /health, /livez, /readyz and /version\n"),
        ),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Option<&'static str>);

    impl Watched for Fixed {
        fn metrics(&self) -> String {
            "a_total 1\n".to_owned()
        }

        fn failure(&self) -> Option<String> {
            self.0.map(str::to_owned)
        }
    }

    #[test]
    fn readiness_follows_the_drain_and_the_endpoints_and_liveness_neither() {
        let status = |path: &str, failure, draining| {
            let request = Request::get(path).body(()).expect("a request");
            page(&request, &Fixed(failure), draining).status().as_u16()
        };
        for (path, failure, draining, expected) in [
            ("/metrics", None, false, 200),
            ("/health", None, true, 200),
            ("/health", Some("down"), false, 503),
            ("/readyz", None, false, 200),
            ("/readyz", None, true, 503),
            ("/readyz", Some("down"), false, 503),
            ("/livez", Some("down"), true, 200),
            ("/version", None, false, 200),
            ("/other", None, false, 404),
        ] {
            assert_eq!(status(path, failure, draining), expected, "{path} {failure:?} {draining}");
        }
        let request = Request::post("/metrics").body(()).expect("a request");
        assert_eq!(page(&request, &Fixed(None), false).status().as_u16(), 405);
    }
}
