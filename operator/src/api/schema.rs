//! Parts of the schema that the derive cannot say: bounds of list items and map values, and rules on them.

use schemars::{Schema, SchemaGenerator, json_schema};

/// One to sixteen URLs of etcd, each with scheme, host and port.
pub fn endpoints(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 16, "x-kubernetes-list-type": "set",
        "items": {
            "type": "string", "maxLength": 267,
            "x-kubernetes-validations": [{
                "rule": "isURL(self) && (self.startsWith('https://') || self.startsWith('http://')) && url(self).getPort() != '' && url(self).getEscapedPath() == ''",
                "message": "must be http(s)://host:port without a path"
            }]
        }
    })
}

/// A set of names of objects or hosts.
pub fn names_16(_: &mut SchemaGenerator) -> Schema {
    names(16, 253)
}

pub fn namespaces_64(_: &mut SchemaGenerator) -> Schema {
    names(64, 63)
}

pub fn namespaces_1024(_: &mut SchemaGenerator) -> Schema {
    names(1024, 63)
}

fn names(most: u32, longest: u32) -> Schema {
    json_schema!({
        "type": "array", "maxItems": most, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 1, "maxLength": longest}
    })
}

/// Modes that an administrator allows.
pub fn modes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 3, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "enum": ["DaemonSet", "Deployment", "Sidecar"]}
    })
}

/// etcd's methods without their packages; a test compares them with the proxy's table.
pub const METHODS: &[&str] = &[
    "Auth/AuthDisable",
    "Auth/AuthEnable",
    "Auth/AuthStatus",
    "Auth/Authenticate",
    "Auth/RoleAdd",
    "Auth/RoleDelete",
    "Auth/RoleGet",
    "Auth/RoleGrantPermission",
    "Auth/RoleList",
    "Auth/RoleRevokePermission",
    "Auth/UserAdd",
    "Auth/UserChangePassword",
    "Auth/UserDelete",
    "Auth/UserGet",
    "Auth/UserGrantRole",
    "Auth/UserList",
    "Auth/UserRevokeRole",
    "Cluster/MemberAdd",
    "Cluster/MemberList",
    "Cluster/MemberPromote",
    "Cluster/MemberRemove",
    "Cluster/MemberUpdate",
    "KV/Compact",
    "KV/DeleteRange",
    "KV/Put",
    "KV/Range",
    "KV/RangeStream",
    "KV/Txn",
    "Lease/LeaseGrant",
    "Lease/LeaseKeepAlive",
    "Lease/LeaseLeases",
    "Lease/LeaseRevoke",
    "Lease/LeaseTimeToLive",
    "Maintenance/Alarm",
    "Maintenance/Defragment",
    "Maintenance/Downgrade",
    "Maintenance/Hash",
    "Maintenance/HashKV",
    "Maintenance/MoveLeader",
    "Maintenance/Snapshot",
    "Maintenance/Status",
    "Watch/Watch",
    "Health/Check",
    "Health/List",
    "Health/Watch",
    "Election/Campaign",
    "Election/Leader",
    "Election/Observe",
    "Election/Proclaim",
    "Election/Resign",
    "Lock/Lock",
    "Lock/Unlock",
];

/// Methods of etcd's API.
pub fn methods(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": METHODS.len(), "x-kubernetes-list-type": "set",
        "items": {"type": "string", "enum": METHODS}
    })
}

/// Labels that a node must carry.
pub fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 16, "x-kubernetes-map-type": "atomic",
        "additionalProperties": {"type": "string", "maxLength": 63}
    })
}

pub fn annotations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 1024}
    })
}

/// Amounts of cpu, memory and the like.
pub fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 8,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
        }
    })
}

/// A number of pods, or a part of them in per cent.
pub fn pods_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": "^(100|[0-9]{1,2})%?$", "maxLength": 4
    })
}

/// A finished part of a pod, which admission splices in as it is.
pub fn part_of_a_pod(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

pub fn parts_of_a_pod(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "x-kubernetes-list-type": "atomic",
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
    })
}
