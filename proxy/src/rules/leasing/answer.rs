//! What etcd would answer from values that are kept: reads of single keys, and transactions of nothing else.

use std::{cmp::Ordering, collections::HashMap};

use bytes::Bytes;
use etcd_proxy_proto::{
    etcdserverpb::{
        Compare, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
        response_op::Response,
    },
    mvccpb::KeyValue,
};

/// Operations that a transaction may have: etcd's default for `--max-txn-ops`, beyond which it refuses.
pub const MAX_OPS: usize = 128;

/// The keys whose values are kept, with those that are known not to exist.
pub type Kept = HashMap<Bytes, Option<KeyValue>>;

/// Whether a read is of one key as it is now, and nothing that etcd would refuse.
pub fn is_plain(request: &RangeRequest) -> bool {
    !request.key.is_empty()
        && request.range_end.is_empty()
        && request.revision == 0
        && SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok()
}

/// The answer to a plain read. The count is of what there is, before the filters, as in etcd.
pub fn range(request: &RangeRequest, pair: Option<&KeyValue>, header: ResponseHeader) -> RangeResponse {
    let shown = |pair: &&KeyValue| {
        !request.count_only
            && (request.min_mod_revision == 0 || pair.mod_revision >= request.min_mod_revision)
            && (request.max_mod_revision == 0 || pair.mod_revision <= request.max_mod_revision)
            && (request.min_create_revision == 0 || pair.create_revision >= request.min_create_revision)
            && (request.max_create_revision == 0 || pair.create_revision <= request.max_create_revision)
    };
    let kvs = pair.filter(shown).map(|pair| {
        let value = if request.keys_only { Bytes::new() } else { pair.value.clone() };
        KeyValue { key: pair.key.clone(), value, ..*pair }
    });
    RangeResponse {
        header: Some(header),
        kvs: kvs.into_iter().collect(),
        more: false,
        count: i64::from(pair.is_some()),
    }
}

/// The keys that must be kept for a transaction to be answered here, if it is of the kind: comparisons of single keys,
/// and branches of which at least one only reads single keys.
pub fn keys_of_txn(txn: &TxnRequest) -> Option<Vec<Bytes>> {
    let compared = txn.compare.iter();
    if !compared.clone().all(|compare| !compare.key.is_empty() && compare.range_end.is_empty() && is_known(compare)) {
        return None;
    }
    let sizes = [txn.compare.len(), txn.success.len(), txn.failure.len()];
    if sizes.iter().any(|&size| size > MAX_OPS) || !is_sound(&txn.success) || !is_sound(&txn.failure) {
        return None;
    }
    let mut keys: Vec<Bytes> = compared.map(|compare| compare.key.clone()).collect();
    for op in txn.success.iter().chain(&txn.failure) {
        if let Some(Request::RequestRange(request)) = &op.request {
            keys.push(request.key.clone());
        }
    }
    let reads = |ops: &[RequestOp]| ops.iter().all(|op| matches!(op.request, Some(Request::RequestRange(_))));
    (reads(&txn.success) || reads(&txn.failure)).then_some(keys)
}

/// A branch that etcd would not refuse, whether it runs or not: it checks both.
fn is_sound(ops: &[RequestOp]) -> bool {
    let mut put = Vec::new();
    for op in ops {
        match &op.request {
            Some(Request::RequestRange(request)) if is_plain(request) => (),
            Some(Request::RequestPut(request))
                if !request.key.is_empty() && !request.ignore_value && !request.ignore_lease =>
            {
                put.push(&request.key);
            }
            _ => return false,
        }
    }
    put.sort_unstable();
    put.windows(2).all(|pair| pair[0] != pair[1])
}

fn is_known(compare: &Compare) -> bool {
    CompareTarget::try_from(compare.target).is_ok() && CompareResult::try_from(compare.result).is_ok()
}

/// The answer to a transaction of which [`keys_of_txn`] told the keys; nothing if the branch that it takes writes, or
/// needs a key that is not kept.
pub fn txn(txn: &TxnRequest, kept: &Kept, header: ResponseHeader) -> Option<TxnResponse> {
    let mut succeeded = true;
    for compare in &txn.compare {
        // etcd stops at the first that does not hold, but to know which does, all before it must be kept.
        if !holds(compare, kept.get(&compare.key)?.as_ref()) {
            succeeded = false;
            break;
        }
    }
    let ops = if succeeded { &txn.success } else { &txn.failure };
    let responses = ops.iter().map(|op| {
        let Some(Request::RequestRange(request)) = &op.request else { return None };
        let pair = kept.get(&request.key)?.as_ref();
        // etcd's answers within a transaction tell the revision and nothing else of the header.
        let inner = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
        Some(ResponseOp { response: Some(Response::ResponseRange(range(request, pair, inner))) })
    });
    let responses = responses.collect::<Option<Vec<_>>>()?;
    Some(TxnResponse { header: Some(header), succeeded, responses })
}

/// A comparison as etcd judges it. A key that does not exist has no value, which compares to nothing, and is zero in all
/// else. (`leasing.NewKV` takes every comparison with it for equal.)
fn holds(compare: &Compare, pair: Option<&KeyValue>) -> bool {
    let number = |found: i64| {
        let wanted = match compare.target_union {
            Some(
                TargetUnion::Version(number)
                | TargetUnion::CreateRevision(number)
                | TargetUnion::ModRevision(number)
                | TargetUnion::Lease(number),
            ) if union_fits(compare) => number,
            _ => 0,
        };
        found.cmp(&wanted)
    };
    let field = |of: fn(&KeyValue) -> i64| number(pair.map_or(0, of));
    let ordering = match compare.target() {
        CompareTarget::Value => {
            let Some(pair) = pair else { return false };
            let wanted = match &compare.target_union {
                Some(TargetUnion::Value(value)) => &value[..],
                _ => &[],
            };
            pair.value[..].cmp(wanted)
        }
        CompareTarget::Version => field(|pair| pair.version),
        CompareTarget::Create => field(|pair| pair.create_revision),
        CompareTarget::Mod => field(|pair| pair.mod_revision),
        CompareTarget::Lease => field(|pair| pair.lease),
    };
    match compare.result() {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::NotEqual => ordering != Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
    }
}

/// A number that is meant for another target is none to etcd.
fn union_fits(compare: &Compare) -> bool {
    matches!(
        (compare.target(), &compare.target_union),
        (CompareTarget::Version, Some(TargetUnion::Version(_)))
            | (CompareTarget::Create, Some(TargetUnion::CreateRevision(_)))
            | (CompareTarget::Mod, Some(TargetUnion::ModRevision(_)))
            | (CompareTarget::Lease, Some(TargetUnion::Lease(_)))
    )
}
