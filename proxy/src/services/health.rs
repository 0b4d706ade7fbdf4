//! `grpc.health.v1.Health`: whether this proxy can serve, which is whether some etcd behind it does.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use prost::Message as _;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

use super::calls;
use crate::{
    exchange::{Outcome, Replies, Requests},
    rules::{
        framing,
        status::{self, Code, Status},
    },
    upstream::endpoints::Endpoints,
};

#[derive(Clone)]
pub struct Health {
    endpoints: Arc<Endpoints>,
}

impl Health {
    pub fn new(endpoints: Arc<Endpoints>) -> Self {
        Self { endpoints }
    }

    pub async fn check(&self, mut requests: Requests, mut replies: Replies) -> Outcome {
        match self.answer(&mut requests).await {
            Ok(message) => {
                replies.begin(HeaderMap::new())?;
                replies.data(message).await?;
                replies.succeed();
                Ok(Code::Ok)
            }
            Err(status) => Ok(calls::fail(replies, &status)),
        }
    }

    /// Sends the state now and whenever it changes, until the client leaves.
    pub async fn watch(&self, mut requests: Requests, mut replies: Replies) -> Outcome {
        if let Err(status) = self.answer(&mut requests).await {
            return Ok(calls::fail(replies, &status));
        }
        replies.begin(HeaderMap::new())?;
        let mut serving = self.endpoints.watch_serving();
        loop {
            let now = *serving.borrow_and_update();
            replies.data(response(now)).await?;
            tokio::select! {
                changed = serving.wait_for(|serving| *serving != now) => if changed.is_err() {
                    return Ok(calls::fail(replies, &status::draining()));
                },
                gone = replies.gone() => return Err(gone),
            }
        }
    }

    async fn answer(&self, requests: &mut Requests) -> Result<Bytes, Status> {
        let body = requests.collect().await?;
        let request = HealthCheckRequest::decode(requests.unframe(&body)?).map_err(status::malformed)?;
        // etcd knows only the server as a whole.
        if !request.service.is_empty() {
            return Err(status::unknown_health_service());
        }
        Ok(response(self.endpoints.any_serving()))
    }
}

fn response(serving: bool) -> Bytes {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    framing::frame(&HealthCheckResponse { status: status as i32 }.encode_to_vec())
}
