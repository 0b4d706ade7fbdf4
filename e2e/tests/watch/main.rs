//! Watches through the proxy on a real etcd: shared, exact, resumed when members die, and unharmed by slow readers.

mod chaos;
mod client;
mod exact;
mod scale;
mod sharing;
mod windows;
