//! Lets the generated clients speak through [`Upstream`], for the proxy's own calls.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use http_body_util::BodyExt;
use tonic::body::Body as TonicBody;

use super::{Body, Upstream};
use crate::rules::{
    caller::Caller,
    methods,
    status::{self, Status},
};

impl tower::Service<http::Request<TonicBody>> for Upstream {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    /// The request is collected first, so only methods whose requests end by themselves can be called.
    fn call(&mut self, request: http::Request<TonicBody>) -> Self::Future {
        let upstream = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path();
            let method = methods::find(path).ok_or_else(|| status::unknown_method(path, false))?;
            let body = body.collect().await?.to_bytes();
            let mut caller = Caller::proxy();
            caller.metadata = parts.headers;
            let answer = upstream.call(&caller, method, body).await?;
            let mut response = http::Response::new(answer.body);
            *response.headers_mut() = answer.headers;
            Ok(response)
        })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.poll_data(context) {
            Poll::Ready(Some(data)) => return Poll::Ready(Some(data.map(Frame::data))),
            Poll::Ready(None) => (),
            Poll::Pending => return Poll::Pending,
        }
        self.poll_trailers(context).map(|trailers| trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        Body::is_end_stream(self)
    }
}
