//! What limits cost the proxy for each call, in time of its processor. The figures are printed, with `--nocapture`; what is
//! asserted is that limits that nobody reaches refuse nobody, and that the audit log has a line for each call.

use std::{path::Path, time::Duration};

use etcd_proxy_e2e::{Etcd, Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use tokio::task::JoinSet;

/// Calls of each kind in a round; `ISOLATION_CALLS` makes it more.
const CALLS: usize = 200;
/// All proxies have their turn in each round, so that a machine that is busy for a while is so for all.
const ROUNDS: usize = 3;
const CLIENTS: usize = 8;

/// Limits that nobody reaches.
const LIMITS: [&str; 11] = [
    "--tenant-max-connections=1000000",
    "--tenant-max-streams=1000000",
    "--tenant-max-watches=1000000",
    "--tenant-max-concurrent-requests=1000000",
    "--tenant-max-requests-per-second=1000000000",
    "--tenant-max-received-bytes-per-second=1000000000000",
    "--tenant-max-sent-bytes-per-second=1000000000000",
    "--tenant-max-request-bytes=1000000",
    "--tenant-max-answer-bytes=1000000000",
    "--connection-max-watches=1000000",
    "--connection-max-requests-per-second=1000000000",
];
const STORED: [&str; 2] = ["--tenant-max-keys=1000000000", "--tenant-max-stored-bytes=1000000000000"];

#[derive(Clone, Copy)]
enum Call {
    Put,
    Range,
}

/// What a call takes of the proxy's processor, over many.
async fn cost(proxy: &Proxy, call: Call, calls: usize) -> Duration {
    let channel = grpc::channel(proxy.address()).await;
    let before = proxy.process.cpu_time();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let mut kv = KvClient::new(channel.clone());
        clients.spawn(async move {
            for _ in 0..calls / CLIENTS {
                let key = format!("key-{client}");
                match call {
                    Call::Put => {
                        let put =
                            PutRequest { key: key.into(), value: vec![b'v'; 100].into(), ..PutRequest::default() };
                        kv.put(put).await.map(drop)
                    }
                    Call::Range => {
                        // Not from the cache: each goes to etcd.
                        let range = RangeRequest { key: key.into(), serializable: true, ..RangeRequest::default() };
                        kv.range(range).await.map(drop)
                    }
                }
                .expect("nobody reaches these limits");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("all calls are served");
    }
    (proxy.process.cpu_time() - before) / u32::try_from(calls).expect("a test makes fewer calls")
}

#[tokio::test]
async fn limits_that_nobody_reaches_refuse_nobody() {
    let calls = std::env::var("ISOLATION_CALLS").ok().and_then(|text| text.parse().ok()).unwrap_or(CALLS);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let audit = folder.path().join("audit.log");
    let etcd = Etcd::start();
    let proxy = |flags: &[&str], audit: Option<&Path>| {
        let builder = Proxy::builder()
            .flag(format!("--endpoints={}", etcd.endpoints()))
            .flags(["--namespace=a/", "--api-profile=tenant", "--cache-bytes=0"])
            .flags(flags.iter().copied());
        match audit {
            Some(path) => builder.flag(format!("--audit-log={}", path.display())).start(),
            None => builder.start(),
        }
    };
    let with_stored = [&LIMITS[..], &STORED].concat();
    let kinds = [
        ("no limits", proxy(&[], None)),
        ("all rates and numbers limited", proxy(&LIMITS, None)),
        ("and what is stored", proxy(&with_stored, None)),
        ("and an audit log", proxy(&with_stored, Some(&audit))),
    ];
    println!("| processor time of the proxy for a call | Put | Range |\n|---|---|---|");
    let mut costs = vec![(Vec::new(), Vec::new()); kinds.len()];
    for _ in 0..ROUNDS {
        for ((_, proxy), (puts, ranges)) in kinds.iter().zip(&mut costs) {
            puts.push(cost(proxy, Call::Put, calls).await);
            ranges.push(cost(proxy, Call::Range, calls).await);
        }
    }
    for ((kind, _), (mut puts, mut ranges)) in kinds.iter().zip(costs) {
        puts.sort();
        ranges.sort();
        println!("| {kind} | {:?} | {:?} |", puts[ROUNDS / 2], ranges[ROUNDS / 2]);
    }
    let wanted = 2 * ROUNDS * (calls / CLIENTS) * CLIENTS;
    let deadline = std::time::Instant::now() + etcd_proxy_e2e::process::PATIENCE;
    loop {
        let lines = std::fs::read_to_string(&audit).expect("the audit log is there").lines().count();
        if lines >= wanted {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{lines} lines of {wanted} calls");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
