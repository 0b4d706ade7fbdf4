//! Many watches, half of whose clients have stopped to read: the others are as quick as ever, and memory is the logs.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Proxy};
use etcd_proxy_proto::etcdserverpb::{WatchCreateRequest, watch_request::RequestUnion};
use tokio::task::JoinSet;

use crate::client::{Watcher, channel, prefix, put, revisions, wait_until};

/// Watches and connections; ETCD_PROXY_WATCH_SCALE multiplies both. The whole size is 10.
const WATCHES: usize = 10_000;
const CONNECTIONS: usize = 100;
/// What a client's HTTP/2 takes that the client does not read: the least that most clients have.
const WINDOW: u32 = 65_535;
/// Events while half of the clients sleep, of this many bytes: more than the windows of the sleepers and the log hold.
const EVENTS: usize = 40;
const EVENT_BYTES: usize = 50_000;

fn scale() -> usize {
    std::env::var("ETCD_PROXY_WATCH_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_clients_harm_nobody_and_miss_nothing() {
    let etcd = Etcd::start();
    let proxy =
        Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--watch-log-max-bytes=262144").start();
    let writer = channel(&proxy).await;
    let connections = CONNECTIONS * scale();
    let each = WATCHES * scale() / connections;
    let mut opening = JoinSet::new();
    for _ in 0..connections {
        let endpoint = etcd_proxy_e2e::grpc::endpoint(proxy.address());
        let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let connecting = endpoint.connect().await.expect("the proxy takes connections");
        opening.spawn(async move {
            let mut watcher = Watcher::open(&connecting).await;
            for number in 0..each {
                // The small events are all that most of them hear of, the large ones go to one watch of each client.
                let request = if number == 0 { prefix("large/") } else { prefix("small/") };
                watcher.ask(RequestUnion::CreateRequest(WatchCreateRequest { fragment: true, ..request })).await;
                assert!(watcher.next().await.created);
            }
            watcher
        });
    }
    let mut watchers = Vec::new();
    while let Some(watcher) = opening.join_next().await {
        watchers.push(watcher.expect("it opens"));
    }
    let metric = |name: &str| proxy.metric(name).unwrap_or(0.0);
    assert_eq!(metric("etcd_proxy_client_watches"), (each * connections) as f64);
    wait_until("two watches serve them all", || metric("etcd_proxy_upstream_watches") == 2.0).await;
    let idle = proxy.process.resident_bytes();
    let mut stalled = watchers.split_off(connections / 2);

    let mut written = Vec::new();
    let mut slowest = Duration::ZERO;
    for number in 0..EVENTS {
        let started = Instant::now();
        written.push(put(&writer, &format!("large/{number}"), vec![7; EVENT_BYTES]).await);
        put(&writer, "small/1", "").await;
        for watcher in &mut watchers {
            let mut seen = 0;
            while seen < each {
                let response = watcher.next().await;
                assert!(!response.canceled, "{response:?}");
                seen += response.events.len();
            }
        }
        slowest = slowest.max(started.elapsed());
    }
    let loaded = proxy.process.resident_bytes();
    println!(
        "{} watches on {connections} connections, half of them stalled: {} MiB idle, {} MiB with {} MB written, \
         {slowest:?} at most from a write until all others had it",
        each * connections,
        idle >> 20,
        loaded >> 20,
        EVENTS * EVENT_BYTES / 1_000_000,
    );
    // What a sleeper may hold: what was made ready for it, its windows being its own.
    let bound = (connections as u64) * (1 << 20);
    assert!(loaded.saturating_sub(idle) < bound, "{} bytes for those who sleep", loaded.saturating_sub(idle));

    let mut reading = JoinSet::new();
    for mut watcher in stalled.drain(..) {
        reading.spawn(async move {
            let (mut large, mut small) = (Vec::new(), 0);
            while large.len() < EVENTS || small < EVENTS * (each - 1) {
                let response = watcher.next().await;
                assert!(!response.canceled, "{response:?}");
                if response.watch_id == 0 {
                    large.extend(revisions(&response.events));
                } else {
                    small += response.events.len();
                }
            }
            (large, small)
        });
    }
    while let Some(read) = reading.join_next().await {
        let (large, small) = read.expect("it reads on");
        assert_eq!(large, written, "a client that had stalled sees all large events, once and in order");
        assert_eq!(small, EVENTS * (each - 1));
    }
    let falls = metric("etcd_proxy_watch_falls_total");
    println!("{falls} falls off the log, {} catch-ups", metric("etcd_proxy_watch_catch_ups_total"));
    assert!(falls > 0.0, "nobody stalled for long enough");
}
