//! `grpc.health.v1.Health`: whether this proxy can serve, which is whether some etcd behind it does.
//!
//! It answers as the health server of grpc-go does, which is etcd's: only the server as a whole has a state.

use std::{collections::HashMap, sync::Arc, time::Instant};

use bytes::Bytes;
use http::HeaderMap;
use prost::Message as _;
use tokio::sync::watch;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

use super::calls;
use crate::{
    drain::Observer,
    exchange::{Outcome, Replies, Requests, passed, until},
    rules::{
        framing,
        status::{self, Code, Status},
    },
    upstream::endpoints::Endpoints,
};

#[derive(Clone)]
pub struct Health {
    endpoints: Arc<Endpoints>,
    drain: Observer,
}

impl Health {
    pub fn new(endpoints: Arc<Endpoints>, drain: Observer) -> Self {
        Self { endpoints, drain }
    }

    pub async fn check(&self, mut requests: Requests, mut replies: Replies, deadline: Option<Instant>) -> Outcome {
        let checked = until(deadline, asked(&mut requests)).await.and_then(|service| match service.as_str() {
            "" => Ok(response(self.state())),
            _ => Err(status::unknown_health_service()),
        });
        match checked {
            Ok(message) => {
                replies.begin(HeaderMap::new())?;
                replies.data(message).await?;
                replies.succeed();
                Ok(Code::Ok)
            }
            Err(status) => Ok(calls::fail(replies, &status)),
        }
    }

    /// Sends the state now and whenever it changes, until the client leaves or the proxy does.
    pub async fn watch(&self, mut requests: Requests, mut replies: Replies, deadline: Option<Instant>) -> Outcome {
        let service = match until(deadline, asked(&mut requests)).await {
            Ok(service) => service,
            Err(status) => return Ok(calls::fail(replies, &status)),
        };
        replies.begin(HeaderMap::new())?;
        let mut drain = self.drain.clone();
        let late = passed(deadline);
        tokio::pin!(late);
        if !service.is_empty() {
            // It may become known one day, says the protocol; here it never does.
            replies.data(response(ServingStatus::ServiceUnknown)).await?;
            tokio::select! {
                () = drain.signaled() => return Ok(calls::fail(replies, &status::draining())),
                () = &mut late => return Ok(calls::fail(replies, &status::deadline_exceeded())),
                gone = replies.gone() => return Err(gone),
            }
        }
        let mut serving = self.endpoints.watch_serving();
        loop {
            let now = self.state();
            replies.data(response(now)).await?;
            tokio::select! {
                biased;
                () = drain.signaled() => {
                    if now == ServingStatus::Serving {
                        replies.data(response(ServingStatus::NotServing)).await?;
                    }
                    return Ok(calls::fail(replies, &status::draining()));
                }
                () = &mut late => return Ok(calls::fail(replies, &status::deadline_exceeded())),
                () = changed_from(&mut serving, now == ServingStatus::Serving) => (),
                gone = replies.gone() => return Err(gone),
            }
        }
    }

    /// The states of all services, of which there is one.
    pub async fn list(&self, mut requests: Requests, mut replies: Replies, deadline: Option<Instant>) -> Outcome {
        if let Err(status) = until(deadline, collected(&mut requests)).await {
            return Ok(calls::fail(replies, &status));
        }
        let statuses = HashMap::from([(String::new(), HealthCheckResponse { status: self.state() as i32 })]);
        replies.begin(HeaderMap::new())?;
        replies.data(framing::frame(&HealthListResponse { statuses }.encode_to_vec())).await?;
        replies.succeed();
        Ok(Code::Ok)
    }

    fn state(&self) -> ServingStatus {
        if self.endpoints.any_serving() && !self.drain.is_signaled() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}

/// Returns when it is no longer so. The endpoints outlive every call, so that there is always someone to say.
async fn changed_from(serving: &mut watch::Receiver<bool>, now: bool) {
    if serving.wait_for(|serving| *serving != now).await.is_err() {
        std::future::pending().await
    }
}

/// `grpc.health.v1.HealthListResponse`, which the crate of these messages does not have yet.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthListResponse {
    #[prost(map = "string, message", tag = "1")]
    statuses: HashMap<String, HealthCheckResponse>,
}

async fn collected(requests: &mut Requests) -> Result<Bytes, Status> {
    let body = requests.collect().await?;
    requests.unframe(&body)
}

/// The service that the client asks for.
async fn asked(requests: &mut Requests) -> Result<String, Status> {
    let request = HealthCheckRequest::decode(collected(requests).await?).map_err(status::malformed)?;
    Ok(request.service)
}

fn response(state: ServingStatus) -> Bytes {
    framing::frame(&HealthCheckResponse { status: state as i32 }.encode_to_vec())
}
