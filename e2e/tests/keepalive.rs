//! Many leases kept alive through one proxy, by many clients at a time, on a real etcd.
//!
//! ETCD_PROXY_LEASES is their number; it is small unless set.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest, lease_client::LeaseClient,
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

const LEASES: i64 = 2_000;
const STREAMS: i64 = 10;
const TTL: i64 = 600;
/// Grants under way at a time; etcd commits those that come together in one go.
const CONCURRENT_GRANTS: i64 = 256;
const PATIENCE: Duration = Duration::from_secs(60);

fn leases() -> i64 {
    std::env::var("ETCD_PROXY_LEASES").ok().and_then(|leases| leases.parse().ok()).unwrap_or(LEASES)
}

async fn grant_all(channel: &Channel, count: i64) {
    for start in (1..=count).step_by(CONCURRENT_GRANTS as usize) {
        let mut granting = JoinSet::new();
        for id in start..(start + CONCURRENT_GRANTS).min(count + 1) {
            let mut leases = LeaseClient::new(channel.clone());
            granting.spawn(async move { leases.lease_grant(LeaseGrantRequest { ttl: TTL, id }).await });
        }
        while let Some(granted) = granting.join_next().await {
            granted.expect("it runs").expect("etcd grants");
        }
    }
}

async fn open(channel: &Channel) -> (mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>) {
    let (asks, asked) = mpsc::channel(64);
    // etcd, and so the proxy, says nothing before the first answer.
    asks.send(LeaseKeepAliveRequest { id: 1 }).await.expect("there is room");
    let mut client = LeaseClient::new(channel.clone());
    let answers = timeout(PATIENCE, client.lease_keep_alive(ReceiverStream::new(asked))).await;
    let mut answers = answers.expect("in time").expect("the stream opens").into_inner();
    assert_eq!(next(&mut answers).await.id, 1);
    (asks, answers)
}

async fn next(answers: &mut Streaming<LeaseKeepAliveResponse>) -> LeaseKeepAliveResponse {
    timeout(PATIENCE, answers.message()).await.expect("in time").expect("the stream goes on").expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn many_leases_are_renewed_through_one_proxy_in_order_and_counted() {
    let etcd = Etcd::start();
    let direct = grpc::channel(etcd.address()).await;
    let count = leases();
    grant_all(&direct, count).await;
    let proxy = Proxy::start(&etcd.endpoints());
    let started = Instant::now();
    let mut renewing = JoinSet::new();
    for stream in 0..STREAMS {
        let channel = grpc::channel(proxy.address()).await;
        renewing.spawn(async move {
            let (asks, mut answers) = open(&channel).await;
            let ids: Vec<i64> = (1..=count).filter(|id| id % STREAMS == stream).collect();
            let asked = ids.clone();
            let asking = tokio::spawn(async move {
                for id in asked {
                    asks.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
                }
                asks
            });
            for id in ids {
                let answer = next(&mut answers).await;
                assert_eq!((answer.id, answer.ttl), (id, TTL), "answers come in the order of the requests");
            }
            (asking.await.expect("all is asked"), answers)
        });
    }
    // They stay open: what nobody asks to be kept is not counted.
    let mut open_streams = Vec::new();
    while let Some(renewed) = renewing.join_next().await {
        open_streams.push(renewed.expect("all are renewed"));
    }
    println!("{count} leases renewed in {:?}", started.elapsed());
    assert_eq!(proxy.metric("etcd_proxy_leases_kept_alive"), Some(count as f64));

    // One that is gone is told as etcd tells it, and counts no more.
    LeaseClient::new(direct).lease_revoke(LeaseRevokeRequest { id: 1 }).await.expect("etcd revokes");
    let channel = grpc::channel(proxy.address()).await;
    let (asks, asked) = mpsc::channel(1);
    asks.send(LeaseKeepAliveRequest { id: 1 }).await.expect("there is room");
    let answers = LeaseClient::new(channel).lease_keep_alive(ReceiverStream::new(asked)).await;
    let answer = next(&mut answers.expect("the stream opens").into_inner()).await;
    assert_eq!((answer.id, answer.ttl), (1, 0));
    assert_eq!(proxy.metric("etcd_proxy_leases_kept_alive"), Some((count - 1) as f64));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_clients_ask_for_one_lease_at_a_time_costs_etcd_less_than_one_renewal_each() {
    const CLIENTS: usize = 50;
    const ROUNDS: usize = 40;
    let mut etcd = Etcd::start();
    grant_all(&grpc::channel(etcd.address()).await, 1).await;
    // A member that sleeps is not to be given up meanwhile.
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flags(["--health-interval=60s", "--health-timeout=60s"])
        .start();
    let mut streams = Vec::new();
    for _ in 0..CLIENTS {
        streams.push(open(&grpc::channel(proxy.address()).await).await);
    }
    let (received, sent) = ("etcd_proxy_keepalives_received_total", "etcd_proxy_keepalives_sent_total");
    let before = (proxy.metric(received).unwrap_or(0.0), proxy.metric(sent).unwrap_or(0.0));
    // While etcd does not answer, they all wait for the same renewal.
    etcd.member(0).pause();
    for (asks, _) in &streams {
        for _ in 0..ROUNDS {
            asks.send(LeaseKeepAliveRequest { id: 1 }).await.expect("the stream is open");
        }
    }
    let all = before.0 + (CLIENTS * ROUNDS) as f64;
    timeout(PATIENCE, async {
        while proxy.metric(received) != Some(all) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the proxy takes what is asked");
    etcd.member(0).resume();
    for (_, answers) in &mut streams {
        for _ in 0..ROUNDS {
            assert_eq!(next(answers).await.ttl, TTL);
        }
    }
    let renewals = proxy.metric(sent).unwrap_or(0.0) - before.1;
    // On a machine that has no time for it, the proxy asks again.
    assert!(
        (1.0..=(CLIENTS * ROUNDS / 10) as f64).contains(&renewals),
        "{renewals} renewals for {} requests",
        CLIENTS * ROUNDS
    );
}
