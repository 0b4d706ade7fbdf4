//! One endpoint, from its name to the first key that is read there.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_proxy_proto::etcdserverpb::{
    AuthStatusRequest, AuthStatusResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
};
use http::{HeaderValue, header::DATE};
use prost::Message;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::{
    QUESTION_TIMEOUT, own,
    report::{Outcome, Row},
};
use crate::{
    go,
    metrics::Metrics,
    rules::{
        caller::Caller,
        framing,
        keys::KeyRange,
        namespace::Namespace,
        status::{self, Code, Status},
    },
    tls::certificate::Certificate,
    upstream::{Limits, Upstream, channel, endpoint::Endpoint, endpoints::Endpoints, examine, users::Users},
};

/// What is asked of each.
pub struct Question {
    pub channel: Arc<channel::Config>,
    pub limits: Limits,
    pub metrics: Arc<Metrics>,
    pub users: Arc<Users>,
    /// What is to be read, each with the tenant whose it is; the first is the proxy's own.
    pub prefixes: Vec<(String, Namespace)>,
    /// Whether it writes there to register itself.
    pub registers: bool,
}

/// What an endpoint says of its cluster.
#[derive(Clone, Debug)]
pub struct Answered {
    /// None where only users are told.
    pub cluster: Option<u64>,
    /// Zero for none.
    pub leader: Option<u64>,
    pub version: Option<String>,
}

/// The oldest etcd that this proxy is tested with.
const OLDEST: (u32, u32) = (3, 5);
/// A header's date has whole seconds, and an answer takes its time; beyond this clocks differ.
const SKEW: Duration = Duration::from_secs(3);

/// Goes on for as long as it makes sense.
pub async fn look(question: &Question, endpoint: &Arc<Endpoint>) -> (Vec<Row>, Option<Answered>) {
    let mut rows = Rows { target: endpoint.shown(), rows: Vec::new() };
    if !reach(question, endpoint, &mut rows).await {
        rows.add("etcd", Outcome::Skipped("not reached".to_owned()));
        return (rows.rows, None);
    }
    let endpoints = Endpoints::new(vec![endpoint.clone()]);
    let (channel, users) = (question.channel.clone(), question.users.clone());
    let upstream = Upstream::new(endpoints, channel, users, question.limits, question.metrics.clone());
    let member = Member { upstream, endpoint };
    let answered = member.status(&mut rows).await;
    if answered.as_ref().is_some_and(|answered| answered.leader != Some(0)) {
        member.auth_and_prefix(question, &mut rows).await;
    } else if answered.is_some() {
        rows.add("prefix", Outcome::Skipped("cannot be read without a leader".to_owned()));
    }
    member.clock(&mut rows).await;
    (rows.rows, answered)
}

struct Rows {
    target: String,
    rows: Vec<Row>,
}

impl Rows {
    fn add(&mut self, check: &'static str, outcome: Outcome) {
        self.rows.push(Row { check, target: self.target.clone(), outcome });
    }
}

/// Name, TLS and HTTP/2; whether calls can be made.
async fn reach(question: &Question, endpoint: &Arc<Endpoint>, rows: &mut Rows) -> bool {
    match examine::resolve(endpoint).await {
        // An address needs no look-up.
        Ok(addresses) if addresses.is_empty() || is_address(endpoint) => (),
        Ok(addresses) => {
            let addresses: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            rows.add("name", Outcome::Fine(format!("is {}", addresses.join(", "))));
        }
        Err(error) => {
            rows.add("name", Outcome::Failed(format!("cannot be resolved: {}", go::io_error(&error))));
            return false;
        }
    }
    let secured = examine::is_secured(&question.channel, endpoint);
    match examine::secure(&question.channel, endpoint).await {
        Ok(Some(found)) => {
            let certificate = found.leaf.as_ref().and_then(Certificate::read);
            let outcome = match certificate.and_then(|it| Some((it.subject, it.not_after?))) {
                Some((subject, not_after)) => {
                    let what = format!("{}, certificate of {subject}", found.version);
                    own::lifetime(&what, not_after, SystemTime::now(), false)
                }
                None => Outcome::Fine(found.version.to_owned()),
            };
            rows.add("tls", outcome);
        }
        Ok(None) => rows.add("tls", Outcome::Fine("none: etcd is spoken to in plaintext".to_owned())),
        Err(error) => {
            let mut words = error.to_string();
            if is_cut_short(&error) {
                words += "; does it speak plaintext, http instead of https?";
            }
            rows.add(if secured { "tls" } else { "connect" }, Outcome::Failed(words));
            return false;
        }
    }
    match examine::greet(&question.channel, endpoint).await {
        Ok(seconds) => {
            rows.add("connect", Outcome::Fine(format!("answers in {:.1} ms", seconds * 1000.0)));
            true
        }
        Err(error) => {
            let mut words = error.to_string();
            if !secured {
                words += "; does it want TLS, https instead of http?";
            }
            rows.add("connect", Outcome::Failed(words));
            false
        }
    }
}

/// Whether a TLS handshake ended without either side finding fault with the other, as with a server that speaks no TLS.
fn is_cut_short(error: &channel::DialError) -> bool {
    matches!(error, channel::DialError::Tls { source, .. } if source.get_ref().is_none_or(|cause| !cause.is::<rustls::Error>()))
}

fn is_address(endpoint: &Endpoint) -> bool {
    endpoint.server_name.parse::<std::net::IpAddr>().is_ok()
}

struct Member<'a> {
    upstream: Upstream,
    endpoint: &'a Arc<Endpoint>,
}

impl Member<'_> {
    async fn ask<A: Message + Default>(&self, path: &str, request: &impl Message) -> Result<A, Status> {
        let mut caller = Caller::proxy();
        // A member without a leader says so at once, and does not wait for one.
        caller.metadata.insert("hasleader", HeaderValue::from_static("true"));
        let asked = async {
            let request = framing::frame(&request.encode_to_vec());
            let answer = self.upstream.call_endpoint(self.endpoint, &caller, path, request).await?;
            let message = answer.collect(self.upstream.limits().max_answer).await?.into_message()?;
            A::decode(message).map_err(status::unreadable_answer)
        };
        let asked = tokio::time::timeout(QUESTION_TIMEOUT, asked).await;
        asked.unwrap_or_else(|_| Err(status::deadline_exceeded()))
    }

    /// Version, leader and alarms.
    async fn status(&self, rows: &mut Rows) -> Option<Answered> {
        let found = match self.status_of_member().await {
            Ok(found) => found,
            // With auth on, etcd tells even this to its users only.
            Err(status) if asks_who_we_are(&status) => {
                rows.add("version", Outcome::Skipped(format!("only users are told: {}", status.message())));
                return Some(Answered { cluster: None, leader: None, version: None });
            }
            Err(status) => {
                let words = format!("does not tell its status: {}; is it an etcd?", status.message());
                rows.add("etcd", Outcome::Failed(words));
                return None;
            }
        };
        let version = found.version.clone();
        rows.add(
            "version",
            match numbers(&version) {
                Some(numbers) if numbers < OLDEST => Outcome::Warn(format!("{version}: older than 3.5 is not tested")),
                _ => Outcome::Fine(version.clone()),
            },
        );
        rows.add(
            "leader",
            match (found.leader, found.is_learner) {
                (0, _) => Outcome::Failed("etcdserver: no leader".to_owned()),
                (_, true) => Outcome::Warn("this member is a learner, which refuses most calls".to_owned()),
                (leader, _) => Outcome::Fine(format!("is {leader:x}")),
            },
        );
        let errors: Vec<&String> = found.errors.iter().filter(|error| !error.contains("no leader")).collect();
        for error in errors {
            rows.add("alarm", Outcome::Warn(error.clone()));
        }
        let cluster = found.header.as_ref().map(|header| header.cluster_id);
        Some(Answered { cluster, leader: Some(found.leader), version: Some(version) })
    }

    /// Without the wish for a leader, which a member without one refuses.
    async fn status_of_member(&self) -> Result<StatusResponse, Status> {
        let asked = async {
            let request = framing::frame(&StatusRequest::default().encode_to_vec());
            let path = "/etcdserverpb.Maintenance/Status";
            let answer = self.upstream.call_endpoint(self.endpoint, &Caller::proxy(), path, request).await?;
            let message = answer.collect(self.upstream.limits().max_answer).await?.into_message()?;
            StatusResponse::decode(message).map_err(status::unreadable_answer)
        };
        let asked = tokio::time::timeout(QUESTION_TIMEOUT, asked).await;
        asked.unwrap_or_else(|_| Err(status::deadline_exceeded()))
    }

    /// Whether etcd asks who one is, and whether the keys of the namespace can be read.
    async fn auth_and_prefix(&self, question: &Question, rows: &mut Rows) {
        let is_on = match self.ask::<AuthStatusResponse>("/etcdserverpb.Auth/AuthStatus", &AuthStatusRequest {}).await {
            Ok(found) => Ok(found.enabled),
            // Only who may do everything is told, and only where auth is on.
            Err(status) if asks_who_we_are(&status) => Ok(true),
            Err(status) => Err(status),
        };
        let mut reads = Vec::new();
        for (tenant, namespace) in &question.prefixes {
            let range = namespace.prefix_range(&KeyRange::all());
            let (key, range_end) = (range.key().clone(), range.range_end());
            let read = RangeRequest { key, range_end, limit: 1, keys_only: true, ..RangeRequest::default() };
            reads.push((tenant, self.ask::<RangeResponse>("/etcdserverpb.KV/Range", &read).await));
        }
        let read = reads.first().map_or(Ok(()), |(_, read)| read.as_ref().map(|_| ()));
        rows.add(
            "auth",
            match (&is_on, &read) {
                (Ok(false), _) => Outcome::Fine("off: everyone may do everything".to_owned()),
                (Ok(true), Ok(_)) => {
                    Outcome::Fine("on: clients bring their own users, and so does this proxy".to_owned())
                }
                (Ok(true), Err(status)) if question.registers => {
                    Outcome::Failed(format!("on, and this proxy cannot register itself (--user): {}", status.message()))
                }
                (Ok(true), Err(status)) => Outcome::Warn(format!(
                    "on: clients bring their own users, but this proxy has none (--user): {}",
                    status.message()
                )),
                (Err(status), _) => Outcome::Warn(format!("unknown: {}", status.message())),
            },
        );
        for (tenant, read) in reads {
            let whose = if tenant.is_empty() { String::new() } else { format!("of {tenant} ") };
            let outcome = match (read, &is_on) {
                (Ok(answer), _) => {
                    let revision = answer.header.map_or(0, |header| header.revision);
                    Outcome::Fine(format!("{whose}can be read, at revision {revision}"))
                }
                (Err(status), Ok(true)) if asks_who_we_are(&status) => {
                    Outcome::Skipped(format!("{whose}only its users can tell: {}", status.message()))
                }
                (Err(status), _) => Outcome::Failed(format!("{whose}cannot be read: {}", status.message())),
            };
            rows.add("prefix", outcome);
        }
    }

    /// Certificates and leases are judged by clocks; HTTP answers carry the time of the member.
    async fn clock(&self, rows: &mut Rows) {
        let asked = tokio::time::timeout(QUESTION_TIMEOUT, self.upstream.page("/version")).await;
        let date = match &asked {
            Ok(Ok(page)) => page.headers().get(DATE).and_then(|date| skew(date.to_str().ok()?, SystemTime::now())),
            _ => None,
        };
        rows.add(
            "clock",
            match date {
                None => Outcome::Skipped("the member tells no time".to_owned()),
                Some((skew, _)) if skew <= SKEW => Outcome::Fine("is that of this machine".to_owned()),
                Some((skew, is_ahead)) => {
                    let direction = if is_ahead { "ahead of" } else { "behind" };
                    Outcome::Warn(format!(
                        "is {} s {direction} this machine's, which certificates may not forgive",
                        skew.as_secs()
                    ))
                }
            },
        );
    }
}

/// How far a date is from now, and whether it lies ahead.
fn skew(date: &str, now: SystemTime) -> Option<(Duration, bool)> {
    let there = SystemTime::from(OffsetDateTime::parse(date, &Rfc2822).ok()?);
    Some(match there.duration_since(now) {
        Ok(ahead) => (ahead, true),
        Err(behind) => (behind.duration(), false),
    })
}

fn asks_who_we_are(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
        || (status.code() == Code::InvalidArgument && status.message() == status::USER_EMPTY)
}

/// Major and minor.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_compared_by_the_date_of_an_answer() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(skew("Sun, 06 Nov 1994 08:49:37 GMT", now), Some((Duration::ZERO, true)));
        assert_eq!(skew("Sun, 06 Nov 1994 08:50:37 GMT", now), Some((Duration::from_secs(60), true)));
        assert_eq!(skew("Sun, 06 Nov 1994 08:49:27 GMT", now), Some((Duration::from_secs(10), false)));
        assert_eq!(skew("yesterday", now), None);
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(numbers("3.4.34") < Some(OLDEST) && numbers("3.10.0") > Some(OLDEST) && numbers("x").is_none());
    }
}
