//! The RPCs that the proxy understands, and the one way by which all others pass.

pub mod cache;
pub mod calls;
pub mod cluster;
pub mod health;
pub mod keepalive;
pub mod leases;
pub mod leasing;
pub mod ordering;
pub mod quota;
pub mod watch;
