//! Deploys etcd-proxy on Kubernetes from an `EtcdProxy` resource.

pub mod api;
