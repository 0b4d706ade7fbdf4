//! One watch event on its way down: the namespace stripped on the wire bytes, and what a log must know about it.
//!
//! A shared watch keeps events encoded, and some of its watchers asked for `prev_kv` while others did not. So the
//! previous key-value is written last: an encoding without it is the same bytes, cut earlier.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{BufMut, BytesMut};

use super::namespace::{Broken, KeyValueEdit, Namespace};
use super::wire;

/// Fields of `mvccpb.Event`.
const TYPE: u32 = 1;
const KV: u32 = 2;
const PREV_KV: u32 = 3;

/// `mvccpb.Event.EventType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
    /// A type that this version of etcd's API does not have. No filter applies to it.
    Unknown,
}

/// An event in the buffer that it was appended to; all ranges count from the start of that buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventView {
    pub kind: EventKind,
    pub mod_revision: i64,
    /// The stripped `kv.key`.
    pub key: Range<usize>,
    /// The whole `mvccpb.Event`.
    pub event: Range<usize>,
    /// The field `prev_kv` with its tag, always at the end of `event`; empty if there is none.
    pub prev_kv: Range<usize>,
}

impl EventView {
    /// The same event without `prev_kv`.
    pub fn without_prev_kv(&self) -> Range<usize> {
        self.event.start..self.prev_kv.start
    }
}

impl Namespace {
    /// Appends `event`, an encoded `mvccpb.Event`, to `out` with its keys stripped. On an error `out` is as it was.
    pub fn strip_event(&self, event: &[u8], out: &mut BytesMut) -> Result<EventView, Broken> {
        let mut kind = EventKind::Put;
        let mut kv: Option<Cow<'_, [u8]>> = None;
        let mut prev_kv: Option<Cow<'_, [u8]>> = None;
        for field in wire::fields(event) {
            let field = field?;
            if let Some(varint) = field.varint(TYPE) {
                kind = match varint as i32 {
                    0 => EventKind::Put,
                    1 => EventKind::Delete,
                    _ => EventKind::Unknown,
                };
            } else if let Some(body) = field.bytes(KV) {
                merge(&mut kv, body);
            } else if let Some(body) = field.bytes(PREV_KV) {
                merge(&mut prev_kv, body);
            }
        }
        let kv = kv.ok_or(Broken::Outside)?;
        let kv_edit = self.edit_key_value(&kv)?;
        let prev_kv_edit = prev_kv.as_deref().map(|body| self.edit_key_value(body)).transpose()?;

        let start = out.len();
        out.reserve(event.len());
        // The type, and whatever fields a later etcd may add.
        for field in wire::fields(event) {
            let field = field?;
            if field.bytes(KV).is_none() && field.bytes(PREV_KV).is_none() {
                out.put_slice(&event[field.start..field.end]);
            }
        }
        let key = put_key_value(out, KV, &kv_edit);
        let prev_kv_start = out.len();
        if let Some(edit) = &prev_kv_edit {
            put_key_value(out, PREV_KV, edit);
        }
        let end = out.len();
        Ok(EventView {
            kind,
            mod_revision: kv_edit.mod_revision(),
            key,
            event: start..end,
            prev_kv: prev_kv_start..end,
        })
    }
}

/// Protobuf merges a submessage that comes in several pieces, and the merge of two messages is their concatenation.
fn merge<'a>(merged: &mut Option<Cow<'a, [u8]>>, body: &'a [u8]) {
    match merged {
        None => *merged = Some(Cow::Borrowed(body)),
        Some(merged) => merged.to_mut().extend_from_slice(body),
    }
}

/// Writes a key-value as field `number` and says where its key went.
fn put_key_value(out: &mut BytesMut, number: u32, edit: &KeyValueEdit<'_>) -> Range<usize> {
    wire::put_bytes_header(out, number, edit.len());
    let body = out.len();
    let key = edit.put(out);
    body + key.start..body + key.end
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use etcd_proxy_proto::mvccpb::Event;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::rules::samples::{self, damage, prefixes};

    /// Strips `event` and holds the view of it against what prost makes of it.
    fn check(prefix: &[u8], event: &[u8], is_valid: bool) {
        let namespace = Namespace::new(prefix.to_vec());
        let mut out = BytesMut::from(&b"earlier events"[..]);
        let before = out.clone();
        let view = match namespace.strip_event(event, &mut out) {
            Ok(view) => view,
            Err(error) => {
                assert_eq!(out, before);
                let decoded = Event::decode(event);
                let in_namespace = |event: &Event| {
                    let mut kvs = event.kv.iter().chain(&event.prev_kv);
                    event.kv.is_some() && kvs.all(|kv| namespace.strip_key(&kv.key).is_some())
                };
                assert!(decoded.is_err() || error == Broken::Outside, "{error:?}");
                assert!(!is_valid || !decoded.is_ok_and(|event| in_namespace(&event)), "refused a good event");
                return;
            }
        };
        assert!(out.starts_with(&before));
        assert_eq!((view.event.start, view.event.end), (before.len(), out.len()));
        let Ok(mut expected) = Event::decode(event) else { return };
        for kv in expected.kv.iter_mut().chain(&mut expected.prev_kv) {
            kv.key = kv.key.slice(prefix.len()..);
        }
        let kv = expected.kv.as_ref().expect("an event without a key-value is refused");
        assert_eq!(out[view.key.clone()], kv.key);
        assert_eq!(view.mod_revision, kv.mod_revision);
        let kind = match expected.r#type {
            0 => EventKind::Put,
            1 => EventKind::Delete,
            _ => EventKind::Unknown,
        };
        assert_eq!(view.kind, kind);
        assert_eq!(Event::decode(&out[view.event.clone()]).as_ref(), Ok(&expected));
        assert_eq!(expected.prev_kv.is_none(), view.prev_kv.is_empty());
        expected.prev_kv = None;
        assert_eq!(Event::decode(&out[view.without_prev_kv()]), Ok(expected));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn an_event_is_stripped_as_prost_would(
            (prefix, event) in prefixes().prop_flat_map(|prefix| (Just(prefix.clone()), samples::event(prefix))),
        ) {
            check(&prefix, &event, true);
        }

        #[test]
        fn a_damaged_event_shows_no_key_outside(
            (prefix, event) in prefixes().prop_flat_map(|prefix| (Just(prefix.clone()), samples::event(prefix))),
            damages in vec(damage(), 1..6),
        ) {
            let damaged = damages.iter().fold(event, |event, damage| damage.done_to(&event));
            check(&prefix, &damaged, true);
        }

        #[test]
        fn without_a_namespace_an_event_of_etcd_keeps_every_byte(event in samples::event(Bytes::new())) {
            let mut out = BytesMut::new();
            if Namespace::new("").strip_event(&event, &mut out).is_ok() {
                prop_assert_eq!(&out[..], &event[..]);
            }
            check(b"", &event, true);
        }
    }

    #[test]
    fn an_event_says_what_a_log_must_know() {
        let mut out = BytesMut::new();
        let event = b"\x08\x01\x12\x06\x0a\x02nk\x18\x07\x1a\x07\x0a\x02nk\x2a\x01v";
        let view = Namespace::new("n").strip_event(event, &mut out).expect("a good event");
        assert_eq!(&out[..], b"\x08\x01\x12\x05\x0a\x01k\x18\x07\x1a\x06\x0a\x01k\x2a\x01v");
        assert_eq!((view.kind, view.mod_revision), (EventKind::Delete, 7));
        assert_eq!(&out[view.key.clone()], b"k");
        assert_eq!(&out[view.prev_kv.clone()], b"\x1a\x06\x0a\x01k\x2a\x01v");
        assert_eq!(&out[view.without_prev_kv()], b"\x08\x01\x12\x05\x0a\x01k\x18\x07");
    }

    #[test]
    fn a_previous_key_value_goes_to_the_end_wherever_it_was() {
        let mut out = BytesMut::new();
        let event = b"\x1a\x03\x0a\x01k\x12\x03\x0a\x01k\xc2\x3e\x01u";
        let view = Namespace::new("").strip_event(event, &mut out).expect("a good event");
        assert_eq!(&out[view.without_prev_kv()], b"\xc2\x3e\x01u\x12\x03\x0a\x01k");
        assert_eq!(&out[view.prev_kv], b"\x1a\x03\x0a\x01k");
    }

    #[test]
    fn an_event_without_a_key_is_refused() {
        let mut out = BytesMut::new();
        for event in [&b""[..], b"\x08\x01", b"\x12\x00", b"\x12\x02\x18\x07"] {
            assert_eq!(Namespace::new("").strip_event(event, &mut out), Err(Broken::Outside));
        }
        assert_eq!(Namespace::new("n").strip_event(b"\x12\x03\x0a\x01k", &mut out), Err(Broken::Outside));
    }
}
