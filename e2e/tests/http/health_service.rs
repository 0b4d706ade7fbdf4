//! `grpc.health.v1.Health` through the proxy, beside that of etcd.

use etcd_proxy_e2e::{Etcd, Proxy, process::PATIENCE};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

type Client = HealthClient<tonic::transport::Channel>;

async fn client(address: &str) -> Client {
    HealthClient::new(etcd_proxy_e2e::grpc::channel(address).await)
}

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

/// The next message of a watch.
async fn next(
    watch: &mut tonic::Streaming<tonic_health::pb::HealthCheckResponse>,
) -> Result<Option<ServingStatus>, Status> {
    let message = tokio::time::timeout(PATIENCE, watch.message()).await.expect("a message comes in time")?;
    Ok(message.map(|message| message.status()))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_etcd_does() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let (mut direct, mut through) = (client(etcd.address()).await, client(proxy.address()).await);
    let mut watch = through.watch(of("")).await.expect("it can be watched").into_inner();
    while next(&mut watch).await.expect("the stream goes on") != Some(ServingStatus::Serving) {}

    for service in ["", "etcdserverpb.KV", "nothing"] {
        let answer = |answered: Result<tonic::Response<tonic_health::pb::HealthCheckResponse>, Status>| {
            answered
                .map(|answer| answer.into_inner().status)
                .map_err(|status| (status.code(), status.message().to_owned()))
        };
        let expected = answer(direct.check(of(service)).await);
        assert_eq!(answer(through.check(of(service)).await), expected, "{service}");
    }
    let mut unknown = through.watch(of("nothing")).await.expect("it can be watched").into_inner();
    let mut expected = direct.watch(of("nothing")).await.expect("it can be watched").into_inner();
    assert_eq!(next(&mut unknown).await.ok(), next(&mut expected).await.ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_of_etcds_end_and_return_and_ends_with_the_proxy() {
    let mut etcd = Etcd::start();
    let mut proxy = Proxy::start(&etcd.endpoints());
    let mut through = client(proxy.address()).await;
    let mut watch = through.watch(of("")).await.expect("it can be watched").into_inner();
    while next(&mut watch).await.expect("the stream goes on") != Some(ServingStatus::Serving) {}
    etcd.member(0).kill();
    assert_eq!(next(&mut watch).await.expect("the stream goes on"), Some(ServingStatus::NotServing));
    etcd.member(0).restart();
    assert_eq!(next(&mut watch).await.expect("the stream goes on"), Some(ServingStatus::Serving));
    proxy.process.signal(libc::SIGTERM);
    assert_eq!(next(&mut watch).await.expect("the last message"), Some(ServingStatus::NotServing));
    assert_eq!(next(&mut watch).await.map_err(|status| status.code()), Err(Code::Unavailable));
    assert_eq!(proxy.process.wait(), 0);
}
