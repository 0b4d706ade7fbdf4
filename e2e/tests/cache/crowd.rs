//! A crowd that reads the same in a loop: etcd's own count of calls says what it costs etcd.

use etcd_proxy_e2e::{Etcd, Proxy};
use etcd_proxy_proto::etcdserverpb::RangeRequest;

use crate::raw::{Client, hits, one, prefix, revision};

const CLIENTS: usize = 100;
const READS: usize = 40;
const KEYS: usize = 200;
const RANGES_SERVED: &str =
    r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#;

fn served(etcd: &Etcd) -> f64 {
    etcd.members()[0].metric(RANGES_SERVED).unwrap_or(0.0)
}

/// Has every client read in a loop, while one writes; tells how many reads etcd served meanwhile for each hundred.
async fn crowd(etcd: &Etcd, clients: &[Client], request: &RangeRequest) -> f64 {
    let before = served(etcd);
    let readers: Vec<_> = clients
        .iter()
        .map(|client| {
            let (client, request) = (client.clone(), request.clone());
            tokio::spawn(async move {
                let mut last = 0;
                for _ in 0..READS {
                    let answer = client.range(&request).await.expect("a read succeeds");
                    assert!(revision(&answer) >= last, "time runs backwards");
                    last = revision(&answer);
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.expect("no reader fails");
    }
    (served(etcd) - before) * 100.0 / (clients.len() * READS) as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_that_read_the_same_in_a_loop_cost_etcd_a_call_at_a_time() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::dial(proxy.address()).await);
    }
    for number in 0..KEYS {
        clients[0].put(&format!("list/{number:04}"), &"v".repeat(100)).await.expect("a put");
    }
    for request in [one("list/0007", false), one("list/0007", true), prefix("list/", false), prefix("list/", true)] {
        let served = crowd(&etcd, &clients, &request).await;
        println!("etcd served {served:.1} of 100 reads: {request:?}");
        assert!(served < 15.0, "etcd served {served} of 100 reads: {request:?}");
    }
    assert!(hits(&proxy) > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_at_the_same_time_are_merged_also_when_their_range_is_too_large_for_the_cache() {
    let etcd = Etcd::start();
    // A quarter of it is less than the range takes with the place of each key, and more than its answer.
    let flags = [&format!("--endpoints={}", etcd.endpoints()), "--cache-bytes=200000"];
    let proxy = Proxy::builder().flags(flags).start();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::dial(proxy.address()).await);
    }
    for number in 0..KEYS {
        clients[0].put(&format!("list/{number:04}"), &"v".repeat(100)).await.expect("a put");
    }
    for serializable in [false, true] {
        let served = crowd(&etcd, &clients, &prefix("list/", serializable)).await;
        println!("etcd served {served:.1} of 100 reads");
        assert!(served < 30.0, "etcd served {served} of 100 reads");
    }
    assert_eq!(hits(&proxy), 0.0);
    assert!(proxy.metric("etcd_proxy_reads_merged_total") > Some(0.0));
}
