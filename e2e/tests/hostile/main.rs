//! Clients and servers that mean harm, or are broken: nothing kills the proxy, and whoever behaves is served.

use std::time::Duration;

use etcd_proxy_e2e::{Etcd, Proxy};

mod drain;
mod floods;
mod limits;
mod messages;
mod stderr;
mod upstreams;
mod watches;
mod wire;

/// What the proxy may need in memory whatever is done to it by one client.
const MEMORY_BOUND: u64 = 400 << 20;
/// How often a condition without an event is looked at.
const POLL: Duration = Duration::from_millis(20);

/// An etcd with one key, and our proxy in front of it.
fn proxied(flags: &[&str]) -> (Etcd, Proxy) {
    let etcd = Etcd::start();
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flags(flags.iter().copied()).start();
    // Through the proxy, so that it is where a namespace puts it.
    proxy.etcdctl().ok(&["put", "key", "value"]);
    (etcd, proxy)
}

/// The proxy lives, has not panicked, holds no more memory than it may, and serves whoever behaves.
fn check_unharmed(proxy: &mut Proxy, what: &str) {
    assert_eq!(proxy.process.exit(), None, "after {what}");
    assert_eq!(proxy.etcdctl().ok(&["get", "key", "--print-value-only"]), "value", "after {what}");
    let resident = proxy.process.resident_bytes();
    println!("after {what}: {} MiB", resident >> 20);
    assert!(resident < MEMORY_BOUND, "{} MiB after {what}", resident >> 20);
    let panics: Vec<_> = proxy.log().into_iter().filter(|line| line["msg"] == "panicked").collect();
    assert!(panics.is_empty(), "after {what}: {panics:?}");
}
