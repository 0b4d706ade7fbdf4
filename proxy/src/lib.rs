//! A gRPC proxy for etcd.
