//! `/health` and `/proxy/health`: whether etcd answers, and whether it does through this proxy.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{RangeRequest, StatusRequest, StatusResponse};
use http::{Response, StatusCode};
use prost::Message;
use serde::Serialize;

use super::{probe, query::Query, text, with_type};
use crate::{
    router::Router,
    rules::{
        caller::Caller,
        framing, methods,
        status::{self, Code, Status},
    },
    services::cache::rounds::Rounds,
    upstream::Upstream,
};

/// How long a check may take, as in etcd's proxy: whoever asks has a timeout of a second or a few.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long etcd's proxy waits for a watch of its own.
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// The key that etcd's proxy asks for; it need not exist.
const KEY: Bytes = Bytes::from_static(b"a");

/// What a check has found: healthy without a reason, or the reason why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health(Result<(), String>);

/// etcd's shape, with its texts for the two truths.
#[derive(Serialize)]
struct Shape<'a> {
    health: &'static str,
    reason: &'a str,
}

impl Health {
    pub fn is_healthy(&self) -> bool {
        self.0.is_ok()
    }

    /// As Go's `http.Error` writes what is wrong and its `Write` what is right.
    pub fn into_response(self) -> Response<Body> {
        let reason = self.0.as_ref().err().map_or("", String::as_str);
        let shape = Shape { health: if self.is_healthy() { "true" } else { "false" }, reason };
        let json = serde_json::to_string(&shape).expect("a struct of texts has a JSON form");
        // Go's encoder writes these as escapes, so that JSON can stand in HTML.
        let json = json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
        if self.is_healthy() {
            with_type(StatusCode::OK, "text/plain; charset=utf-8", json)
        } else {
            tracing::warn!(output = json, "status-code" = 503, "/health error");
            text(StatusCode::SERVICE_UNAVAILABLE, json + "\n")
        }
    }
}

/// The checks that are under way, each made once for all who wait for it when it begins. Every client may ask, whoever it
/// is, and takes no turn for it: so many that ask must not cost etcd more than one.
#[derive(Default)]
pub struct Checks {
    linearizable: Arc<Rounds<Found>>,
    serializable: Arc<Rounds<Found>>,
    of_proxy: Arc<Rounds<Health>>,
}

/// What etcd has said to a read, and the alarms that it has raised.
type Found = (Result<(), Status>, Vec<String>);

/// Whether etcd answers a read, by default one that needs a quorum, and raises no alarm.
pub async fn of_etcd(checks: &Checks, router: &Router, query: &Query) -> Health {
    let serializable = query.first("serializable") == Some("true");
    let key = router.tenants.borrow().own().namespace.prefix_key(&KEY);
    let read = RangeRequest { key, limit: 1, keys_only: true, serializable, ..RangeRequest::default() };
    let (rounds, upstream) = (if serializable { &checks.serializable } else { &checks.linearizable }, &router.upstream);
    let upstream = upstream.clone();
    let found = rounds.join(move || look(upstream.clone(), read.clone())).await;
    let (answered, mut heard) = found.unwrap_or_else(|| (Err(status::draining()), Vec::new()));
    heard.retain(|alarm| query.all("exclude").all(|excluded| excluded != alarm));
    match (heard.first(), judge(answered)) {
        (Some(alarm), _) => Health(Err(format!("ALARM {alarm}"))),
        (None, judged) => Health(judged),
    }
}

async fn look(upstream: Upstream, read: RangeRequest) -> Found {
    let (answered, alarms) = tokio::join!(
        in_time(TIMEOUT, call(&upstream, "/etcdserverpb.KV/Range", &read)),
        in_time(TIMEOUT, alarms(&upstream)),
    );
    // Where auth keeps the alarms from us, we have not heard of any.
    (answered.map(drop), alarms.unwrap_or_default())
}

/// Whether a client of this proxy gets an answer and a watch; asked as a client asks, through our own router.
pub async fn of_proxy(checks: &Checks, router: &Arc<Router>) -> Health {
    let router = router.clone();
    let found = checks.of_proxy.join(move || try_out(router.clone())).await;
    found.unwrap_or_else(|| Health(judge(Err(status::draining()))))
}

async fn try_out(router: Arc<Router>) -> Health {
    let probe = match probe::Probe::connect(router).await {
        Ok(probe) => probe,
        Err(status) => return Health(judge(Err(status))),
    };
    let judged = judge(in_time(TIMEOUT, probe.get(KEY)).await);
    if judged.is_err() {
        return Health(judged);
    }
    // A watch that is refused for want of rights is an answer as well.
    let watched = tokio::time::timeout(WATCH_TIMEOUT, probe.watch(KEY)).await;
    Health(watched.map(|_| ()).map_err(|_| "WATCH TIMEOUT".to_owned()))
}

async fn in_time<T>(timeout: Duration, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(status::deadline_exceeded()))
}

/// A refusal that only says who we are not shows that etcd works: it finds a quorum before it looks at rights.
fn judge(answered: Result<(), Status>) -> Result<(), String> {
    match answered {
        Ok(()) => Ok(()),
        Err(status) => match (status.code(), status.message()) {
            (Code::PermissionDenied | Code::Unauthenticated, _) => Ok(()),
            (Code::InvalidArgument, status::USER_EMPTY) => Ok(()),
            (_, message) => Err(format!("GET ERROR:{message}")),
        },
    }
}

/// The alarms that are raised, by name. A member knows them without asking the others.
async fn alarms(upstream: &Upstream) -> Result<Vec<String>, Status> {
    let message = call(upstream, "/etcdserverpb.Maintenance/Status", &StatusRequest::default()).await?;
    let status = StatusResponse::decode(message).map_err(status::unreadable_answer)?;
    Ok(named(&status.errors))
}

/// Among the errors of a member, an alarm reads `memberID:1 alarm:NOSPACE`.
fn named(errors: &[String]) -> Vec<String> {
    let words = errors.iter().flat_map(|error| error.split_ascii_whitespace());
    words.filter_map(|word| word.strip_prefix("alarm:")).map(str::to_owned).collect()
}

async fn call(upstream: &Upstream, path: &str, request: &impl Message) -> Result<Bytes, Status> {
    let method = methods::find(path).ok_or_else(|| status::unknown_method(path, true))?;
    let answer = upstream.call(&Caller::proxy(), method, framing::frame(&request.encode_to_vec())).await?;
    answer.collect(upstream.limits().max_answer).await?.into_message()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn a_refusal_for_want_of_rights_is_healthy_and_every_other_error_is_not() {
        for status in [
            Status::permission_denied("etcdserver: permission denied"),
            Status::invalid_argument("etcdserver: user name is empty"),
            Status::unauthenticated("etcdserver: invalid auth token"),
        ] {
            assert_eq!(judge(Err(status.clone())), Ok(()), "{status}");
        }
        for status in [
            Status::unavailable("etcdserver: no leader"),
            Status::invalid_argument("etcdserver: key is not provided"),
            Status::deadline_exceeded("context deadline exceeded"),
        ] {
            assert_eq!(judge(Err(status.clone())), Err(format!("GET ERROR:{}", status.message())));
        }
    }

    #[test]
    fn alarms_are_found_among_the_errors_of_a_member() {
        let errors = ["etcdserver: no leader".to_owned(), "memberID:8211  alarm:NOSPACE ".to_owned()];
        assert_eq!(named(&errors), ["NOSPACE"]);
    }

    #[tokio::test]
    async fn answers_are_those_of_etcd_to_the_byte() {
        let body = async |health: Health| {
            let response = health.into_response();
            let (head, body) = response.into_parts();
            let body = body.collect().await.expect("it is here already").to_bytes();
            (head.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
        };
        assert_eq!(body(Health(Ok(()))).await, (200, r#"{"health":"true","reason":""}"#.to_owned()));
        let reason = "GET ERROR:<\"a\" & b>".to_owned();
        let expected = r#"{"health":"false","reason":"GET ERROR:\u003c\"a\" \u0026 b\u003e"}"#.to_owned() + "\n";
        assert_eq!(body(Health(Err(reason))).await, (503, expected));
    }
}
