//! The table of etcd's RPCs: one row each, saying all that the proxy needs to know to route it.

use super::namespace::Shape;

/// One RPC of the etcd v3 API (or of gRPC's health service), as the proxy sees it.
#[derive(Debug)]
pub struct Method {
    /// The HTTP/2 `:path`.
    pub path: &'static str,
    pub kind: Kind,
    pub effect: Effect,
    pub lane: Lane,
    /// The messages that carry keys, where a namespace is put on and taken off.
    pub keys: Keys,
    /// Whether the answer begins with a `ResponseHeader`, whose revision tells how far the caller has seen.
    pub revision: Revision,
    /// Which profiles have it.
    pub access: Access,
}

/// Who may make a call, by the profile of the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every profile has it.
    Anyone,
    /// `tenant` has it; `read-only` too, if the message writes nothing.
    ReaderIfItReads,
    /// `tenant` has it.
    Tenant,
    /// `tenant` does with it what its own flag says.
    Compaction,
    /// Only `full` has it: it reaches beyond a prefix.
    Operator,
}

/// How many messages travel each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unary,
    ServerStream,
    Bidi,
}

/// Whether sending the request twice can change what etcd holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Read,
    Write,
}

/// Who in the proxy serves the RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Bytes through; keys are rewritten where `keys` says so and a namespace is set.
    Forward,
    /// Answered from the cache, or forwarded.
    Range,
    /// Forwarded, and on success the shared watches forget what was compacted.
    Compact,
    Watch,
    KeepAlive,
    LeaseGrant,
    LeaseTimeToLive,
    LeaseLeases,
    MemberList,
    HealthCheck,
    HealthList,
    HealthWatch,
}

/// The messages that carry keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    pub request: Option<Shape>,
    pub response: Option<Shape>,
}

/// Whether the answer's header shows the store's revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    Shown,
    Absent,
}

impl Method {
    /// The service's full name, such as `etcdserverpb.KV`.
    pub fn service(&self) -> &'static str {
        self.path[1..].split_once('/').map_or("", |(service, _)| service)
    }

    /// The method's name, such as `Range`.
    pub fn name(&self) -> &'static str {
        self.path[1..].split_once('/').map_or("", |(_, name)| name)
    }

    /// Whether the call may be sent again after it may have reached etcd.
    pub fn is_retry_safe(&self) -> bool {
        self.effect == Effect::Read
    }

    /// Whether the answer goes on for as long as the client listens, so that nobody can wait for its end.
    pub fn is_endless(&self) -> bool {
        self.path == "/v3electionpb.Election/Observe"
    }

    /// Whether a unary call waits for something to happen in the cluster, for as long as that takes.
    pub fn waits(&self) -> bool {
        matches!(self.path, "/v3lockpb.Lock/Lock" | "/v3electionpb.Election/Campaign")
    }

    /// `grpc_type` as the metrics of gRPC servers spell it.
    pub fn grpc_type(&self) -> &'static str {
        match self.kind {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::Bidi => "bidi_stream",
        }
    }

    /// The row's place in [`METHODS`].
    pub fn index(&self) -> usize {
        // A look-up by path would cost each call that is counted; where the row lies tells the same.
        let offset = std::ptr::from_ref(self).addr().wrapping_sub(METHODS.as_ptr().addr());
        let index = offset / size_of::<Self>();
        assert!(index < METHODS.len(), "a Method is only ever a row of METHODS");
        index
    }
}

/// The row for an HTTP/2 path, if etcd has such an RPC.
pub fn find(path: &str) -> Option<&'static Method> {
    find_index(path).map(|index| &METHODS[index])
}

/// Whether any row belongs to this service (`etcdserverpb.KV`).
pub fn knows_service(service: &str) -> bool {
    METHODS.iter().any(|method| method.service() == service)
}

/// Whether a path may name an RPC of any etcd. With TLS, etcd passes over a query and resolves escapes, so that
/// `/etcdserverpb.KV/%50ut?` is a Put; without, that is no RPC. Here it is none, lest a call be another than it seems.
pub fn may_be_one(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_'))
}

fn find_index(path: &str) -> Option<usize> {
    METHODS.binary_search_by(|method| method.path.cmp(path)).ok()
}

const NONE: Keys = Keys { request: None, response: None };

const fn keys(request: Shape, response: Option<Shape>) -> Keys {
    Keys { request: Some(request), response }
}

const fn row(
    path: &'static str,
    kind: Kind,
    effect: Effect,
    lane: Lane,
    keys: Keys,
    revision: Revision,
    access: Access,
) -> Method {
    Method { path, kind, effect, lane, keys, revision, access }
}

use Access::{Anyone, Compaction, Operator, ReaderIfItReads, Tenant};
use Effect::{Read, Write};
use Kind::{Bidi, ServerStream, Unary};
use Lane::{
    Compact, Forward, HealthCheck, HealthList, HealthWatch, KeepAlive, LeaseGrant, LeaseLeases, LeaseTimeToLive,
    MemberList, Range, Watch,
};
use Revision::{Absent, Shown};

/// The path of the Watch RPC.
pub const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// Every RPC that etcd serves, sorted by path so that a look-up is a binary search.
pub static METHODS: [Method; 52] = [
    row("/etcdserverpb.Auth/AuthDisable", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/AuthEnable", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/AuthStatus", Unary, Read, Forward, NONE, Absent, Tenant),
    row("/etcdserverpb.Auth/Authenticate", Unary, Write, Forward, NONE, Absent, Tenant),
    row("/etcdserverpb.Auth/RoleAdd", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/RoleDelete", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/RoleGet", Unary, Read, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/RoleGrantPermission", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/RoleList", Unary, Read, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/RoleRevokePermission", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/UserAdd", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/UserChangePassword", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/UserDelete", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/UserGet", Unary, Read, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/UserGrantRole", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/UserList", Unary, Read, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Auth/UserRevokeRole", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Cluster/MemberAdd", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Cluster/MemberList", Unary, Read, MemberList, NONE, Absent, Anyone),
    row("/etcdserverpb.Cluster/MemberPromote", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Cluster/MemberRemove", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Cluster/MemberUpdate", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.KV/Compact", Unary, Write, Compact, NONE, Shown, Compaction),
    row(
        "/etcdserverpb.KV/DeleteRange",
        Unary,
        Write,
        Forward,
        keys(Shape::DeleteRange, Some(Shape::DeleteRangeResponse)),
        Shown,
        Tenant,
    ),
    row("/etcdserverpb.KV/Put", Unary, Write, Forward, keys(Shape::Put, Some(Shape::PutResponse)), Shown, Tenant),
    row("/etcdserverpb.KV/Range", Unary, Read, Range, keys(Shape::Range, Some(Shape::RangeResponse)), Shown, Anyone),
    row(
        "/etcdserverpb.KV/RangeStream",
        ServerStream,
        Read,
        Forward,
        keys(Shape::Range, Some(Shape::RangeStreamResponse)),
        Absent,
        Anyone,
    ),
    row(
        "/etcdserverpb.KV/Txn",
        Unary,
        Write,
        Forward,
        keys(Shape::Txn, Some(Shape::TxnResponse)),
        Shown,
        ReaderIfItReads,
    ),
    row("/etcdserverpb.Lease/LeaseGrant", Unary, Write, LeaseGrant, NONE, Absent, Tenant),
    row("/etcdserverpb.Lease/LeaseKeepAlive", Bidi, Write, KeepAlive, NONE, Absent, Tenant),
    row("/etcdserverpb.Lease/LeaseLeases", Unary, Read, LeaseLeases, NONE, Absent, Tenant),
    row("/etcdserverpb.Lease/LeaseRevoke", Unary, Write, Forward, keys(Shape::Lease, None), Shown, Tenant),
    row(
        "/etcdserverpb.Lease/LeaseTimeToLive",
        Unary,
        Read,
        LeaseTimeToLive,
        keys(Shape::Lease, Some(Shape::LeaseTimeToLiveResponse)),
        Absent,
        Anyone,
    ),
    row("/etcdserverpb.Maintenance/Alarm", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Maintenance/Defragment", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Maintenance/Downgrade", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Maintenance/Hash", Unary, Read, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Maintenance/HashKV", Unary, Read, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Maintenance/MoveLeader", Unary, Write, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Maintenance/Snapshot", ServerStream, Read, Forward, NONE, Absent, Operator),
    row("/etcdserverpb.Maintenance/Status", Unary, Read, Forward, NONE, Absent, Anyone),
    row(WATCH, Bidi, Read, Watch, NONE, Absent, Anyone),
    row("/grpc.health.v1.Health/Check", Unary, Read, HealthCheck, NONE, Absent, Anyone),
    row("/grpc.health.v1.Health/List", Unary, Read, HealthList, NONE, Absent, Anyone),
    row("/grpc.health.v1.Health/Watch", ServerStream, Read, HealthWatch, NONE, Absent, Anyone),
    row(
        "/v3electionpb.Election/Campaign",
        Unary,
        Write,
        Forward,
        keys(Shape::Campaign, Some(Shape::CampaignResponse)),
        Shown,
        Tenant,
    ),
    row(
        "/v3electionpb.Election/Leader",
        Unary,
        Read,
        Forward,
        keys(Shape::Leader, Some(Shape::LeaderResponse)),
        Shown,
        Tenant,
    ),
    row(
        "/v3electionpb.Election/Observe",
        ServerStream,
        Read,
        Forward,
        keys(Shape::Leader, Some(Shape::LeaderResponse)),
        Absent,
        Tenant,
    ),
    row("/v3electionpb.Election/Proclaim", Unary, Write, Forward, keys(Shape::Proclaim, None), Shown, Tenant),
    row("/v3electionpb.Election/Resign", Unary, Write, Forward, keys(Shape::Resign, None), Shown, Tenant),
    row("/v3lockpb.Lock/Lock", Unary, Write, Forward, keys(Shape::Lock, Some(Shape::LockResponse)), Shown, Tenant),
    row("/v3lockpb.Lock/Unlock", Unary, Write, Forward, keys(Shape::Unlock, None), Shown, Tenant),
];

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn what_etcd_might_resolve_to_another_name_is_none() {
        assert!(METHODS.iter().all(|method| may_be_one(method.path)));
        assert!(may_be_one("/v9.some_package.New/Call2") && may_be_one("/"));
        for path in ["/etcdserverpb.KV/Put?", "/etcdserverpb.KV/%50ut", "/etcdserverpb.KV/Put#a", "/a b/c", "/\u{e9}/a"]
        {
            assert!(!may_be_one(path), "{path}");
        }
    }

    #[test]
    fn rows_are_sorted_and_found_by_their_path() {
        for (index, method) in METHODS.iter().enumerate() {
            assert_eq!(find_index(method.path), Some(index), "{} is out of order", method.path);
        }
        assert!(find("/etcdserverpb.KV/Nothing").is_none());
    }

    #[test]
    fn every_rpc_of_etcd_has_a_row() {
        let descriptors = prost_types::FileDescriptorSet::decode(etcd_proxy_proto::FILE_DESCRIPTOR_SET)
            .expect("the committed descriptors decode");
        let mut missing = Vec::new();
        for file in &descriptors.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let kind = match (method.client_streaming(), method.server_streaming()) {
                        (false, false) => Kind::Unary,
                        (false, true) => Kind::ServerStream,
                        _ => Kind::Bidi,
                    };
                    if find(&path).is_none_or(|row| row.kind != kind) {
                        missing.push(path);
                    }
                }
            }
        }
        assert!(missing.is_empty(), "rows missing or of another kind: {missing:?}");
    }
}
