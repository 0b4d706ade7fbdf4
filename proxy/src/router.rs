//! One request: refuse it, understand it, or let it through. Only this file knows which lane an RPC takes.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request, StatusCode, header::CONTENT_TYPE, uri::PathAndQuery};
use tokio::sync::watch as tokio_watch;

use crate::{
    admission::{self, Seat, throttle::Throttle},
    audit::{AuditLog, Note},
    exchange::{Outcome, Replies, Requests, Volume, books::Books},
    logging,
    metrics::{Call, Metrics, Reason, code_name},
    rules::{
        caller::{Caller, Connection},
        methods::{self, Kind, Lane, Method},
        status::{self, Code, Status},
        tenant::{identity::Tenants, limits::Exceeded, policy::Verdict},
    },
    services::{
        cache::Cache,
        calls,
        cluster::Cluster,
        health::Health,
        keepalive::KeepAlives,
        leases::{Leases, own},
        leasing::{Leasing, Served},
        ordering::Ordering,
        watch,
        watch::{bell::Bell, hub::Hub, session::Session},
    },
    upstream::Upstream,
};

pub use crate::services::watch::crowd::{Crowds, Turn};

/// What a request may need; one per shard, shared by its connections.
pub struct Router {
    /// As of now, and whenever that changes.
    pub tenants: tokio_watch::Receiver<Tenants>,
    pub upstream: Upstream,
    pub hub: Arc<Hub>,
    /// Wakes the watches of this shard.
    pub bell: Arc<Bell>,
    pub keepalives: Arc<KeepAlives>,
    pub cluster: Cluster,
    pub leases: Leases,
    pub leasing: Option<Arc<Leasing>>,
    pub health: Health,
    /// Without one, every read goes to etcd by itself.
    pub cache: Option<Arc<Cache>>,
    pub ordering: Ordering,
    pub metrics: Arc<Metrics>,
    /// Whether each call is logged when it ends.
    pub logs_calls: bool,
    /// Who asked what, for those who must be able to tell.
    pub audit: Option<Arc<AuditLog>>,
}

/// How far a call was served where it came in.
enum Dispatched {
    Ended(Outcome),
    /// It goes on by itself, with its messages in and out.
    Watching(Box<(Session, Requests, Replies)>),
}

/// What is noted when a call has ended, and what it holds until then.
struct Ending<H> {
    call: Option<Call>,
    seat: Option<Seat>,
    log: Option<Box<CallLog>>,
    note: Option<Arc<Note>>,
    _held: H,
}

impl<H> Ending<H> {
    fn ended(self, code: Code) {
        drop(self.seat);
        if let Some(call) = self.call {
            call.finished(code);
        }
        if let Some(log) = self.log {
            log.finished(code);
        }
        if let Some(note) = self.note {
            note.finished(code);
        }
    }
}

impl Router {
    /// Serves one gRPC request from its head to its end, or to where it goes on in a task of its own. `held` is dropped
    /// when the call has ended.
    pub async fn serve(
        &self,
        connection: Arc<Connection>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        held: impl Send + 'static,
    ) {
        if !is_grpc(request.headers()) {
            let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let refusal = status::not_grpc(content_type.unwrap_or_default());
            return Replies::new(respond).refuse_http(StatusCode::UNSUPPORTED_MEDIA_TYPE, &refusal);
        }
        if request.method() != http::Method::POST {
            let refusal = status::not_post(request.method().as_str());
            return Replies::new(respond).refuse_http(StatusCode::METHOD_NOT_ALLOWED, &refusal);
        }
        let (head, stream) = request.into_parts();
        // To gRPC a query is part of the name.
        let path = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
        let max_request = admission::max_request(&connection, self.upstream.limits().max_request);
        let requests = Requests::new(stream, &head.headers, max_request).throttled(Throttle::received(&connection));
        let deadline = deadline(&head.headers);
        let crowds = head.extensions.get().cloned();
        let caller = Caller::new(connection, head.headers);
        let replies = Replies::new(respond).throttled(Throttle::sent(&caller.connection));
        let note = self.audit.as_ref().map(|audit| audit.note(&caller.connection, path));
        let requests = requests.noted(note.clone());
        let log = self.logs_calls.then(|| Box::new(CallLog::new(&caller.connection, path)));
        let volume = log.as_ref().map(|log| log.volume.clone());
        let (requests, replies) = (requests.measured(volume.clone()), replies.measured(volume));
        let mut ending = Ending { call: None, seat: None, log, note, _held: held };
        let code = match methods::find(path) {
            Some(method) => {
                let call = self.metrics.started(method);
                let requests = requests.unary(method.kind == Kind::Unary).counted(call.messages());
                let replies = replies.counted(call.messages());
                ending.call = Some(call);
                let outcome = match admission::enter(&caller.connection, method) {
                    Ok(seat) => {
                        ending.seat = Some(seat);
                        match self.dispatch(caller, method, requests, replies, deadline, crowds).await {
                            Dispatched::Ended(outcome) => outcome,
                            // This task holds the head of the request and has room for a call of any kind. Watches are
                            // many and live long, so each goes on in a task that has what it needs and no more.
                            Dispatched::Watching(watching) => {
                                let (session, requests, replies) = *watching;
                                let ended = |outcome: Outcome| ending.ended(outcome.unwrap_or(Code::Cancelled));
                                tokio::spawn(watch::serve(session, requests, replies, deadline, ended));
                                return;
                            }
                        }
                    }
                    Err(exceeded) => Box::pin(turn_away(replies, exceeded)).await,
                };
                outcome.unwrap_or(Code::Cancelled)
            }
            None if caller.tenant().lets_unknown_calls_pass() && methods::may_be_one(path) => {
                let outcome = Box::pin(calls::forward_unknown(&self.upstream, &caller, path, requests, replies)).await;
                outcome.unwrap_or(Code::Cancelled)
            }
            // An RPC that nobody here knows may carry a key, so behind a namespace it is not let through.
            None => {
                let service = path.trim_start_matches('/').rsplit_once('/').map_or("", |(service, _)| service);
                replies.fail(&status::unknown_method(path, methods::knows_service(service)));
                Code::Unimplemented
            }
        };
        ending.ended(code);
    }

    async fn dispatch(
        &self,
        caller: Caller,
        method: &'static Method,
        requests: Requests,
        replies: Replies,
        deadline: Option<Instant>,
        crowds: Option<Arc<Crowds>>,
    ) -> Dispatched {
        let reads_only = match caller.tenant().policy.verdict(method) {
            Verdict::Allowed => false,
            Verdict::IfItReads => true,
            Verdict::Ignored => {
                let answer = |request| calls::compact_nothing(&self.upstream, &caller, request);
                return Dispatched::Ended(Box::pin(calls::answer(answer, requests, replies, deadline)).await);
            }
            Verdict::Refused(refusal) => {
                self.metrics.refusals.note(&caller.tenant().name, Reason::Policy, method.path);
                return Dispatched::Ended(Ok(calls::fail(replies, &status::not_allowed(method, refusal))));
            }
        };
        let forward = calls::Forward {
            upstream: &self.upstream,
            namespace: caller.namespace(),
            hub: &self.hub,
            ordering: self.ordering,
            reads_only,
        };
        let leasing = self.leasing.as_ref().filter(|leasing| !reads_only && leasing.takes(method, forward.namespace));
        let (requests, replies) = match leasing {
            None => (requests, replies),
            Some(leasing) => {
                match Box::pin(leasing.serve(&forward, &caller, method, requests, replies, deadline)).await {
                    Served::Here(outcome) => return Dispatched::Ended(outcome),
                    Served::Elsewhere(requests, replies) => (requests, replies),
                }
            }
        };
        if method.lane == Lane::Range
            && let Some(cache) = &self.cache
        {
            let serving = cache.serve(&forward, &caller, method, requests, replies, deadline);
            return Dispatched::Ended(Box::pin(serving).await);
        }
        let outcome = match method.lane {
            Lane::LeaseGrant | Lane::LeaseTimeToLive | Lane::LeaseLeases if caller.namespace().leases().is_some() => {
                let answer = |request| self.own_leases(&caller, method, request);
                Box::pin(calls::answer(answer, requests, replies, deadline)).await
            }
            // All lanes are boxed: the task of every call is as large as the largest lane that stands in it, and is
            // copied whole three times.
            Lane::Forward | Lane::Compact | Lane::Range | Lane::LeaseGrant | Lane::LeaseTimeToLive => {
                Box::pin(forward.serve(&caller, method, requests, replies, deadline)).await
            }
            Lane::Watch => {
                let session = Session::new(&self.hub, &self.bell, &caller, crowds);
                return Dispatched::Watching(Box::new((session, requests, replies)));
            }
            Lane::KeepAlive => Box::pin(self.keepalives.serve(&caller, requests, replies, deadline)).await,
            Lane::LeaseLeases if caller.namespace().is_empty() => {
                Box::pin(forward.serve(&caller, method, requests, replies, deadline)).await
            }
            Lane::LeaseLeases => {
                let answer = |request| self.leases.list(&self.upstream, &caller, method, request);
                Box::pin(calls::answer(answer, requests, replies, deadline)).await
            }
            Lane::MemberList => {
                let list = self.cluster.member_list(&self.upstream, &caller, method, requests, replies, deadline);
                Box::pin(list).await
            }
            Lane::HealthCheck => Box::pin(self.health.check(requests, replies, deadline)).await,
            Lane::HealthList => Box::pin(self.health.list(requests, replies, deadline)).await,
            Lane::HealthWatch => Box::pin(self.health.watch(requests, replies, deadline)).await,
        };
        Dispatched::Ended(outcome)
    }
}

impl Router {
    /// For the watches of one connection, whose streams the books are of.
    pub fn crowds(&self, connection: &Arc<Connection>, books: &Arc<Mutex<Books>>) -> Arc<Crowds> {
        Crowds::new(&self.hub, &self.bell, connection, books)
    }

    async fn own_leases(
        &self,
        caller: &Caller,
        method: &'static Method,
        request: Bytes,
    ) -> Result<(HeaderMap, Bytes), Status> {
        match (method.lane, caller.namespace().leases()) {
            (Lane::LeaseGrant, Some(block)) => own::grant(&self.upstream, caller, block, request).await,
            (Lane::LeaseLeases, Some(block)) => own::list(&self.upstream, caller, block, method, request).await,
            _ => own::time_to_live(&self.upstream, caller, method, request).await,
        }
    }
}

/// Refuses a call for which its tenant has nothing left, after a short pause.
async fn turn_away(mut replies: Replies, exceeded: Exceeded) -> Outcome {
    tokio::select! {
        () = tokio::time::sleep(admission::REFUSAL_PAUSE.min(exceeded.wait)) => (),
        gone = replies.gone() => return Err(gone),
    }
    Ok(calls::fail(replies, &status::exhausted(exceeded)))
}

/// What `--experimental-enable-grpc-logging` tells of a call. Never what it holds: etcd's proxy logs whole messages, and
/// with them passwords and secrets.
struct CallLog {
    started: Instant,
    connection: Arc<Connection>,
    path: String,
    volume: Arc<Volume>,
}

impl CallLog {
    fn new(connection: &Arc<Connection>, path: &str) -> Self {
        let volume = Arc::new(Volume::default());
        Self { started: Instant::now(), connection: connection.clone(), path: path.to_owned(), volume }
    }

    fn finished(&self, code: Code) {
        let (service, method) = self.path.trim_start_matches('/').split_once('/').unwrap_or((&self.path, ""));
        tracing::info!(
            "grpc.service" = service,
            "grpc.method" = method,
            "grpc.code" = code_name(code),
            "grpc.duration" = logging::duration(self.started.elapsed()),
            "peer.address" = self.connection.peer.map(|peer| peer.to_string()),
            "grpc.request.bytes" = self.volume.received(),
            "grpc.response.bytes" = self.volume.sent(),
            "finished call"
        );
    }
}

/// Whether a request is a call, or is at least sent to where only calls are taken.
pub fn is_call<B>(request: &Request<B>) -> bool {
    is_grpc(request.headers()) || methods::find(request.uri().path()).is_some()
}

/// `application/grpc` and its kin, such as `application/grpc+proto`.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// When the caller stops waiting; a header that cannot be read is left to etcd to refuse.
fn deadline(headers: &HeaderMap) -> Option<Instant> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Instant::now().checked_add(timeout)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().expect("a name"), HeaderValue::from_str(value).expect("a value"))])
    }

    #[test]
    fn only_grpc_content_types_are_grpc() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&headers("content-type", value)), expected, "{value}");
        }
    }

    #[test]
    fn deadlines_are_read_in_every_unit_and_nonsense_is_none() {
        let left = |text: &str| {
            deadline(&headers("grpc-timeout", text)).map(|at| at.saturating_duration_since(Instant::now()))
        };
        assert!(left("5S").expect("five seconds") > Duration::from_secs(4));
        assert!(left("99999999H").is_some());
        assert!(left("100m").expect("a tenth of a second") <= Duration::from_millis(100));
        for text in ["", "S", "5", "5X", "-5S", "999999999S", "5é"] {
            assert!(left(text).is_none(), "{text}");
        }
    }
}
