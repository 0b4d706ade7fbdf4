//! Deploys etcd-proxy on Kubernetes from an `EtcdProxy` resource, as a map: `app` starts `controller` once `leader` holds
//! the lease; for each object `plan` decides what it comes to, `render` and `certs` make Kubernetes objects of it, and
//! the controller applies them and reports. `inject` puts sidecars into pods, `verify` uses a proxy as they would. `api`,
//! `plan`, `render`, `certs` and `inject` are pure.

pub mod admin;
pub mod api;
pub mod app;
pub mod certs;
pub mod controller;
pub mod inject;
pub mod leader;
pub mod plan;
pub mod plugin;
pub mod render;
pub mod verify;
