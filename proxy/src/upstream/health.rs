//! Asks each endpoint how it is, so that calls go where they will be answered.
//!
//! One question tells all: `grpc.health.v1.Health/Check` with `hasleader`. It needs no rights, and a member without a
//! leader, a learner and one that is defragmenting each refuse it in words of their own. A member that has stopped
//! answering, as behind a network that drops packets, fails it by time, and what waits on its connections is set free.
//! One that is only slow to answer, since it or this machine is busy, is still heard on other calls, and these go on.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;
use tokio::task::JoinHandle;

use super::{
    Upstream,
    endpoint::{Endpoint, State},
    endpoints::Endpoints,
};
use crate::rules::{
    caller::Caller,
    framing,
    status::{self, Code, Status},
};

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long after an answer an endpoint is asked again.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// How soon an endpoint that does not serve is asked again; grows to the interval.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// A single slow answer may be a pause of the machine; the second in a row, with nothing heard, is a member to leave.
const TIMEOUTS_UNTIL_UNREACHABLE: u32 = 2;

/// Watches over every endpoint, also those that discovery adds, until it is dropped.
pub async fn run(upstream: Upstream, config: Config) {
    let mut version = upstream.endpoints().watch_version();
    let mut probes: HashMap<u64, Probe> = HashMap::new();
    loop {
        version.borrow_and_update();
        let list = upstream.endpoints().list();
        probes.retain(|id, _| list.iter().any(|endpoint| endpoint.id == *id));
        for endpoint in list.iter() {
            probes.entry(endpoint.id).or_insert_with(|| Probe::start(upstream.clone(), endpoint.clone(), config));
        }
        if version.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until each endpoint has been found well or sick, but no longer than this.
pub async fn first_look(endpoints: &Endpoints, patience: Duration) {
    let list = endpoints.list();
    let looks = list.iter().map(|endpoint| async {
        // It fails only for an endpoint that is gone, and then there is nothing to wait for.
        let _ = endpoint.watch_state().wait_for(|state| *state != State::Untried).await;
    });
    // Whoever has not answered by then is found out later.
    let _ = tokio::time::timeout(patience, futures_util::future::join_all(looks)).await;
}

/// The task that asks one endpoint; ends with its owner.
struct Probe(JoinHandle<()>);

impl Probe {
    fn start(upstream: Upstream, endpoint: Arc<Endpoint>, config: Config) -> Self {
        Self(tokio::spawn(ask_for_ever(upstream, endpoint, config)))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn ask_for_ever(upstream: Upstream, endpoint: Arc<Endpoint>, config: Config) {
    let mut wait = FIRST_RETRY;
    let mut timeouts = 0;
    let mut state = endpoint.watch_state();
    loop {
        endpoint.take_heard();
        let found = match tokio::time::timeout(config.timeout, ask(&upstream, &endpoint)).await {
            Ok(found) => {
                timeouts = 0;
                found
            }
            Err(_) => {
                timeouts = if endpoint.take_heard() { 0 } else { timeouts + 1 };
                if timeouts >= TIMEOUTS_UNTIL_UNREACHABLE { State::Unreachable } else { endpoint.state() }
            }
        };
        upstream.endpoints().note(&endpoint, found);
        if found == State::Serving {
            wait = FIRST_RETRY;
            state.borrow_and_update();
            // Someone's call may find out first that the endpoint is gone; then there is no point in waiting.
            let _ = tokio::time::timeout(config.interval, state.changed()).await;
        } else {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(config.interval);
        }
    }
}

async fn ask(upstream: &Upstream, endpoint: &Arc<Endpoint>) -> State {
    let mut caller = Caller::proxy();
    caller.metadata.insert("hasleader", HeaderValue::from_static("true"));
    let answer = upstream.call_endpoint(endpoint, &caller, HEALTH_CHECK, framing::frame(&[])).await;
    let answered = match answer {
        Ok(answer) => match answer.collect(upstream.limits().max_answer).await {
            Ok(collected) if !collected.is_grpc() => return State::NotServing,
            Ok(collected) => collected.into_message(),
            // A message that cannot be read: whatever speaks there, it is no etcd.
            Err(status) if matches!(status.code(), Code::Internal | Code::ResourceExhausted) => {
                return State::NotServing;
            }
            Err(status) => Err(status),
        },
        Err(status) => Err(status),
    };
    judge(&answered)
}

/// `HealthCheckResponse { status: SERVING }` on the wire.
const SERVING: [u8; 2] = [0x08, 0x01];

fn judge(answered: &Result<Bytes, Status>) -> State {
    match answered {
        Ok(message) if **message == SERVING => State::Serving,
        Ok(_) => State::NotServing,
        Err(status) => match (status.code(), status.message()) {
            (Code::Unavailable, "etcdserver: no leader") => State::NoLeader,
            (_, status::NOT_SUPPORTED_FOR_LEARNER) => State::Learner,
            (_, message) if message.starts_with(status::NOT_GRPC_ANSWER) => State::Unreachable,
            (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled, _) => State::Unreachable,
            // Whatever else it says, it speaks gRPC: an etcd without the health service, or something before it.
            _ => State::Serving,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_a_member_has_its_meaning() {
        let cases = [
            (Ok(Bytes::from_static(&SERVING)), State::Serving),
            (Ok(Bytes::from_static(&[0x08, 0x02])), State::NotServing),
            (Err(Status::unavailable("etcdserver: no leader")), State::NoLeader),
            (Err(Status::unavailable("etcdserver: rpc not supported for learner")), State::Learner),
            (Err(Status::failed_precondition("etcdserver: rpc not supported for learner")), State::Learner),
            (Err(Status::unavailable("connection refused")), State::Unreachable),
            (Err(Status::unimplemented("unknown service grpc.health.v1.Health")), State::Serving),
            (Err(status::not_grpc_answer(http::StatusCode::NOT_FOUND)), State::Unreachable),
        ];
        for (answer, state) in cases {
            assert_eq!(judge(&answer), state, "{answer:?}");
        }
    }
}
