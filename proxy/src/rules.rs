//! What etcd's world is: no await, no clock, no lock, no log.

pub mod cache;
pub mod caller;
pub mod event;
#[cfg(test)]
mod foreign;
pub mod framing;
pub mod keys;
pub mod leasing;
pub mod methods;
pub mod namespace;
#[cfg(test)]
mod samples;
pub mod status;
pub mod store;
pub mod tenant;
pub mod wire;
