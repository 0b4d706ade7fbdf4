//! Messages to test the wire edits with: valid ones of every kind, and valid ones with their bytes damaged.

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse, compare, request_op, response_op,
};
use etcd_proxy_proto::mvccpb::{Event, KeyValue};
use etcd_proxy_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use etcd_proxy_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use super::namespace::Shape;
use super::wire;

/// The prefixes worth testing: an ordinary one, those that carry or cannot be counted up, and one that is longer than
/// a one-byte length.
pub fn prefixes() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec![
        b"ns/".to_vec(),
        b"a\xff".to_vec(),
        b"\xff\xff".to_vec(),
        b"\0".to_vec(),
        vec![b'p'; 130],
    ])
    .prop_map(Bytes::from)
}

/// Keys that are often empty, `\0`, or next to a prefix.
pub fn keys() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        2 => Just(Bytes::new()),
        2 => Just(Bytes::from_static(b"\0")),
        1 => Just(Bytes::from_static(b"ns")),
        1 => Just(Bytes::from_static(b"ns/")),
        1 => Just(Bytes::from_static(b"b")),
        4 => vec(any::<u8>(), 0..6).prop_map(Bytes::from),
        1 => vec(any::<u8>(), 100..140).prop_map(Bytes::from),
    ]
}

fn header() -> impl Strategy<Value = Option<ResponseHeader>> {
    option::of(any::<(u64, u64, i64, u64)>().prop_map(|(cluster_id, member_id, revision, raft_term)| ResponseHeader {
        cluster_id,
        member_id,
        revision,
        raft_term,
    }))
}

fn range_request() -> impl Strategy<Value = RangeRequest> {
    (keys(), keys(), any::<(i64, i64, bool)>(), 0..7i32).prop_map(
        |(key, range_end, (limit, revision, count_only), sort_order)| RangeRequest {
            key,
            range_end,
            limit,
            revision,
            count_only,
            sort_order,
            ..Default::default()
        },
    )
}

fn put_request() -> impl Strategy<Value = PutRequest> {
    (keys(), keys(), any::<(i64, bool, bool)>()).prop_map(|(key, value, (lease, prev_kv, ignore_value))| PutRequest {
        key,
        value,
        lease,
        prev_kv,
        ignore_value,
        ..Default::default()
    })
}

fn delete_range_request() -> impl Strategy<Value = DeleteRangeRequest> {
    (keys(), keys(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest { key, range_end, prev_kv })
}

fn compare() -> impl Strategy<Value = Compare> {
    (keys(), keys(), 0..5i32, option::of(keys())).prop_map(|(key, range_end, result, value)| Compare {
        key,
        range_end,
        result,
        target_union: value.map(compare::TargetUnion::Value),
        ..Default::default()
    })
}

fn txn_request() -> impl Strategy<Value = TxnRequest> {
    let leaf = (vec(compare(), 0..3), vec(option::of(simple_op()), 0..3)).prop_map(|(compare, ops)| TxnRequest {
        compare,
        success: ops.into_iter().map(|request| RequestOp { request }).collect(),
        failure: vec![],
    });
    leaf.prop_recursive(3, 12, 3, |inner| {
        (vec(compare(), 0..2), vec(simple_op(), 0..2), vec(inner, 1..3)).prop_map(|(compare, ops, txns)| TxnRequest {
            compare,
            success: ops.into_iter().map(|op| RequestOp { request: Some(op) }).collect(),
            failure: txns
                .into_iter()
                .map(|txn| RequestOp { request: Some(request_op::Request::RequestTxn(txn)) })
                .collect(),
        })
    })
}

fn simple_op() -> impl Strategy<Value = request_op::Request> {
    prop_oneof![
        range_request().prop_map(request_op::Request::RequestRange),
        put_request().prop_map(request_op::Request::RequestPut),
        delete_range_request().prop_map(request_op::Request::RequestDeleteRange),
    ]
}

fn leader_key() -> impl Strategy<Value = Option<LeaderKey>> {
    option::of((keys(), keys(), any::<i64>()).prop_map(|(name, key, rev)| LeaderKey { name, key, rev, lease: rev }))
}

/// An encoded request.
pub fn request(shape: Shape) -> BoxedStrategy<Vec<u8>> {
    fn encoded<M: Message>(strategy: impl Strategy<Value = M> + 'static) -> BoxedStrategy<Vec<u8>> {
        strategy.prop_map(|message| message.encode_to_vec()).boxed()
    }
    match shape {
        Shape::Range => encoded(range_request()),
        Shape::Put => encoded(put_request()),
        Shape::DeleteRange => encoded(delete_range_request()),
        Shape::Txn => encoded(txn_request()),
        Shape::Lock => encoded((keys(), any::<i64>()).prop_map(|(name, lease)| LockRequest { name, lease })),
        Shape::Unlock => encoded(keys().prop_map(|key| UnlockRequest { key })),
        Shape::Campaign => encoded((keys(), any::<i64>(), keys()).prop_map(|(name, lease, value)| CampaignRequest {
            name,
            lease,
            value,
        })),
        Shape::Proclaim => {
            encoded((leader_key(), keys()).prop_map(|(leader, value)| ProclaimRequest { leader, value }))
        }
        Shape::Leader => encoded(keys().prop_map(|name| LeaderRequest { name })),
        Shape::Resign => encoded(leader_key().prop_map(|leader| ResignRequest { leader })),
        Shape::Lease => encoded(any::<(i64, bool)>().prop_map(|(id, keys)| LeaseTimeToLiveRequest { id, keys })),
        _ => unreachable!("{shape:?} is an answer"),
    }
}

/// Keys as etcd would answer them to a client of the namespace: nearly all in it.
fn answered_keys(prefix: Bytes) -> BoxedStrategy<Bytes> {
    let in_namespace = keys().prop_map(move |key| if key.is_empty() { Bytes::from_static(b"k") } else { key });
    prop_oneof![
        60 => in_namespace.prop_map(move |key| Bytes::from([&prefix[..], &key].concat())),
        1 => keys(),
    ]
    .boxed()
}

fn key_value(prefix: Bytes) -> impl Strategy<Value = KeyValue> {
    (answered_keys(prefix), keys(), any::<(i64, i64, i64, i64)>()).prop_map(
        |(key, value, (create_revision, mod_revision, version, lease))| KeyValue {
            key,
            create_revision,
            mod_revision,
            version,
            value,
            lease,
        },
    )
}

fn range_response(prefix: Bytes) -> impl Strategy<Value = RangeResponse> {
    (header(), vec(key_value(prefix), 0..4), any::<(bool, i64)>())
        .prop_map(|(header, kvs, (more, count))| RangeResponse { header, kvs, more, count })
}

fn put_response(prefix: Bytes) -> impl Strategy<Value = PutResponse> {
    (header(), option::of(key_value(prefix))).prop_map(|(header, prev_kv)| PutResponse { header, prev_kv })
}

fn delete_range_response(prefix: Bytes) -> impl Strategy<Value = DeleteRangeResponse> {
    (header(), any::<i64>(), vec(key_value(prefix), 0..4)).prop_map(|(header, deleted, prev_kvs)| DeleteRangeResponse {
        header,
        deleted,
        prev_kvs,
    })
}

fn txn_response(prefix: Bytes) -> impl Strategy<Value = TxnResponse> {
    let simple = prop_oneof![
        range_response(prefix.clone()).prop_map(response_op::Response::ResponseRange),
        put_response(prefix.clone()).prop_map(response_op::Response::ResponsePut),
        delete_range_response(prefix).prop_map(response_op::Response::ResponseDeleteRange),
    ];
    let response_ops = |ops: Vec<response_op::Response>| {
        ops.into_iter().map(|response| ResponseOp { response: Some(response) }).collect()
    };
    let leaf = (header(), any::<bool>(), vec(simple, 0..3)).prop_map(move |(header, succeeded, ops)| TxnResponse {
        header,
        succeeded,
        responses: response_ops(ops),
    });
    leaf.prop_recursive(3, 8, 2, move |inner| {
        vec(inner.prop_map(response_op::Response::ResponseTxn), 0..3).prop_map(move |ops| TxnResponse {
            header: None,
            succeeded: true,
            responses: response_ops(ops),
        })
    })
}

/// An encoded answer to a client of the namespace `prefix`; now and then a key in it is not of the namespace.
pub fn response(shape: Shape, prefix: Bytes) -> BoxedStrategy<Vec<u8>> {
    fn encoded<M: Message>(strategy: impl Strategy<Value = M> + 'static) -> BoxedStrategy<Vec<u8>> {
        strategy.prop_map(|message| message.encode_to_vec()).boxed()
    }
    match shape {
        Shape::RangeResponse => encoded(range_response(prefix)),
        Shape::RangeStreamResponse => encoded(
            option::of(range_response(prefix)).prop_map(|range_response| RangeStreamResponse { range_response }),
        ),
        Shape::PutResponse => encoded(put_response(prefix)),
        Shape::DeleteRangeResponse => encoded(delete_range_response(prefix)),
        Shape::TxnResponse => encoded(txn_response(prefix)),
        Shape::LeaseTimeToLiveResponse => encoded(
            (header(), any::<i64>(), vec(answered_keys(prefix), 0..4))
                .prop_map(|(header, id, keys)| LeaseTimeToLiveResponse { header, id, keys, ..Default::default() }),
        ),
        Shape::LockResponse => {
            encoded((header(), answered_keys(prefix)).prop_map(|(header, key)| LockResponse { header, key }))
        }
        Shape::CampaignResponse => {
            encoded((header(), answered_keys(prefix.clone()), answered_keys(prefix)).prop_map(|(header, name, key)| {
                CampaignResponse { header, leader: Some(LeaderKey { name, key, rev: 7, lease: 8 }) }
            }))
        }
        Shape::LeaderResponse => {
            encoded((header(), option::of(key_value(prefix))).prop_map(|(header, kv)| LeaderResponse { header, kv }))
        }
        _ => unreachable!("{shape:?} is a request"),
    }
}

/// An encoded watch event of the namespace `prefix`.
pub fn event(prefix: Bytes) -> impl Strategy<Value = Vec<u8>> {
    (0..3i32, key_value(prefix.clone()), option::of(key_value(prefix)))
        .prop_map(|(r#type, kv, prev_kv)| Event { r#type, kv: Some(kv), prev_kv }.encode_to_vec())
}

/// What an attacker or a bug does to a message: fields doubled, dropped, swapped and taken from elsewhere at any depth,
/// lengths and tags spelled overlong, bytes flipped, the end cut off.
#[derive(Debug, Clone)]
pub enum Damage {
    Double(usize),
    Drop(usize),
    Swap(usize),
    Insert(usize, Vec<u8>),
    Overlong(usize),
    Inside(usize, Box<Damage>),
    Flip(usize, u8),
    Cut(usize),
}

pub fn damage() -> impl Strategy<Value = Damage> {
    let field = prop_oneof![
        // Small fields of every number and wire type that the API uses, and of some that it does not.
        ((1..8u32), keys()).prop_map(|(number, bytes)| length_delimited(number, &bytes)),
        Just(length_delimited(64, b"zz")),
        Just(length_delimited(1000, b"unknown")),
        (1..8u8, 0..8u8, vec(any::<u8>(), 0..10))
            .prop_map(|(number, wire_type, rest)| { [&[number << 3 | wire_type][..], &rest].concat() }),
        // A whole Put and a whole Range, as members of a RequestOp.
        keys().prop_map(|key| length_delimited(2, &PutRequest { key, ..Default::default() }.encode_to_vec())),
        (keys(), keys()).prop_map(|(key, range_end)| {
            length_delimited(1, &RangeRequest { key, range_end, ..Default::default() }.encode_to_vec())
        }),
    ];
    let leaf = prop_oneof![
        any::<usize>().prop_map(Damage::Double),
        any::<usize>().prop_map(Damage::Drop),
        any::<usize>().prop_map(Damage::Swap),
        (any::<usize>(), field).prop_map(|(at, field)| Damage::Insert(at, field)),
        any::<usize>().prop_map(Damage::Overlong),
        any::<(usize, u8)>().prop_map(|(at, byte)| Damage::Flip(at, byte)),
        any::<usize>().prop_map(Damage::Cut),
    ];
    (leaf, vec(any::<usize>(), 0..5))
        .prop_map(|(damage, path)| path.into_iter().fold(damage, |damage, at| Damage::Inside(at, Box::new(damage))))
}

fn length_delimited(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    wire::put_bytes_header(&mut field, number, bytes.len());
    field.extend_from_slice(bytes);
    field
}

impl Damage {
    pub fn done_to(&self, message: &[u8]) -> Vec<u8> {
        let mut fields: Vec<Vec<u8>> =
            wire::fields(message).flatten().map(|field| message[field.start..field.end].to_vec()).collect();
        let count = fields.len();
        match self {
            Self::Double(at) if count > 0 => fields.push(fields[at % count].clone()),
            Self::Drop(at) if count > 0 => drop(fields.remove(at % count)),
            Self::Swap(at) if count > 0 => fields.swap(at % count, 0),
            Self::Insert(at, field) => fields.insert(at % (count + 1), field.clone()),
            Self::Overlong(at) if count > 0 => {
                // The tag takes one byte in most fields of the API; two mean the same.
                let tag = &mut fields[at % count];
                if tag[0] < 0x80 {
                    tag[0] |= 0x80;
                    tag.insert(1, 0);
                }
            }
            Self::Inside(at, damage) => {
                let submessages: Vec<_> = wire::fields(message)
                    .flatten()
                    .enumerate()
                    .filter_map(|(index, field)| field.bytes(field.number).map(|bytes| (index, field.number, bytes)))
                    .collect();
                // Where there is nothing to go into, the damage is done here.
                let Some((index, number, bytes)) = submessages.get(at % submessages.len().max(1)) else {
                    return damage.done_to(message);
                };
                fields[*index] = length_delimited(*number, &damage.done_to(bytes));
            }
            Self::Flip(at, byte) if !message.is_empty() => {
                let mut flipped = message.to_vec();
                flipped[at % message.len()] ^= byte;
                return flipped;
            }
            Self::Cut(at) if !message.is_empty() => return message[..at % message.len()].to_vec(),
            _ => {}
        }
        fields.concat()
    }
}
