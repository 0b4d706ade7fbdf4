//! The law of coalescing, as a property test: whatever the batches, the bound of the log, the pace of the reader and
//! the breaks of the stream, a reader is shown exactly what a watch of its own on etcd would have shown.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::{
    etcdserverpb::{ResponseHeader, WatchResponse},
    mvccpb::{Event, KeyValue, event::EventType},
};
use prometheus::IntGauge;
use proptest::prelude::*;
use prost::Message as _;

use super::{
    cursor::{Cursor, Wishes},
    inbox::Inbox,
    log::{BatchBuilder, Budget, Log, Read, Seat, Subscriber},
    sayings::Sayings,
};
use crate::rules::{framing::Decoder, keys::KeyRange, namespace::Namespace};

mod kept;
mod sharing;

/// The prefix that a client must never see.
const PREFIX: &[u8] = b"ns/";
const KEYS: [&str; 5] = ["a/0", "a/1", "a/2", "a/b/3", "c"];
/// The id that the client knows its watch by.
const ID: i64 = 5;

#[derive(Clone, Debug)]
struct Store {
    events: Vec<Event>,
}

fn stores() -> impl Strategy<Value = Store> {
    let event = (any::<bool>(), 0_u8..5, proptest::option::of(0_usize..40), 0_usize..200);
    proptest::collection::vec(proptest::collection::vec(event, 1..4), 1..40).prop_map(|revisions| {
        let mut events = Vec::new();
        for (index, revision) in revisions.into_iter().enumerate() {
            let mod_revision = index as i64 + 2;
            for (is_delete, key, prev, size) in revision {
                let kv = KeyValue {
                    key: [PREFIX, KEYS[usize::from(key)].as_bytes()].concat().into(),
                    value: if is_delete { Bytes::new() } else { vec![key; size].into() },
                    mod_revision,
                    ..KeyValue::default()
                };
                let prev_kv = prev.map(|size| KeyValue { value: vec![7; size].into(), mod_revision: 1, ..kv.clone() });
                let kind = if is_delete { EventType::Delete } else { EventType::Put };
                events.push(Event { r#type: kind as i32, kv: Some(kv), prev_kv });
            }
        }
        Store { events }
    })
}

fn wishes() -> impl Strategy<Value = Wishes> {
    any::<(bool, bool, bool, bool)>().prop_map(|(no_put, no_delete, prev_kv, fragment)| Wishes {
        no_put,
        no_delete,
        prev_kv,
        progress_notify: false,
        fragment,
    })
}

impl Store {
    fn last_revision(&self) -> i64 {
        self.events.last().and_then(|event| event.kv.as_ref()).map_or(1, |kv| kv.mod_revision)
    }

    /// Sends the events of these revisions as one upstream response, or as two fragments cut anywhere.
    fn send(&self, log: &Log, from: i64, to: i64, cut: usize) {
        self.send_range(log, &KeyRange::all(), from, to, cut);
    }

    /// The same of a watch on a range, with the namespace.
    fn send_range(&self, log: &Log, range: &KeyRange, from: i64, to: i64, cut: usize) {
        let wanted = |kv: &KeyValue| (from..=to).contains(&kv.mod_revision) && range.contains(&kv.key);
        let events: Vec<&Event> = self.events.iter().filter(|event| event.kv.as_ref().is_some_and(wanted)).collect();
        let header = ResponseHeader { revision: to.min(self.last_revision()), ..ResponseHeader::default() };
        let mut builder = BatchBuilder::default();
        for (index, event) in events.iter().enumerate() {
            if index == cut
                && let Some(batch) = builder.finish_whole_revisions(header)
            {
                log.append(batch);
            }
            builder.push(&Namespace::new(PREFIX), &event.encode_to_vec()).expect("the key is in the namespace");
        }
        if let Some(batch) = builder.finish(header) {
            log.append(batch);
        }
    }

    /// Shows what a watch of the reader's own shows up to this revision.
    fn catch_up(&self, cursor: &mut Cursor, range: &KeyRange, upto: i64, out: &mut BytesMut) {
        let own = Log::catching_up(usize::MAX, cursor.next_revision);
        let seat = subscribe(&own, cursor.next_revision);
        self.send_range(&own, range, cursor.next_revision, upto, usize::MAX);
        cursor.part = None;
        while let Read::Batch(batch) = own.read(seat) {
            cursor.show(&batch, out);
        }
        cursor.next_revision = cursor.next_revision.max(upto + 1);
    }

    /// What a watch of its own would have shown.
    fn expected(&self, start: i64, wishes: Wishes) -> Vec<Event> {
        self.expected_of(&KeyRange::all(), start, i64::MAX, wishes)
    }

    /// The same of a watch on a range, with the namespace, up to a revision.
    fn expected_of(&self, range: &KeyRange, start: i64, upto: i64, wishes: Wishes) -> Vec<Event> {
        let wanted = |event: &&Event| {
            let kv = event.kv.as_ref().expect("every event has one");
            let filtered = if event.r#type == EventType::Delete as i32 { wishes.no_delete } else { wishes.no_put };
            (start..=upto).contains(&kv.mod_revision) && range.contains(&kv.key) && !filtered
        };
        let strip = |kv: KeyValue| KeyValue { key: kv.key.slice(PREFIX.len()..), ..kv };
        let shown = self.events.iter().filter(wanted).cloned().map(|event| Event {
            kv: event.kv.map(strip),
            prev_kv: event.prev_kv.filter(|_| wishes.prev_kv).map(strip),
            ..event
        });
        shown.collect()
    }
}

struct Reader {
    cursor: Cursor,
    log: Arc<Log>,
    seat: Seat,
    out: BytesMut,
}

/// A log from the first revision on.
fn shared_log(max_bytes: usize) -> Arc<Log> {
    let budget = Budget::new(usize::MAX, IntGauge::new("used", "used").expect("a good name"), Arc::default());
    let log = Log::shared(max_bytes, &budget);
    log.note_opened(Ok(ResponseHeader::default()), 1);
    log
}

fn subscribe(log: &Log, revision: i64) -> Seat {
    let subscriber = Subscriber { inbox: Arc::<Inbox>::default(), watch: 0, part: None, progress: false };
    log.subscribe(revision, subscriber).expect("the end is always held")
}

impl Reader {
    /// A reader who is told upon joining that the store is at `told_revision`.
    fn join(log: &Arc<Log>, start: i64, told_revision: i64, wishes: Wishes) -> Self {
        let cursor = Cursor { watch_id: ID, next_revision: start, told_revision, wishes, part: None };
        Self { cursor, log: log.clone(), seat: subscribe(log, start), out: BytesMut::new() }
    }

    /// Reads at most this many batches or runs of them; when it has fallen off the log, etcd gives it a new one from its
    /// next revision.
    fn read(&mut self, store: &Store, sayings: &mut Sayings, sent: i64, batches: usize) {
        for _ in 0..batches {
            if let Some((saying, _)) = sayings.read(&self.log, self.seat, &mut self.cursor, 64 << 10) {
                self.out.extend_from_slice(&saying.bytes);
                continue;
            }
            match self.log.read(self.seat) {
                Read::Batch(batch) => {
                    self.cursor.show(&batch, &mut self.out);
                }
                Read::Fallen { next_revision } => {
                    self.log.unsubscribe(self.seat);
                    self.cursor.next_revision = self.cursor.next_revision.max(next_revision);
                    store.catch_up(&mut self.cursor, &KeyRange::all(), sent, &mut self.out);
                    self.seat = subscribe(&self.log, sent + 1);
                }
                Read::Wait | Read::Ended(_) => return,
            }
        }
    }

    fn shown(&self, told_revision: i64) -> Vec<Event> {
        events_of(&self.out, told_revision)
    }
}

/// The events in the messages that one watch was sent, whose headers never go back, nor behind what it was told first.
fn events_of(out: &BytesMut, mut told_revision: i64) -> Vec<Event> {
    let mut decoder = Decoder::new(usize::MAX);
    decoder.push(&out.clone().freeze());
    let mut events = Vec::new();
    while let Some(message) = decoder.next().expect("whole frames") {
        let response = WatchResponse::decode(message.bytes).expect("a whole message");
        assert_eq!(response.watch_id, ID);
        let revision = response.header.expect("each has a header").revision;
        assert!(revision >= told_revision, "after {told_revision} comes {revision}");
        told_revision = revision;
        assert!(!response.events.is_empty(), "nothing is said where there is nothing to say");
        events.extend(response.events);
    }
    assert!(decoder.is_before_a_message());
    events
}

proptest! {
    #[test]
    fn a_reader_is_shown_what_its_own_watch_would_have_shown(
        store in stores(),
        readers in proptest::collection::vec((wishes(), 0_i64..45, 0_i64..45, 0_usize..4), 1..5),
        steps in proptest::collection::vec((1_i64..5, 0_usize..6, 0_i64..3), 1..60),
        max_bytes in 1_usize..4000,
    ) {
        let log = shared_log(max_bytes);
        let mut readers: Vec<(Reader, i64, i64, usize)> = readers
            .into_iter()
            .map(|(wishes, start, told, pace)| (Reader::join(&log, start.max(1), told, wishes), start, told, pace))
            .collect();
        let (mut sent, mut sayings) = (0, Sayings::default());
        for (count, cut, repeat) in steps.into_iter().chain([(i64::MAX / 2, 0, 0)]) {
            let to = (sent + count).min(store.last_revision());
            // A resumed stream may repeat what has come already.
            store.send(&log, (sent + 1 - repeat).max(0), to, cut);
            sent = to;
            for (reader, _, _, pace) in &mut readers {
                reader.read(&store, &mut sayings, sent, *pace);
            }
        }
        for (reader, start, told, _) in &mut readers {
            reader.read(&store, &mut sayings, sent, usize::MAX);
            prop_assert_eq!(reader.shown(*told), store.expected(*start, reader.cursor.wishes));
        }
    }
}

#[test]
fn a_large_revision_is_cut_into_fragments_only_for_those_who_asked() {
    let event = |key: u8| Event {
        kv: Some(KeyValue {
            key: [PREFIX, &[key]].concat().into(),
            value: vec![key; 1 << 20].into(),
            mod_revision: 2,
            ..KeyValue::default()
        }),
        ..Event::default()
    };
    let store = Store { events: (0..5).map(event).collect() };
    let count = |fragment: bool| {
        let log = shared_log(usize::MAX);
        let mut reader = Reader::join(&log, 1, 0, Wishes { fragment, ..Wishes::default() });
        store.send(&log, 0, 2, usize::MAX);
        reader.read(&store, &mut Sayings::default(), 2, usize::MAX);
        assert_eq!(reader.shown(0).len(), 5);
        let mut decoder = Decoder::new(usize::MAX);
        decoder.push(&reader.out.clone().freeze());
        let mut fragments = Vec::new();
        while let Some(message) = decoder.next().expect("whole frames") {
            fragments.push(WatchResponse::decode(message.bytes).expect("a whole message").fragment);
        }
        fragments
    };
    assert_eq!(count(false), [false]);
    let fragments = count(true);
    assert!(
        fragments.len() >= 3
            && fragments.iter().rev().skip(1).all(|fragment| *fragment)
            && !fragments[fragments.len() - 1]
    );
}
