//! Clients that work without pause and keep what went wrong, and the few calls that they are made of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use etcd_proxy_e2e::wait::eventually;
use etcd_proxy_e2e::{Proxy, grpc};
use etcd_proxy_proto::etcdserverpb::{PutRequest, RangeRequest, RangeResponse, ResponseHeader, kv_client::KvClient};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Response, Status, transport::Channel};

/// How long what must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// etcd looks after its own within a few elections; a read that takes longer than this hung on a lost member.
const SLOW: Duration = Duration::from_secs(8);
/// A pause between the calls of one client, so that several clusters fit on one machine.
const BREATH: Duration = Duration::from_millis(2);

pub async fn channel(proxy: &Proxy) -> Channel {
    grpc::channel(proxy.address()).await
}

pub async fn range(channel: &Channel, key: &str, serializable: bool) -> Result<RangeResponse, Status> {
    let request = RangeRequest { key: key.to_owned().into(), serializable, ..RangeRequest::default() };
    let answer = timeout(PATIENCE, KvClient::new(channel.clone()).range(request)).await;
    answer.expect("a read ends in time").map(Response::into_inner)
}

pub async fn put(channel: &Channel, key: &str, value: &str) -> Result<(), Status> {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    timeout(PATIENCE, KvClient::new(channel.clone()).put(request)).await.expect("a write ends in time").map(drop)
}

pub fn header(answer: RangeResponse) -> ResponseHeader {
    answer.header.expect("every answer has a header")
}

/// Waits until so many endpoints have been found to be in a state, also those that were so before the proxy served.
pub async fn endpoints_are(proxy: &Proxy, count: usize, wanted: impl Fn(&serde_json::Value) -> bool) {
    eventually("the endpoints are judged", || async {
        proxy.log().iter().filter(|&line| wanted(line)).count() >= count
    })
    .await;
}

/// Clients that read, each on a connection of its own and so each at a member of its own.
pub struct Readers {
    stop: Arc<AtomicBool>,
    done: Vec<Arc<AtomicU64>>,
    tasks: Vec<JoinHandle<Vec<String>>>,
}

impl Readers {
    /// Reads are linearizable and serializable in turn.
    pub async fn start(proxy: &Proxy, clients: usize) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut done, mut tasks) = (Vec::new(), Vec::new());
        for _ in 0..clients {
            let channel = channel(proxy).await;
            let (stop, counter) = (stop.clone(), Arc::new(AtomicU64::new(0)));
            done.push(counter.clone());
            tasks.push(tokio::spawn(async move {
                let mut errors = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = counter.load(Ordering::Relaxed);
                    let started = Instant::now();
                    let outcome = range(&channel, "k", number % 2 == 1).await;
                    let took = started.elapsed();
                    if let Err(status) = outcome {
                        errors.push(format!("read {number} after {took:?}: {status:?}"));
                    } else if took > SLOW {
                        errors.push(format!("read {number} took {took:?}"));
                    }
                    counter.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(BREATH).await;
                }
                errors
            }));
        }
        Readers { stop, done, tasks }
    }

    /// Waits until every client has made this many reads more.
    pub async fn advance(&self, reads: u64) {
        let goals: Vec<u64> = self.done.iter().map(|done| done.load(Ordering::Relaxed) + reads).collect();
        eventually("every client reads on", || async {
            self.done.iter().zip(&goals).all(|(done, goal)| done.load(Ordering::Relaxed) >= *goal)
        })
        .await;
    }

    /// Ends them; none may have failed.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut errors = Vec::new();
        for task in self.tasks {
            errors.extend(task.await.expect("a reader does not panic"));
        }
        assert!(errors.is_empty(), "{} reads failed: {errors:#?}", errors.len());
    }
}
