//! A gRPC proxy for etcd.
pub mod tls;
