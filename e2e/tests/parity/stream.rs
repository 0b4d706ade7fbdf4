//! A call whose messages a script sends and awaits one by one, and the ways to record what comes of it.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use etcd_proxy_e2e::grpc::frame;
use etcd_proxy_proto::etcdserverpb::WatchResponse;
use prost::Message;

use crate::side::{Side, show_bytes};
use crate::wire::{Call, Item};

/// What a message must be to be received and shown.
pub trait Answer: Message + Default + Debug {}
impl<A: Message + Default + Debug> Answer for A {}

/// A call whose messages a script sends and awaits one by one.
pub struct Stream<Q, A> {
    call: Call,
    side: Side,
    types: PhantomData<fn(Q) -> A>,
}

impl<Q, A> Stream<Q, A> {
    pub fn new(call: Call, side: Side) -> Stream<Q, A> {
        Stream { call, side, types: PhantomData }
    }
}

impl<Q: Message, A: Answer> Stream<Q, A> {
    pub fn send(&mut self, request: &Q) {
        self.call.send(frame(&request.encode_to_vec()), false);
    }

    /// The request of a call that takes no more than one.
    pub fn send_last(&mut self, request: &Q) {
        self.call.send(frame(&request.encode_to_vec()), true);
    }

    /// What comes next, unrecorded.
    pub async fn item(&mut self) -> Option<Item> {
        self.call.next().await
    }

    pub fn half_close(&mut self) {
        self.call.send(Bytes::new(), true);
    }

    pub fn cancel(&mut self) {
        self.call.cancel();
    }

    /// Awaits the next message and records what came, head or end included.
    pub async fn next(&mut self, case: &str) -> Option<A> {
        self.next_masked(case, |_| ()).await
    }

    pub async fn next_masked(&mut self, case: &str, mask: impl Fn(&mut A)) -> Option<A> {
        let mut said = String::new();
        let mut answer = None;
        while let Some(item) = self.call.next().await {
            said += &self.side.show(&item, &mask);
            if let Item::Message { bytes, .. } = item {
                answer = A::decode(bytes).ok();
                break;
            }
        }
        self.side.record(case, said);
        answer
    }

    /// Awaits so many messages and records them in no order, for what a server does in the order of a map.
    pub async fn several(&mut self, case: &str, count: usize) {
        let mut said = Vec::new();
        while said.len() < count {
            let Some(item) = self.call.next().await else { break };
            let message = matches!(item, Item::Message { .. });
            said.push(self.side.show(&item, |_: &mut A| ()));
            if !message {
                break;
            }
        }
        said.sort();
        self.side.record(case, said.concat());
    }

    /// Awaits a message that is not recorded.
    pub async fn fetch(&mut self) -> A {
        loop {
            match self.call.next().await {
                Some(Item::Message { bytes, .. }) => return A::decode(bytes).expect("etcd's answers decode"),
                Some(Item::Head { last: false, .. }) => (),
                other => panic!("no message but {other:?}"),
            }
        }
    }

    /// The same, if it comes within `patience`.
    pub async fn fetch_within(&mut self, patience: Duration) -> Option<A> {
        tokio::time::timeout(patience, self.fetch()).await.ok()
    }

    /// Sends a message that no type describes.
    pub fn send_raw(&mut self, message: &[u8]) {
        self.call.send(frame(message), false);
    }

    /// Records everything up to the end of the stream, and returns the messages.
    pub async fn rest(&mut self, case: &str) -> Vec<A> {
        self.rest_masked(case, |_| ()).await
    }

    /// The same, recording only how the stream ends.
    pub async fn rest_unseen(&mut self, case: &str) -> Vec<A> {
        let mut answers = Vec::new();
        let mut said = String::new();
        while let Some(item) = self.call.next().await {
            match item {
                Item::Message { bytes, .. } => answers.extend(A::decode(bytes).ok()),
                other => said += &self.side.show(&other, |_: &mut A| ()),
            }
        }
        self.side.record(case, said);
        answers
    }

    pub async fn rest_masked(&mut self, case: &str, mask: impl Fn(&mut A)) -> Vec<A> {
        let mut said = String::new();
        let mut answers = Vec::new();
        while let Some(item) = self.call.next().await {
            said += &self.side.show(&item, &mask);
            if let Item::Message { bytes, .. } = item {
                answers.extend(A::decode(bytes).ok());
            }
        }
        self.side.record(case, said);
        answers
    }
}

impl<Q> Stream<Q, WatchResponse> {
    /// Awaits so many events and records them one by one, whatever messages they came in. Messages that carry what they
    /// must not are recorded as they are.
    pub async fn events(&mut self, case: &str, count: usize) {
        let (mut said, mut seen, mut open) = (String::new(), 0, false);
        while seen < count || open {
            let item = self.call.next().await;
            let Some(Item::Message { bytes, .. }) = &item else {
                said += &format!("    {item:?}\n");
                break;
            };
            let mut answer = WatchResponse::decode(bytes.clone()).expect("etcd's answers decode");
            let header = answer.header.take().expect("etcd's answers have a header");
            seen += answer.events.len();
            open = std::mem::take(&mut answer.fragment);
            let newest = answer.events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
            if answer.events.is_empty() || header.revision < newest {
                said += &format!("    of revision {}: {answer:?}\n", header.revision);
            }
            let (cluster, member, term) = (header.cluster_id, header.member_id, header.raft_term);
            for event in std::mem::take(&mut answer.events) {
                let bytes = show_bytes(&event.encode_to_vec().into());
                said += &format!("    from {cluster:x} {member:x} {term}, {answer:?}: {bytes}\n");
            }
        }
        self.side.record(case, said);
    }
}
