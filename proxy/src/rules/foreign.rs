//! Every reader of bytes in these rules is offered damaged ones.

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest, RangeResponse, RequestOp,
        ResponseHeader, ResponseOp, TxnRequest, TxnResponse, request_op::Request, response_op::Response,
    },
    mvccpb::{Event, KeyValue},
};
use prost::Message;

use super::{
    cache::Query,
    framing::{self, Decoder},
    leasing::{Prefix, Writes, answer},
    namespace::{Namespace, Shape},
    tenant::policy,
    wire,
};
use crate::foreign::damaged;

/// The largest message that a reader takes here.
const LIMIT: usize = 1 << 20;

fn pair() -> KeyValue {
    KeyValue {
        key: "ns/key".into(),
        value: "value".into(),
        mod_revision: 300,
        create_revision: 2,
        version: 9,
        lease: 1 << 40,
    }
}

fn txn() -> TxnRequest {
    let range = RangeRequest { key: "key".into(), range_end: "key0".into(), limit: 1000, ..RangeRequest::default() };
    let delete = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true };
    let put = PutRequest { key: "key".into(), value: "value".into(), lease: 7, ..PutRequest::default() };
    let operation = |request| RequestOp { request: Some(request) };
    let inner = TxnRequest { success: vec![operation(Request::RequestDeleteRange(delete))], ..TxnRequest::default() };
    TxnRequest {
        compare: vec![Compare { key: "key".into(), range_end: "l".into(), ..Compare::default() }],
        success: vec![operation(Request::RequestPut(put)), operation(Request::RequestTxn(inner))],
        failure: vec![operation(Request::RequestRange(range))],
    }
}

/// Requests and answers of etcd's.
fn messages() -> Vec<Vec<u8>> {
    let header = Some(ResponseHeader { cluster_id: 1, member_id: 2, revision: 300, raft_term: 4 });
    let range = RangeResponse { header, kvs: vec![pair(), pair()], more: true, count: 2 };
    let responses = vec![ResponseOp { response: Some(Response::ResponseRange(range.clone())) }];
    let lease = LeaseTimeToLiveResponse { keys: vec!["ns/key".into()], id: 5, ..LeaseTimeToLiveResponse::default() };
    vec![
        txn().encode_to_vec(),
        RangeRequest { key: "key".into(), revision: -1, ..RangeRequest::default() }.encode_to_vec(),
        range.encode_to_vec(),
        TxnResponse { header, succeeded: true, responses }.encode_to_vec(),
        lease.encode_to_vec(),
        Event { r#type: 1, kv: Some(pair()), prev_kv: Some(pair()) }.encode_to_vec(),
    ]
}

fn each(read: impl FnMut(&[u8])) {
    let messages = messages();
    damaged(&messages.iter().map(Vec::as_slice).collect::<Vec<_>>(), read);
}

#[test]
fn damaged_messages_are_rewritten_or_refused() {
    let namespaces = [Namespace::new("ns/"), Namespace::new(vec![0xff; 3]), Namespace::new("")];
    each(|bytes| {
        let message = Bytes::copy_from_slice(bytes);
        for namespace in &namespaces {
            for shape in Shape::REQUESTS {
                let _ = namespace.request(shape, message.clone());
            }
            for shape in Shape::RESPONSES {
                let _ = namespace.response(shape, message.clone());
            }
            let _ = namespace.strip_event(bytes, &mut BytesMut::new());
        }
    });
}

#[test]
fn damaged_messages_tell_something_or_nothing() {
    let prefix = Prefix::new(&Namespace::new("ns/"), "leasing/");
    each(|bytes| {
        let _ = (wire::fields(bytes).count(), wire::header(bytes), wire::header_revision(bytes));
        let _ = (wire::last_bytes(bytes, 1), wire::last_int64(bytes, 3), wire::with_int64(bytes, 3, -1));
        let _ = (Query::parse(bytes), policy::txn_writes(bytes));
        if let Ok(request) = TxnRequest::decode(bytes) {
            let _ = (Writes::of_txn(&request), answer::keys_of_txn(&request));
        }
        if let Ok(request) = RangeRequest::decode(bytes) {
            let _ = prefix.may_lease(&request);
        }
    });
}

#[test]
fn frames_are_the_same_wherever_their_bytes_are_cut() {
    let frames: Vec<Vec<u8>> = messages().iter().map(|message| framing::frame(message).to_vec()).collect();
    let mut inputs: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let joined = frames.concat();
    inputs.push(&joined);
    let read = |bytes: &[u8], step: usize| {
        let mut decoder = Decoder::new(LIMIT);
        let mut found = Vec::new();
        for piece in bytes.chunks(step.max(1)) {
            decoder.push(&Bytes::copy_from_slice(piece));
            loop {
                match decoder.next() {
                    Ok(Some(message)) => found.push((message.compressed, message.bytes)),
                    Ok(None) => break,
                    Err(_) => return (found, true),
                }
            }
        }
        (found, false)
    };
    damaged(&inputs, |bytes| {
        let _ = (framing::is_whole(bytes), framing::parse_prefix(bytes));
        assert_eq!(read(bytes, bytes.len()), read(bytes, 7));
    });
}

#[test]
fn damaged_gzip_never_becomes_more_than_the_limit() {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&[b'a'; 100_000]).expect("a vector takes all");
    let zipped = encoder.finish().expect("a vector takes all");
    const SMALL: usize = 10_000;
    damaged(&[&zipped], |bytes| {
        if let Ok(inflated) = framing::gunzip(bytes, SMALL) {
            assert!(inflated.len() <= SMALL);
        }
    });
}
