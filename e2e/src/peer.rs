//! Whoever listens where an etcd would and answers what a test says.

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::net::TcpListener;

/// Serves each call by `serve`, in a task of its own, until the test's runtime ends; says where.
pub async fn start<F>(serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static) -> String
where
    F: Future<Output: Send> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let serve = serve.clone();
            tokio::spawn(async move {
                let Ok(mut http2) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((request, respond))) = http2.accept().await {
                    tokio::spawn(serve(request, respond));
                }
            });
        }
    });
    address
}

/// How an answer of gRPC begins.
pub fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("a response head")
}

/// How it ends, with a code as on the wire.
pub fn ended(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))])
}
