//! What a caller tries when auth is on: one call of each kind on keys that it may and may not touch.

use etcd_proxy_proto::etcdserverpb::{
    AlarmRequest, AuthRoleGetRequest, AuthStatusRequest, AuthUserGetRequest, AuthUserListRequest, CompactionRequest,
    Compare, DefragmentRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberListRequest, MemberRemoveRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, SnapshotRequest, TxnRequest, WatchCreateRequest,
    WatchRequest, compare::TargetUnion, request_op::Request, watch_request::RequestUnion,
};
use etcd_proxy_proto::{
    v3electionpb::CampaignRequest, v3electionpb::LeaderRequest, v3lockpb::LockRequest, v3lockpb::UnlockRequest,
};

use crate::lease::hide;
use crate::rpcs::{
    ALARM, AUTH_STATUS, CAMPAIGN, COMPACT, DEFRAGMENT, DELETE_RANGE, HASH_KV, HEALTH_CHECK, HealthCheckRequest, LEADER,
    LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_LEASES, LEASE_REVOKE, LEASE_TIME_TO_LIVE, LOCK, MEMBER_LIST, MEMBER_REMOVE,
    MOVE_LEADER, OBSERVE, PUT, RANGE, RANGE_STREAM, ROLE_GET, SNAPSHOT, TXN, UNLOCK, USER_GET, USER_LIST, WATCH,
};
use crate::side::Side;

fn range(key: &str, end: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn delete(key: &str, end: &str, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), prev_kv }
}

/// A few calls, to see what a token is worth.
pub async fn some(caller: &Side, who: &str) {
    caller.call(&format!("{who}: range"), RANGE, range("rw/1", "")).await;
    caller.call(&format!("{who}: put"), PUT, put("rw/1", who)).await;
    let mut watch = caller.open(WATCH).await;
    watch.send(&create("rw/", "rw0"));
    watch.half_close();
    watch.next(&format!("{who}: watch")).await;
    caller.call(&format!("{who}: users"), USER_LIST, AuthUserListRequest {}).await;
}

/// Everything. Leases from `first_lease` on are this caller's own.
pub async fn all(caller: &Side, root: &Side, who: &str, first_lease: i64) {
    keys(caller, who).await;
    transactions(caller, who).await;
    leases(caller, who, first_lease).await;
    watches(caller, root, who).await;
    locks(caller, who, first_lease).await;
    maintenance(caller, who).await;
}

async fn keys(caller: &Side, who: &str) {
    for (key, end) in [
        ("a", ""),
        ("a", "b"),
        ("a", "c"),
        ("b", ""),
        ("rw/1", ""),
        ("w", ""),
        ("\0", "\0"),
        ("a", "\0"),
        ("", ""),
        ("c", "a"),
    ] {
        let request = range(key, end);
        caller.call(&format!("{who}: range {key:?} to {end:?}"), RANGE, request.clone()).await;
        let serializable = RangeRequest { serializable: true, ..request.clone() };
        caller.call(&format!("{who}: serializable range {key:?} to {end:?}"), RANGE, serializable).await;
        let counted = RangeRequest { count_only: true, limit: 1, ..request.clone() };
        caller.call(&format!("{who}: count {key:?} to {end:?}"), RANGE, counted).await;
        caller.call(&format!("{who}: stream {key:?} to {end:?}"), RANGE_STREAM, request).await;
    }
    for key in ["a", "w", "rw/1", "log", ""] {
        let request = put(key, who);
        caller.call(&format!("{who}: put {key:?}"), PUT, request.clone()).await;
        let previous = PutRequest { prev_kv: true, ..request.clone() };
        caller.call(&format!("{who}: put {key:?} and see what was"), PUT, previous).await;
        caller.call(&format!("{who}: put {key:?} with a lease"), PUT, PutRequest { lease: 1, ..request }).await;
    }
    for (key, end) in [("log", ""), ("w", ""), ("rw/", "rw0"), ("rw/", "x"), ("\0", "\0")] {
        for prev_kv in [true, false] {
            let case = format!("{who}: delete {key:?} to {end:?}, prev {prev_kv}");
            // What root may delete is left for those who come after it.
            if who != "root" {
                caller.call(&case, DELETE_RANGE, delete(key, end, prev_kv)).await;
            }
        }
    }
    caller.call(&format!("{who}: compact"), COMPACT, CompactionRequest { revision: 2, physical: false }).await;
}

async fn transactions(caller: &Side, who: &str) {
    let op = |request| RequestOp { request: Some(request) };
    let compare = |key: &str, end: &str| Compare {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    };
    let nested = |request| op(Request::RequestTxn(TxnRequest { success: vec![op(request)], ..Default::default() }));
    for (case, txn) in [
        ("nothing", TxnRequest::default()),
        ("a compare that it may make", TxnRequest { compare: vec![compare("rw/1", "")], ..Default::default() }),
        ("a compare", TxnRequest { compare: vec![compare("b", "")], ..Default::default() }),
        ("a compare of a range", TxnRequest { compare: vec![compare("a", "\0")], ..Default::default() }),
        ("a range", TxnRequest { success: vec![op(Request::RequestRange(range("rw/1", "")))], ..Default::default() }),
        ("a put", TxnRequest { success: vec![op(Request::RequestPut(put("rw/1", who)))], ..Default::default() }),
        (
            "a put of w, which shows what was",
            TxnRequest {
                success: vec![op(Request::RequestPut(PutRequest { prev_kv: true, ..put("w", who) }))],
                ..Default::default()
            },
        ),
        (
            "a branch not taken",
            TxnRequest { failure: vec![op(Request::RequestRange(range("b", "")))], ..Default::default() },
        ),
        (
            "a delete",
            TxnRequest { success: vec![op(Request::RequestDeleteRange(delete("b", "", false)))], ..Default::default() },
        ),
        (
            "a nested range",
            TxnRequest { success: vec![nested(Request::RequestRange(range("b", "")))], ..Default::default() },
        ),
        (
            "a nested put",
            TxnRequest { success: vec![nested(Request::RequestPut(put("rw/1", who)))], ..Default::default() },
        ),
    ] {
        if !(who == "root" && case == "a delete") {
            caller.call(&format!("{who}: txn, {case}"), TXN, txn).await;
        }
    }
}

async fn leases(caller: &Side, who: &str, first: i64) {
    caller.call(&format!("{who}: grant"), LEASE_GRANT, LeaseGrantRequest { ttl: 3000 + first, id: first }).await;
    for lease in [first, 1, 2, 99] {
        let mut stream = caller.open(LEASE_KEEP_ALIVE).await;
        stream.send(&LeaseKeepAliveRequest { id: lease });
        stream.half_close();
        stream.rest(&format!("{who}: keep {lease} alive")).await;
        for keys in [false, true] {
            let request = LeaseTimeToLiveRequest { id: lease, keys };
            caller
                .masked(&format!("{who}: time to live of {lease}, keys {keys}"), LEASE_TIME_TO_LIVE, request, hide)
                .await;
        }
    }
    caller.call(&format!("{who}: leases"), LEASE_LEASES, LeaseLeasesRequest {}).await;
    let attached = PutRequest { lease: first, ..put("rw/3", who) };
    caller.call(&format!("{who}: put with its own lease"), PUT, attached).await;
    caller.call(&format!("{who}: revoke its own"), LEASE_REVOKE, LeaseRevokeRequest { id: first }).await;
    caller.call(&format!("{who}: revoke nothing"), LEASE_REVOKE, LeaseRevokeRequest { id: 99 }).await;
    if who != "root" {
        caller.call(&format!("{who}: revoke another's"), LEASE_REVOKE, LeaseRevokeRequest { id: 1 }).await;
    }
}

fn create(key: &str, end: &str) -> WatchRequest {
    let request =
        WatchCreateRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
}

async fn watches(caller: &Side, root: &Side, who: &str) {
    for (key, end) in
        [("a", ""), ("a", "b"), ("a", "c"), ("rw/1", ""), ("rw/", "rw0"), ("b", ""), ("", ""), ("\0", "\0"), ("c", "a")]
    {
        let case = format!("{who}: watch {key:?} to {end:?}");
        let mut stream = caller.open(WATCH).await;
        stream.send(&create(key, end));
        let created = stream.next(&case).await;
        if created.is_some_and(|answer| !answer.canceled) && !key.is_empty() {
            let key = if key == "rw/" { "rw/1" } else { key };
            root.fetch(PUT, put(key, "to be seen")).await;
            stream.next(&format!("{case}: an event")).await;
        }
    }
    // One stream, on which some watches may be and some may not.
    let mut stream = caller.open(WATCH).await;
    for (key, end) in [("b", ""), ("a", "b"), ("rw/", "rw0"), ("\0", "\0")] {
        stream.send(&create(key, end));
        stream.next(&format!("{who}: watch {key:?} among others")).await;
    }
    stream.half_close();
}

async fn locks(caller: &Side, who: &str, first: i64) {
    let own = first + 1;
    caller.call(&format!("{who}: grant for locks"), LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: own }).await;
    for name in ["lock/l", "elsewhere"] {
        caller.call(&format!("{who}: lock {name}"), LOCK, LockRequest { name: name.into(), lease: own }).await;
        caller
            .call(&format!("{who}: unlock {name}"), UNLOCK, UnlockRequest { key: format!("{name}/{own:x}").into() })
            .await;
    }
    for name in ["lock/e", "elsewhere"] {
        let request = CampaignRequest { name: name.into(), lease: own, value: "v".into() };
        caller.call(&format!("{who}: campaign {name}"), CAMPAIGN, request).await;
        caller.call(&format!("{who}: leader of {name}"), LEADER, LeaderRequest { name: name.into() }).await;
        let mut stream = caller.open(OBSERVE).await;
        stream.send(&LeaderRequest { name: name.into() });
        stream.half_close();
        if who == "root" || name == "lock/e" && who == "bob" {
            stream.next(&format!("{who}: observe {name}")).await;
        }
    }
    caller.call(&format!("{who}: revoke the lease of the locks"), LEASE_REVOKE, LeaseRevokeRequest { id: own }).await;
}

async fn maintenance(caller: &Side, who: &str) {
    caller.call(&format!("{who}: members"), MEMBER_LIST, MemberListRequest { linearizable: true }).await;
    caller.call(&format!("{who}: members, serializable"), MEMBER_LIST, MemberListRequest { linearizable: false }).await;
    caller.call(&format!("{who}: remove a member"), MEMBER_REMOVE, MemberRemoveRequest { id: 1 }).await;
    caller.call(&format!("{who}: alarms"), ALARM, AlarmRequest::default()).await;
    caller.masked(&format!("{who}: hash"), HASH_KV, HashKvRequest { revision: 0 }, |answer| answer.hash = 1).await;
    caller.call(&format!("{who}: defragment"), DEFRAGMENT, DefragmentRequest {}).await;
    let mut stream = caller.open(SNAPSHOT).await;
    stream.send(&SnapshotRequest {});
    stream.half_close();
    stream.rest_unseen(&format!("{who}: snapshot")).await;
    caller.call(&format!("{who}: move the leader"), MOVE_LEADER, MoveLeaderRequest { target_id: 1 }).await;
    caller.call(&format!("{who}: health"), HEALTH_CHECK, HealthCheckRequest::default()).await;
    caller.call(&format!("{who}: auth status"), AUTH_STATUS, AuthStatusRequest {}).await;
    for name in ["alice", "bob", "root"] {
        caller.call(&format!("{who}: user {name}"), USER_GET, AuthUserGetRequest { name: name.into() }).await;
    }
    for role in ["reader", "writer", "root"] {
        let request = AuthRoleGetRequest { role: role.into() };
        caller
            .masked(&format!("{who}: role {role}"), ROLE_GET, request, |answer| {
                for permission in &mut answer.perm {
                    permission.key = caller.key_without_prefix(&permission.key);
                    permission.range_end = caller.key_without_prefix(&permission.range_end);
                }
            })
            .await;
    }
}
