//! The keys of a request, as an audit line has them: which, and what for, but nothing of what is stored under them.

use bytes::Bytes;
use etcd_proxy_proto::{
    etcdserverpb::{
        DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchRequest, request_op::Request,
        watch_request::RequestUnion,
    },
    v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest},
    v3lockpb::{LockRequest, UnlockRequest},
};
use prost::Message;
use serde::Serialize;

use crate::rules::namespace::Shape;

/// Operations of one transaction that are told; of the others their number.
const MAX_TOLD: usize = 64;
/// Bytes of a key that are told; etcd takes keys of any size.
const MAX_KEY: usize = 1024;

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Keys {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<Asked>,
    #[serde(skip_serializing_if = "is_zero")]
    keys_left_out: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Keys as the tenant names them, with what is not printable ASCII escaped.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Asked {
    /// Of an operation in a transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<&'static str>,
    key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    range_end: String,
}

impl Keys {
    /// Of a request of this shape; none if it cannot be read, which etcd refuses too.
    pub fn of(shape: Shape, message: Bytes) -> Self {
        let mut keys = Self::default();
        // It says only that the message cannot be read.
        let _ = keys.read(shape, message);
        keys
    }

    /// Of a message on a stream.
    pub fn of_stream(path: &str, message: &Bytes) -> Self {
        let mut keys = Self::default();
        if path == "/etcdserverpb.Watch/Watch"
            && let Ok(request) = WatchRequest::decode(message.clone())
            && let Some(RequestUnion::CreateRequest(create)) = request.request_union
        {
            keys.add(None, &create.key, &create.range_end);
        }
        keys
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn read(&mut self, shape: Shape, message: Bytes) -> Result<(), prost::DecodeError> {
        let none: &[u8] = b"";
        match shape {
            Shape::Range => {
                let request = RangeRequest::decode(message)?;
                self.add(None, &request.key, &request.range_end);
            }
            Shape::Put => self.add(None, &PutRequest::decode(message)?.key, none),
            Shape::DeleteRange => {
                let request = DeleteRangeRequest::decode(message)?;
                self.add(None, &request.key, &request.range_end);
            }
            Shape::Txn => self.add_transaction(&TxnRequest::decode(message)?),
            Shape::Lock => self.add(None, &LockRequest::decode(message)?.name, none),
            Shape::Unlock => self.add(None, &UnlockRequest::decode(message)?.key, none),
            Shape::Campaign => self.add(None, &CampaignRequest::decode(message)?.name, none),
            Shape::Leader => self.add(None, &LeaderRequest::decode(message)?.name, none),
            Shape::Proclaim => {
                let leader = ProclaimRequest::decode(message)?.leader.unwrap_or_default();
                self.add(None, &leader.key, none);
            }
            Shape::Resign => {
                let leader = ResignRequest::decode(message)?.leader.unwrap_or_default();
                self.add(None, &leader.key, none);
            }
            _ => (),
        }
        Ok(())
    }

    fn add_transaction(&mut self, transaction: &TxnRequest) {
        for compare in &transaction.compare {
            self.add(Some("compare"), &compare.key, &compare.range_end);
        }
        for RequestOp { request } in transaction.success.iter().chain(&transaction.failure) {
            match request {
                Some(Request::RequestRange(range)) => self.add(Some("range"), &range.key, &range.range_end),
                Some(Request::RequestPut(put)) => self.add(Some("put"), &put.key, b""),
                Some(Request::RequestDeleteRange(delete)) => {
                    self.add(Some("delete_range"), &delete.key, &delete.range_end);
                }
                Some(Request::RequestTxn(nested)) => self.add_transaction(nested),
                None => (),
            }
        }
    }

    fn add(&mut self, op: Option<&'static str>, key: &[u8], range_end: &[u8]) {
        if self.keys.len() >= MAX_TOLD {
            self.keys_left_out += 1;
            return;
        }
        self.keys.push(Asked { op, key: text(key), range_end: text(range_end) });
    }
}

fn text(key: &[u8]) -> String {
    key[..key.len().min(MAX_KEY)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &str, range_end: &str) -> RangeRequest {
        RangeRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), ..RangeRequest::default() }
    }

    #[test]
    fn a_transaction_tells_every_key_with_what_is_done_to_it() {
        let op = |request| RequestOp { request: Some(request) };
        let put = PutRequest { key: "b".into(), value: "secret".into(), ..PutRequest::default() };
        let nested = TxnRequest { failure: vec![op(Request::RequestPut(put))], ..TxnRequest::default() };
        let transaction = TxnRequest {
            success: vec![op(Request::RequestRange(range("a", "\0"))), op(Request::RequestTxn(nested))],
            ..TxnRequest::default()
        };
        let keys = Keys::of(Shape::Txn, transaction.encode_to_vec().into());
        let json = serde_json::to_string(&keys).expect("it has a JSON form");
        assert_eq!(json, r#"{"keys":[{"op":"range","key":"a","range_end":"\\x00"},{"op":"put","key":"b"}]}"#);
    }

    #[test]
    fn what_is_told_has_a_bound() {
        let long = Keys::of(Shape::Range, range(&"k".repeat(5000), "").encode_to_vec().into());
        assert_eq!(long.keys[0].key.len(), MAX_KEY);
        let many = (0..100).map(|_| RequestOp { request: Some(Request::RequestRange(range("a", ""))) }).collect();
        let many = Keys::of(Shape::Txn, TxnRequest { success: many, ..TxnRequest::default() }.encode_to_vec().into());
        assert_eq!((many.keys.len(), many.keys_left_out), (MAX_TOLD, 36));
        assert!(Keys::of(Shape::Range, Bytes::from_static(b"\x0a\x05a")).is_empty());
    }
}
