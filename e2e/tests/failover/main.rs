//! What clients notice of etcd members that die, hang, lose each other or come back: as little as can be.

mod busy;
mod choice;
mod load;
mod raw;
mod reads;
mod secured;
mod unreachable;
mod writes;
