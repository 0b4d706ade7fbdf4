//! The RPCs by name and type, so that a script says `KV_PUT` and gets a `PutResponse`.

use std::marker::PhantomData;

use etcd_proxy_proto::etcdserverpb as pb;
use etcd_proxy_proto::{v3electionpb as election, v3lockpb as lock};

/// An RPC: its path, what it takes, what it answers.
pub struct Rpc<Q, A> {
    pub path: &'static str,
    types: PhantomData<fn(Q) -> A>,
}

macro_rules! rpcs {
    ($($name:ident $path:literal ($request:ty) -> $answer:ty;)*) => {
        $(pub const $name: Rpc<$request, $answer> = Rpc { path: $path, types: PhantomData };)*
    };
}

rpcs! {
    RANGE "/etcdserverpb.KV/Range" (pb::RangeRequest) -> pb::RangeResponse;
    RANGE_STREAM "/etcdserverpb.KV/RangeStream" (pb::RangeRequest) -> pb::RangeStreamResponse;
    PUT "/etcdserverpb.KV/Put" (pb::PutRequest) -> pb::PutResponse;
    DELETE_RANGE "/etcdserverpb.KV/DeleteRange" (pb::DeleteRangeRequest) -> pb::DeleteRangeResponse;
    TXN "/etcdserverpb.KV/Txn" (pb::TxnRequest) -> pb::TxnResponse;
    COMPACT "/etcdserverpb.KV/Compact" (pb::CompactionRequest) -> pb::CompactionResponse;
    LEASE_GRANT "/etcdserverpb.Lease/LeaseGrant" (pb::LeaseGrantRequest) -> pb::LeaseGrantResponse;
    LEASE_REVOKE "/etcdserverpb.Lease/LeaseRevoke" (pb::LeaseRevokeRequest) -> pb::LeaseRevokeResponse;
    LEASE_KEEP_ALIVE "/etcdserverpb.Lease/LeaseKeepAlive" (pb::LeaseKeepAliveRequest) -> pb::LeaseKeepAliveResponse;
    LEASE_TIME_TO_LIVE "/etcdserverpb.Lease/LeaseTimeToLive" (pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse;
    LEASE_LEASES "/etcdserverpb.Lease/LeaseLeases" (pb::LeaseLeasesRequest) -> pb::LeaseLeasesResponse;
    WATCH "/etcdserverpb.Watch/Watch" (pb::WatchRequest) -> pb::WatchResponse;
    MEMBER_ADD "/etcdserverpb.Cluster/MemberAdd" (pb::MemberAddRequest) -> pb::MemberAddResponse;
    MEMBER_REMOVE "/etcdserverpb.Cluster/MemberRemove" (pb::MemberRemoveRequest) -> pb::MemberRemoveResponse;
    MEMBER_UPDATE "/etcdserverpb.Cluster/MemberUpdate" (pb::MemberUpdateRequest) -> pb::MemberUpdateResponse;
    MEMBER_LIST "/etcdserverpb.Cluster/MemberList" (pb::MemberListRequest) -> pb::MemberListResponse;
    MEMBER_PROMOTE "/etcdserverpb.Cluster/MemberPromote" (pb::MemberPromoteRequest) -> pb::MemberPromoteResponse;
    ALARM "/etcdserverpb.Maintenance/Alarm" (pb::AlarmRequest) -> pb::AlarmResponse;
    STATUS "/etcdserverpb.Maintenance/Status" (pb::StatusRequest) -> pb::StatusResponse;
    DEFRAGMENT "/etcdserverpb.Maintenance/Defragment" (pb::DefragmentRequest) -> pb::DefragmentResponse;
    HASH "/etcdserverpb.Maintenance/Hash" (pb::HashRequest) -> pb::HashResponse;
    HASH_KV "/etcdserverpb.Maintenance/HashKV" (pb::HashKvRequest) -> pb::HashKvResponse;
    SNAPSHOT "/etcdserverpb.Maintenance/Snapshot" (pb::SnapshotRequest) -> pb::SnapshotResponse;
    MOVE_LEADER "/etcdserverpb.Maintenance/MoveLeader" (pb::MoveLeaderRequest) -> pb::MoveLeaderResponse;
    DOWNGRADE "/etcdserverpb.Maintenance/Downgrade" (pb::DowngradeRequest) -> pb::DowngradeResponse;
    AUTH_ENABLE "/etcdserverpb.Auth/AuthEnable" (pb::AuthEnableRequest) -> pb::AuthEnableResponse;
    AUTH_DISABLE "/etcdserverpb.Auth/AuthDisable" (pb::AuthDisableRequest) -> pb::AuthDisableResponse;
    AUTH_STATUS "/etcdserverpb.Auth/AuthStatus" (pb::AuthStatusRequest) -> pb::AuthStatusResponse;
    AUTHENTICATE "/etcdserverpb.Auth/Authenticate" (pb::AuthenticateRequest) -> pb::AuthenticateResponse;
    USER_ADD "/etcdserverpb.Auth/UserAdd" (pb::AuthUserAddRequest) -> pb::AuthUserAddResponse;
    USER_GET "/etcdserverpb.Auth/UserGet" (pb::AuthUserGetRequest) -> pb::AuthUserGetResponse;
    USER_LIST "/etcdserverpb.Auth/UserList" (pb::AuthUserListRequest) -> pb::AuthUserListResponse;
    USER_DELETE "/etcdserverpb.Auth/UserDelete" (pb::AuthUserDeleteRequest) -> pb::AuthUserDeleteResponse;
    USER_CHANGE_PASSWORD "/etcdserverpb.Auth/UserChangePassword" (pb::AuthUserChangePasswordRequest) -> pb::AuthUserChangePasswordResponse;
    USER_GRANT_ROLE "/etcdserverpb.Auth/UserGrantRole" (pb::AuthUserGrantRoleRequest) -> pb::AuthUserGrantRoleResponse;
    USER_REVOKE_ROLE "/etcdserverpb.Auth/UserRevokeRole" (pb::AuthUserRevokeRoleRequest) -> pb::AuthUserRevokeRoleResponse;
    ROLE_ADD "/etcdserverpb.Auth/RoleAdd" (pb::AuthRoleAddRequest) -> pb::AuthRoleAddResponse;
    ROLE_GET "/etcdserverpb.Auth/RoleGet" (pb::AuthRoleGetRequest) -> pb::AuthRoleGetResponse;
    ROLE_LIST "/etcdserverpb.Auth/RoleList" (pb::AuthRoleListRequest) -> pb::AuthRoleListResponse;
    ROLE_DELETE "/etcdserverpb.Auth/RoleDelete" (pb::AuthRoleDeleteRequest) -> pb::AuthRoleDeleteResponse;
    ROLE_GRANT_PERMISSION "/etcdserverpb.Auth/RoleGrantPermission" (pb::AuthRoleGrantPermissionRequest) -> pb::AuthRoleGrantPermissionResponse;
    ROLE_REVOKE_PERMISSION "/etcdserverpb.Auth/RoleRevokePermission" (pb::AuthRoleRevokePermissionRequest) -> pb::AuthRoleRevokePermissionResponse;
    LOCK "/v3lockpb.Lock/Lock" (lock::LockRequest) -> lock::LockResponse;
    UNLOCK "/v3lockpb.Lock/Unlock" (lock::UnlockRequest) -> lock::UnlockResponse;
    CAMPAIGN "/v3electionpb.Election/Campaign" (election::CampaignRequest) -> election::CampaignResponse;
    PROCLAIM "/v3electionpb.Election/Proclaim" (election::ProclaimRequest) -> election::ProclaimResponse;
    LEADER "/v3electionpb.Election/Leader" (election::LeaderRequest) -> election::LeaderResponse;
    OBSERVE "/v3electionpb.Election/Observe" (election::LeaderRequest) -> election::LeaderResponse;
    RESIGN "/v3electionpb.Election/Resign" (election::ResignRequest) -> election::ResignResponse;
    HEALTH_CHECK "/grpc.health.v1.Health/Check" (HealthCheckRequest) -> HealthCheckResponse;
    HEALTH_WATCH "/grpc.health.v1.Health/Watch" (HealthCheckRequest) -> HealthCheckResponse;
}

/// As gRPC's own `health.proto` has it, which is none of etcd's.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}
