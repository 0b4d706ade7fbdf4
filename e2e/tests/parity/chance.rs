//! Reads and writes by chance, the same on each side: whatever is asked, and however often, so that the proxy answers
//! some of it from its cache, each answer is etcd's byte for byte.

use etcd_proxy_e2e::{Version, chance::Chance};
use etcd_proxy_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, compare::TargetUnion, request_op::Request,
};

use crate::lease::hide;
use crate::mixture;
use crate::rpcs::{
    COMPACT, DELETE_RANGE, LEASE_GRANT, LEASE_LEASES, LEASE_REVOKE, LEASE_TIME_TO_LIVE, PUT, RANGE, RANGE_STREAM, TXN,
};
use crate::side::Side;

/// Any numbers will do, as long as they stay the same.
const SEEDS: [u64; 3] = [5, 66, 777];

/// Calls for each seed.
const STEPS: usize = 500;

/// How deep transactions stand in each other.
const DEPTH: u64 = 3;

/// Leases that may be there or not.
const LEASES: u64 = 4;

pub fn flags(_: Version) -> Vec<String> {
    vec!["--max-txn-ops=12".to_owned()]
}

pub async fn script(side: Side) {
    let mut now = 1;
    for seed in SEEDS {
        let mut chance = Chance(seed);
        for step in 0..STEPS {
            let case = format!("seed {seed}, step {step}");
            now = now.max(call(&side, &mut chance, &case, now).await);
        }
        let everything = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        side.call(&format!("seed {seed}, what is there in the end"), RANGE, everything).await;
    }
}

/// Makes one call and says up to which revision the store has come.
async fn call(side: &Side, chance: &mut Chance, case: &str, now: i64) -> i64 {
    let header = match chance.below(24) {
        0..10 => {
            let request = range(chance, now);
            // What is asked often is what a cache holds.
            for again in 0..1 + chance.below(3) {
                side.call(&format!("{case}, time {again}: {request:?}"), RANGE, request.clone()).await;
            }
            return now;
        }
        10 => {
            let request = range(chance, now);
            side.call(&format!("{case}: stream {request:?}"), RANGE_STREAM, request).await;
            return now;
        }
        11..15 => {
            let request = put(chance);
            side.call(&format!("{case}: {request:?}"), PUT, request).await.and_then(|answer| answer.header)
        }
        15 => {
            let request = delete(chance);
            side.call(&format!("{case}: {request:?}"), DELETE_RANGE, request).await.and_then(|answer| answer.header)
        }
        16..20 => {
            let request = txn(chance, DEPTH, now);
            side.call(&format!("{case}: {request:?}"), TXN, request).await.and_then(|answer| answer.header)
        }
        20 => {
            let request = LeaseGrantRequest { ttl: 600 + lease(chance) * 100, id: lease(chance) };
            // A lease of etcd's choice has an id by chance, which is another chance than this.
            let request = LeaseGrantRequest { id: request.id.max(1), ..request };
            side.call(&format!("{case}: {request:?}"), LEASE_GRANT, request).await;
            return now;
        }
        21 => {
            let request = LeaseRevokeRequest { id: lease(chance) };
            side.call(&format!("{case}: {request:?}"), LEASE_REVOKE, request).await.and_then(|answer| answer.header)
        }
        22 => {
            let request = LeaseTimeToLiveRequest { id: lease(chance), keys: chance.below(2) == 0 };
            side.masked(&format!("{case}: {request:?}"), LEASE_TIME_TO_LIVE, request, hide).await;
            // Leases of one TTL end in an order by chance.
            let sort = |answer: &mut etcd_proxy_proto::etcdserverpb::LeaseLeasesResponse| {
                answer.leases.sort_by_key(|lease| lease.id);
            };
            side.masked(&format!("{case}: leases"), LEASE_LEASES, Default::default(), sort).await;
            return now;
        }
        _ => {
            let request = CompactionRequest { revision: revision(chance, now), physical: chance.below(2) == 0 };
            side.call(&format!("{case}: {request:?}"), COMPACT, request).await;
            return now;
        }
    };
    header.map_or(now, |header| header.revision)
}

/// Small numbers are `i64`s too.
fn lease(chance: &mut Chance) -> i64 {
    chance.small(LEASES + 1)
}

/// Mostly one that was, and now and then one that cannot be.
fn revision(chance: &mut Chance, now: i64) -> i64 {
    match chance.below(8) {
        0 => now + 1,
        1 => -1,
        2 => now,
        _ => (now - chance.small(40)).max(0),
    }
}

fn range(chance: &mut Chance, now: i64) -> RangeRequest {
    let (key, end) = mixture::range(chance);
    let (key, end) = if chance.below(20) == 0 { (end, key) } else { (key, end) };
    let mut request = RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
    for _ in 0..chance.below(4) {
        match chance.below(12) {
            0 => request.limit = chance.small(6) - 1,
            1 => request.revision = revision(chance, now),
            2 => request.sort_order = chance.small(3).try_into().expect("it is small"),
            3 => request.sort_target = chance.small(5).try_into().expect("it is small"),
            4 | 5 => request.serializable = true,
            6 => request.keys_only = true,
            7 => request.count_only = true,
            8 => request.min_mod_revision = revision(chance, now),
            9 => request.max_mod_revision = revision(chance, now),
            10 => request.min_create_revision = revision(chance, now),
            _ => request.max_create_revision = revision(chance, now),
        }
    }
    request
}

fn put(chance: &mut Chance) -> PutRequest {
    let mut request =
        PutRequest { key: mixture::key(chance).into(), value: value(chance).into(), ..Default::default() };
    match chance.below(6) {
        0 => request.lease = lease(chance),
        1 => request.prev_kv = true,
        2 => (request.ignore_value, request.value) = (true, Default::default()),
        3 => request.ignore_lease = true,
        _ => (),
    }
    request
}

fn value(chance: &mut Chance) -> String {
    // Few, so that comparisons hold now and then; some long, so that answers take several frames.
    match chance.below(10) {
        0 => "long ".repeat(5000),
        1 => String::new(),
        _ => chance.below(4).to_string(),
    }
}

fn delete(chance: &mut Chance) -> DeleteRangeRequest {
    let (key, end) = if chance.below(3) == 0 { mixture::range(chance) } else { (mixture::key(chance), "") };
    DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: chance.below(2) == 0 }
}

fn txn(chance: &mut Chance, depth: u64, now: i64) -> TxnRequest {
    let mut some = |most: u64, depth: u64| (0..chance.below(most)).map(|_| op(chance, depth, now)).collect();
    let (success, failure) = (some(4, depth), some(4, depth));
    let compare = (0..chance.below(3)).map(|_| compare(chance, now)).collect();
    TxnRequest { compare, success, failure }
}

fn op(chance: &mut Chance, depth: u64, now: i64) -> RequestOp {
    let request = match chance.below(8) {
        0..3 => Request::RequestRange(range(chance, now)),
        3..6 => Request::RequestPut(put(chance)),
        6 if depth > 0 => Request::RequestTxn(txn(chance, depth - 1, now)),
        _ => {
            let mut request = delete(chance);
            // etcd overlooks that a put stands within a range without an end, which behind a namespace has one.
            if &request.range_end[..] == b"\0" {
                request.range_end = Default::default();
            }
            Request::RequestDeleteRange(request)
        }
    };
    RequestOp { request: Some(request) }
}

fn compare(chance: &mut Chance, now: i64) -> Compare {
    let (key, end) = if chance.below(4) == 0 { mixture::range(chance) } else { (mixture::key(chance), "") };
    let (target, target_union) = match chance.below(5) {
        0 => (0, TargetUnion::Version(chance.small(3))),
        1 => (1, TargetUnion::CreateRevision(revision(chance, now))),
        2 => (2, TargetUnion::ModRevision(revision(chance, now))),
        3 => (3, TargetUnion::Value(value(chance).into())),
        _ => (4, TargetUnion::Lease(lease(chance))),
    };
    let result = chance.small(4).try_into().expect("it is small");
    Compare { result, target, key: key.into(), range_end: end.into(), target_union: Some(target_union) }
}
