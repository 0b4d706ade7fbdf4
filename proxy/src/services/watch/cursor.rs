//! One client watch's place and wishes: which events of a batch it is shown, and how they are put on the wire. Pure.

use std::sync::Arc;

use bytes::BytesMut;
use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use prost::Message as _;

use super::{
    log::{Batch, Event},
    sayings::Words,
};
use crate::rules::{event::EventKind, framing, keys::KeyRange, wire};

/// What a client asked for when it created its watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wishes {
    pub no_put: bool,
    pub no_delete: bool,
    pub prev_kv: bool,
    pub progress_notify: bool,
    pub fragment: bool,
}

#[derive(Clone, Debug)]
pub struct Cursor {
    pub watch_id: i64,
    /// The first revision that the client has not been shown.
    pub next_revision: i64,
    /// The newest revision of the store that the client was told for this watch. A log remembers of an event what the
    /// store's revision was when it came, and no header goes back behind what was said before.
    pub told_revision: i64,
    pub wishes: Wishes,
    /// The client's range, where it reads a log of a wider one.
    pub part: Option<Arc<KeyRange>>,
}

/// A response with more bytes than this is cut into fragments for a client that asked for them: etcd's
/// `--max-request-bytes` and the overhead that it grants to gRPC.
pub const FRAGMENT_BYTES: usize = 1_572_864 + 512 * 1024;

/// The most that stands before the events: the header, of four numbers, the watch's id, and that it is a fragment.
const MAX_BEFORE_EVENTS: usize = 2 + 4 * 11 + 11 + 2;

/// Fields of `WatchResponse`.
const HEADER: u32 = 1;
const WATCH_ID: u32 = 2;
const FRAGMENT: u32 = 7;

impl Cursor {
    /// Appends what the client is to see of this batch, as framed messages, and moves behind it. Says how many events
    /// that was; `None` if the client is sent nothing at all.
    pub fn show(&mut self, batch: &Batch, out: &mut BytesMut) -> Option<usize> {
        if batch.events.is_empty() {
            // A progress notice is true for a client only if it has been shown everything before.
            let due = self.wishes.progress_notify
                && batch.header.revision >= self.next_revision - 1
                && batch.header.revision >= self.told_revision;
            return due.then(|| {
                self.told_revision = batch.header.revision;
                self.next_revision = self.next_revision.max(batch.header.revision + 1);
                put_response(out, &batch.header, self.watch_id, false, &[]);
                0
            });
        }
        if batch.last_revision() < self.next_revision {
            return None;
        }
        let (fields, end_of) = batch.fields(self.wishes.prev_kv);
        let wanted = |event: &Event| event.mod_revision >= self.next_revision && self.wishes.wants(event.kind);
        // Runs of wanted events are copied as one piece; mostly that is the whole batch.
        let mut pieces: Vec<(usize, usize)> = Vec::with_capacity(1);
        let mut count = 0;
        let mut look_at = |index: usize| {
            if !wanted(&batch.events[index]) {
                return;
            }
            count += 1;
            let (start, end) = (index.checked_sub(1).map_or(0, &end_of), end_of(index));
            match pieces.last_mut() {
                Some(last) if last.1 == start && !self.wishes.fragment => last.1 = end,
                _ => pieces.push((start, end)),
            }
        };
        match &self.part {
            None => (0..batch.events.len()).for_each(look_at),
            Some(part) => batch.on(part).into_iter().for_each(|index| look_at(index as usize)),
        }
        self.next_revision = batch.last_revision() + 1;
        if pieces.is_empty() {
            return None;
        }
        let header = self.header_of(batch);
        let slices: Vec<&[u8]> = pieces.iter().map(|(start, end)| &fields[*start..*end]).collect();
        if self.wishes.fragment {
            put_fragments(out, &header, self.watch_id, &slices);
        } else {
            put_response(out, &header, self.watch_id, false, &slices);
        }
        Some(count)
    }

    /// The header that the client is told with a batch of events.
    fn header_of(&mut self, batch: &Batch) -> ResponseHeader {
        self.told_revision = self.told_revision.max(batch.header.revision);
        ResponseHeader { revision: self.told_revision, ..batch.header }
    }
}

/// The bytes of a framed message that shows all of a batch, about; never less than it takes.
pub fn whole_len(batch: &Batch, words: &Words) -> usize {
    framing::PREFIX_LEN + MAX_BEFORE_EVENTS + batch.fields(words.prev_kv).0.len()
}

/// Appends a framed message that shows all of a batch.
pub fn put_whole(out: &mut BytesMut, batch: &Batch, words: &Words) {
    put_response(out, &batch.header, words.watch_id, false, &[batch.fields(words.prev_kv).0]);
}

impl Wishes {
    /// Whether all events are wanted, each batch as one message.
    pub fn are_plain(&self) -> bool {
        !self.filters() && !self.fragment
    }

    fn wants(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
            EventKind::Unknown => true,
        }
    }

    pub fn filters(&self) -> bool {
        self.no_put || self.no_delete
    }
}

/// Cuts between events so that no message but one of a single event is over the bound, as etcd does.
fn put_fragments(out: &mut BytesMut, header: &ResponseHeader, watch_id: i64, events: &[&[u8]]) {
    let mut rest = events;
    loop {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|event| {
            bytes += event.len();
            bytes < FRAGMENT_BYTES
        });
        let count = fitting.count().max(1).min(rest.len());
        let (now, later) = rest.split_at(count);
        put_response(out, header, watch_id, !later.is_empty(), now);
        if later.is_empty() {
            return;
        }
        rest = later;
    }
}

/// Appends one framed `WatchResponse` of events that are encoded already.
fn put_response(out: &mut BytesMut, header: &ResponseHeader, watch_id: i64, fragment: bool, events: &[&[u8]]) {
    let events_len: usize = events.iter().map(|event| event.len()).sum();
    // All that stands before the events goes out as one piece.
    let mut head = [0; framing::PREFIX_LEN + MAX_BEFORE_EVENTS];
    let mut rest = &mut head[framing::PREFIX_LEN..];
    wire::put_bytes_header(&mut rest, HEADER, header.encoded_len());
    header.encode_raw(&mut rest);
    if watch_id != 0 {
        wire::put_varint(&mut rest, u64::from(WATCH_ID) << 3);
        wire::put_varint(&mut rest, watch_id as u64);
    }
    if fragment {
        wire::put_varint(&mut rest, u64::from(FRAGMENT) << 3);
        wire::put_varint(&mut rest, 1);
    }
    let head_len = MAX_BEFORE_EVENTS - rest.len();
    let len = u32::try_from(head_len + events_len);
    let len = len.expect("a response is bounded by the messages that are taken from etcd, below 4 GiB");
    // The flag before the length says that nothing is compressed.
    head[1..framing::PREFIX_LEN].copy_from_slice(&len.to_be_bytes());
    out.reserve(framing::PREFIX_LEN + head_len + events_len);
    out.extend_from_slice(&head[..framing::PREFIX_LEN + head_len]);
    events.iter().for_each(|event| out.extend_from_slice(event));
}
