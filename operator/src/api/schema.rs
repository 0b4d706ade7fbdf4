//! Parts of the schema that the derive cannot say: bounds of list items and map values, and rules on them.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A rule that a text must keep, with what is said of one that does not.
fn rule(rule: &str, message: &str) -> Value {
    json!([{"rule": rule, "message": message}])
}

/// Names of objects become parts of paths, at the API server and in volumes.
pub fn object_name() -> Value {
    rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
        "must be the name of an object: lower-case letters, digits, '-' and '.', with a letter or digit at both ends",
    )
}

/// Keys of Secrets and ConfigMaps become names of files.
pub fn data_key() -> Value {
    rule(
        "self.matches('^[-._a-zA-Z0-9]+$') && self != '.' && !self.startsWith('..')",
        "must be a key of a Secret or ConfigMap: letters, digits, '-', '_' and '.', and not '..' at the beginning",
    )
}

/// An address, or a host name with something before it.
fn host(before: &str, message: &str) -> Value {
    const LABEL: &str = "[a-zA-Z0-9_]([-a-zA-Z0-9_]*[a-zA-Z0-9_])?";
    rule(&format!("isIP(self) || self.matches('^{before}{LABEL}([.]{LABEL})*$')"), message)
}

/// What stands in certificates of servers.
pub fn server_name() -> Value {
    host("", "must be a host name or an IP address, without scheme and port")
}

/// What stands before keys, where a character that nobody sees is a mistake, and no argument of a program may hold zeros.
pub fn printable() -> Value {
    rule("!self.matches('[[:cntrl:]]')", "must not contain control characters, such as line ends")
}

/// One to sixteen URLs of etcd, each with scheme, host and port.
pub fn endpoints(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 16, "x-kubernetes-list-type": "set",
        "items": {
            "type": "string", "maxLength": 267,
            "x-kubernetes-validations": [{
                "rule": "isURL(self) && self.matches('^https?://([-a-zA-Z0-9._]+|[[][0-9a-fA-F:.]+[]]):[0-9]{1,5}$') && int(url(self).getPort()) > 0 && int(url(self).getPort()) < 65536",
                "message": "must be http(s)://host:port without a path"
            }]
        }
    })
}

/// A set of names of hosts, as a certificate may have them.
pub fn names_16(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 16, "x-kubernetes-list-type": "set",
        "items": {
            "type": "string", "minLength": 1, "maxLength": 253,
            "x-kubernetes-validations": host("([*][.])?", "must be a host name, with '*.' before it or not, or an IP address"),
        }
    })
}

pub fn namespaces_64(_: &mut SchemaGenerator) -> Schema {
    namespaces(64)
}

pub fn namespaces_1024(_: &mut SchemaGenerator) -> Schema {
    namespaces(1024)
}

fn namespaces(most: u32) -> Schema {
    json_schema!({
        "type": "array", "maxItems": most, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 1, "maxLength": 63}
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
