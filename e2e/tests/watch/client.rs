//! A client of the Watch RPC as the tests need it, and what they ask etcd.

use std::time::Duration;

use etcd_proxy_e2e::{Etcd, Proxy};
use etcd_proxy_proto::{
    etcdserverpb::{
        AuthenticateRequest, CompactionRequest, PutRequest, WatchCreateRequest, WatchRequest, WatchResponse,
        auth_client::AuthClient, kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::Event,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Request, Status, Streaming, transport::Channel};

/// How long an event that must come may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One client stream.
pub struct Watcher {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    /// What came while something else was awaited.
    pub early: Vec<WatchResponse>,
}

impl Watcher {
    pub async fn open(channel: &Channel) -> Self {
        Self::open_with(channel, |_| ()).await
    }

    pub async fn open_with(
        channel: &Channel,
        edit: impl FnOnce(&mut Request<tokio_stream::wrappers::ReceiverStream<WatchRequest>>),
    ) -> Self {
        Self::open_asking(channel, None, edit).await
    }

    /// Opens a stream with a first request on it; etcd itself answers nothing, not even with headers, before one.
    pub async fn open_asking(
        channel: &Channel,
        first: Option<WatchCreateRequest>,
        edit: impl FnOnce(&mut Request<tokio_stream::wrappers::ReceiverStream<WatchRequest>>),
    ) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        if let Some(create) = first {
            let request_union = Some(RequestUnion::CreateRequest(create));
            requests.send(WatchRequest { request_union }).await.expect("there is room for one");
        }
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
        edit(&mut request);
        let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let responses = client.watch(request).await.expect("the stream opens").into_inner();
        Self { requests, responses, early: Vec::new() }
    }

    pub async fn ask(&self, union: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(union) }).await.expect("the stream is open");
    }

    pub async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(create)).await;
        let response = self.next().await;
        assert!(response.created, "{response:?}");
        response
    }

    pub async fn next(&mut self) -> WatchResponse {
        self.try_next().await.expect("the stream goes on")
    }

    pub async fn try_next(&mut self) -> Result<WatchResponse, Status> {
        let message = timeout(PATIENCE, self.responses.message()).await.expect("an answer in time")?;
        message.ok_or_else(|| Status::ok("end"))
    }

    /// All answers, early ones too, until this many watches have been shown an event of this revision.
    pub async fn until_each_has_seen(&mut self, watches: usize, revision: i64) -> Vec<WatchResponse> {
        let mut all = std::mem::take(&mut self.early);
        let is_last = |response: &WatchResponse| revisions(&response.events).last() == Some(&revision);
        let mut seen = all.iter().filter(|response| is_last(response)).count();
        while seen < watches {
            let response = self.next().await;
            assert!(!response.canceled, "{response:?}");
            seen += usize::from(is_last(&response));
            all.push(response);
        }
        all
    }

    /// Events until this many have come.
    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            let response = self.next().await;
            assert!(!response.canceled, "{response:?}");
            events.extend(response.events);
        }
        events
    }
}

pub fn key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..WatchCreateRequest::default() }
}

pub fn prefix(prefix: &str) -> WatchCreateRequest {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("not empty") += 1;
    WatchCreateRequest { range_end: end.into(), ..key(prefix) }
}

pub async fn channel(proxy: &Proxy) -> Channel {
    etcd_proxy_e2e::grpc::channel(proxy.address()).await
}

pub async fn put(channel: &Channel, key: &str, value: impl Into<Vec<u8>>) -> i64 {
    let request = PutRequest { key: key.to_owned().into(), value: value.into().into(), ..PutRequest::default() };
    let answer = KvClient::new(channel.clone()).put(request).await.expect("the put succeeds");
    answer.into_inner().header.expect("every answer has one").revision
}

pub async fn compact(channel: &Channel, revision: i64) {
    let request = CompactionRequest { revision, physical: true };
    KvClient::new(channel.clone()).compact(request).await.expect("the compaction succeeds");
}

pub fn revisions(events: &[Event]) -> Vec<i64> {
    events.iter().map(|event| event.kv.as_ref().expect("every event has one").mod_revision).collect()
}

pub fn standing_watchers(etcd: &Etcd) -> f64 {
    let metric =
        |member: &etcd_proxy_e2e::etcd::Member| member.metric("etcd_debugging_mvcc_watcher_total").unwrap_or(0.0);
    etcd.members().iter().map(metric).sum()
}

/// Polls, since etcd has no event for it.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A token of etcd's for a user.
pub async fn token(channel: &Channel, name: &str, password: &str) -> String {
    let request = AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
    AuthClient::new(channel.clone()).authenticate(request).await.expect("the password is right").into_inner().token
}
