//! Which member a client's calls go to, and how little an idle proxy asks of any.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etcd_proxy_e2e::{Etcd, Proxy, http};

use super::load::{channel, endpoints_are, header, put, range};

/// Enough that a call to another member would show.
const READS: usize = 150;
const CLIENTS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_keeps_to_one_member_and_never_reads_backwards_and_clients_use_all_members() {
    let etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    endpoints_are(&proxy, 3, |line| line["msg"] == "endpoint is serving").await;
    let stop = Arc::new(AtomicBool::new(false));
    let (writing, writer_channel) = (stop.clone(), channel(&proxy).await);
    let writer = tokio::spawn(async move {
        while !writing.load(Ordering::Relaxed) {
            put(&writer_channel, "k", "v").await.expect("etcd is up");
        }
    });
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let channel = channel(&proxy).await;
        clients.push(tokio::spawn(async move {
            let (mut members, mut newest) = (HashSet::new(), 0);
            for _ in 0..READS {
                let header = header(range(&channel, "k", true).await.expect("etcd is up"));
                assert!(header.revision >= newest, "revision {} was read after {newest}", header.revision);
                newest = header.revision;
                members.insert(header.member_id);
            }
            members
        }));
    }
    let mut all = HashSet::new();
    for client in clients {
        let members = client.await.expect("no client reads backwards");
        assert_eq!(members.len(), 1, "one client was answered by {members:?}");
        all.extend(members);
    }
    assert_eq!(all.len(), 3, "clients share the members");
    stop.store(true, Ordering::Relaxed);
    writer.await.expect("writes succeed");
}

/// All calls that a member has been sent.
fn calls(etcd: &Etcd) -> f64 {
    let metrics = http::get(etcd.members()[0].metrics_address(), "/metrics").expect("etcd has metrics");
    let started = metrics.body.lines().filter(|line| line.starts_with("grpc_server_started_total{"));
    started.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_proxy_asks_hardly_anything_of_etcd() {
    /// One health check in five seconds, and one to spare for the moment at which the window begins.
    const MOST: f64 = 2.0;
    const WINDOW: Duration = Duration::from_secs(5);
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    put(&channel(&proxy).await, "k", "v").await.expect("etcd is up");
    let before = calls(&etcd);
    // The window is what is measured: there is no event to wait for.
    tokio::time::sleep(WINDOW).await;
    let asked = calls(&etcd) - before;
    println!("{asked} calls in {WINDOW:?}");
    assert!(asked <= MOST, "{asked} calls in {WINDOW:?}");
}
