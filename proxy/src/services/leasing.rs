//! Leasing: linearizable reads of single keys served here, for as long as this proxy owns the keys.
//!
//! A read of a key that nobody owns acquires it, and later reads are answered from memory until another writer wants the
//! key. Writes go to etcd under guards, see [`crate::rules::leasing`]. What is kept stands in the [`Table`]; its session
//! and the watch on the leasing keys are one task's.
//!
//! Only callers that say nothing of themselves are served from memory, and only while etcd says that auth is off: what
//! others may read is etcd's to judge, each time.

mod clock;
mod follow;
mod session;
mod table;
mod writes;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{RangeRequest, TxnRequest, TxnResponse};
use http::{HeaderMap, header::CONTENT_TYPE};
use prost::Message as _;
use tokio::{task::JoinHandle, time::timeout};

use super::{
    cache,
    calls::{self, Forward},
};
use crate::{
    drain,
    exchange::{Outcome, Replies, Requests, until},
    metrics::Metrics,
    rules::{
        caller::Caller,
        framing,
        leasing::{Acquired, Operation, Prefix, answer},
        methods::{self, Kind, Method},
        namespace::{Namespace, Shape},
        status::{self, Code, Status},
    },
    upstream::Upstream,
};
use table::{Look, Table, Ticket};

/// How long a read waits for its key to become ours. A write is not asked of another member when its own hangs, but a
/// read may be, so it goes on as one. Only a cluster that is ill takes as long as this.
const ACQUISITION_PATIENCE: Duration = Duration::from_secs(1);

/// How leasing is to work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What stands before a key in the name of its leasing key; shared by all who lease in the namespace.
    pub prefix: String,
    /// How long writers wait for the keys of a proxy that crashed, and reads are served without etcd.
    pub ttl_seconds: i64,
    /// What the keys and values that are kept may take.
    pub max_bytes: usize,
}

pub struct Leasing {
    namespace: Namespace,
    prefix: Prefix,
    table: Arc<Table>,
    metrics: Arc<Metrics>,
}

/// What became of a call.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub enum Served {
    Here(Outcome),
    /// It goes on as it came.
    Elsewhere(Requests, Replies),
}

/// An answer made here, or none if etcd shall have the request as it came.
type Answered = Result<Option<(HeaderMap, Bytes)>, Status>;

impl Leasing {
    /// The task gives everything up when the drain begins.
    pub fn start(
        config: Config,
        upstream: &Upstream,
        namespace: &Namespace,
        metrics: &Arc<Metrics>,
        drain: drain::Watcher,
    ) -> (Arc<Self>, JoinHandle<()>) {
        let table = Table::new(config.max_bytes, metrics.clone());
        let prefix = Prefix::new(namespace, &config.prefix);
        let session = session::run(config.ttl_seconds, prefix.clone(), upstream.clone(), table.clone(), drain);
        let leasing = Self { namespace: namespace.clone(), prefix, table, metrics: metrics.clone() };
        (Arc::new(leasing), tokio::spawn(session))
    }

    /// Whether calls of this kind, on the keys of this namespace, go through here. A tenant whose leases are numbered
    /// anew could not be handed the session's.
    pub fn takes(&self, method: &Method, namespace: &Namespace) -> bool {
        let shapes = [Shape::Range, Shape::Put, Shape::DeleteRange, Shape::Txn];
        method.kind == Kind::Unary
            && method.keys.request.is_some_and(|shape| shapes.contains(&shape))
            && namespace.leases().is_none()
            && *namespace == self.namespace
    }

    /// Serves one call of those, if it is not to go on as it came.
    pub async fn serve(
        &self,
        to: &Forward<'_>,
        caller: &Caller,
        method: &'static Method,
        mut requests: Requests,
        mut replies: Replies,
        deadline: Option<Instant>,
    ) -> Served {
        let work = async {
            let body = requests.collect().await?;
            to.check_room(caller, method, &requests, &body)?;
            // etcd refuses a request without a whole message in its own words.
            let answer = match framing::is_whole(&body) {
                true => self.answer(to, caller, method, requests.unframe(&body)?).await?,
                false => None,
            };
            if answer.is_none() {
                requests.put_back(body);
            }
            Ok(answer)
        };
        let answered = tokio::select! {
            biased;
            answered = until(deadline, work) => answered,
            gone = replies.gone() => return Served::Here(Err(gone)),
        };
        match answered {
            Ok(Some((headers, message))) => Served::Here(reply(replies, headers, &message).await),
            Ok(None) => Served::Elsewhere(requests, replies),
            Err(status) => Served::Here(Ok(calls::fail(replies, &status))),
        }
    }

    async fn answer(&self, to: &Forward<'_>, caller: &Caller, method: &Method, message: Bytes) -> Answered {
        match method.keys.request {
            Some(Shape::Range) => self.range(to, caller, message).await,
            Some(Shape::Put) => self.write(to, caller, Operation::Put, message).await,
            Some(Shape::DeleteRange) => self.write(to, caller, Operation::DeleteRange, message).await,
            Some(Shape::Txn) => self.txn_request(to, caller, message).await,
            _ => Ok(None),
        }
    }

    async fn range(&self, to: &Forward<'_>, caller: &Caller, message: Bytes) -> Answered {
        let Ok(request) = RangeRequest::decode(message.clone()) else { return Ok(None) };
        // A field that is not known here may change what the read means.
        let is_understood = request.encoded_len() == message.len();
        if !is_understood || !may_be_served(caller) || !self.prefix.may_lease(&request) {
            return Ok(None);
        }
        let acquired = match self.table.look(&request.key, seen(to, caller), !request.serializable) {
            Look::Hit(pair, header) => {
                self.metrics.leasing_hits.inc();
                // It was raised to what the hub has seen already; telling that would keep it alive for ever.
                caller.connection.shown.note(header.revision);
                let answer = answer::range(&request, pair.as_ref(), header);
                return Ok(Some((HeaderMap::new(), answer.encode_to_vec().into())));
            }
            Look::Free(ticket) => self.acquire(to, caller, &request.key, ticket).await,
            Look::Elsewhere => None,
        };
        self.metrics.leasing_misses.inc();
        Ok(acquired.map(|(headers, acquired)| {
            let answer = answer::range(&request, acquired.pair.as_ref(), acquired.header);
            (headers, answer.encode_to_vec().into())
        }))
    }

    /// Reads the key and makes it ours. If that fails, the read is still a read, which etcd's other members may answer.
    async fn acquire(
        &self,
        to: &Forward<'_>,
        caller: &Caller,
        key: &Bytes,
        ticket: Ticket,
    ) -> Option<(HeaderMap, Acquired)> {
        let request = self.prefix.acquire(key, ticket.lease).encode_to_vec().into();
        let answered = timeout(ACQUISITION_PATIENCE, self.txn(to, caller, request)).await;
        let (headers, answer) = answered.ok()?.ok()?;
        let acquired = Acquired::read(answer, ticket.lease)?;
        ticket.settle(&acquired);
        Some((headers, acquired))
    }

    async fn txn_request(&self, to: &Forward<'_>, caller: &Caller, message: Bytes) -> Answered {
        // Deeper than this decoder goes nobody here can tell what is written, and nothing is written unguarded.
        let request = TxnRequest::decode(message.clone()).map_err(status::malformed)?;
        if may_be_served(caller)
            && request.encoded_len() == message.len()
            && let Some(keys) = answer::keys_of_txn(&request)
            && let Some((kept, header)) = self.table.peek(&keys, seen(to, caller))
            && let Some(answer) = answer::txn(&request, &kept, header)
        {
            self.metrics.leasing_hits.inc();
            caller.connection.shown.note(header.revision);
            return Ok(Some((HeaderMap::new(), answer.encode_to_vec().into())));
        }
        self.write(to, caller, Operation::Txn, message).await
    }

    /// One transaction in the client's keyspace, with the client's rights.
    async fn txn(&self, to: &Forward<'_>, caller: &Caller, request: Bytes) -> Result<(HeaderMap, TxnResponse), Status> {
        let request = to.namespace.request(Shape::Txn, request).map_err(status::malformed)?;
        let answer = self.call(to, caller, "/etcdserverpb.KV/Txn", request, Shape::TxnResponse).await?;
        let (headers, message) = answer;
        let response = TxnResponse::decode(message).map_err(status::unreadable_answer)?;
        if let Some(header) = &response.header {
            note(to, caller, header.revision);
            self.table.saw(header);
        }
        Ok((headers, response))
    }

    /// One call to etcd, whose request has its namespace already.
    async fn call(
        &self,
        to: &Forward<'_>,
        caller: &Caller,
        path: &str,
        request: Bytes,
        shape: Shape,
    ) -> Result<(HeaderMap, Bytes), Status> {
        let method = methods::find(path).expect("a row of the table");
        let answer = to.upstream.call(&caller.uncompressed(), method, framing::frame(&request)).await?;
        let collected = answer.collect(to.upstream.limits().max_answer).await?;
        let headers = collected.headers.clone();
        let message = to.namespace.response(shape, collected.into_message()?).map_err(|broken| {
            tracing::error!(?broken, "withheld an answer of etcd that does not keep to the namespace");
            status::outside_namespace()
        })?;
        Ok((headers, message))
    }
}

/// The newest revision that this caller or another was shown: to this one, no answer may look older.
fn seen(to: &Forward<'_>, caller: &Caller) -> i64 {
    to.hub.seen().max(caller.connection.shown.revision())
}

/// Remembers what a caller is shown.
fn note(to: &Forward<'_>, caller: &Caller, revision: i64) {
    to.hub.saw(revision);
    caller.connection.shown.note(revision);
}

async fn reply(mut replies: Replies, headers: HeaderMap, message: &[u8]) -> Outcome {
    replies.begin(headers)?;
    replies.data(framing::frame(message)).await?;
    replies.succeed();
    Ok(Code::Ok)
}

/// Whether a caller may be shown what others were: one without credentials, who does not ask for a leader either, nor for
/// etcd's own answer, and of whose metadata etcd would have nothing to say.
fn may_be_served(caller: &Caller) -> bool {
    let credentials = caller.credentials();
    let metadata = &caller.metadata;
    let is_plain = metadata.get(CONTENT_TYPE).is_some_and(|value| value == "application/grpc")
        && metadata.get(cache::SWITCH).is_none_or(|value| value != "off")
        && metadata.keys().all(|name| !name.as_str().ends_with("-bin"));
    is_plain
        && caller.user().is_none()
        && credentials.token.is_none()
        && credentials.authorization.is_none()
        && !credentials.require_leader
}
