//! The attacks, by service: what the attacker sends, and when the answer alone shows that it got something.

use etcd_proxy_proto::etcdserverpb as pb;
use etcd_proxy_proto::etcdserverpb::{request_op::Request, watch_request::RequestUnion};
use etcd_proxy_proto::{v3electionpb as election, v3lockpb as lock};
use prost::Message;
use tonic::Code;

use crate::raw::{Answer, BLOCKED};
use crate::siege::OWN_KEYS;
use crate::victim::{Loot, VALUE};

/// Makes a request of what the attacker knows of its victim.
type Encode = Box<dyn Fn(&Loot) -> Vec<u8>>;

/// One call of the attacker's.
pub struct Attack {
    /// What is tried, for the page about it.
    pub title: &'static str,
    pub path: &'static str,
    /// The encoded request.
    pub message: Encode,
    /// What the attacker got, if its answer shows that beside all that is looked at anyway: the victim's secrets in the
    /// answer, and the victim's state afterwards.
    pub leak: fn(&Loot, &Answer) -> Option<&'static str>,
}

/// The user whom the attacker makes if it can.
pub const MALLORY: &str = "mallory";

/// What etcd's own proxy is known to let through; the suite must find it there.
pub const KNOWN_LEAKS_OF_THE_ORIGINAL: [&str; 14] = [
    "take a snapshot",
    "hash the whole store",
    "list all leases",
    "revoke a neighbour's lease",
    "renew a neighbour's lease",
    "look at a neighbour's lease",
    "attach a key to a neighbour's lease",
    "compact everyone's history",
    "defragment",
    "create a user",
    "lock under a neighbour's name",
    "unlock a neighbour's lock",
    "see who leads a neighbour's election",
    "an empty operation in a transaction",
];

pub fn all() -> Vec<Attack> {
    [kv(), transactions(), watches(), leases(), locks(), elections(), cluster(), maintenance(), auth(), broken()]
        .into_iter()
        .flatten()
        .collect()
}

fn attack<M: Message>(
    title: &'static str,
    path: &'static str,
    message: impl Fn(&Loot) -> M + 'static,
    leak: fn(&Loot, &Answer) -> Option<&'static str>,
) -> Attack {
    Attack { title, path, message: Box::new(move |loot| message(loot).encode_to_vec()), leak }
}

fn nothing_else(_: &Loot, _: &Answer) -> Option<&'static str> {
    None
}

/// Any answer but a refusal for want of rights: etcd has been asked.
fn unless_refused(_: &Loot, answer: &Answer) -> Option<&'static str> {
    let refused = answer.status.as_ref().is_some_and(|status| status.code() == Code::PermissionDenied);
    (!refused).then_some("reaches etcd")
}

fn decoded<M: Message + Default>(answer: &Answer) -> Option<M> {
    M::decode(answer.messages.first()?.clone()).ok()
}

const RANGE: &str = "/etcdserverpb.KV/Range";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
const PUT: &str = "/etcdserverpb.KV/Put";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
const TXN: &str = "/etcdserverpb.KV/Txn";

fn range(key: &[u8], end: &[u8]) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_vec().into(), range_end: end.to_vec().into(), ..pb::RangeRequest::default() }
}

fn counts_others(_: &Loot, answer: &Answer) -> Option<&'static str> {
    let range: pb::RangeResponse = decoded(answer)?;
    (range.count > OWN_KEYS || range.more).then_some("counts what is not its own")
}

fn kv() -> Vec<Attack> {
    let everything = |loot: &Loot| pb::DeleteRangeRequest {
        key: "\0".into(),
        range_end: if loot.prefix.is_empty() { "".into() } else { "\0".into() },
        prev_kv: true,
    };
    vec![
        attack("read a neighbour's key by its whole name", RANGE, |l| range(&l.key, b""), counts_others),
        attack("read all keys", RANGE, |_| range(b"\0", b"\0"), counts_others),
        attack("read all keys from the neighbour's on", RANGE, |l| range(&l.key, b"\0"), counts_others),
        attack("read up to the last key there can be", RANGE, |_| range(b"\0", &[0xff; 40]), counts_others),
        attack("read from 0xff on", RANGE, |_| range(b"\xff", b"\0"), counts_others),
        attack("read without a key", RANGE, |_| range(b"", b"\0"), counts_others),
        attack("read backwards, from the end to the beginning", RANGE, |_| range(b"\xff\xff", b"\x01"), counts_others),
        attack(
            "count all keys",
            RANGE,
            |_| pb::RangeRequest { count_only: true, ..range(b"\0", b"\0") },
            counts_others,
        ),
        attack(
            "see that there is more",
            RANGE,
            |_| pb::RangeRequest { limit: OWN_KEYS, ..range(b"\0", b"\0") },
            counts_others,
        ),
        attack("read all keys in a stream", RANGE_STREAM, |_| range(b"\0", b"\0"), nothing_else),
        attack(
            "overwrite a neighbour's key",
            PUT,
            |l| pb::PutRequest { key: l.key.clone().into(), value: "x".into(), prev_kv: true, ..Default::default() },
            nothing_else,
        ),
        attack(
            "attach a key to a neighbour's lease",
            PUT,
            |l| pb::PutRequest { key: "mine-1".into(), value: "x".into(), lease: l.lease, ..Default::default() },
            |_, answer| answer.is_ok().then_some("attaches a key"),
        ),
        attack("delete all keys", DELETE_RANGE, everything, |_, answer| {
            let deleted: pb::DeleteRangeResponse = decoded(answer)?;
            (deleted.deleted > OWN_KEYS).then_some("deletes what is not its own")
        }),
        attack(
            "delete a neighbour's key",
            DELETE_RANGE,
            |l| pb::DeleteRangeRequest { key: l.key.clone().into(), prev_kv: true, ..Default::default() },
            nothing_else,
        ),
        attack(
            "compact everyone's history",
            "/etcdserverpb.KV/Compact",
            |_| pb::CompactionRequest { revision: 1, physical: false },
            unless_refused,
        ),
    ]
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn succeeds(_: &Loot, answer: &Answer) -> Option<&'static str> {
    let txn: pb::TxnResponse = decoded(answer)?;
    txn.succeeded.then_some("compares what is not its own")
}

fn transactions() -> Vec<Attack> {
    let compare = |key: &[u8], end: &[u8], union| pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Value as i32,
        key: key.to_vec().into(),
        range_end: end.to_vec().into(),
        target_union: Some(union),
    };
    let value = || pb::compare::TargetUnion::Value(VALUE.into());
    vec![
        attack(
            "compare a neighbour's value",
            TXN,
            move |l| pb::TxnRequest { compare: vec![compare(&l.key, b"", value())], ..Default::default() },
            succeeds,
        ),
        attack(
            "learn by a comparison to which lease a neighbour's key belongs",
            TXN,
            |l| pb::TxnRequest {
                compare: vec![pb::Compare {
                    result: pb::compare::CompareResult::Equal as i32,
                    target: pb::compare::CompareTarget::Lease as i32,
                    key: l.key.clone().into(),
                    target_union: Some(pb::compare::TargetUnion::Lease(l.lease)),
                    ..Default::default()
                }],
                ..Default::default()
            },
            succeeds,
        ),
        attack(
            "read and delete everything in a transaction in a transaction",
            TXN,
            |_| {
                let all = pb::DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true };
                let inner = pb::TxnRequest {
                    success: vec![op(Request::RequestRange(range(b"\0", b"\0")))],
                    ..Default::default()
                };
                let outer = pb::TxnRequest {
                    success: vec![op(Request::RequestTxn(inner)), op(Request::RequestDeleteRange(all))],
                    ..Default::default()
                };
                pb::TxnRequest { success: vec![op(Request::RequestTxn(outer))], ..Default::default() }
            },
            nothing_else,
        ),
        attack(
            "attach to a neighbour's lease in a transaction in a transaction",
            TXN,
            |l| {
                let put = pb::PutRequest { key: "mine-1".into(), lease: l.lease, ..Default::default() };
                let inner = pb::TxnRequest { success: vec![op(Request::RequestPut(put))], ..Default::default() };
                pb::TxnRequest { success: vec![op(Request::RequestTxn(inner))], ..Default::default() }
            },
            |_, answer| answer.is_ok().then_some("attaches a key"),
        ),
    ]
}

fn watches() -> Vec<Attack> {
    const WATCH: &str = "/etcdserverpb.Watch/Watch";
    let create = |key: &[u8], end: &[u8], watch_id| pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: key.to_vec().into(),
            range_end: end.to_vec().into(),
            start_revision: 1,
            prev_kv: true,
            watch_id,
            ..Default::default()
        })),
    };
    let cancel = |watch_id| pb::WatchRequest {
        request_union: Some(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })),
    };
    vec![
        attack("watch all keys from the first revision on", WATCH, move |_| create(b"\0", b"\0", 0), nothing_else),
        attack("watch without a key", WATCH, move |_| create(b"", b"\0", 7), nothing_else),
        attack("watch a neighbour's key", WATCH, move |l| create(&l.key, b"", 1), nothing_else),
        attack("watch from the neighbour's key on", WATCH, move |l| create(&l.key, b"\0", 0), nothing_else),
        attack(
            "cancel a watch of somebody's",
            WATCH,
            move |_| cancel(1),
            |_, answer| (!answer.messages.is_empty()).then_some("cancels a watch"),
        ),
    ]
}

fn leases() -> Vec<Attack> {
    vec![
        attack(
            "learn from a grant that a neighbour's lease is there",
            "/etcdserverpb.Lease/LeaseGrant",
            |l| pb::LeaseGrantRequest { ttl: 60, id: l.lease },
            |_, answer| {
                let text = answer.status.as_ref().map_or("", |status| status.message());
                text.contains("already exists").then_some("knows that it is there")
            },
        ),
        attack(
            "revoke a neighbour's lease",
            "/etcdserverpb.Lease/LeaseRevoke",
            |l| pb::LeaseRevokeRequest { id: l.lease },
            |_, answer| answer.is_ok().then_some("revokes it"),
        ),
        attack(
            "renew a neighbour's lease",
            "/etcdserverpb.Lease/LeaseKeepAlive",
            |l| pb::LeaseKeepAliveRequest { id: l.lease },
            |l, answer| {
                let renewed: pb::LeaseKeepAliveResponse = decoded(answer)?;
                // Whoever is told of another lease than it asked for knows that something was done to its question.
                (renewed.ttl != 0 || renewed.id != l.lease).then_some("renews it")
            },
        ),
        attack(
            "look at a neighbour's lease",
            "/etcdserverpb.Lease/LeaseTimeToLive",
            |l| pb::LeaseTimeToLiveRequest { id: l.lease, keys: true },
            |l, answer| {
                let lease: pb::LeaseTimeToLiveResponse = decoded(answer)?;
                let seen = lease.ttl != -1 || lease.granted_ttl != 0 || lease.id != l.lease || !lease.keys.is_empty();
                seen.then_some("sees how long it lives")
            },
        ),
        attack(
            "list all leases",
            "/etcdserverpb.Lease/LeaseLeases",
            |_| pb::LeaseLeasesRequest {},
            |l, answer| {
                let listed: pb::LeaseLeasesResponse = decoded(answer)?;
                listed.leases.iter().any(|lease| lease.id == l.lease).then_some("sees a neighbour's")
            },
        ),
    ]
}

/// Waiting for somebody else means that one can be made to wait.
fn if_blocked(_: &Loot, answer: &Answer) -> Option<&'static str> {
    let blocked = answer.status.as_ref().is_some_and(|status| status.message() == BLOCKED);
    blocked.then_some("waits for the neighbour")
}

fn locks() -> Vec<Attack> {
    const LOCK: &str = "/v3lockpb.Lock/Lock";
    vec![
        attack(
            "lock under a neighbour's name",
            LOCK,
            |l| lock::LockRequest { name: l.lock_name.clone().into(), lease: 0 },
            if_blocked,
        ),
        attack(
            "lock with a neighbour's lease",
            LOCK,
            |l| lock::LockRequest { name: "mine".into(), lease: l.lease },
            |_, answer| answer.is_ok().then_some("attaches a key"),
        ),
        attack("lock without a name", LOCK, |_| lock::LockRequest::default(), nothing_else),
        attack(
            "unlock a neighbour's lock",
            "/v3lockpb.Lock/Unlock",
            |l| lock::UnlockRequest { key: l.lock_key.clone().into() },
            nothing_else,
        ),
    ]
}

fn elections() -> Vec<Attack> {
    let leader = |l: &Loot| Some(l.leader.clone());
    vec![
        attack(
            "stand in a neighbour's election",
            "/v3electionpb.Election/Campaign",
            |l| election::CampaignRequest { name: l.election_name.clone().into(), ..Default::default() },
            if_blocked,
        ),
        attack(
            "stand with a neighbour's lease",
            "/v3electionpb.Election/Campaign",
            |l| election::CampaignRequest { name: "mine".into(), lease: l.lease, ..Default::default() },
            |_, answer| answer.is_ok().then_some("attaches a key"),
        ),
        attack(
            "see who leads a neighbour's election",
            "/v3electionpb.Election/Leader",
            |l| election::LeaderRequest { name: l.election_name.clone().into() },
            nothing_else,
        ),
        attack(
            "observe a neighbour's election",
            "/v3electionpb.Election/Observe",
            |l| election::LeaderRequest { name: l.election_name.clone().into() },
            nothing_else,
        ),
        attack(
            "speak for a neighbour's leader",
            "/v3electionpb.Election/Proclaim",
            move |l| election::ProclaimRequest { leader: leader(l), value: "x".into() },
            nothing_else,
        ),
        attack(
            "resign for a neighbour's leader",
            "/v3electionpb.Election/Resign",
            move |l| election::ResignRequest { leader: leader(l) },
            nothing_else,
        ),
    ]
}

fn cluster() -> Vec<Attack> {
    vec![
        attack(
            "see etcd's members",
            "/etcdserverpb.Cluster/MemberList",
            |_| pb::MemberListRequest::default(),
            |l, answer| {
                let list: pb::MemberListResponse = decoded(answer)?;
                list.members.iter().any(|member| member.id == l.member).then_some("sees them")
            },
        ),
        attack(
            "add a member",
            "/etcdserverpb.Cluster/MemberAdd",
            |_| pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: true },
            unless_refused,
        ),
        attack(
            "remove a member",
            "/etcdserverpb.Cluster/MemberRemove",
            // One that is not there: a single member cannot be spared.
            |l| pb::MemberRemoveRequest { id: l.member ^ 1 },
            unless_refused,
        ),
        attack(
            "change a member",
            "/etcdserverpb.Cluster/MemberUpdate",
            |l| pb::MemberUpdateRequest { id: l.member ^ 1, peer_ur_ls: vec!["http://127.0.0.1:1".into()] },
            unless_refused,
        ),
        attack(
            "promote a member",
            "/etcdserverpb.Cluster/MemberPromote",
            |l| pb::MemberPromoteRequest { id: l.member ^ 1 },
            |l, answer| match answer.status.as_ref().map(tonic::Status::code) {
                // etcd's proxy does not have it.
                Some(Code::Unimplemented) => None,
                _ => unless_refused(l, answer),
            },
        ),
    ]
}

fn maintenance() -> Vec<Attack> {
    vec![
        attack(
            "take a snapshot",
            "/etcdserverpb.Maintenance/Snapshot",
            |_| pb::SnapshotRequest::default(),
            unless_refused,
        ),
        attack(
            "hash the whole store",
            "/etcdserverpb.Maintenance/Hash",
            |_| pb::HashRequest::default(),
            unless_refused,
        ),
        attack("hash all keys", "/etcdserverpb.Maintenance/HashKV", |_| pb::HashKvRequest::default(), unless_refused),
        attack("read the alarms", "/etcdserverpb.Maintenance/Alarm", |_| pb::AlarmRequest::default(), unless_refused),
        attack("defragment", "/etcdserverpb.Maintenance/Defragment", |_| pb::DefragmentRequest {}, unless_refused),
        attack(
            "move the leadership",
            "/etcdserverpb.Maintenance/MoveLeader",
            |l| pb::MoveLeaderRequest { target_id: l.member ^ 1 },
            unless_refused,
        ),
        attack(
            "downgrade the cluster",
            "/etcdserverpb.Maintenance/Downgrade",
            |_| pb::DowngradeRequest { version: "3.6.0".into(), ..Default::default() },
            unless_refused,
        ),
        attack(
            "see in a member's status more than how it is",
            "/etcdserverpb.Maintenance/Status",
            |_| pb::StatusRequest::default(),
            nothing_else,
        ),
    ]
}

fn auth() -> Vec<Attack> {
    let name = || MALLORY.to_owned();
    vec![
        attack(
            "create a user",
            "/etcdserverpb.Auth/UserAdd",
            move |_| pb::AuthUserAddRequest { name: name(), password: "p".into(), ..Default::default() },
            unless_refused,
        ),
        attack("list users", "/etcdserverpb.Auth/UserList", |_| pb::AuthUserListRequest {}, unless_refused),
        attack(
            "look at a user",
            "/etcdserverpb.Auth/UserGet",
            move |_| pb::AuthUserGetRequest { name: name() },
            unless_refused,
        ),
        attack(
            "change a user's password",
            "/etcdserverpb.Auth/UserChangePassword",
            move |_| pb::AuthUserChangePasswordRequest { name: name(), password: "p".into(), ..Default::default() },
            unless_refused,
        ),
        attack(
            "give a user a role",
            "/etcdserverpb.Auth/UserGrantRole",
            move |_| pb::AuthUserGrantRoleRequest { user: name(), role: "root".into() },
            unless_refused,
        ),
        attack(
            "take a role from a user",
            "/etcdserverpb.Auth/UserRevokeRole",
            move |_| pb::AuthUserRevokeRoleRequest { name: name(), role: "root".into() },
            unless_refused,
        ),
        attack(
            "delete a user",
            "/etcdserverpb.Auth/UserDelete",
            move |_| pb::AuthUserDeleteRequest { name: name() },
            unless_refused,
        ),
        // A name that etcd refuses: a role that stays would be in the way of what comes after.
        attack("create a role", "/etcdserverpb.Auth/RoleAdd", |_| pb::AuthRoleAddRequest::default(), unless_refused),
        attack("list roles", "/etcdserverpb.Auth/RoleList", |_| pb::AuthRoleListRequest {}, unless_refused),
        attack("look at a role", "/etcdserverpb.Auth/RoleGet", |_| pb::AuthRoleGetRequest::default(), unless_refused),
        attack(
            "delete a role",
            "/etcdserverpb.Auth/RoleDelete",
            |_| pb::AuthRoleDeleteRequest { role: "none".into() },
            unless_refused,
        ),
        attack(
            "give a role rights",
            "/etcdserverpb.Auth/RoleGrantPermission",
            |_| pb::AuthRoleGrantPermissionRequest { name: "none".into(), ..Default::default() },
            unless_refused,
        ),
        attack(
            "take rights from a role",
            "/etcdserverpb.Auth/RoleRevokePermission",
            |_| pb::AuthRoleRevokePermissionRequest { role: "none".into(), ..Default::default() },
            unless_refused,
        ),
        // Without a root etcd refuses it, whoever asks.
        attack("turn auth on", "/etcdserverpb.Auth/AuthEnable", |_| pb::AuthEnableRequest {}, unless_refused),
        attack("turn auth off", "/etcdserverpb.Auth/AuthDisable", |_| pb::AuthDisableRequest {}, unless_refused),
        attack("ask whether auth is on", "/etcdserverpb.Auth/AuthStatus", |_| pb::AuthStatusRequest {}, nothing_else),
        attack(
            "authenticate as nobody",
            "/etcdserverpb.Auth/Authenticate",
            move |_| pb::AuthenticateRequest { name: name(), password: "p".into() },
            nothing_else,
        ),
    ]
}

/// Field `number` with these bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).ok().filter(|len| *len < 128).expect("what is sent is short");
    [&[number << 3 | 2, len], bytes].concat()
}

/// What no client library sends.
fn broken() -> Vec<Attack> {
    let raw = |title, path, message: fn(&Loot) -> Vec<u8>| Attack {
        title,
        path,
        message: Box::new(message),
        leak: nothing_else,
    };
    vec![
        raw("a key twice, the neighbour's last", RANGE, |l| [field(1, b"mine"), field(1, &l.key)].concat()),
        raw("a key twice, the neighbour's first", RANGE, |l| [field(1, &l.key), field(1, b"mine")].concat()),
        raw("an end before its key, and twice", RANGE, |_| {
            [field(2, b"\0"), field(1, b"\0"), field(2, b"\xff\xff"), field(2, b"\0")].concat()
        }),
        raw("the neighbour's key in a field that etcd does not have", RANGE, |l| {
            [field(1, b"mine"), field(15, &l.key)].concat()
        }),
        raw("an operation that is two", TXN, |l| {
            // A range of nothing, and a range of everything in the same operation.
            let two = [field(1, &field(1, b"mine")), field(1, &[field(1, &l.key), field(2, b"\0")].concat())].concat();
            field(2, &two)
        }),
        raw("a delete of all that follows a range", TXN, |_| {
            let two = [field(1, &field(1, b"mine")), field(3, &[field(1, b"\0"), field(2, b"\0")].concat())].concat();
            field(2, &two)
        }),
        raw("a lease twice, the neighbour's last", PUT, |l| {
            let mut message = [field(1, b"mine-1"), vec![0x18, 0]].concat();
            message.push(0x18);
            prost::encoding::encode_varint(l.lease as u64, &mut message);
            message
        }),
        raw("a message that is none", RANGE, |_| vec![0x0a, 0xff]),
        raw("an empty operation in a transaction", TXN, |_| field(2, b"")),
        raw("an RPC that nobody knows", "/etcdserverpb.KV/Future", |l| field(1, &l.key)),
    ]
}
