//! A watch of the proxy's own, alone on its stream: for those who follow one range and keep little of what they are told.

use std::sync::Arc;

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use h2::SendStream;
use http::HeaderValue;
use prost::Message as _;

use super::{Duplex, Upstream, answer::Answer, endpoint::Endpoint, users::Pass};
use crate::{
    exchange::send_all,
    rules::{
        caller::Caller,
        framing::{self, Decoder},
        keys::KeyRange,
        status::{self, Status},
    },
};

/// What creates a watch on a range.
pub fn request(range: &KeyRange, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: range.key().clone(),
        range_end: range.range_end(),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

/// A stream without its watch.
pub struct Opening {
    duplex: Duplex,
    limit: usize,
}

pub struct OwnWatch {
    /// It stays open: the watch lives as long as it.
    send: SendStream<Bytes>,
    answer: Answer,
    decoder: Decoder,
    pass: Option<Pass>,
}

impl Opening {
    /// At none of the endpoints in `avoid`, which failed just now.
    pub async fn new(upstream: &Upstream, avoid: &[Arc<Endpoint>]) -> Result<Self, Status> {
        let mut caller = Caller::proxy();
        // A member that lost its leader would show nothing for as long as that lasts; it ends the stream instead.
        caller.metadata.insert("hasleader", HeaderValue::from_static("true"));
        let duplex = upstream.open(&caller, "/etcdserverpb.Watch/Watch", avoid).await?;
        Ok(Self { duplex, limit: upstream.limits().max_answer })
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.duplex.endpoint
    }

    pub async fn create(self, request: WatchCreateRequest) -> Result<OwnWatch, Status> {
        let pass = self.duplex.pass.clone();
        let (mut send, answer) = self.duplex.split();
        ask(&mut send, RequestUnion::CreateRequest(request)).await?;
        Ok(OwnWatch { send, answer: answer.await?, decoder: Decoder::new(self.limit), pass })
    }
}

impl OwnWatch {
    pub async fn open(upstream: &Upstream, request: WatchCreateRequest) -> Result<Self, Status> {
        Opening::new(upstream, &[]).await?.create(request).await
    }

    /// What etcd says next, whatever it is. May be broken off at any time.
    pub async fn response(&mut self) -> Result<WatchResponse, Status> {
        loop {
            if let Some(message) = self.decoder.next().map_err(status::unreadable_answer)? {
                return WatchResponse::decode(message.bytes).map_err(status::unreadable_answer);
            }
            match self.answer.body.data().await {
                Some(data) => self.decoder.push(&data?),
                None => return Err(status::broken("the watch stream ended")),
            }
        }
    }

    /// What the watch tells next; none if that is compacted.
    pub async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        let response = self.response().await?;
        if response.compact_revision > 0 {
            return Ok(None);
        }
        if response.canceled {
            if let Some(pass) = &self.pass {
                // The next try gets a fresh one.
                pass.is_refused(&response.cancel_reason);
            }
            return Err(status::broken(response.cancel_reason));
        }
        Ok(Some(response))
    }

    /// Asks how far the stream is.
    pub async fn ask_progress(&mut self) -> Result<(), Status> {
        ask(&mut self.send, RequestUnion::ProgressRequest(WatchProgressRequest {})).await
    }
}

async fn ask(send: &mut SendStream<Bytes>, request: RequestUnion) -> Result<(), Status> {
    let message = WatchRequest { request_union: Some(request) }.encode_to_vec();
    send_all(send, framing::frame(&message)).await.map_err(status::broken)
}
