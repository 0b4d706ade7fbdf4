//! A member that is too busy to answer a health check and yet sends: what is under way there goes on.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use bytes::Bytes;
use etcd_proxy_e2e::{Proxy, grpc, peer};
use etcd_proxy_proto::etcdserverpb::{SnapshotRequest, SnapshotResponse, maintenance_client::MaintenanceClient};
use h2::server::SendResponse;
use prost::Message;
use tokio::sync::watch;

/// More unanswered health checks than would make any member an unreachable one, if it were silent.
const UNANSWERED: u64 = 6;

/// A peer that answers its first health check and none after it, and begins a snapshot of which it sends one piece for
/// each health check that it leaves unanswered, until there were enough.
#[derive(Clone)]
struct Busy {
    asked: Arc<watch::Sender<u64>>,
    answered: Arc<AtomicU64>,
}

impl Busy {
    async fn start() -> (Busy, String) {
        let busy = Busy { asked: Arc::new(watch::Sender::new(0)), answered: Arc::default() };
        let server = busy.clone();
        let address = peer::start(move |request, respond| {
            let (server, is_snapshot) = (server.clone(), request.uri().path().ends_with("/Snapshot"));
            async move { if is_snapshot { server.send_pieces(respond).await } else { server.check(respond).await } }
        });
        let address = address.await;
        (busy, address)
    }

    async fn check(&self, mut respond: SendResponse<Bytes>) {
        if self.answered.fetch_add(1, Ordering::Relaxed) == 0 {
            let mut body = respond.send_response(peer::head(), false).expect("the proxy waits");
            body.send_data(grpc::frame(&[0x08, 0x01]), false).expect("the proxy waits");
            body.send_trailers(peer::ended("0")).expect("the proxy waits");
            return;
        }
        self.asked.send_modify(|asked| *asked += 1);
        // Until the proxy has given it up.
        let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
    }

    async fn send_pieces(&self, mut respond: SendResponse<Bytes>) {
        let mut body = respond.send_response(peer::head(), false).expect("the proxy waits");
        let mut asked = self.asked.subscribe();
        for number in 1..=UNANSWERED {
            asked.wait_for(|asked| *asked >= number).await.expect("the sender lives as long as this");
            let piece = SnapshotResponse { remaining_bytes: number, ..SnapshotResponse::default() };
            // It fails only when the proxy has left, which the client notices.
            let _ = body.send_data(grpc::frame(&piece.encode_to_vec()), false);
        }
        // From here on there is silence.
        let _ = std::future::poll_fn(|context| body.poll_reset(context)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_sends_is_not_given_up_for_its_slow_health_checks_and_a_silent_one_is() {
    let (busy, address) = Busy::start().await;
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={address}"))
        .flags(["--health-interval=100ms", "--health-timeout=400ms"])
        .start();
    let mut client = MaintenanceClient::new(grpc::channel(proxy.address()).await);
    let mut snapshot = client.snapshot(SnapshotRequest {}).await.expect("it begins").into_inner();
    for number in 1..=UNANSWERED {
        let piece = tokio::time::timeout(Duration::from_secs(60), snapshot.message()).await.expect("a piece comes");
        assert_eq!(piece.expect("it goes on").expect("a piece").remaining_bytes, number);
    }
    assert!(*busy.asked.borrow() >= UNANSWERED);
    let end = tokio::time::timeout(Duration::from_secs(60), snapshot.message()).await.expect("it is given up");
    assert_eq!(end.expect_err("it is broken off").code(), tonic::Code::Unavailable);
}
