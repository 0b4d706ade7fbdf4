//! Deploys etcd-proxy on Kubernetes from an `EtcdProxy` resource; the reconciler is not written yet.
