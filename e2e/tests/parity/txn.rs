//! Txn: compares of every target and result, branches, nesting, and all that etcd refuses in one.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::TargetUnion, request_op::Request,
};

use crate::rpcs::{LEASE_GRANT, PUT, RANGE, TXN};
use crate::side::Side;

pub fn flags(_: Version) -> Vec<String> {
    // The default is 128; a small limit is as good, and leaves room to nest.
    vec!["--max-txn-ops=10".to_owned()]
}

pub async fn script(side: Side) {
    side.call("grant", LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: 7 }).await;
    for (key, value, lease) in [("a", "1", 0), ("b", "2", 7), ("b", "3", 7), ("b/x", "2", 0), ("c", "", 0)] {
        side.call("put", PUT, PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() }).await;
    }
    compares(&side).await;
    operations(&side).await;
    refusals(&side).await;
    nesting(&side).await;
    let request = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    side.call("what is there in the end", RANGE, request).await;
    open_ends(&side).await;
}

async fn compares(side: &Side) {
    let values = [
        TargetUnion::Version(2),
        TargetUnion::CreateRevision(3),
        TargetUnion::ModRevision(4),
        TargetUnion::Value("3".into()),
        TargetUnion::Lease(7),
    ];
    for (key, end) in
        [("b", ""), ("nothing", ""), ("a", "c"), ("b", "\0"), ("\0", "\0"), ("z", "\0"), ("c", "a"), ("", "")]
    {
        for target in [0, 1, 2, 3, 4, 5, -1] {
            for result in [0, 1, 2, 3, 4, -1] {
                let target_union = usize::try_from(target).ok().and_then(|index| values.get(index).cloned());
                let compare = Compare { result, target, key: key.into(), range_end: end.into(), target_union };
                let txn = TxnRequest { compare: vec![compare], success: vec![range("b")], failure: vec![range("a")] };
                side.call(&format!("compare {key:?} to {end:?}, target {target}, result {result}"), TXN, txn).await;
            }
        }
    }
    // A target and a value that do not belong together, and no value at all.
    for target in 0..5 {
        for target_union in values.iter().cloned().map(Some).chain([None]) {
            let case = format!("target {target} with {target_union:?}");
            let compare = Compare { target, key: "b".into(), target_union, ..Default::default() };
            let txn = TxnRequest { compare: vec![compare], success: vec![range("b")], failure: vec![range("a")] };
            side.call(&case, TXN, txn).await;
        }
    }
    let equal = |key: &str, version| Compare {
        target: 0,
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::Version(version)),
        ..Default::default()
    };
    let both =
        TxnRequest { compare: vec![equal("a", 1), equal("b", 2)], success: vec![range("a")], ..Default::default() };
    side.call("two compares that hold", TXN, both).await;
    let one =
        TxnRequest { compare: vec![equal("a", 1), equal("b", 1)], failure: vec![range("b")], ..Default::default() };
    side.call("two compares of which one holds", TXN, one).await;
}

async fn operations(side: &Side) {
    side.call("nothing at all", TXN, TxnRequest::default()).await;
    let everything = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let ranges = [
        everything.clone(),
        RangeRequest { count_only: true, ..everything.clone() },
        RangeRequest { keys_only: true, limit: 1, ..everything.clone() },
        RangeRequest { sort_order: 2, sort_target: 4, ..everything.clone() },
        RangeRequest { revision: 4, serializable: true, ..everything.clone() },
        RangeRequest { min_mod_revision: 4, ..everything.clone() },
        RangeRequest { key: "c".into(), range_end: "a".into(), ..Default::default() },
        RangeRequest { key: "a".into(), range_end: "\0".into(), ..Default::default() },
    ];
    for request in &ranges {
        let success = vec![op(Request::RequestRange(request.clone()))];
        side.call(&format!("one range: {request:?}"), TXN, TxnRequest { success, ..Default::default() }).await;
    }
    let success = ranges.into_iter().map(|request| op(Request::RequestRange(request))).collect();
    side.call("many ranges", TXN, TxnRequest { success, ..Default::default() }).await;
    let success = vec![
        op(Request::RequestPut(PutRequest { key: "p".into(), value: "1".into(), prev_kv: true, ..Default::default() })),
        range("p"),
        op(Request::RequestPut(PutRequest {
            key: "b".into(),
            ignore_value: true,
            prev_kv: true,
            ..Default::default()
        })),
        op(Request::RequestPut(PutRequest { key: "a".into(), value: "l".into(), lease: 7, ..Default::default() })),
        delete("b/", "b0", true),
        delete("nothing", "", true),
        op(Request::RequestRange(RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() })),
    ];
    side.call("puts, deletes and ranges in one", TXN, TxnRequest { success, ..Default::default() }).await;
    let failure = vec![put("q", "1"), delete("q2", "\0", false)];
    let compare = vec![Compare {
        key: "nothing".into(),
        target: 0,
        target_union: Some(TargetUnion::Version(1)),
        ..Default::default()
    }];
    side.call("the failure branch writes", TXN, TxnRequest { compare, failure, ..Default::default() }).await;
}

async fn refusals(side: &Side) {
    let lease = |lease| op(Request::RequestPut(PutRequest { key: "a".into(), lease, ..Default::default() }));
    let ignore = |key: &str, value: &str, lease, ignore_value, ignore_lease| {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        op(Request::RequestPut(PutRequest { key, value, lease, ignore_value, ignore_lease, ..Default::default() }))
    };
    let ranging = |request: RangeRequest| op(Request::RequestRange(request));
    let bodies: Vec<(&str, Vec<RequestOp>)> = vec![
        ("an operation that is none", vec![RequestOp::default()]),
        ("an operation that is none after a put", vec![put("x", "1"), RequestOp::default()]),
        ("a put of an empty key", vec![put("", "1")]),
        ("a put of the key zero", vec![put("\0", "1")]),
        ("a range of an empty key", vec![range("")]),
        ("a delete of an empty key", vec![delete("", "", false)]),
        ("a delete from an empty key on", vec![delete("", "\0", false)]),
        ("a range from an empty key on", vec![ranging(RangeRequest { range_end: "\0".into(), ..Default::default() })]),
        ("an empty put", vec![op(Request::RequestPut(PutRequest::default()))]),
        ("an empty range", vec![op(Request::RequestRange(RangeRequest::default()))]),
        ("an empty delete", vec![op(Request::RequestDeleteRange(DeleteRangeRequest::default()))]),
        ("an empty transaction", vec![op(Request::RequestTxn(TxnRequest::default()))]),
        ("two puts of one key", vec![put("x", "1"), put("x", "2")]),
        ("a put and a delete of one key", vec![put("x", "1"), delete("x", "", false)]),
        ("a delete and a put of one key", vec![delete("x", "", false), put("x", "1")]),
        ("a put inside a deleted range", vec![delete("x", "z", false), put("y", "1")]),
        ("a put beside a deleted range", vec![delete("x", "y", false), put("y", "1")]),
        ("two deletes of one range", vec![delete("x", "y", false), delete("x", "y", false)]),
        ("an inverted delete around a put", vec![delete("z", "x", false), put("y", "1")]),
        ("a lease that is not there", vec![lease(99)]),
        ("a lease that is not there, after a good put", vec![put("before", "1"), lease(99)]),
        ("a negative lease", vec![lease(-1)]),
        ("an ignored value that is there", vec![ignore("a", "v", 0, true, false)]),
        ("an ignored lease that is there", vec![ignore("a", "", 7, false, true)]),
        ("an ignored value of no key", vec![ignore("no such key", "", 0, true, false)]),
        ("an ignored lease of no key", vec![ignore("no such key", "v", 0, false, true)]),
        ("an order that is none", vec![ranging(RangeRequest { key: "a".into(), sort_order: 9, ..Default::default() })]),
        (
            "a target that is none",
            vec![ranging(RangeRequest { key: "a".into(), sort_target: 9, ..Default::default() })],
        ),
        (
            "a revision to come",
            vec![put("x", "1"), ranging(RangeRequest { key: "a".into(), revision: 10_000, ..Default::default() })],
        ),
        ("a negative revision", vec![ranging(RangeRequest { key: "a".into(), revision: -1, ..Default::default() })]),
        ("ten operations", (0..10).map(|index| put(&format!("ten/{index}"), "")).collect()),
        ("eleven operations", (0..11).map(|index| put(&format!("eleven/{index}"), "")).collect()),
    ];
    for (case, body) in bodies {
        if case == "a target that is none" && side.version == Version::V3_5 {
            // It ends the whole process of etcd 3.5.
            continue;
        }
        let taken = TxnRequest { success: body.clone(), ..Default::default() };
        side.call(case, TXN, taken).await;
        // What is refused is refused in the branch that would not be taken, too.
        let untaken = TxnRequest { failure: body.clone(), success: vec![range("a")], ..Default::default() };
        side.call(&format!("{case}, not taken"), TXN, untaken).await;
        let nested = TxnRequest { success: body, ..Default::default() };
        let nested = TxnRequest { success: vec![op(Request::RequestTxn(nested))], ..Default::default() };
        side.call(&format!("{case}, nested"), TXN, nested).await;
    }
    let compare = |key: &str| Compare { key: key.to_owned().into(), ..Default::default() };
    let txn = TxnRequest { compare: vec![compare("a"), compare("")], ..Default::default() };
    side.call("a compare of an empty key", TXN, txn).await;
    let txn = TxnRequest { compare: (0..11).map(|_| compare("a")).collect(), ..Default::default() };
    side.call("eleven compares", TXN, txn).await;
    let txn = TxnRequest { failure: (0..11).map(|_| range("a")).collect(), ..Default::default() };
    side.call("eleven operations on failure", TXN, txn).await;
}

/// Last, because these succeed at etcd itself and the store is another afterwards.
async fn open_ends(side: &Side) {
    let side = side.differing_behind_a_namespace(
        "looking for duplicates etcd takes an open end for the key zero and overlooks them; a namespace has no open ends",
    );
    for (case, success) in [
        ("a put after a deleted start", vec![put("zz", "1"), delete("z", "\0", false)]),
        ("a put under a delete of everything", vec![delete("\0", "\0", false), put("zz", "1")]),
    ] {
        side.call(case, TXN, TxnRequest { success, ..Default::default() }).await;
    }
}

async fn nesting(side: &Side) {
    for depth in [1, 2, 3, 8, 20, 60] {
        let mut txn =
            TxnRequest { success: vec![put(&format!("deep/{depth}"), "v"), range("b")], ..Default::default() };
        for _ in 0..depth {
            let compare = vec![Compare {
                result: 3,
                key: "b".into(),
                target_union: Some(TargetUnion::Version(9)),
                ..Default::default()
            }];
            txn = TxnRequest { compare, success: vec![range("a"), op(Request::RequestTxn(txn))], ..Default::default() };
        }
        side.call(&format!("nested {depth} deep"), TXN, txn).await;
    }
    let inner = |success| op(Request::RequestTxn(TxnRequest { success, ..Default::default() }));
    let cases = [
        ("a key put outside and inside", vec![put("n", "1"), inner(vec![put("n", "2")])]),
        ("a key put inside two", vec![inner(vec![put("n", "1")]), inner(vec![put("n", "2")])]),
        ("a key put inside and deleted outside", vec![inner(vec![put("n", "1")]), delete("m", "o", false)]),
        ("a key deleted inside and put outside", vec![put("n", "1"), inner(vec![delete("m", "o", false)])]),
        ("an empty operation deep inside", vec![inner(vec![inner(vec![RequestOp::default()])])]),
        (
            "a lease that is not there deep inside",
            vec![
                put("kept?", "1"),
                inner(vec![op(Request::RequestPut(PutRequest { key: "n".into(), lease: 99, ..Default::default() }))]),
            ],
        ),
    ];
    for (case, success) in cases {
        side.call(case, TXN, TxnRequest { success, ..Default::default() }).await;
    }
    let exclusive = TxnRequest {
        success: vec![op(Request::RequestTxn(TxnRequest {
            success: vec![put("n", "1")],
            failure: vec![put("n", "2")],
            ..Default::default()
        }))],
        ..Default::default()
    };
    side.call("a key put in both branches", TXN, exclusive).await;
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn range(key: &str) -> RequestOp {
    op(Request::RequestRange(RangeRequest { key: key.to_owned().into(), ..Default::default() }))
}

fn put(key: &str, value: &str) -> RequestOp {
    op(Request::RequestPut(PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }))
}

fn delete(key: &str, end: &str, prev_kv: bool) -> RequestOp {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    op(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv }))
}
