//! The body of a request that came by HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame};

pub struct Received(RecvStream);

impl Received {
    pub fn new(stream: RecvStream) -> Self {
        Self(stream)
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        self.0.poll_data(context).map_ok(|data| {
            // It fails only for a stream that is gone, which the next read reports.
            let _ = self.0.flow_control().release_capacity(data.len());
            Frame::data(data)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
