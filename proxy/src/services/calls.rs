//! Calls that pass with at most their keys changed: all of KV, Lock and Election, and whatever needs no understanding.

use std::time::Instant;

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{CompactionRequest, CompactionResponse, RangeRequest, RangeResponse};
use http::HeaderMap;
use prost::Message as _;

use super::{
    leases::own,
    ordering::{self, Ordering},
    watch::hub::Hub,
};
use crate::{
    admission,
    exchange::{Outcome, Replies, Requests, in_time, send_all, until},
    metrics::Reason,
    rules::{
        caller::Caller,
        framing::{self, Decoder},
        keys::NUL,
        methods::{self, Kind, Lane, Method, Revision},
        namespace::{Namespace, Shape},
        status::{self, Code, Status},
        tenant::{
            limits::{Exceeded, Limit},
            policy,
        },
        wire,
    },
    upstream::{Answer, Collected, Upstream, code_of},
};

mod passing;

use passing::{SizeCheck, Strip};

/// What forwarding needs: where to, under which prefix, and who wants to know the revisions that clients see.
pub struct Forward<'a> {
    pub upstream: &'a Upstream,
    pub namespace: &'a Namespace,
    pub hub: &'a Hub,
    pub ordering: Ordering,
    /// Whether a transaction that writes is refused.
    pub reads_only: bool,
}

impl Forward<'_> {
    /// Takes the request, sends it on, and hands the answer down as it comes.
    pub async fn serve(
        &self,
        caller: &Caller,
        method: &'static Method,
        mut requests: Requests,
        mut replies: Replies,
        deadline: Option<Instant>,
    ) -> Outcome {
        let body = tokio::select! {
            biased;
            body = until(deadline, requests.collect()) => body,
            gone = replies.gone() => return Err(gone),
        };
        match body {
            Ok(body) => self.send(caller, method, requests, body, replies, deadline, ()).await,
            Err(status) => Ok(fail(replies, &status)),
        }
    }

    /// The same with a request that is here already. `until_answered` is dropped when etcd begins to answer.
    #[expect(clippy::too_many_arguments, reason = "they are one call's, and each is taken apart at once")]
    pub async fn send(
        &self,
        caller: &Caller,
        method: &'static Method,
        requests: Requests,
        body: Bytes,
        mut replies: Replies,
        deadline: Option<Instant>,
        until_answered: impl Sized,
    ) -> Outcome {
        let mut compacts_at = None;
        let exchange = async {
            if method.lane == Lane::Compact {
                compacts_at = compaction(&requests, &body);
            }
            self.check_room(caller, method, &requests, &body)?;
            let body = match (self.namespace.leases(), method.keys.request) {
                (Some(block), Some(shape)) if own::makes_lease(shape) && framing::is_whole(&body) => {
                    let message = requests.unframe(&body)?;
                    let with_lease = own::with_lease(self.upstream, caller, block, shape, message);
                    framing::frame(&Box::pin(with_lease).await?)
                }
                _ => body,
            };
            let opened = self.open(method, &requests, &body).inspect_err(|refusal| {
                if refusal.code() == Code::PermissionDenied {
                    self.hub.metrics.refusals.note(&caller.tenant().name, Reason::Policy, method.path);
                }
            });
            match opened? {
                Some(opened) => self.ordering.call(self.upstream, &caller.uncompressed(), method, opened).await,
                None => self.ordering.call(self.upstream, caller, method, body).await,
            }
        };
        let answer = tokio::select! {
            biased;
            answer = until(deadline, exchange) => answer,
            gone = replies.gone() => return Err(gone),
        };
        drop(until_answered);
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => return Ok(fail(replies, &status)),
        };
        // Before the client hears of it, who may then watch from what it believes to be gone.
        if let (Some(revision), None) = (compacts_at, answer.code()) {
            self.hub.compacted(revision);
        }
        self.hand_down(answer, caller, method, replies, deadline).await
    }

    /// Whether the tenant may store more, if this is a request that stores.
    pub fn check_room(
        &self,
        caller: &Caller,
        method: &'static Method,
        requests: &Requests,
        body: &Bytes,
    ) -> Result<(), Status> {
        let usage = &caller.tenant().usage;
        if !usage.has_quota() {
            return Ok(());
        }
        let stores = match method.keys.request {
            Some(Shape::Put | Shape::Lock | Shape::Campaign | Shape::Proclaim) => true,
            Some(Shape::Txn) => policy::txn_puts(&requests.unframe(body)?).map_err(status::malformed)?,
            _ => false,
        };
        if stores { usage.has_room(admission::now()).map_err(status::exhausted) } else { Ok(()) }
    }

    fn max_answer(&self, caller: &Caller) -> usize {
        admission::max_answer(&caller.connection, self.upstream.limits().max_answer)
    }

    /// A failure as the caller shall hear of it: of an answer that is too large for its tenant only, it is told that.
    fn too_large(&self, caller: &Caller, status: Status) -> Status {
        let limit = self.max_answer(caller);
        if status.code() == Code::ResourceExhausted && limit < self.upstream.limits().max_answer {
            let exceeded = Exceeded::of(Limit::AnswerBytes);
            return status::exhausted(caller.tenant().usage.refused(exceeded, admission::now()));
        }
        status
    }

    /// The request as etcd is to have it, if its message must be opened here: with its keys in the namespace, and not
    /// compressed, since otherwise the answer would be.
    pub fn open(&self, method: &Method, requests: &Requests, body: &Bytes) -> Result<Option<Bytes>, Status> {
        if self.reads_only {
            // What cannot be read here might be read otherwise by etcd, so it is not sent on.
            let message = requests.unframe(body)?;
            if policy::txn_writes(&message).map_err(status::malformed)? {
                return Err(status::txn_not_allowed());
            }
        }
        let opened = self.under_namespace(method.keys.request).or(self.under_namespace(method.keys.response)).is_some();
        let linearized = self.ordering.wants_linearized(method);
        let opened = opened || self.reads_only || linearized;
        // etcd refuses a request without a whole message in its own words, and finds no key in it.
        if !opened || !framing::is_whole(body) {
            return Ok(None);
        }
        let message = requests.unframe(body)?;
        let message = match method.keys.request {
            Some(shape) => self.namespace.request(shape, message).map_err(status::malformed)?,
            None => message,
        };
        let message = if linearized { ordering::linearized(&message) } else { message };
        Ok(Some(framing::frame(&message)))
    }

    /// The shape whose keys must be rewritten, if there is a namespace at all.
    fn under_namespace(&self, shape: Option<Shape>) -> Option<Shape> {
        shape.filter(|shape| self.namespace.edits(*shape))
    }

    async fn hand_down(
        &self,
        mut answer: Answer,
        caller: &Caller,
        method: &'static Method,
        mut replies: Replies,
        deadline: Option<Instant>,
    ) -> Outcome {
        if let Some(code) = answer.code() {
            replies.finish(answer.headers);
            return Ok(code);
        }
        let shape = self.under_namespace(method.keys.response);
        if shape.is_some() && method.kind == Kind::Unary {
            return self.hand_down_stripped(answer, caller, method, replies).await;
        }
        replies.begin(std::mem::take(&mut answer.headers))?;
        let mut size_check = SizeCheck::new(self.max_answer(caller));
        let mut strip = shape.map(|shape| Strip {
            namespace: self.namespace,
            metrics: &self.hub.metrics,
            shape,
            decoder: Decoder::new(self.max_answer(caller)),
        });
        let mut wants_revision = method.revision == Revision::Shown;
        let mut drain = self.hub.drain();
        loop {
            let data = tokio::select! {
                biased;
                data = answer.body.data() => data,
                gone = replies.gone() => return Err(gone),
                () = drain.signaled(), if method.is_endless() => return Ok(fail(replies, &status::draining())),
            };
            let data = match data {
                Some(Ok(data)) => data,
                Some(Err(status)) => return Ok(fail(replies, &in_time(deadline, status))),
                None => break,
            };
            if let Err(status) = size_check.pass(&data) {
                return Ok(fail(replies, &self.too_large(caller, status)));
            }
            if std::mem::take(&mut wants_revision) {
                self.note_revision(caller, data.get(framing::PREFIX_LEN..).unwrap_or_default());
            }
            let data = match &mut strip {
                None => data,
                Some(strip) => match strip.pass(&data) {
                    Ok(stripped) => stripped,
                    Err(status) => return Ok(fail(replies, &status)),
                },
            };
            replies.data(data).await?;
        }
        Ok(finish(answer, replies).await)
    }

    async fn hand_down_stripped(
        &self,
        answer: Answer,
        caller: &Caller,
        method: &'static Method,
        mut replies: Replies,
    ) -> Outcome {
        let collected = tokio::select! {
            biased;
            collected = answer.collect(self.max_answer(caller)) => collected,
            gone = replies.gone() => return Err(gone),
        };
        let collected = match collected {
            Ok(collected) => collected,
            Err(status) => return Ok(fail(replies, &self.too_large(caller, status))),
        };
        self.reply(caller, method, collected, replies).await
    }

    /// Hands a whole answer of etcd's down.
    pub async fn reply(
        &self,
        caller: &Caller,
        method: &'static Method,
        collected: Collected,
        mut replies: Replies,
    ) -> Outcome {
        let code = collected.code();
        // An answer that was read for several may be too large for one of them.
        let size = collected.message.as_ref().map_or(0, Bytes::len);
        if let Err(exceeded) = admission::check_answer(&caller.connection, size) {
            return Ok(fail(replies, &status::exhausted(exceeded)));
        }
        if let Some(message) = collected.message {
            if method.revision == Revision::Shown {
                self.note_revision(caller, &message);
            }
            let stripped = match self.under_namespace(method.keys.response) {
                None => Ok(message),
                Some(shape) => self.namespace.response(shape, message),
            };
            let stripped = match stripped {
                Ok(stripped) => stripped,
                Err(broken) => {
                    tracing::error!(?broken, "withheld an answer of etcd that does not keep to the namespace");
                    self.hub.metrics.withheld.inc();
                    return Ok(fail(replies, &status::outside_namespace()));
                }
            };
            replies.begin(collected.headers)?;
            replies.data(framing::frame(&stripped)).await?;
        }
        replies.finish(collected.trailers);
        Ok(code)
    }

    /// Remembers the newest revision that any client has seen: a watch from "now" begins after it.
    fn note_revision(&self, caller: &Caller, message: &[u8]) {
        if let Some(revision) = wire::header_revision(message) {
            self.hub.saw(revision);
            caller.connection.shown.note(revision);
        }
    }
}

/// The revision that a compaction asks for; what cannot be read is left to etcd to refuse.
fn compaction(requests: &Requests, body: &Bytes) -> Option<i64> {
    let message = requests.unframe(body).ok()?;
    CompactionRequest::decode(message).ok().map(|request| request.revision)
}

/// Answers a compaction as if it had been done, with a header of etcd's.
pub async fn compact_nothing(
    upstream: &Upstream,
    caller: &Caller,
    request: Bytes,
) -> Result<(HeaderMap, Bytes), Status> {
    let wanted = CompactionRequest::decode(request).map_err(status::malformed)?;
    let range = methods::find("/etcdserverpb.KV/Range").expect("a row of the table");
    let question = RangeRequest {
        key: caller.namespace().prefix_key(&Bytes::from_static(NUL)),
        count_only: true,
        ..RangeRequest::default()
    };
    let answer = upstream.call(&caller.uncompressed(), range, framing::frame(&question.encode_to_vec())).await?;
    let collected = answer.collect(upstream.limits().max_answer).await?;
    let headers = collected.headers.clone();
    let answered = RangeResponse::decode(collected.into_message()?).map_err(status::unreadable_answer)?;
    if answered.header.is_some_and(|header| wanted.revision > header.revision) {
        return Err(status::future_revision());
    }
    Ok((headers, CompactionResponse { header: answered.header }.encode_to_vec().into()))
}

/// Forwards an RPC that nobody here knows, both ways as bytes.
pub async fn forward_unknown(
    upstream: &Upstream,
    caller: &Caller,
    path: &str,
    mut requests: Requests,
    mut replies: Replies,
) -> Outcome {
    let duplex = tokio::select! {
        biased;
        duplex = upstream.open(caller, path, &[]) => duplex,
        gone = replies.gone() => return Err(gone),
    };
    let duplex = match duplex {
        Ok(duplex) => duplex,
        Err(status) => return Ok(fail(replies, &status)),
    };
    let (mut send, answer) = duplex.split();
    let upward = async {
        while let Some(Ok(data)) = requests.data().await {
            if send_all(&mut send, data).await.is_err() {
                return;
            }
        }
        // An error means that etcd has ended the call already, which the answer tells.
        let _ = send.send_data(Bytes::new(), true);
    };
    let downward = async {
        match answer.await {
            Ok(answer) => pass(answer, replies).await,
            Err(status) => Ok(fail(replies, &status)),
        }
    };
    tokio::pin!(downward);
    tokio::select! {
        biased;
        outcome = &mut downward => outcome,
        () = upward => downward.await,
    }
}

/// Hands an answer down as it comes.
pub async fn pass(mut answer: Answer, mut replies: Replies) -> Outcome {
    if let Some(code) = answer.code() {
        replies.finish(answer.headers);
        return Ok(code);
    }
    replies.begin(std::mem::take(&mut answer.headers))?;
    loop {
        let data = tokio::select! {
            biased;
            data = answer.body.data() => data,
            gone = replies.gone() => return Err(gone),
        };
        match data {
            Some(Ok(data)) => replies.data(data).await?,
            Some(Err(status)) => return Ok(fail(replies, &status)),
            None => return Ok(finish(answer, replies).await),
        }
    }
}

/// Serves a unary call whose answer is made here, of its one message.
pub async fn answer<F: Future<Output = Result<(HeaderMap, Bytes), Status>>>(
    answer: impl FnOnce(Bytes) -> F,
    mut requests: Requests,
    mut replies: Replies,
    deadline: Option<Instant>,
) -> Outcome {
    let work = async {
        let body = requests.collect().await?;
        answer(requests.unframe(&body)?).await
    };
    let answered = tokio::select! {
        biased;
        answered = until(deadline, work) => answered,
        gone = replies.gone() => return Err(gone),
    };
    match answered {
        Ok((headers, message)) => {
            replies.begin(headers)?;
            replies.data(framing::frame(&message)).await?;
            replies.succeed();
            Ok(Code::Ok)
        }
        Err(status) => Ok(fail(replies, &status)),
    }
}

/// Ends an exchange with a status of ours, and says which.
pub fn fail(replies: Replies, status: &Status) -> Code {
    replies.fail(status);
    status.code()
}

async fn finish(mut answer: Answer, replies: Replies) -> Code {
    match answer.body.trailers().await {
        Ok(Some(trailers)) => {
            let code = code_of(&trailers).unwrap_or(Code::Unknown);
            replies.finish(trailers);
            code
        }
        Ok(None) => fail(replies, &status::broken("server closed the stream without sending trailers")),
        Err(status) => fail(replies, &status),
    }
}
