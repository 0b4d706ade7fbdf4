//! No connection sees time run backwards: an answer that is older than what its connection has been shown is asked for
//! at another member.
//!
//! Only reads that one member answers by itself, the serializable ones, can be so old: a member that lags answers them
//! as it stands, and a connection comes to it when its own member has failed. When no member does better, the answer is
//! given as it is, as a client of etcd's that changes its member gets it; with `--experimental-serializable-ordering` it
//! is refused. A read whose member dies in the middle of its answer is asked again as well.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    rules::{
        caller::Caller,
        framing,
        methods::{Kind, Method, Revision},
        namespace::Shape,
        status::{self, Status},
        wire::{self, Malformed},
    },
    upstream::{Answer, Upstream},
};

/// Whether answers that are too old are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ordering {
    pub is_strict: bool,
}

/// How often all members are asked before a read is refused. etcd's own client gives up after five times as well.
const ROUNDS: u32 = 5;
/// The wait before the second round, growing by as much each time: a member that is not cut off catches up within a
/// few heartbeats.
const PAUSE: Duration = Duration::from_millis(20);

impl Ordering {
    /// Sends a request that is complete, and waits for an answer that its caller may see.
    pub async fn call(
        self,
        upstream: &Upstream,
        caller: &Caller,
        method: &'static Method,
        body: Bytes,
    ) -> Result<Answer, Status> {
        let shows_revision = method.revision == Revision::Shown;
        if method.kind != Kind::Unary || !(shows_revision || method.is_retry_safe()) {
            return upstream.call(caller, method, body).await;
        }
        // What clients do not read as a revision of the store need not be in its order.
        let floor = if shows_revision { caller.connection.shown.revision() } else { 0 };
        let mut answer = upstream.call(caller, method, body.clone()).await?;
        let judged = judge(&mut answer, floor).await;
        match judged {
            Judged::Good => Ok(answer),
            Judged::Broken(status) if !method.is_retry_safe() => Err(status),
            Judged::Older(_) if !may_be_behind(method, &body) => Ok(answer),
            judged => Box::pin(self.call_elsewhere(upstream, caller, method, body, floor, answer, judged)).await,
        }
    }

    /// Looks for a better answer than this one.
    #[expect(clippy::too_many_arguments, reason = "it goes on where `call` has stopped")]
    async fn call_elsewhere(
        self,
        upstream: &Upstream,
        caller: &Caller,
        method: &'static Method,
        body: Bytes,
        floor: i64,
        mut answer: Answer,
        mut judged: Judged,
    ) -> Result<Answer, Status> {
        let mut tried = Vec::new();
        let mut newest: Option<(i64, Answer)> = None;
        let mut round = 1;
        loop {
            tried.push(answer.endpoint.clone());
            let last = match judged {
                Judged::Good => return Ok(answer),
                Judged::Older(revision) => {
                    if newest.as_ref().is_none_or(|(newest, _)| *newest < revision) {
                        newest = Some((revision, answer));
                    }
                    None
                }
                Judged::Broken(status) => Some(status),
            };
            let other = match upstream.has_another(caller, &tried) {
                true => upstream.call_beyond(caller, method, body.clone(), &tried).await,
                false => Err(last.unwrap_or_else(status::no_endpoints)),
            };
            answer = match (other, newest.take()) {
                (Ok(other), kept) => {
                    newest = kept;
                    other
                }
                (Err(status), None) => return Err(status),
                // What another member could not answer is no reason to withhold what one could.
                (Err(_), Some((revision, newest))) if !self.is_strict => {
                    caller.connection.shown.fall_back(revision);
                    return Ok(newest);
                }
                (Err(_), Some(_)) if round == ROUNDS => return Err(status::no_greater_revision()),
                (Err(_), Some(_)) => {
                    tokio::time::sleep(PAUSE * round).await;
                    round += 1;
                    tried.clear();
                    upstream.call(caller, method, body.clone()).await?
                }
            };
            judged = judge(&mut answer, floor).await;
        }
    }

    /// Whether a stream's request must ask for a linearizable read: its revision shows only when keys have been sent.
    pub fn wants_linearized(self, method: &Method) -> bool {
        self.is_strict && method.kind == Kind::ServerStream && method.keys.request == Some(Shape::Range)
    }
}

/// The same `RangeRequest`, linearizable. Of a field that comes twice the last one counts.
pub fn linearized(message: &[u8]) -> Bytes {
    const NOT_SERIALIZABLE: &[u8] = &[7 << 3, 0];
    Bytes::from([message, NOT_SERIALIZABLE].concat())
}

enum Judged {
    /// As far as can be seen.
    Good,
    /// It shows this revision, and the caller has seen a newer one.
    Older(i64),
    /// It broke off before any of it came.
    Broken(Status),
}

async fn judge(answer: &mut Answer, floor: i64) -> Judged {
    if answer.code().is_some() {
        return Judged::Good;
    }
    let endpoint = answer.endpoint.clone();
    match answer.body.peek().await {
        Some(Ok(data)) if data.first() == Some(&0) => {
            let Some(header) = wire::header(data.get(framing::PREFIX_LEN..).unwrap_or_default()) else {
                return Judged::Good;
            };
            endpoint.note_member(header.member_id);
            if header.revision < floor { Judged::Older(header.revision) } else { Judged::Good }
        }
        Some(Err(status)) => Judged::Broken(status),
        Some(Ok(_)) | None => Judged::Good,
    }
}

/// Whether one member answers this by itself: a read, or a transaction of nothing but serializable reads. Any other may
/// not be sent twice, and shows the store as the cluster has agreed on it.
fn may_be_behind(method: &Method, body: &Bytes) -> bool {
    match method.keys.request {
        Some(Shape::Range) => true,
        Some(Shape::Txn) => match framing::parse_prefix(body) {
            Ok(Some((false, _))) => only_reads(&body[framing::PREFIX_LEN..]).unwrap_or(false),
            _ => false,
        },
        _ => false,
    }
}

/// Whether a `TxnRequest` holds serializable reads and nothing else.
fn only_reads(transaction: &[u8]) -> Result<bool, Malformed> {
    const RANGE: u32 = 1;
    const SERIALIZABLE: u32 = 7;
    for field in wire::fields(transaction) {
        let field = field?;
        // What is to be done in either case.
        let Some(operation) = field.bytes(2).or(field.bytes(3)) else { continue };
        for field in wire::fields(operation) {
            match field?.bytes(RANGE) {
                Some(range) if wire::last_int64(range, SERIALIZABLE)? != 0 => (),
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use etcd_proxy_proto::etcdserverpb::{
        Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
    };
    use prost::Message as _;

    use super::*;

    #[test]
    fn only_a_transaction_of_serializable_reads_may_be_sent_twice() {
        let range = |serializable| Request::RequestRange(RangeRequest { serializable, ..RangeRequest::default() });
        let put = Request::RequestPut(PutRequest::default());
        let operations = |requests: &[Request]| {
            requests.iter().map(|request| RequestOp { request: Some(request.clone()) }).collect::<Vec<_>>()
        };
        let check = |success: &[Request], failure: &[Request], expected: bool| {
            let compare = vec![Compare { key: "k".into(), ..Compare::default() }];
            let transaction = TxnRequest { compare, success: operations(success), failure: operations(failure) };
            assert_eq!(only_reads(&transaction.encode_to_vec()), Ok(expected), "{transaction:?}");
        };
        check(&[range(true)], &[], true);
        check(&[range(true), range(true)], &[range(true)], true);
        check(&[range(true)], &[range(false)], false);
        check(&[range(true), put.clone()], &[], false);
        check(&[range(true)], &[put], false);
        let nested = TxnRequest { success: operations(&[range(true)]), ..TxnRequest::default() };
        check(&[Request::RequestTxn(nested)], &[], false);
    }

    #[test]
    fn a_linearized_request_keeps_all_else() {
        let request = RangeRequest { key: "k".into(), serializable: true, limit: 3, ..RangeRequest::default() };
        let linearized = RangeRequest::decode(linearized(&request.encode_to_vec())).expect("a RangeRequest");
        assert_eq!(linearized, RangeRequest { serializable: false, ..request });
    }
}
