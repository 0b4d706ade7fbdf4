//! A gRPC call by hand, for what a gRPC library would decide by itself: when a deadline has passed.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::grpc;
use h2::client;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;

/// How a unary call ended.
#[derive(Debug)]
pub struct Ended {
    pub code: String,
    pub message: String,
    pub took: Duration,
}

/// Calls `path` with `grpc-timeout`, which the peer alone keeps to.
pub async fn call(address: &str, path: &str, request: &impl Message, timeout: &str) -> Ended {
    let socket = TcpStream::connect(address).await.expect("the proxy listens");
    let (mut client, connection) = client::handshake(socket).await.expect("the proxy speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let started = Instant::now();
    let head = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(())
        .expect("a request head");
    let (response, mut send) = client.send_request(head, false).expect("the connection is open");
    send.send_data(grpc::frame(&request.encode_to_vec()), true).expect("the stream is open");
    let (head, mut body) = response.await.expect("an answer").into_parts();
    while body.data().await.is_some() {}
    let trailers = body.trailers().await.expect("a whole answer").unwrap_or_default();
    let took = started.elapsed();
    let find = |name: &str| text(&trailers, name).or_else(|| text(&head.headers, name)).unwrap_or_default();
    driver.abort();
    Ended { code: find("grpc-status"), message: find("grpc-message"), took }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    // Percent-encoded, as the gRPC protocol wants it; no text of ours needs more than this.
    Some(String::from_utf8_lossy(headers.get(name)?.as_bytes()).replace("%20", " "))
}
