//! No connection sees time run backwards: an answer that is older than what its connection has been shown is asked for
//! at another member.
//!
//! Only reads that one member answers by itself, the serializable ones, can be so old: a member that lags answers them
//! as it stands, and a connection comes to it when its own member has failed. When no member does better, the answer is
//! given as it is, as a client of etcd's that changes its member gets it; with `--experimental-serializable-ordering` it
//! is refused.

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
        // What clients do not read as a revision of the store need not be in its order.
        if method.kind != Kind::Unary || method.revision != Revision::Shown {
            return upstream.call(caller, method, body).await;
        }
        let floor = caller.connection.shown.revision();
        let answer = upstream.call(caller, method, body.clone()).await?;
        match too_old(&answer, floor) {
            Some(revision) if may_be_behind(method, &body) => {
                Box::pin(self.call_elsewhere(upstream, caller, method, body, floor, (revision, answer))).await
            }
            _ => Ok(answer),
        }
    }

    /// Looks for a better answer than this one.
    async fn call_elsewhere(
        self,
        upstream: &Upstream,
        caller: &Caller,
        method: &'static Method,
        body: Bytes,
        floor: i64,
        mut newest: (i64, Answer),
    ) -> Result<Answer, Status> {
        let mut tried = vec![newest.1.endpoint.clone()];
        let mut round = 1;
        loop {
            let other = match upstream.has_another(caller, &tried) {
                true => upstream.call_beyond(caller, method, body.clone(), &tried).await,
                false => Err(status::no_endpoints()),
            };
            let answer = match other {
                Ok(other) => other,
                // What another member could not answer is no reason to withhold what one could.
                Err(_) if !self.is_strict => {
                    caller.connection.shown.fall_back(newest.0);
                    return Ok(newest.1);
                }
                Err(_) if round == ROUNDS => return Err(status::no_greater_revision()),
                Err(_) => {
                    tokio::time::sleep(PAUSE * round).await;
                    round += 1;
                    tried.clear();
                    upstream.call(caller, method, body.clone()).await?
                }
            };
            tried.push(answer.endpoint.clone());
            match too_old(&answer, floor) {
                None => return Ok(answer),
                Some(revision) if revision > newest.0 => newest = (revision, answer),
                Some(_) => (),
            }
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

/// The revision that an answer shows, if its caller has seen a newer one.
fn too_old(answer: &Answer, floor: i64) -> Option<i64> {
    // The header comes first in a message, and a message that is compressed cannot be looked into.
    let first = answer.body.first().filter(|data| data.first() == Some(&0))?;
    let header = wire::header(first.get(framing::PREFIX_LEN..)?)?;
    answer.endpoint.note_member(header.member_id);
    (header.revision < floor).then_some(header.revision)
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
