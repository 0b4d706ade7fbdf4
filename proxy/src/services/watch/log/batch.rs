//! The events of whole revisions as etcd sent them, encoded once for all who read them.

use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::etcdserverpb::ResponseHeader;

use crate::rules::{
    event::EventKind,
    keys::KeyRange,
    namespace::{Broken, Namespace},
    wire,
};

/// Up to so many events each is looked at for those on a range; of more, their order by key is kept.
const FEW_EVENTS: usize = 16;

/// The field `events` of a `WatchResponse`.
const EVENTS_FIELD: u32 = 11;

/// The events of one or more whole revisions, encoded once for all who read them; or none, for a progress notice.
#[derive(Debug)]
pub struct Batch {
    pub header: ResponseHeader,
    pub events: Vec<Event>,
    /// All events, each as a whole field of a `WatchResponse`.
    encoded: Bytes,
    has_prev_kv: bool,
    /// The same without previous values, made when first asked for.
    without_prev_kv: OnceLock<(Bytes, Vec<usize>)>,
    /// The events in the order of their keys, made when first asked for.
    by_key: OnceLock<Vec<u32>>,
}

/// What a reader must know of one event.
#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    pub mod_revision: i64,
    /// Where the field ends in the batch's bytes; it begins where the one before ends.
    end: usize,
    /// Where, inside the field, the event's own bytes begin, and where its previous value begins (or the event ends).
    body: usize,
    prev_kv: usize,
    /// Where the key begins, counted from the body, and its length.
    key: u32,
    key_len: u32,
}

impl Batch {
    /// A notice that everything up to the header's revision has come.
    pub fn progress(header: ResponseHeader) -> Self {
        Self::new(header, Vec::new(), Bytes::new())
    }

    fn new(header: ResponseHeader, events: Vec<Event>, encoded: Bytes) -> Self {
        let has_prev_kv = events.iter().any(|event| event.prev_kv != event.end);
        Self { header, events, encoded, has_prev_kv, without_prev_kv: OnceLock::new(), by_key: OnceLock::new() }
    }

    /// An event's key, without the namespace.
    pub fn key(&self, event: &Event) -> &[u8] {
        let start = event.body + event.key as usize;
        &self.encoded[start..start + event.key_len as usize]
    }

    /// Which events are on this range, in their order.
    pub fn on(&self, range: &KeyRange) -> Vec<u32> {
        let key_of = |index: &u32| self.key(&self.events[*index as usize]);
        let numbers = 0..u32::try_from(self.events.len()).unwrap_or(u32::MAX);
        if self.events.len() <= FEW_EVENTS {
            return numbers.filter(|index| range.contains(key_of(index))).collect();
        }
        let by_key = self.by_key.get_or_init(|| {
            let mut by_key: Vec<u32> = numbers.collect();
            by_key.sort_by(|one, other| key_of(one).cmp(key_of(other)));
            by_key
        });
        let start = by_key.partition_point(|index| key_of(index) < range.key());
        let mut found: Vec<u32> =
            by_key[start..].iter().take_while(|index| range.contains(key_of(index))).copied().collect();
        found.sort_unstable();
        found
    }

    /// Whether any event is on this range.
    pub fn is_on(&self, range: &KeyRange) -> bool {
        if self.events.len() <= FEW_EVENTS {
            return self.events.iter().any(|event| range.contains(self.key(event)));
        }
        !self.on(range).is_empty()
    }

    /// Of its first event; a notice of progress has none.
    pub fn first_revision(&self) -> Option<i64> {
        self.events.first().map(|event| event.mod_revision)
    }

    /// The bytes of its events, with the previous values that have come.
    pub fn events_len(&self) -> usize {
        self.encoded.len()
    }

    pub fn last_revision(&self) -> i64 {
        self.events.last().map_or(self.header.revision, |event| event.mod_revision)
    }

    /// All events as fields of a `WatchResponse`, and where each ends.
    pub fn fields(&self, prev_kv: bool) -> (&Bytes, impl Fn(usize) -> usize + '_) {
        if prev_kv || !self.has_prev_kv {
            let ends: &[usize] = &[];
            return (&self.encoded, FieldEnds { events: &self.events, ends }.into_fn());
        }
        let (bytes, ends) = self.without_prev_kv.get_or_init(|| self.strip_prev_kv());
        (bytes, FieldEnds { events: &self.events, ends }.into_fn())
    }

    fn strip_prev_kv(&self) -> (Bytes, Vec<usize>) {
        let mut out = BytesMut::with_capacity(self.encoded.len());
        let mut ends = Vec::with_capacity(self.events.len());
        for event in &self.events {
            let body = &self.encoded[event.body..event.prev_kv];
            wire::put_bytes_header(&mut out, EVENTS_FIELD, body.len());
            out.extend_from_slice(body);
            ends.push(out.len());
        }
        (out.freeze(), ends)
    }

    /// One event without its previous value, as an encoded `mvccpb.Event`.
    pub fn event(&self, event: &Event) -> &[u8] {
        &self.encoded[event.body..event.prev_kv]
    }

    /// What the batch counts against the log's bound: its bytes and its bookkeeping.
    pub fn weight(&self) -> usize {
        self.encoded.len() + self.events.len() * size_of::<Event>() + size_of::<Self>()
    }
}

struct FieldEnds<'a> {
    events: &'a [Event],
    ends: &'a [usize],
}

impl<'a> FieldEnds<'a> {
    fn into_fn(self) -> impl Fn(usize) -> usize + 'a {
        move |index| self.ends.get(index).copied().unwrap_or_else(|| self.events[index].end)
    }
}

/// Collects the events of an upstream response, or of several fragments of one, into batches of whole revisions.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    events: Vec<Event>,
    encoded: BytesMut,
    scratch: BytesMut,
}

impl BatchBuilder {
    /// Adds one encoded `mvccpb.Event`, its keys stripped of the namespace.
    pub fn push(&mut self, namespace: &Namespace, event: &[u8]) -> Result<(), Broken> {
        self.scratch.clear();
        let view = namespace.strip_event(event, &mut self.scratch)?;
        let body = &self.scratch[view.event.clone()];
        wire::put_bytes_header(&mut self.encoded, EVENTS_FIELD, body.len());
        let start = self.encoded.len();
        self.encoded.extend_from_slice(body);
        let prev_kv = start + (view.without_prev_kv().end - view.event.start);
        self.events.push(Event {
            kind: view.kind,
            mod_revision: view.mod_revision,
            end: self.encoded.len(),
            body: start,
            prev_kv,
            key: short(view.key.start - view.event.start),
            key_len: short(view.key.len()),
        });
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// All that has been collected.
    pub fn finish(&mut self, header: ResponseHeader) -> Option<Batch> {
        let any = !self.events.is_empty();
        any.then(|| Batch::new(header, std::mem::take(&mut self.events), self.encoded.split().freeze()))
    }

    /// What is whole while more fragments follow: everything before the last revision, which may go on.
    pub fn finish_whole_revisions(&mut self, header: ResponseHeader) -> Option<Batch> {
        let last = self.events.last()?.mod_revision;
        let count = self.events.iter().position(|event| event.mod_revision == last)?;
        if count == 0 {
            return None;
        }
        let rest = self.events.split_off(count);
        let cut = self.events.last().map_or(0, |event| event.end);
        let encoded = self.encoded.split_to(cut).freeze();
        let whole = std::mem::replace(&mut self.events, rest);
        for event in &mut self.events {
            event.end -= cut;
            event.body -= cut;
            event.prev_kv -= cut;
        }
        Some(Batch::new(header, whole, encoded))
    }
}

/// An event came in a message, and the length of a message is a number of 32 bits.
fn short(number: usize) -> u32 {
    u32::try_from(number).expect("an event is shorter than the message that it came in")
}
