//! Calls whose answers are kept as bytes, and the few that all of these tests are made of.

use bytes::{Buf, BufMut, Bytes};
use etcd_proxy_e2e::{Proxy, grpc};
pub use etcd_proxy_e2e::{chance::Chance, process::PATIENCE, wait::eventually};
use etcd_proxy_proto::etcdserverpb::{PutRequest, RangeRequest, RangeResponse, kv_client::KvClient};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::{Request, Status, transport::Channel};

#[derive(Clone, Copy, Default)]
struct AsBytes;

impl Codec for AsBytes {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// A connection and the metadata that its calls carry.
#[derive(Clone)]
pub struct Client {
    pub channel: Channel,
    metadata: Vec<(&'static str, String)>,
}

impl Client {
    pub async fn dial(address: &str) -> Client {
        Client { channel: grpc::channel(address).await, metadata: Vec::new() }
    }

    pub fn with(&self, name: &'static str, value: &str) -> Client {
        let mut client = self.clone();
        client.metadata.push((name, value.to_owned()));
        client
    }

    /// A Range whose answer is kept as it came.
    pub async fn range_bytes(&self, request: &RangeRequest) -> Result<Bytes, Status> {
        let mut call = Request::new(Bytes::from(request.encode_to_vec()));
        for (name, value) in &self.metadata {
            let value: AsciiMetadataValue = value.parse().expect("metadata of tests is ASCII");
            call.metadata_mut().insert(AsciiMetadataKey::from_static(name), value);
        }
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
        let answer = tokio::time::timeout(PATIENCE, grpc.unary(call, path, AsBytes)).await;
        answer.expect("a read ends in time").map(tonic::Response::into_inner)
    }

    pub async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Status> {
        let bytes = self.range_bytes(request).await?;
        Ok(RangeResponse::decode(bytes).expect("a RangeResponse"))
    }

    /// Puts a key, and tells the revision that this made.
    pub async fn put(&self, key: &str, value: &str) -> Result<i64, Status> {
        let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        let answer = tokio::time::timeout(PATIENCE, KvClient::new(self.channel.clone()).put(request)).await;
        Ok(answer.expect("a write ends in time")?.into_inner().header.expect("every answer has a header").revision)
    }
}

pub fn one(key: &str, serializable: bool) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), serializable, ..RangeRequest::default() }
}

/// All keys that begin with a prefix that ends in `/`.
pub fn prefix(prefix: &str, serializable: bool) -> RangeRequest {
    let end = format!("{}0", prefix.strip_suffix('/').expect("it ends in /"));
    RangeRequest { range_end: end.into(), ..one(prefix, serializable) }
}

pub fn revision(answer: &RangeResponse) -> i64 {
    answer.header.as_ref().expect("every answer has a header").revision
}

pub fn hits(proxy: &Proxy) -> f64 {
    proxy.metric("etcd_grpc_proxy_cache_hits_total").expect("the metric is there")
}

/// Reads until answers come from the cache.
pub async fn warm(proxy: &Proxy, client: &Client, request: &RangeRequest) {
    let before = hits(proxy);
    eventually("the range is cached", || async {
        client.range(request).await.expect("a read succeeds");
        hits(proxy) > before
    })
    .await;
}
