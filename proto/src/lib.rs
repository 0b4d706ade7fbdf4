//! The etcd v3 API as Rust types, generated from etcd's own `.proto` files; nothing of ours lives here.
//!
//! `src/gen/` is committed so that a build needs neither `protoc` nor the sources; the test `tests/generated.rs`
//! fails when it is stale and rewrites it when `UPDATE_GENERATED=1` is set.

#![allow(clippy::all, rustdoc::all)]

/// KV, Watch, Lease, Cluster, Maintenance and Auth.
pub mod etcdserverpb {
    include!("gen/etcdserverpb.rs");
}

/// Key-values and events.
pub mod mvccpb {
    include!("gen/mvccpb.rs");
}

/// Users, roles and permissions.
pub mod authpb {
    include!("gen/authpb.rs");
}

/// The Lock service.
pub mod v3lockpb {
    include!("gen/v3lockpb.rs");
}

/// The Election service.
pub mod v3electionpb {
    include!("gen/v3electionpb.rs");
}

/// The release of etcd that these files are of.
pub const ETCD_VERSION: &str = include_str!("../etcd/VERSION").trim_ascii();

/// Every message and service with its options, serialized, for whatever works by descriptor.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");
