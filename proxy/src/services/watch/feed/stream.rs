//! What goes over one upstream Watch stream: requests as they are written, responses as they are read.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::{
    ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
};
use h2::SendStream;
use prost::Message as _;

use super::{
    super::{
        directory::Opening,
        log::{BatchBuilder, Log, LogId},
    },
    Parts,
};
use crate::{
    metrics::Metrics,
    rules::{
        framing::{self, Decoder},
        keys::KeyRange,
        wire,
    },
    upstream::{endpoint::Endpoint, users::Pass},
};

/// One upstream stream and what etcd knows of it.
pub struct Stream {
    pub send: SendStream<Bytes>,
    pub endpoint: Arc<Endpoint>,
    pub pass: Option<Pass>,
    pub decoder: Decoder,
    /// Creates that etcd has not answered, in the order in which it will.
    pub pending: VecDeque<Pending>,
    pub watches: HashMap<i64, OpenWatch>,
    ids: HashMap<LogId, i64>,
    /// Requests for progress and answers to them. etcd answers in its order, if at all.
    pub progress_requests: u64,
    pub progress_answers: u64,
    pub next_id: i64,
    pub was_useful: bool,
    pub metrics: Arc<Metrics>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.metrics.upstream_watches.sub(i64::try_from(self.watches.len()).unwrap_or(i64::MAX));
    }
}

pub enum Pending {
    Probe(KeyRange),
    /// Whether this log may go on.
    Right(Arc<Log>),
    /// A start revision of zero is now.
    Log {
        log: Arc<Log>,
        start_revision: i64,
    },
}

pub struct OpenWatch {
    pub log: Arc<Log>,
    pub builder: BatchBuilder,
}

impl Stream {
    pub fn new(send: SendStream<Bytes>, endpoint: Arc<Endpoint>, pass: Option<Pass>, parts: &Parts) -> Self {
        Self {
            send,
            endpoint,
            pass,
            decoder: Decoder::new(parts.upstream.limits().max_answer),
            pending: VecDeque::new(),
            watches: HashMap::new(),
            ids: HashMap::new(),
            progress_requests: 0,
            progress_answers: 0,
            next_id: 1,
            was_useful: false,
            metrics: parts.metrics.clone(),
        }
    }

    pub fn remember(&mut self, watch_id: i64, log: Arc<Log>) {
        self.ids.insert(log.id(), watch_id);
        self.watches.insert(watch_id, OpenWatch { log, builder: BatchBuilder::default() });
        self.metrics.upstream_watches.inc();
    }

    pub fn create(&mut self, opening: &Opening) {
        let Opening { range, prev_kv, log, start_revision } = opening;
        let start_revision = match *start_revision {
            // One that was opened before goes on where it stands.
            _ if log.is_opened() => log.resume_revision(),
            // An answer to a request for progress that comes after the create's may be older than the create, and
            // would be taken to say that the past has been shown already.
            past if past > 0 && self.progress_requests != self.progress_answers => 0,
            start_revision => start_revision,
        };
        self.pending.push_back(Pending::Log { log: log.clone(), start_revision });
        self.send_create(range, start_revision, *prev_kv, true);
    }

    pub fn probe(&mut self, range: &KeyRange) {
        self.pending.push_back(Pending::Probe(range.clone()));
        self.send_create(range, 0, false, false);
    }

    /// Asks whether the caller may still watch what fills a log.
    pub fn ask_right(&mut self, opening: &Opening) {
        self.pending.push_back(Pending::Right(opening.log.clone()));
        self.send_create(&opening.range, 0, false, false);
    }

    fn send_create(&mut self, range: &KeyRange, start_revision: i64, prev_kv: bool, progress_notify: bool) {
        let watch_id = self.next_id;
        self.next_id += 1;
        self.send(RequestUnion::CreateRequest(WatchCreateRequest {
            key: range.key().clone(),
            range_end: range.range_end(),
            start_revision,
            progress_notify,
            filters: Vec::new(),
            prev_kv,
            watch_id,
            fragment: true,
        }));
    }

    pub fn cancel(&mut self, log: &Arc<Log>) {
        if let Some(watch_id) = self.ids.get(&log.id()).copied() {
            self.forget(watch_id);
            self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
        }
    }

    pub fn forget(&mut self, watch_id: i64) {
        if let Some(open) = self.watches.remove(&watch_id) {
            self.ids.remove(&open.log.id());
            self.metrics.upstream_watches.dec();
        }
    }

    /// Requests are small and as many as the watches, so h2 may queue them; an error shows in the answer.
    pub fn send(&mut self, request: RequestUnion) {
        let message = WatchRequest { request_union: Some(request) }.encode_to_vec();
        let mut framed = BytesMut::with_capacity(framing::PREFIX_LEN + message.len());
        framing::put_frame(&mut framed, &message);
        let _ = self.send.send_data(framed.freeze(), false);
    }
}

/// A `WatchResponse`, its events left as they are.
#[derive(Default)]
pub struct Response<'a> {
    pub header: ResponseHeader,
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub cancel_reason: &'a str,
    pub fragment: bool,
    pub events: Vec<&'a [u8]>,
}

impl<'a> Response<'a> {
    pub fn parse(message: &'a [u8]) -> Result<Self, Unreadable> {
        let mut response = Self::default();
        for field in wire::fields(message) {
            let field = field?;
            match (field.number, field.value) {
                (1, wire::Value::Bytes(header)) => response.header.merge(header)?,
                (2, wire::Value::Varint(id)) => response.watch_id = id as i64,
                (3, wire::Value::Varint(created)) => response.created = created != 0,
                (4, wire::Value::Varint(canceled)) => response.canceled = canceled != 0,
                (5, wire::Value::Varint(revision)) => response.compact_revision = revision as i64,
                (6, wire::Value::Bytes(reason)) => {
                    response.cancel_reason = std::str::from_utf8(reason).unwrap_or_default()
                }
                (7, wire::Value::Varint(fragment)) => response.fragment = fragment != 0,
                (11, wire::Value::Bytes(event)) => response.events.push(event),
                _ => (),
            }
        }
        Ok(response)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error(transparent)]
    Wire(#[from] wire::Malformed),
    #[error(transparent)]
    Header(#[from] prost::DecodeError),
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use etcd_proxy_proto::{etcdserverpb::WatchResponse, mvccpb};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{
        rules::namespace::Namespace,
        services::watch::{
            cursor::{Cursor, Wishes},
            log::BatchBuilder,
        },
    };

    fn response() -> Vec<u8> {
        let kv = |revision: i64| mvccpb::KeyValue {
            key: "prefix/key".into(),
            value: "value".into(),
            mod_revision: revision,
            ..mvccpb::KeyValue::default()
        };
        let event = |revision| mvccpb::Event {
            kv: Some(kv(revision)),
            prev_kv: Some(kv(revision - 1)),
            ..mvccpb::Event::default()
        };
        let header = etcd_proxy_proto::etcdserverpb::ResponseHeader { revision: 9, ..Default::default() };
        let events = vec![event(7), event(7), event(8)];
        WatchResponse { header: Some(header), watch_id: 3, events, ..WatchResponse::default() }.encode_to_vec()
    }

    proptest! {
        #[test]
        fn a_damaged_response_is_refused_or_shown_without_a_panic(
            damage in prop::collection::vec((0_usize..200, any::<u8>()), 0..6),
            cut in 0_usize..200,
            junk in prop::collection::vec(any::<u8>(), 0..40),
            prev_kv: bool,
            fragment: bool,
        ) {
            let mut message = response();
            for (at, byte) in damage {
                let at = at % message.len();
                message[at] = byte;
            }
            message.truncate(cut.max(20));
            message.extend_from_slice(&junk);
            let Ok(response) = Response::parse(&message) else { return Ok(()) };
            for namespace in [Namespace::new(""), Namespace::new("prefix/")] {
                let mut builder = BatchBuilder::default();
                for event in &response.events {
                    // What is refused leaves nothing behind.
                    let _ = builder.push(&namespace, event);
                }
                let whole = builder.finish_whole_revisions(response.header);
                for batch in whole.into_iter().chain(builder.finish(response.header)) {
                    let wishes = Wishes { prev_kv, fragment, ..Wishes::default() };
                    let watch_id = response.watch_id;
                    let mut cursor =
                        Cursor { watch_id, next_revision: i64::MIN, told_revision: 0, wishes, part: None };
                    let mut out = BytesMut::new();
                    let shown = cursor.show(&batch, &mut out);
                    prop_assert_eq!(shown, Some(batch.events.len()));
                }
            }
        }
    }
}
