//! A client of our own: it speaks HTTP/2 with our router over a pipe, so that what it finds is what clients find, and
//! neither the listener's address nor its certificate has to be known or trusted from here.

use std::sync::Arc;

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{
    RangeRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

use crate::{
    router::Router,
    rules::{
        caller::Connection,
        status::{self, Status},
    },
};

/// What may be under way in the pipe; the answers to a probe are some hundred bytes.
const PIPE: usize = 16 << 10;

pub struct Probe {
    channel: Channel,
    _serving: Serving,
}

/// The far end of the pipe; ends with the probe.
struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Probe {
    pub async fn connect(router: Arc<Router>) -> Result<Self, Status> {
        let (near, far) = tokio::io::duplex(PIPE);
        let serving = Serving(tokio::spawn(serve(far, router)));
        let mut near = Some(near);
        let connector = tower::service_fn(move |_| {
            // A pipe cannot be dialled twice.
            let end = near.take().ok_or(std::io::ErrorKind::NotConnected);
            std::future::ready(end.map(TokioIo::new).map_err(std::io::Error::from))
        });
        let channel = Endpoint::from_static("http://etcd-proxy").connect_with_connector(connector).await;
        Ok(Self { channel: channel.map_err(status::unreachable)?, _serving: serving })
    }

    /// A linearizable read.
    pub async fn get(&self, key: Bytes) -> Result<(), Status> {
        let request = RangeRequest { key, limit: 1, keys_only: true, ..RangeRequest::default() };
        KvClient::new(self.channel.clone()).range(request).await.map(|_| ())
    }

    /// A watch, until the first answer to it.
    pub async fn watch(&self, key: Bytes) -> Result<(), Status> {
        let create = WatchCreateRequest { key, ..WatchCreateRequest::default() };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures_util::StreamExt::chain(
            futures_util::stream::iter([request]),
            // The stream stays open until it is dropped, as a client's does.
            futures_util::stream::pending(),
        );
        let mut answers = WatchClient::new(self.channel.clone()).watch(requests).await?.into_inner();
        answers.message().await.map(|_| ())
    }
}

async fn serve(pipe: DuplexStream, router: Arc<Router>) {
    let connection = Connection::new(None, 0, router.tenants.borrow().own().clone());
    // The near end says what went wrong.
    let Ok(mut http2) = h2::server::handshake(pipe).await else { return };
    let mut calls = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = http2.accept().await {
        let (router, connection) = (router.clone(), connection.clone());
        calls.spawn(async move { router.serve(connection, request, respond, ()).await });
    }
}
