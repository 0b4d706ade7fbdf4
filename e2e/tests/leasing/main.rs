//! `--experimental-leasing-prefix` on real etcds, beside etcd's own leasing clients: what is served from memory, who
//! gives way to whom, and that no reader is ever shown what was over before it asked.

mod cases;
mod history;
mod owners;
mod parts;
mod session;
mod transactions;
