//! What the rules of leasing say, on examples and against `Namespace`'s own ranges.

use etcd_proxy_proto::etcdserverpb::{RangeResponse, ResponseOp};

use super::{answer::Kept, *};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { cluster_id: 1, member_id: 2, revision, raft_term: 3 }
}

fn pair(key: &str, value: &str) -> KeyValue {
    KeyValue { key: bytes(key), value: bytes(value), create_revision: 5, mod_revision: 7, version: 2, lease: 0 }
}

fn range(key: &str, range_end: &str) -> KeyRange {
    KeyRange::of_request(bytes(key), bytes(range_end)).expect("a key")
}

fn prefix() -> Prefix {
    Prefix::new(&Namespace::new("ns/"), "l/")
}

fn put(key: &str) -> RequestOp {
    op(Request::RequestPut(PutRequest { key: bytes(key), ..PutRequest::default() }))
}

fn delete(key: &str, range_end: &str) -> RequestOp {
    let request = DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), ..DeleteRangeRequest::default() };
    op(Request::RequestDeleteRange(request))
}

#[test]
fn leasing_keys_stand_in_the_namespace_behind_the_prefix() {
    let prefix = prefix();
    assert_eq!(prefix.leasing_key(&bytes("a")), "l/a");
    assert_eq!(prefix.key_of(b"l/a"), Some(bytes("a")));
    assert_eq!(prefix.key_of(b"a"), None);
    assert_eq!(prefix.key_of_stored(b"ns/l/a"), Some(bytes("a")));
    assert_eq!(prefix.all_stored(), range("ns/l/\0", "ns/l0"));
    // To `leasing.NewKV` the end of "all from k on" is `l/\0`, before which there is nothing.
    assert_eq!(prefix.leasing_range(&range("k", "\0")), range("l/k", "l0"));
}

#[test]
fn leasing_keys_in_a_range_of_keys_are_found() {
    let check = |of: KeyRange, expected: Option<KeyRange>| assert_eq!(prefix().inside(&of), expected, "{of:?}");
    check(range("a", ""), None);
    check(range("l/a", ""), None);
    check(range("a", "b"), None);
    check(range("a", "l/"), None);
    check(range("\0", "\0"), Some(range("l/\0", "l0")));
    check(range("a", "z"), Some(range("l/\0", "l0")));
    check(range("l/b", "\0"), Some(range("l/b", "l0")));
    check(range("a", "l/b"), Some(range("l/\0", "l/b")));
    check(range("l/b", "l/d"), Some(range("l/b", "l/d")));
}

#[test]
fn only_reads_of_one_key_as_it_is_now_are_leased() {
    let check = |request: RangeRequest, expected: bool| {
        assert_eq!(prefix().may_lease(&request), expected, "{request:?}");
    };
    let plain = RangeRequest { key: bytes("a"), ..RangeRequest::default() };
    check(plain.clone(), true);
    check(RangeRequest { limit: 1, keys_only: true, count_only: true, serializable: true, ..plain.clone() }, true);
    check(RangeRequest { revision: 3, ..plain.clone() }, false);
    check(RangeRequest { range_end: bytes("b"), ..plain.clone() }, false);
    check(RangeRequest { sort_order: 9, ..plain.clone() }, false);
    check(RangeRequest { sort_target: -1, ..plain.clone() }, false);
    check(RangeRequest { key: bytes("l/a"), ..plain }, false);
    check(RangeRequest::default(), false);
}

#[test]
fn writes_of_every_branch_are_found_once_and_what_etcd_refuses_is_told_apart() {
    let inner = TxnRequest { success: vec![put("c")], failure: vec![put("a"), delete("x", "y")], compare: vec![] };
    let txn = TxnRequest {
        compare: vec![],
        success: vec![put("b"), op(Request::RequestTxn(inner)), read(bytes("r"), false)],
        failure: vec![put("b"), delete("d", ""), delete("z", "y"), delete("x", "y")],
    };
    let writes = Writes::of_txn(&txn).expect("all have keys");
    assert_eq!(writes.keys, ["a", "b", "c", "d"].map(bytes));
    assert_eq!(writes.ranges, [range("x", "y")]);
    assert!(Writes::of_txn(&TxnRequest { success: vec![read(bytes("r"), true)], ..txn.clone() }).is_ok());
    for refused in [put(""), delete("", "\0"), read(Bytes::new(), false), RequestOp::default()] {
        let nested = TxnRequest { failure: vec![refused], ..TxnRequest::default() };
        let txn = TxnRequest { success: vec![op(Request::RequestTxn(nested))], ..TxnRequest::default() };
        assert_eq!(Writes::of_txn(&txn), Err(Refused));
    }
}

#[test]
fn a_guarded_write_is_the_clients_message_between_guards_and_reads() {
    let guards = vec![Prefix::guard(&KeyRange::single(bytes("l/k")), 4)];
    let guarded = |operation, message: &[u8], flat| {
        let guarded = Guarded {
            operation,
            message,
            guards: guards.clone(),
            reads: vec![read(bytes("k"), true)],
            otherwise: vec![ask(bytes("l/k"))],
            flat,
        };
        TxnRequest::decode(guarded.encode()).expect("a transaction")
    };
    let request = PutRequest { key: bytes("k"), value: bytes("v"), lease: 9, ..PutRequest::default() };
    let txn = guarded(Operation::Put, &request.encode_to_vec(), false);
    assert_eq!(txn.success, [op(Request::RequestPut(request)), read(bytes("k"), true)]);
    assert_eq!((txn.compare.clone(), txn.failure.len()), (guards.clone(), 1));
    assert_eq!(txn.compare[0].target_union, Some(TargetUnion::CreateRevision(5)), "less than the next revision");

    let request = TxnRequest { success: vec![put("k"), put("m")], ..TxnRequest::default() };
    let flat = guarded(Operation::Txn, &request.encode_to_vec(), true);
    assert_eq!(flat.success, [put("k"), put("m"), read(bytes("k"), true)]);
    let nested = guarded(Operation::Txn, &request.encode_to_vec(), false);
    assert_eq!(nested.success, [op(Request::RequestTxn(request)), read(bytes("k"), true)]);
}

#[test]
fn an_acquisition_is_ours_only_if_the_leasing_key_hangs_on_our_lease() {
    let ranged = |kvs: Vec<KeyValue>| ResponseOp {
        response: Some(Response::ResponseRange(RangeResponse { kvs, ..RangeResponse::default() })),
    };
    let leasing = |lease, value: &str| KeyValue { create_revision: 6, lease, ..pair("l/k", value) };
    let check = |succeeded, pair: Option<KeyValue>, leasing: Option<KeyValue>, expected| {
        let responses = vec![ranged(pair.clone().into_iter().collect()), ranged(leasing.into_iter().collect())];
        let answer = TxnResponse { header: Some(header(8)), succeeded, responses };
        let acquired = Acquired::read(answer, 33).expect("an answer");
        assert_eq!((acquired.ownership, acquired.pair), (expected, pair));
    };
    check(true, None, None, Ownership::Ours { created: 8 });
    check(false, Some(pair("k", "v")), Some(leasing(33, "")), Ownership::Ours { created: 6 });
    check(false, None, Some(leasing(33, "REVOKE")), Ownership::Unwanted { created: 6 });
    check(
        false,
        Some(KeyValue { lease: 1, ..pair("k", "v") }),
        Some(leasing(33, "")),
        Ownership::Unwanted { created: 6 },
    );
    check(false, None, Some(leasing(34, "")), Ownership::Refused);
    check(false, Some(KeyValue { lease: 1, ..pair("k", "v") }), None, Ownership::Refused);
    assert_eq!(Acquired::read(TxnResponse::default(), 33), None);
}

#[test]
fn a_kept_value_is_shown_under_the_readers_options() {
    let check = |request: RangeRequest, pair: Option<&KeyValue>, values: &[&str], count: i64| {
        let answer = answer::range(&request, pair, header(9));
        let shown: Vec<_> = answer.kvs.iter().map(|pair| std::str::from_utf8(&pair.value).expect("a text")).collect();
        assert_eq!((&shown[..], answer.count, answer.more), (values, count, false), "{request:?}");
    };
    let plain = RangeRequest { key: bytes("k"), ..RangeRequest::default() };
    let kept = pair("k", "v");
    check(plain.clone(), None, &[], 0);
    check(plain.clone(), Some(&kept), &["v"], 1);
    check(RangeRequest { keys_only: true, ..plain.clone() }, Some(&kept), &[""], 1);
    check(RangeRequest { count_only: true, ..plain.clone() }, Some(&kept), &[], 1);
    check(RangeRequest { min_mod_revision: 7, max_mod_revision: 7, ..plain.clone() }, Some(&kept), &["v"], 1);
    check(RangeRequest { min_mod_revision: 8, ..plain.clone() }, Some(&kept), &[], 1);
    check(RangeRequest { max_mod_revision: 6, ..plain.clone() }, Some(&kept), &[], 1);
    check(RangeRequest { min_create_revision: 6, ..plain.clone() }, Some(&kept), &[], 1);
    check(RangeRequest { max_create_revision: 4, ..plain }, Some(&kept), &[], 1);
}

fn compared(target: CompareTarget, result: CompareResult, union: Option<TargetUnion>) -> Compare {
    let zero = compare(bytes("k"), result, target, TargetUnion::Version(0));
    Compare { target_union: union, ..zero }
}

#[test]
fn comparisons_with_a_key_that_does_not_exist_are_judged_as_etcd_judges_them() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    use TargetUnion::{CreateRevision as C, Lease as L, ModRevision as M, Value as V, Version as N};
    let check = |pair: Option<KeyValue>, compare: Compare, expected: bool| {
        let request = TxnRequest { compare: vec![compare], ..TxnRequest::default() };
        let kept = Kept::from([(bytes("k"), pair)]);
        assert_eq!(answer::keys_of_txn(&request), Some(vec![bytes("k")]));
        let answer = answer::txn(&request, &kept, header(9)).expect("all is kept");
        assert_eq!(answer.succeeded, expected, "{request:?}");
    };
    for (compare, missing, there) in [
        (compared(Create, Equal, Some(C(5))), false, true),
        (compared(Create, Equal, Some(C(0))), true, false),
        (compared(Create, Greater, Some(C(0))), false, true),
        (compared(Version, Equal, Some(N(0))), true, false),
        (compared(Version, NotEqual, Some(N(0))), false, true),
        (compared(Mod, Less, Some(M(8))), true, true),
        (compared(Value, Equal, Some(V(Bytes::new()))), false, false),
        (compared(Value, NotEqual, Some(V(bytes("w")))), false, true),
        (compared(Value, Equal, Some(V(bytes("v")))), false, true),
        (compared(Value, Less, Some(V(bytes("w")))), false, true),
        (compared(Lease, Equal, Some(L(0))), true, true),
        (compared(Lease, Greater, Some(L(0))), false, false),
        // Without a number, or with that of another target, etcd compares with zero.
        (compared(Version, Equal, None), true, false),
        (compared(Version, Equal, Some(M(2))), true, false),
    ] {
        check(None, compare.clone(), missing);
        check(Some(pair("k", "v")), compare, there);
    }
}

#[test]
fn a_transaction_is_answered_here_only_if_its_branch_reads_what_is_kept() {
    let kept = Kept::from([(bytes("k"), Some(pair("k", "v"))), (bytes("none"), None)]);
    let is_new = compared(CompareTarget::Version, CompareResult::Equal, Some(TargetUnion::Version(0)));
    let answered = |txn: &TxnRequest| {
        answer::keys_of_txn(txn)?;
        answer::txn(txn, &kept, header(9))
    };
    let reads = vec![read(bytes("k"), false), read(bytes("none"), false)];
    let txn = TxnRequest { compare: vec![is_new], success: vec![put("k")], failure: reads.clone() };
    let answer = answered(&txn).expect("the branch only reads");
    assert!(!answer.succeeded && answer.header == Some(header(9)));
    let counts: Vec<_> = answer
        .responses
        .iter()
        .map(|op| match &op.response {
            Some(Response::ResponseRange(range)) => range.count,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(counts, [1, 0]);
    assert_eq!(answered(&TxnRequest { success: reads.clone(), failure: vec![put("k")], ..txn.clone() }), None);
    assert_eq!(answered(&TxnRequest { failure: vec![read(bytes("other"), false)], ..txn.clone() }), None);
    assert_eq!(answered(&TxnRequest { success: vec![put("a"), put("a")], ..txn.clone() }), None, "etcd refuses it");
    assert_eq!(answered(&TxnRequest { success: vec![delete("a", "z")], ..txn.clone() }), None);
    assert_eq!(answered(&TxnRequest { failure: vec![read(Bytes::new(), false)], ..txn.clone() }), None);
    let many = vec![read(bytes("k"), false); 129];
    assert_eq!(answered(&TxnRequest { failure: many, ..txn }), None, "etcd refuses it");
}
