//! What putting a namespace on and taking it off costs for each message, beside doing the same by decoding and encoding
//! with prost. One run, one table, nanoseconds for each message: `cargo bench -p etcd-proxy --bench namespace`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use etcd_proxy::rules::namespace::{Namespace, Shape};
use etcd_proxy_proto::etcdserverpb::{
    Compare, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, request_op,
};
use etcd_proxy_proto::mvccpb::{Event, KeyValue};
use prost::Message;

const PREFIX: &str = "tenants/alice/";

/// How long each side of a row runs; the best of the rounds counts, as it is the least disturbed: short ones, so that a busy
/// machine leaves some of them alone.
const ROUND: Duration = Duration::from_millis(3);
const ROUNDS: usize = 100;

fn main() {
    let namespace = Namespace::new(PREFIX);
    println!("{:<44}{:>8}{:>10}{:>10}{:>8}", "message", "bytes", "edit ns", "prost ns", "times");

    request(&namespace, "PutRequest, key 20 value 100", Shape::Put, &put(20, 100), |m| prefix(&mut m.key));
    request(&namespace, "PutRequest, key 40 value 10000", Shape::Put, &put(40, 10_000), |m| prefix(&mut m.key));
    let range = RangeRequest { key: key(20, 0), range_end: key(20, 1), limit: 500, ..Default::default() };
    request(&namespace, "RangeRequest", Shape::Range, &range, |m| {
        prefix(&mut m.key);
        prefix(&mut m.range_end);
    });
    let op = |request| RequestOp { request: Some(request) };
    let txn = TxnRequest {
        compare: vec![Compare { key: key(60, 0), target: 2, ..Default::default() }],
        success: vec![op(request_op::Request::RequestPut(put(60, 1000)))],
        failure: vec![op(request_op::Request::RequestRange(RangeRequest { key: key(60, 0), ..Default::default() }))],
    };
    request(&namespace, "TxnRequest, as Kubernetes updates", Shape::Txn, &txn, |m| {
        m.compare.iter_mut().for_each(|compare| prefix(&mut compare.key));
        for op in m.success.iter_mut().chain(&mut m.failure) {
            match &mut op.request {
                Some(request_op::Request::RequestPut(put)) => prefix(&mut put.key),
                Some(request_op::Request::RequestRange(range)) => prefix(&mut range.key),
                _ => {}
            }
        }
    });

    let put_response = PutResponse { header: header(), prev_kv: None };
    response(&namespace, "PutResponse, no prev_kv", Shape::PutResponse, &put_response, |m| {
        m.prev_kv.iter_mut().for_each(|kv| strip(&mut kv.key));
    });
    for (count, value) in [(1, 100), (100, 20), (100, 100), (500, 1000)] {
        let kvs = (0..count).map(|index| key_value(index, value)).collect();
        let answer = RangeResponse { header: header(), kvs, more: false, count: i64::from(count) };
        let name = format!("RangeResponse, {count} kvs of {value}");
        response(&namespace, &name, Shape::RangeResponse, &answer, |m| {
            m.kvs.iter_mut().for_each(|kv| strip(&mut kv.key));
        });
    }
    for prev_kv in [None, Some(key_value(1, 100))] {
        let event = Event { r#type: 0, kv: Some(key_value(1, 100)), prev_kv };
        event_row(&namespace, &event);
    }
}

fn key(len: usize, last: u8) -> Bytes {
    let mut key = vec![b'k'; len];
    key[len - 1] = b'0' + last;
    key.into()
}

fn put(key_len: usize, value_len: usize) -> PutRequest {
    PutRequest { key: key(key_len, 0), value: vec![b'v'; value_len].into(), lease: 7, ..Default::default() }
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: u64::MAX / 3, member_id: u64::MAX / 5, revision: 1_234_567, raft_term: 7 })
}

/// A key-value as etcd answers it: with the prefix.
fn key_value(index: u16, value_len: usize) -> KeyValue {
    KeyValue {
        key: Bytes::from(format!("{PREFIX}registry/pods/default/pod-{index}")),
        create_revision: 1_200_000,
        mod_revision: 1_234_567,
        version: 3,
        value: vec![b'v'; value_len].into(),
        lease: 0,
    }
}

fn prefix(key: &mut Bytes) {
    *key = [PREFIX.as_bytes(), key].concat().into();
}

fn strip(key: &mut Bytes) {
    *key = key.slice(PREFIX.len()..);
}

fn request<M: Message + Default>(
    namespace: &Namespace,
    name: &str,
    shape: Shape,
    message: &M,
    change: impl Fn(&mut M),
) {
    let encoded = Bytes::from(message.encode_to_vec());
    let edit = || namespace.request(shape, encoded.clone()).expect("a good request");
    row(name, &encoded, edit, || with_prost(&encoded, &change));
}

fn response<M: Message + Default>(
    namespace: &Namespace,
    name: &str,
    shape: Shape,
    message: &M,
    change: impl Fn(&mut M),
) {
    let encoded = Bytes::from(message.encode_to_vec());
    let edit = || namespace.response(shape, encoded.clone()).expect("a good answer");
    row(name, &encoded, edit, || with_prost(&encoded, &change));
}

fn event_row(namespace: &Namespace, event: &Event) {
    let encoded = Bytes::from(event.encode_to_vec());
    let name = if event.prev_kv.is_some() { "Event with prev_kv" } else { "Event" };
    let mut log = BytesMut::with_capacity(encoded.len());
    let edit = || {
        log.clear();
        namespace.strip_event(&encoded, &mut log).expect("a good event").mod_revision
    };
    row(name, &encoded, edit, || {
        with_prost::<Event>(&encoded, &|m: &mut Event| {
            m.kv.iter_mut().chain(&mut m.prev_kv).for_each(|kv| strip(&mut kv.key));
        })
    });
}

fn with_prost<M: Message + Default>(encoded: &Bytes, change: &impl Fn(&mut M)) -> Bytes {
    let mut message = M::decode(encoded.clone()).expect("what was encoded decodes");
    change(&mut message);
    message.encode_to_vec().into()
}

fn row<A, B>(name: &str, encoded: &Bytes, edit: impl FnMut() -> A, prost: impl FnMut() -> B) {
    let (edit, prost) = (nanoseconds(edit), nanoseconds(prost));
    println!("{name:<44}{:>8}{edit:>10.0}{prost:>10.0}{:>8.1}", encoded.len(), prost / edit);
}

fn nanoseconds<T>(mut work: impl FnMut() -> T) -> f64 {
    const BATCH: u32 = 100;
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut batches = 0;
        while start.elapsed() < ROUND {
            for _ in 0..BATCH {
                black_box(work());
            }
            batches += 1;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(batches * BATCH));
    }
    best
}
