//! A gRPC proxy for etcd, as a map: `app` starts what `config` makes of `flags`; a connection comes in at `server`,
//! its requests go by `router` to `services` (those in JSON by way of `json`) or to `admin`, and from there through
//! `upstream` to etcd. `rules` knows what etcd's world is and never waits for anything. `gateway` and
//! `http_proxy` are front doors of their own; `check`, `top` and `keyspace` are commands beside the proxy.

pub mod admin;
pub mod admission;
pub mod app;
pub mod audit;
pub mod backoff;
pub mod check;
pub mod config;
pub mod dial;
pub mod doors;
pub mod drain;
pub mod exchange;
pub mod flags;
pub mod footprint;
#[cfg(test)]
mod foreign;
pub mod gateway;
pub mod go;
pub mod http_proxy;
pub mod json;
pub mod keyspace;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod pages;
pub mod resolver;
pub mod router;
pub mod rules;
pub mod server;
pub mod services;
pub mod tls;
pub mod top;
pub mod upstream;
