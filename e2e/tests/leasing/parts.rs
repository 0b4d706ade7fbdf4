//! Proxies that lease, and the few calls that the tests are made of.

use std::time::Duration;

use etcd_proxy_e2e::{Etcd, Proxy, Version, grpc, proxy::Program};
pub use etcd_proxy_e2e::{process::PATIENCE, wait::eventually};
use etcd_proxy_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    TxnRequest, TxnResponse, compare::CompareResult, compare::CompareTarget, compare::TargetUnion, kv_client::KvClient,
    request_op::Request, response_op::Response,
};
use tokio::time::timeout;
use tonic::{Status, transport::Channel};

pub const PREFIX: &str = "leasing/";
/// How long a call waits for an etcd that does not answer, where that is what it is to find.
pub const BRIEFLY: Duration = Duration::from_millis(300);

/// Ours, with a session.
pub async fn leasing(endpoints: &str, flags: &[&str]) -> Proxy {
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={endpoints}"))
        .flag(format!("--experimental-leasing-prefix={PREFIX}"))
        .flags(flags.iter().copied())
        .start();
    eventually("the session begins", || async { proxy.metric("etcd_proxy_leasing_sessions") == Some(1.0) }).await;
    proxy
}

/// The original, which leases by clientv3's `leasing.NewKV`.
pub fn original(endpoints: &str, flags: &[&str]) -> Proxy {
    Proxy::builder()
        .program(Program::Etcd(Version::V3_7))
        .flag(format!("--endpoints={endpoints}"))
        .flag(format!("--experimental-leasing-prefix={PREFIX}"))
        .flags(flags.iter().copied())
        .start()
}

/// A client of a proxy, or of etcd past them all.
#[derive(Clone)]
pub struct Client {
    kv: KvClient<Channel>,
    patience: Duration,
}

impl Client {
    pub async fn of(proxy: &Proxy) -> Client {
        Client::at(proxy.address()).await
    }

    pub async fn past(etcd: &Etcd) -> Client {
        Client::at(etcd.address()).await
    }

    pub async fn at(address: &str) -> Client {
        Client { kv: KvClient::new(grpc::channel(address).await), patience: PATIENCE }
    }

    pub fn within(&self, patience: Duration) -> Client {
        Client { patience, ..self.clone() }
    }

    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.timed(self.kv.clone().range(request)).await
    }

    pub async fn put_request(&self, request: PutRequest) -> Result<PutResponse, Status> {
        self.timed(self.kv.clone().put(request)).await
    }

    pub async fn delete_request(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        self.timed(self.kv.clone().delete_range(request)).await
    }

    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.timed(self.kv.clone().txn(request)).await
    }

    async fn timed<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
        let late = |_| Err(Status::deadline_exceeded("not in time"));
        timeout(self.patience, call).await.unwrap_or_else(late).map(tonic::Response::into_inner)
    }

    pub async fn get(&self, key: &str) -> RangeResponse {
        self.range(one(key)).await.expect("a read succeeds")
    }

    /// The value, if there is one.
    pub async fn value(&self, key: &str) -> Option<String> {
        value_of(&self.get(key).await)
    }

    pub async fn put(&self, key: &str, value: &str) -> PutResponse {
        self.put_request(put(key, value)).await.expect("a put succeeds")
    }

    pub async fn delete(&self, key: &str) -> DeleteRangeResponse {
        self.delete_request(delete(key, "")).await.expect("a delete succeeds")
    }
}

pub fn value_of(answer: &RangeResponse) -> Option<String> {
    answer.kvs.first().map(|pair| String::from_utf8(pair.value.to_vec()).expect("the tests write texts"))
}

pub fn one(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

/// All keys from one up to another; `\0` for all that follow.
pub fn many(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest { range_end: range_end.to_owned().into(), ..one(key) }
}

pub fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

pub fn delete(key: &str, range_end: &str) -> DeleteRangeRequest {
    let range_end = range_end.to_owned().into();
    DeleteRangeRequest { key: key.to_owned().into(), range_end, ..DeleteRangeRequest::default() }
}

pub fn reading(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(request)) }
}

pub fn putting(key: &str, value: &str) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(put(key, value))) }
}

pub fn deleting(key: &str, range_end: &str) -> RequestOp {
    RequestOp { request: Some(Request::RequestDeleteRange(delete(key, range_end))) }
}

pub fn nested(txn: TxnRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestTxn(txn)) }
}

pub fn compare(key: &str, target: CompareTarget, result: CompareResult, union: TargetUnion) -> Compare {
    Compare {
        key: key.to_owned().into(),
        target: target.into(),
        result: result.into(),
        target_union: Some(union),
        ..Compare::default()
    }
}

pub fn version(key: &str, result: CompareResult, version: i64) -> Compare {
    compare(key, CompareTarget::Version, result, TargetUnion::Version(version))
}

pub fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

/// The reads among a transaction's answers.
pub fn reads(answer: &TxnResponse) -> Vec<&RangeResponse> {
    let range = |response: &Option<Response>| matches!(response, Some(Response::ResponseRange(_)));
    assert!(answer.responses.iter().all(|op| range(&op.response)), "not only reads: {answer:?}");
    answer
        .responses
        .iter()
        .filter_map(|op| match &op.response {
            Some(Response::ResponseRange(range)) => Some(range),
            _ => None,
        })
        .collect()
}

/// The leasing keys in etcd, without the prefix.
pub async fn leased(past: &Client) -> Vec<String> {
    let answer = past.range(many(PREFIX, "leasing0")).await.expect("etcd answers");
    let key = |pair: &etcd_proxy_proto::mvccpb::KeyValue| {
        String::from_utf8_lossy(&pair.key).strip_prefix(PREFIX).expect("the range is of the prefix").to_owned()
    };
    answer.kvs.iter().map(key).collect()
}

pub fn hits(proxy: &Proxy) -> f64 {
    proxy.metric("etcd_proxy_leasing_hits_total").expect("a proxy of ours has it")
}
