//! Starts, pauses, kills and restarts the real parts that the end-to-end tests run against.
//!
//! A test takes an [`Etcd`] (one member or three, any of three versions), puts a [`Proxy`] in front (ours, or etcd's
//! own for comparison), and talks through it with [`Etcdctl`] or with the generated clients over [`grpc::channel`].
//! Everything listens on free ports of 127.0.0.1, keeps its data in a temporary folder and dies with its value.
//! When a test fails, each part prints the end of its log.
//!
//! This crate is for tests only, so it panics where a test could not go on, and says what is missing.

/// Numbers that look like chance and are the same in each run.
pub mod chance;
/// A TCP hop that can be frozen or cut.
pub mod forwarder;
/// Free ports of 127.0.0.1.
pub mod ports;
/// One child process: its lines, its signals, its cost.
pub mod process;
/// Where the programs are: ours from cargo, etcd's from `tools/build.sh`.
pub mod programs;
/// Waits for what offers no event.
pub mod wait;

/// Certificates of all the kinds that etcd and the proxy take or must refuse.
pub mod certs;
/// A name server with SRV records.
pub mod dns;
/// What the documents tell people to paste.
pub mod docs;
/// A plain HTTP/1.0 GET, for health and metrics.
pub mod http;

/// A kube-apiserver on any etcd.
pub mod apiserver;
/// A real etcd cluster.
pub mod etcd;
/// A real etcdctl.
pub mod etcdctl;
/// gRPC channels to etcd or a proxy, and messages as they stand on the wire.
pub mod grpc;
/// Whoever pretends to be an etcd.
pub mod peer;
/// A proxy, ours or etcd's own.
pub mod proxy;

pub use apiserver::ApiServer;
pub use certs::{Authority, Pair};
pub use dns::NameServer;
pub use etcd::{Etcd, Tls};
pub use etcdctl::{Etcdctl, Outcome};
pub use forwarder::Forwarder;
pub use process::{Lines, Process};
pub use programs::Version;
pub use proxy::Proxy;
