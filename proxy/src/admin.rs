//! What is not gRPC: metrics and health over HTTP, on the main listener and on the metrics addresses.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::{
    exchange::Replies,
    metrics::{Metrics, Observed},
};

/// The HTTP paths; cheap to clone.
#[derive(Clone)]
pub struct Admin {
    routes: Router,
}

impl Admin {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let routes = Router::new().route("/proxy/metrics", get(move || async move { render(&metrics) }));
        Self { routes }
    }

    pub async fn serve_http1(&self, request: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible> {
        self.routes.clone().oneshot(request).await
    }

    /// Serves a request that came by HTTP/2; its body is not read, since no path takes one.
    pub async fn serve_http2(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let Ok(response) = self.routes.clone().oneshot(request.map(|_| Body::empty())).await;
        let (head, mut body) = response.into_parts();
        let mut replies = Replies::new(respond);
        if replies.begin_http(head).is_err() {
            return;
        }
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && replies.data(data).await.is_err()
            {
                return;
            }
        }
        replies.finish_http();
    }
}

fn render(metrics: &Metrics) -> Response<Body> {
    match metrics.text(&Observed::default()) {
        Ok(text) => ([(http::header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
