//! The edits on the wire against the plain thing: decode with prost, change the fields, encode again.

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse, request_op, response_op,
};
use etcd_proxy_proto::mvccpb::KeyValue;
use etcd_proxy_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use etcd_proxy_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::rules::samples::{self, damage, keys, prefixes};

/// A place in a message where a key stands.
enum Slot<'a> {
    Keys(&'a mut Bytes, Option<&'a mut Bytes>),
    Lease(&'a mut i64),
    Name(&'a mut Bytes),
    LeaderName(&'a mut Bytes),
    AnswerKey(&'a mut Bytes),
    AnswerLockKey(&'a mut Bytes),
    AnswerName(&'a mut Bytes),
    AnswerKeys(&'a mut Vec<Bytes>),
}

type Visit<'v> = &'v mut dyn FnMut(Slot<'_>);

fn rewrite<M: Message + Default>(bytes: &[u8], change: impl FnOnce(&mut M)) -> Option<Vec<u8>> {
    let mut message = M::decode(bytes).ok()?;
    change(&mut message);
    Some(message.encode_to_vec())
}

/// Decodes a request, visits its keys and encodes it again; nothing if it cannot be decoded.
fn visit_request(shape: Shape, bytes: &[u8], visit: Visit<'_>) -> Option<Vec<u8>> {
    fn txn(message: &mut TxnRequest, visit: Visit<'_>) {
        message.compare.iter_mut().for_each(|c| visit(Slot::Keys(&mut c.key, Some(&mut c.range_end))));
        for op in message.success.iter_mut().chain(&mut message.failure) {
            match &mut op.request {
                Some(request_op::Request::RequestRange(r)) => visit(Slot::Keys(&mut r.key, Some(&mut r.range_end))),
                Some(request_op::Request::RequestPut(p)) => put(p, visit),
                Some(request_op::Request::RequestDeleteRange(d)) => {
                    visit(Slot::Keys(&mut d.key, Some(&mut d.range_end)));
                }
                Some(request_op::Request::RequestTxn(inner)) => txn(inner, visit),
                None => {}
            }
        }
    }
    fn put(message: &mut PutRequest, visit: Visit<'_>) {
        visit(Slot::Keys(&mut message.key, None));
        visit(Slot::Lease(&mut message.lease));
    }
    fn leader(leader: &mut Option<LeaderKey>, visit: Visit<'_>) {
        if let Some(leader) = leader {
            visit(Slot::Lease(&mut leader.lease));
            visit(Slot::LeaderName(&mut leader.name));
            visit(Slot::Keys(&mut leader.key, None));
        }
    }
    match shape {
        Shape::Range => rewrite::<RangeRequest>(bytes, |m| visit(Slot::Keys(&mut m.key, Some(&mut m.range_end)))),
        Shape::Put => rewrite::<PutRequest>(bytes, |m| put(m, visit)),
        Shape::DeleteRange => {
            rewrite::<DeleteRangeRequest>(bytes, |m| visit(Slot::Keys(&mut m.key, Some(&mut m.range_end))))
        }
        Shape::Txn => rewrite::<TxnRequest>(bytes, |m| txn(m, visit)),
        Shape::Lock => rewrite::<LockRequest>(bytes, |m| {
            visit(Slot::Name(&mut m.name));
            visit(Slot::Lease(&mut m.lease));
        }),
        Shape::Unlock => rewrite::<UnlockRequest>(bytes, |m| visit(Slot::Keys(&mut m.key, None))),
        Shape::Campaign => rewrite::<CampaignRequest>(bytes, |m| {
            visit(Slot::Name(&mut m.name));
            visit(Slot::Lease(&mut m.lease));
        }),
        Shape::Proclaim => rewrite::<ProclaimRequest>(bytes, |m| leader(&mut m.leader, visit)),
        Shape::Leader => rewrite::<LeaderRequest>(bytes, |m| visit(Slot::Name(&mut m.name))),
        Shape::Resign => rewrite::<ResignRequest>(bytes, |m| leader(&mut m.leader, visit)),
        Shape::Lease => rewrite::<LeaseTimeToLiveRequest>(bytes, |m| visit(Slot::Lease(&mut m.id))),
        _ => unreachable!("{shape:?} is an answer"),
    }
}

fn visit_response(shape: Shape, bytes: &[u8], visit: Visit<'_>) -> Option<Vec<u8>> {
    fn kvs<'a>(kvs: impl IntoIterator<Item = &'a mut KeyValue>, visit: Visit<'_>) {
        kvs.into_iter().for_each(|kv| visit(Slot::AnswerKey(&mut kv.key)));
    }
    fn txn(message: &mut TxnResponse, visit: Visit<'_>) {
        for op in &mut message.responses {
            match &mut op.response {
                Some(response_op::Response::ResponseRange(r)) => kvs(&mut r.kvs, visit),
                Some(response_op::Response::ResponsePut(p)) => kvs(&mut p.prev_kv, visit),
                Some(response_op::Response::ResponseDeleteRange(d)) => kvs(&mut d.prev_kvs, visit),
                Some(response_op::Response::ResponseTxn(inner)) => txn(inner, visit),
                None => {}
            }
        }
    }
    match shape {
        Shape::RangeResponse => rewrite::<RangeResponse>(bytes, |m| kvs(&mut m.kvs, visit)),
        Shape::RangeStreamResponse => {
            rewrite::<RangeStreamResponse>(bytes, |m| m.range_response.iter_mut().for_each(|m| kvs(&mut m.kvs, visit)))
        }
        Shape::PutResponse => rewrite::<PutResponse>(bytes, |m| kvs(&mut m.prev_kv, visit)),
        Shape::DeleteRangeResponse => rewrite::<DeleteRangeResponse>(bytes, |m| kvs(&mut m.prev_kvs, visit)),
        Shape::TxnResponse => rewrite::<TxnResponse>(bytes, |m| txn(m, visit)),
        Shape::LeaseTimeToLiveResponse => {
            rewrite::<LeaseTimeToLiveResponse>(bytes, |m| visit(Slot::AnswerKeys(&mut m.keys)))
        }
        Shape::LockResponse => rewrite::<LockResponse>(bytes, |m| visit(Slot::AnswerLockKey(&mut m.key))),
        Shape::CampaignResponse => rewrite::<CampaignResponse>(bytes, |m| {
            if let Some(leader) = &mut m.leader {
                visit(Slot::AnswerName(&mut leader.name));
                visit(Slot::AnswerLockKey(&mut leader.key));
            }
        }),
        Shape::LeaderResponse => rewrite::<LeaderResponse>(bytes, |m| kvs(&mut m.kv, visit)),
        _ => unreachable!("{shape:?} is a request"),
    }
}

/// Does to the keys of a request what [`Namespace::request`] shall.
fn prefix_slot(namespace: &Namespace, slot: Slot<'_>) {
    let prefixed = |key: &Bytes| Bytes::from([&namespace.prefix[..], key].concat());
    match slot {
        Slot::Keys(key, range_end) if key.is_empty() => range_end.into_iter().for_each(|end| end.clear()),
        Slot::Keys(key, range_end) => {
            *key = prefixed(key);
            match range_end {
                Some(end) if *end == NUL => *end = prefix_end(&namespace.prefix),
                Some(end) if !end.is_empty() => *end = prefixed(end),
                _ => {}
            }
        }
        Slot::LeaderName(name) if name.is_empty() => {}
        Slot::Lease(lease) => *lease = namespace.leases.map_or(*lease, |block| block.as_asked(*lease)),
        Slot::Name(name) | Slot::LeaderName(name) => *name = prefixed(name),
        _ => unreachable!("no request has it"),
    }
}

/// Does to the keys of an answer what [`Namespace::response`] shall, and notes if one is not of the namespace.
fn strip_slot(namespace: &Namespace, slot: Slot<'_>, outside: &mut bool) {
    let stripped = |key: &Bytes| key.strip_prefix(&namespace.prefix[..]).map(Bytes::copy_from_slice);
    let strip = |key: &Bytes| stripped(key).filter(|key| !key.is_empty());
    match slot {
        Slot::AnswerLockKey(key) | Slot::AnswerName(key) if key.is_empty() => {}
        Slot::AnswerKey(key) | Slot::AnswerLockKey(key) => match strip(key) {
            Some(stripped) => *key = stripped,
            None => *outside = true,
        },
        Slot::AnswerName(name) => match stripped(name) {
            Some(stripped) => *name = stripped,
            None => *outside = true,
        },
        Slot::AnswerKeys(keys) => *keys = keys.iter().filter_map(strip).collect(),
        _ => unreachable!("no answer has it"),
    }
}

/// The security boundary: whatever etcd could find in a request is in the namespace, or is an empty key without an end.
fn assert_inside(namespace: &Namespace, slot: Slot<'_>) {
    let inside = |key: &[u8]| key.starts_with(&namespace.prefix);
    match slot {
        Slot::Keys(key, range_end) => {
            let end = range_end.map_or(&b""[..], |end| end);
            if key.is_empty() {
                assert_eq!(end, b"");
            } else {
                assert!(inside(key), "{key:?}");
                assert!(end.is_empty() || inside(end) || *end == prefix_end(&namespace.prefix), "{end:?}");
            }
        }
        Slot::Name(name) => assert!(inside(name), "{name:?}"),
        Slot::Lease(lease) => {
            let is_asked = |block: LeaseBlock| block.as_asked(*lease) == *lease;
            assert!(namespace.leases.is_none_or(is_asked), "{lease:?}");
        }
        Slot::LeaderName(name) => assert!(name.is_empty() || inside(name), "{name:?}"),
        _ => unreachable!("no request has it"),
    }
}

fn request_shapes() -> impl Strategy<Value = Shape> {
    prop::sample::select(Shape::REQUESTS.to_vec())
}

fn response_shapes() -> impl Strategy<Value = Shape> {
    prop::sample::select(Shape::RESPONSES.to_vec())
}

fn requests() -> impl Strategy<Value = (Shape, Vec<u8>)> {
    request_shapes().prop_flat_map(|shape| (Just(shape), samples::request(shape)))
}

fn responses() -> impl Strategy<Value = (Bytes, Shape, Vec<u8>)> {
    (prefixes(), response_shapes())
        .prop_flat_map(|(prefix, shape)| (Just(prefix.clone()), Just(shape), samples::response(shape, prefix)))
}

fn check_request(prefix: Bytes, shape: Shape, request: Vec<u8>) {
    let block = LeaseBlock::of(b"key", &prefix);
    let namespace = Namespace::new(prefix);
    check_request_in(&namespace, shape, request.clone());
    // Leases of its own, among them one that does occur in the samples.
    check_request_in(&namespace.with_leases(block), shape, request);
}

fn check_request_in(namespace: &Namespace, shape: Shape, request: Vec<u8>) {
    let expected = visit_request(shape, &request, &mut |slot| prefix_slot(namespace, slot));
    let edited = namespace.request(shape, Bytes::from(request));
    if let Ok(edited) = &edited {
        visit_request(shape, edited, &mut |slot| assert_inside(namespace, slot));
    }
    // What prost can read, we can, and to the same effect.
    if let Some(expected) = expected {
        let edited = edited.expect("prost could read it");
        assert_eq!(visit_request(shape, &edited, &mut |_| {}), Some(expected), "{shape:?}");
    }
}

fn check_response(prefix: Bytes, shape: Shape, response: Vec<u8>, is_valid: bool) {
    let namespace = Namespace::new(prefix);
    let mut outside = false;
    let expected = visit_response(shape, &response, &mut |slot| strip_slot(&namespace, slot, &mut outside));
    let Some(expected) = expected else {
        // Not a message to prost; here it only must not panic.
        let _ = namespace.response(shape, Bytes::from(response));
        return;
    };
    match namespace.response(shape, Bytes::from(response)) {
        Ok(stripped) => {
            assert!(!outside, "a key outside got through");
            assert_eq!(visit_response(shape, &stripped, &mut |_| {}), Some(expected), "{shape:?}");
        }
        // A damaged answer may have a key outside that a later one hides from prost; we refuse it all the same.
        Err(error) => assert!(error == Broken::Outside && (outside || !is_valid), "{error:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_request_is_edited_as_prost_would((shape, request) in requests(), prefix in prefixes()) {
        check_request(prefix, shape, request);
    }

    #[test]
    fn a_damaged_request_smuggles_no_key(
        (shape, request) in requests(), prefix in prefixes(), damages in vec(damage(), 1..6),
    ) {
        let damaged = damages.iter().fold(request, |request, damage| damage.done_to(&request));
        check_request(prefix, shape, damaged);
    }

    #[test]
    fn no_bytes_make_a_request_panic_or_smuggle(
        shape in request_shapes(), prefix in prefixes(), bytes in vec(prop_oneof![any::<u8>(), 0..40u8], 0..60),
    ) {
        check_request(prefix, shape, bytes);
    }

    #[test]
    fn an_answer_is_edited_as_prost_would((prefix, shape, response) in responses()) {
        check_response(prefix, shape, response, true);
    }

    #[test]
    fn a_damaged_answer_shows_no_key_outside(
        (prefix, shape, response) in responses(), damages in vec(damage(), 1..6),
    ) {
        let damaged = damages.iter().fold(response, |response, damage| damage.done_to(&response));
        check_response(prefix, shape, damaged, false);
    }

    #[test]
    fn no_bytes_make_an_answer_panic(
        shape in response_shapes(), prefix in prefixes(), bytes in vec(prop_oneof![any::<u8>(), 0..40u8], 0..60),
    ) {
        check_response(prefix, shape, bytes, false);
    }

    #[test]
    fn stripping_undoes_prefixing(prefix in prefixes(), key in keys(), range_end in keys(), probe in keys()) {
        let namespace = Namespace::new(prefix);
        let prefixed = namespace.prefix_key(&key);
        prop_assert_eq!(namespace.strip_key(&prefixed).unwrap_or_default(), &key[..]);
        let range = KeyRange::of_watch(key, range_end);
        let prefixed = namespace.prefix_range(&range);
        prop_assert_eq!(namespace.strip_range(&prefixed), range.clone());
        // The client's keys in the client's range are etcd's keys in etcd's range ...
        if !probe.is_empty() {
            prop_assert_eq!(range.contains(&probe), prefixed.contains(&namespace.prefix_key(&probe)));
        }
        // ... and there is nothing in etcd's range that is not the client's.
        prop_assert!(!prefixed.contains(&probe) || namespace.strip_key(&probe).is_some(), "{:?}", probe);
        prop_assert!(!prefixed.contains(namespace.prefix()));
    }

    #[test]
    fn the_empty_namespace_changes_nothing((shape, bytes) in requests()) {
        let namespace = Namespace::new("");
        let bytes = Bytes::from(bytes);
        prop_assert_eq!(namespace.request(shape, bytes.clone()), Ok(bytes.clone()));
        prop_assert_eq!(namespace.response(Shape::RangeResponse, bytes.clone()), Ok(bytes));
    }
}

fn check(prefix: &'static [u8], shape: Shape, request: &[u8], expected: &[u8]) {
    let edited = Namespace::new(prefix).request(shape, Bytes::copy_from_slice(request));
    assert_eq!(edited.as_deref(), Ok(expected), "{shape:?}");
}

#[test]
fn a_range_to_the_end_of_everything_ends_with_the_namespace() {
    // key \0 and range_end \0, all keys.
    check(b"ns/", Shape::Range, b"\x0a\x01\0\x12\x01\0", b"\x0a\x04ns/\0\x12\x03ns0");
    check(b"a\xff", Shape::DeleteRange, b"\x0a\x01\0\x12\x01\0", b"\x0a\x03a\xff\0\x12\x01b");
    check(b"\xff\xff", Shape::Range, b"\x0a\x01\0\x12\x01\0", b"\x0a\x03\xff\xff\0\x12\x01\0");
}

#[test]
fn a_request_without_a_key_is_left_to_etcd_to_refuse() {
    check(b"ns/", Shape::Put, b"\x12\x01v", b"\x12\x01v");
    check(b"ns/", Shape::Range, b"\x0a\x00\x12\x01\0", b"");
    check(b"ns/", Shape::Unlock, b"", b"");
    // A transaction with a Put of nothing and an operation that is none.
    check(b"ns/", Shape::Txn, b"\x12\x04\x12\x02\x0a\x00\x1a\x00", b"\x12\x02\x12\x00\x1a\x00");
    // Proclaim and Resign without a leader: "leader" field must be provided.
    check(b"ns/", Shape::Proclaim, b"\x12\x01v", b"\x12\x01v");
    check(b"ns/", Shape::Resign, b"", b"");
}

#[test]
fn a_lock_without_a_name_stays_in_the_namespace() {
    check(b"ns/", Shape::Lock, b"", b"\x0a\x03ns/");
    check(b"ns/", Shape::Campaign, b"\x10\x07", b"\x0a\x03ns/\x10\x07");
    check(b"ns/", Shape::Leader, b"\x0a\x02el", b"\x0a\x05ns/el");
}

#[test]
fn of_two_members_of_an_operation_the_last_counts_and_gets_the_prefix() {
    let put = |op: &[u8]| [&[0x12, op.len() as u8][..], op].concat();
    // A Put of `a`, then a Range of `b`.
    check(b"n", Shape::Txn, &put(b"\x12\x03\x0a\x01a\x0a\x03\x0a\x01b"), &put(b"\x0a\x04\x0a\x02nb"));
    // A Range whose key is in one piece and whose end is in another: merged, and then both are prefixed.
    check(b"n", Shape::Txn, &put(b"\x0a\x03\x0a\x01a\x0a\x03\x12\x01\0"), &put(b"\x0a\x07\x0a\x02na\x12\x01o"));
    // A Range that has an end before it has a key, and a key before it has none again.
    check(b"n", Shape::Txn, &put(b"\x0a\x06\x12\x01\0\x0a\x01a\x0a\x02\x0a\x00"), &put(b"\x0a\x00"));
}

#[test]
fn unknown_fields_pass() {
    const UNKNOWN: &[u8] = b"\xc2\x3e\x07unknown";
    let with_unknown = |bytes: &[u8]| [bytes, UNKNOWN].concat();
    check(b"n", Shape::Put, &with_unknown(b"\x0a\x01k"), &with_unknown(b"\x0a\x02nk"));
    check(b"n", Shape::Lock, &with_unknown(b"\x0a\x01k"), &with_unknown(b"\x0a\x02nk"));
    check(b"n", Shape::Txn, &with_unknown(b"\x12\x05\x12\x03\x0a\x01k"), &with_unknown(b"\x12\x06\x12\x04\x0a\x02nk"));
    check(b"n", Shape::Proclaim, &with_unknown(b"\x0a\x03\x12\x01k"), &with_unknown(b"\x0a\x04\x12\x02nk"));
    let inner = with_unknown(b"\x12\x01v");
    let op = [&b"\x12\x0f\x12\x0d"[..], &inner].concat();
    let kv = |key: &[u8]| [&[0x12, (key.len() + 12) as u8, 0x0a, key.len() as u8][..], key, UNKNOWN].concat();
    check(b"n", Shape::Txn, &op, &op);
    let stripped = Namespace::new("n").response(Shape::RangeResponse, Bytes::from(with_unknown(&kv(b"nk"))));
    assert_eq!(stripped.as_deref(), Ok(&with_unknown(&kv(b"k"))[..]));
}

#[test]
fn an_answer_without_keys_is_not_even_copied() {
    let response = Bytes::from_static(b"\x0a\x02\x18\x07");
    for shape in Shape::RESPONSES.into_iter().filter(|shape| *shape != Shape::RangeStreamResponse) {
        let stripped = Namespace::new("ns/").response(shape, response.clone()).expect("it is an answer");
        assert_eq!(stripped.as_ptr(), response.as_ptr(), "{shape:?}");
    }
}

#[test]
fn a_key_outside_breaks_an_answer_but_not_that_of_a_lease() {
    let strip = |shape, response: &'static [u8]| Namespace::new("a").response(shape, Bytes::from_static(response));
    assert_eq!(strip(Shape::RangeResponse, b"\x12\x03\x0a\x01b"), Err(Broken::Outside));
    assert_eq!(strip(Shape::RangeResponse, b"\x12\x03\x0a\x01a"), Err(Broken::Outside));
    assert_eq!(strip(Shape::RangeResponse, b"\x12\x00"), Err(Broken::Outside));
    assert_eq!(strip(Shape::LockResponse, b"\x12\x01b"), Err(Broken::Outside));
    let lease = strip(Shape::LeaseTimeToLiveResponse, b"\x2a\x01b\x2a\x02ak\x2a\x01a\x2a\x00");
    assert_eq!(lease.as_deref(), Ok(&b"\x2a\x01k"[..]));
}

/// `depth` transactions, each but the last with the next one as its only operation.
fn nested_txn(depth: usize) -> Vec<u8> {
    (1..depth).fold(b"\x12\x05\x12\x03\x0a\x01k".to_vec(), |inner, _| {
        let mut op = Vec::new();
        wire::put_bytes_header(&mut op, 4, inner.len());
        op.extend_from_slice(&inner);
        let mut txn = Vec::new();
        wire::put_bytes_header(&mut txn, 2, op.len());
        txn.extend_from_slice(&op);
        txn
    })
}

#[test]
fn transactions_nest_as_deep_as_etcd_allows_and_no_deeper_than_we_can() {
    let namespace = Namespace::new(vec![b'p'; 100]);
    for depth in [1, 2, 129, MAX_DEPTH / 2] {
        let edited = namespace.request(Shape::Txn, nested_txn(depth).into()).expect("it is not too deep");
        let mut bytes = &edited[..];
        for _ in 1..depth {
            let op = wire::last_bytes(bytes, 2).expect("a transaction");
            bytes = wire::last_bytes(op, 4).expect("an operation");
        }
        let put = wire::last_bytes(wire::last_bytes(bytes, 2).expect("a transaction"), 2).expect("an operation");
        assert_eq!(wire::last_bytes(put, 1), Ok(&[&[b'p'; 100][..], b"k"].concat()[..]), "at depth {depth}");
    }
    for depth in [MAX_DEPTH / 2 + 1, 20_000] {
        let refused = namespace.request(Shape::Txn, nested_txn(depth).into());
        assert_eq!(refused, Err(Malformed::Depth));
    }
}

#[test]
fn a_message_that_goes_the_other_way_is_refused() {
    let namespace = Namespace::new("ns/");
    for shape in Shape::RESPONSES {
        assert_eq!(namespace.request(shape, Bytes::new()), Err(Malformed::Direction));
    }
    for shape in Shape::REQUESTS {
        assert_eq!(namespace.response(shape, Bytes::new()), Err(Broken::Malformed(Malformed::Direction)));
    }
}

#[test]
fn the_lease_of_another_goes_up_as_one_that_does_not_exist() {
    let block = LeaseBlock::of(b"key", b"ns/");
    let namespace = Namespace::new("ns/").with_leases(block);
    let (own, foreign) = (block.make(7), 0x1234);
    let put = |lease| PutRequest { key: "k".into(), value: "v".into(), lease, ..PutRequest::default() };
    for (lease, asked) in [(own, own), (foreign, block.nobody()), (block.nobody(), block.nobody()), (0, 0)] {
        let request = Bytes::from(put(lease).encode_to_vec());
        let edited = namespace.request(Shape::Put, request).expect("a good request");
        assert_eq!(PutRequest::decode(edited).expect("a good request").lease, asked);
    }
    // Twice, the second overlong: neither decoder may find the foreign one.
    let twice = b"\x0a\x01k\x18\xb4\x24\x18\xb4\xa4\x80\x00";
    let edited = namespace.request(Shape::Put, Bytes::from_static(twice)).expect("a readable request");
    let leases: Vec<_> = wire::fields(&edited).flatten().filter_map(|field| field.varint(3)).collect();
    assert_eq!(leases, [block.nobody() as u64; 2]);
}

/// What no tenant may see; each foreign key of a hostile etcd holds it.
const FOREIGN: &[u8] = b"FOREIGN";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_byte_of_a_foreign_key_reaches_a_tenant(
        (shape, response) in response_shapes()
            .prop_flat_map(|shape| (Just(shape), samples::response(shape, Bytes::from_static(FOREIGN)))),
        prefix in prefixes(),
        damages in vec(damage(), 0..4),
    ) {
        let hostile = damages.iter().fold(response, |response, damage| damage.done_to(&response));
        let holds = |bytes: &[u8]| bytes.windows(FOREIGN.len()).any(|window| window == FOREIGN);
        let namespace = Namespace::new(prefix);
        if let Ok(shown) = namespace.response(shape, Bytes::from(hostile.clone())) {
            // Values and fields that etcd does not have are not keys; the samples put none of it there.
            let mut keys = Vec::new();
            visit_response(shape, &shown, &mut |slot| match slot {
                Slot::AnswerKey(key) | Slot::AnswerLockKey(key) | Slot::AnswerName(key) => keys.push(key.clone()),
                Slot::AnswerKeys(several) => keys.extend(several.iter().cloned()),
                _ => unreachable!("no answer has it"),
            });
            prop_assert!(!keys.iter().any(|key| holds(key)), "{shape:?} {keys:?}");
        }
    }
}
