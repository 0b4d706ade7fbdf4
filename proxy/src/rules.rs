//! What etcd's world is: no await, no clock, no lock, no log.

pub mod event;
pub mod keys;
pub mod namespace;
#[cfg(test)]
mod samples;
pub mod wire;
