//! SIGTERM ends the proxy as soon as nobody works any more, and not only when `--drain-timeout` is over.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Proxy};
use etcd_proxy_proto::etcdserverpb::{RangeRequest, kv_client::KvClient};

/// Far below the 30 seconds of `--drain-timeout`, far above what ending takes on a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(10);

fn ends_at_once(proxy: &mut Proxy) {
    let started = Instant::now();
    assert_eq!(proxy.terminate(), 0);
    assert!(started.elapsed() < AT_ONCE, "it took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let etcd = Etcd::start();
    let mut proxy = Proxy::start(&etcd.endpoints());
    let mut client = KvClient::new(etcd_proxy_e2e::grpc::channel(proxy.address()).await);
    client.range(RangeRequest { key: "a".into(), ..Default::default() }).await.expect("the proxy answers");
    ends_at_once(&mut proxy);
}

#[test]
fn an_open_watch_does_not_hold_up_the_end() {
    let etcd = Etcd::start();
    let mut proxy = Proxy::start(&etcd.endpoints());
    let watch = proxy.etcdctl().spawn(&["watch", "key", "--rev=1"]);
    proxy.etcdctl().ok(&["put", "key", "value"]);
    watch.expect_stdout("value");
    ends_at_once(&mut proxy);
}

#[test]
fn a_lease_that_is_kept_alive_does_not_hold_up_the_end() {
    let etcd = Etcd::start();
    let mut proxy = Proxy::start(&etcd.endpoints());
    let granted = proxy.etcdctl().ok(&["lease", "grant", "60"]);
    let lease = granted.split(' ').nth(1).expect("etcdctl says: lease <id> granted");
    let keep_alive = proxy.etcdctl().spawn(&["lease", "keep-alive", lease]);
    keep_alive.expect_stdout("keepalived");
    ends_at_once(&mut proxy);
}
