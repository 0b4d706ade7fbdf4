//! A gRPC proxy for etcd.

pub mod flags;
pub mod go;
pub mod tls;
