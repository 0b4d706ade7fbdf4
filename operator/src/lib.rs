//! Deploys etcd-proxy on Kubernetes from an `EtcdProxy` resource, as a map: `app` starts `controller` once `leader` holds
//! the lease; for each object `plan` decides what it comes to, `render` and `certs` make Kubernetes objects of it, and
//! the controller applies them and reports. `inject` puts sidecars into pods, `webhook` does so at admission, `plugin` shows
//! a person what there is, `verify` uses a proxy as applications would. `api`, `plan`, `render`, `certs` and `inject` are pure.

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
pub mod webhook;
