//! A namespace: a prefix that every key gets on its way to etcd and loses on its way back, so that a client sees a
//! keyspace of its own.
//!
//! Messages are edited on their wire bytes: this runs for every request, and what we do not know must pass unchanged.
//! This is the boundary between tenants, and it holds by construction:
//!
//! 1. Going up, every key and range end that any decoder could find in the edited message starts with the prefix (a
//!    range end may also be the end of the prefix). An empty key stays empty, and a range without a key loses its end:
//!    etcd refuses the request in its own words and in its own order of checks, and were it not to, there would be
//!    nothing to see.
//! 2. Going up, every lease that is not the namespace's own is one that does not exist, if it has leases of its own.
//! 3. Coming down, a key that is not in the namespace makes the whole answer [`Broken::Outside`].

mod request;
mod response;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes};
use std::ops::Range;

use super::keys::{KeyRange, NUL, prefix_end};
use super::tenant::leases::LeaseBlock;
use super::wire::{self, Malformed};

/// Messages within messages that are edited before the outer one is refused.
///
/// Only transactions nest, two messages to each nesting. etcd charges every nesting to `--max-txn-ops`, 128 unless told
/// otherwise, so that 259 is the deepest that a default etcd takes; and at some 300 bytes of stack for each, this is far
/// from the end of a thread's. (prost alone would stop at 100, short of what etcd takes.)
const MAX_DEPTH: usize = 300;

/// The messages that carry keys: requests by the name of their RPC, answers by their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Of RangeStream as well.
    Range,
    Put,
    DeleteRange,
    Txn,
    Lock,
    Unlock,
    Campaign,
    Proclaim,
    /// Of Observe as well.
    Leader,
    Resign,
    /// A LeaseRevoke or a LeaseTimeToLive.
    Lease,
    RangeResponse,
    RangeStreamResponse,
    PutResponse,
    DeleteRangeResponse,
    TxnResponse,
    LeaseTimeToLiveResponse,
    LockResponse,
    CampaignResponse,
    LeaderResponse,
}

impl Shape {
    pub const REQUESTS: [Self; 11] = [
        Self::Range,
        Self::Put,
        Self::DeleteRange,
        Self::Txn,
        Self::Lock,
        Self::Unlock,
        Self::Campaign,
        Self::Proclaim,
        Self::Leader,
        Self::Resign,
        Self::Lease,
    ];
    pub const RESPONSES: [Self; 9] = [
        Self::RangeResponse,
        Self::RangeStreamResponse,
        Self::PutResponse,
        Self::DeleteRangeResponse,
        Self::TxnResponse,
        Self::LeaseTimeToLiveResponse,
        Self::LockResponse,
        Self::CampaignResponse,
        Self::LeaderResponse,
    ];
}

/// Why an answer cannot be handed to a client of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("etcd answered with a key outside the namespace")]
    Outside,
    #[error("cannot parse the answer: {0}")]
    Malformed(#[from] Malformed),
}

/// A prefix and where it ends. The empty one is the whole keyspace and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace {
    prefix: Bytes,
    end: Bytes,
    /// Which leases belong to it, where they belong to somebody.
    leases: Option<LeaseBlock>,
}

impl Namespace {
    pub fn new(prefix: impl Into<Bytes>) -> Self {
        let prefix = prefix.into();
        Self { end: prefix_end(&prefix), prefix, leases: None }
    }

    /// The same keys, with leases of their own: to whoever is in here no other leases exist.
    pub fn with_leases(self, leases: LeaseBlock) -> Self {
        Self { leases: Some(leases), ..self }
    }

    /// Whether messages of this shape are another to etcd than to the client.
    pub fn edits(&self, shape: Shape) -> bool {
        !self.is_empty() && (shape != Shape::Lease || self.leases.is_some())
    }

    pub fn leases(&self) -> Option<LeaseBlock> {
        self.leases
    }

    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    pub fn is_empty(&self) -> bool {
        self.prefix.is_empty()
    }

    /// An encoded request of the client's, as etcd shall get it. A shape that is an answer's is refused.
    pub fn request(&self, shape: Shape, request: Bytes) -> Result<Bytes, Malformed> {
        if self.is_empty() { Ok(request) } else { request::prefix(self, shape, request) }
    }

    /// An encoded answer of etcd's, as the client shall get it. A shape that is a request's is refused.
    pub fn response(&self, shape: Shape, response: Bytes) -> Result<Bytes, Broken> {
        if self.is_empty() { Ok(response) } else { response::strip(self, shape, response) }
    }

    /// A key of the client's as etcd shall know it.
    pub fn prefix_key(&self, key: &Bytes) -> Bytes {
        if self.is_empty() { key.clone() } else { [&self.prefix[..], key].concat().into() }
    }

    /// A range of the client's as etcd shall know it. A range that goes on for ever ends where the namespace does; an
    /// inverted one stays inverted.
    pub fn prefix_range(&self, range: &KeyRange) -> KeyRange {
        if self.is_empty() {
            return range.clone();
        }
        let range_end = match &range.range_end()[..] {
            b"" => Bytes::new(),
            NUL => self.end.clone(),
            range_end => [&self.prefix[..], range_end].concat().into(),
        };
        KeyRange::of_watch(self.prefix_key(range.key()), range_end)
    }

    /// A range within the namespace as its clients know it: what [`Namespace::prefix_range`] was made from.
    pub fn strip_range(&self, range: &KeyRange) -> KeyRange {
        let key = range.key().strip_prefix(&self.prefix[..]).map(|key| range.key().slice_ref(key)).unwrap_or_default();
        let range_end = range.range_end();
        let range_end = match range_end.strip_prefix(&self.prefix[..]) {
            Some(stripped) => range_end.slice_ref(stripped),
            None if range_end == self.end => Bytes::from_static(NUL),
            None => range_end,
        };
        KeyRange::of_watch(key, range_end)
    }

    /// A key of etcd's as the client shall know it, if it is in the namespace. The prefix by itself is not: no client
    /// could have written it, since to the client it would be the empty key.
    pub fn strip_key<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        key.strip_prefix(&self.prefix[..]).filter(|stripped| !stripped.is_empty())
    }

    /// Decides how to strip an encoded `mvccpb.KeyValue`.
    pub(super) fn edit_key_value<'a>(&self, body: &'a [u8]) -> Result<KeyValueEdit<'a>, Broken> {
        let mut key_field = 0..0;
        let mut key: &[u8] = &[];
        let mut key_fields_len = 0;
        let mut mod_revision = 0;
        for field in wire::fields(body) {
            let field = field?;
            if let Some(bytes) = field.bytes(KEY_VALUE_KEY) {
                key = bytes;
                key_field = field.start..field.end;
                key_fields_len += key_field.len();
            } else if let Some(varint) = field.varint(KEY_VALUE_MOD_REVISION) {
                mod_revision = varint as i64;
            }
        }
        let key = self.strip_key(key).ok_or(Broken::Outside)?;
        Ok(KeyValueEdit { body, key, key_field, key_fields_len, mod_revision })
    }
}

const KEY_VALUE_KEY: u32 = 1;
const KEY_VALUE_MOD_REVISION: u32 = 3;

/// An encoded `mvccpb.KeyValue` and how to write it with its key stripped: with one key, the last one, which is the
/// one that counts.
#[derive(Debug)]
pub(super) struct KeyValueEdit<'a> {
    body: &'a [u8],
    /// Stripped. It ends where `key_field` does.
    key: &'a [u8],
    key_field: Range<usize>,
    /// The bytes of all key fields together.
    key_fields_len: usize,
    mod_revision: i64,
}

impl KeyValueEdit<'_> {
    pub(super) fn mod_revision(&self) -> i64 {
        self.mod_revision
    }

    /// The length of what [`Self::put`] writes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.body.len() - self.key_fields_len + wire::bytes_field_len(KEY_VALUE_KEY, self.key.len())
    }

    /// Writes the key-value and says where in it the key is.
    #[inline]
    pub(super) fn put(&self, out: &mut impl BufMut) -> Range<usize> {
        let Self { body, key, key_field, .. } = self;
        let before = if self.key_fields_len == key_field.len() {
            out.put_slice(&body[..key_field.start]);
            key_field.start
        } else {
            self.put_others_before(out)
        };
        wire::put_bytes_header(out, KEY_VALUE_KEY, key.len());
        // The rest of the key and all that follows lie side by side.
        out.put_slice(&body[key_field.end - key.len()..]);
        let key_start = before + wire::bytes_field_len(KEY_VALUE_KEY, key.len()) - key.len();
        key_start..key_start + key.len()
    }

    /// Writes what is before the last key but is no key, and says how much that was.
    #[cold]
    fn put_others_before(&self, out: &mut impl BufMut) -> usize {
        let before = &self.body[..self.key_field.start];
        let others = wire::fields(before).flatten().filter(|field| field.bytes(KEY_VALUE_KEY).is_none());
        others.map(|field| &before[field.start..field.end]).fold(0, |len, field| {
            out.put_slice(field);
            len + field.len()
        })
    }
}

/// Writes a length-delimited field whose payload `put` appends, when its length is not known beforehand. `len` is a
/// guess: if the real one takes as many bytes to write, which it nearly always does, nothing has to be moved.
fn put_message<E>(
    out: &mut Vec<u8>,
    number: u32,
    len: usize,
    put: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    wire::put_bytes_header(out, number, len);
    let start = out.len();
    let guessed = start - wire::varint_len(len as u64);
    put(out)?;
    let len = (out.len() - start) as u64;
    if wire::varint_len(len) == start - guessed {
        wire::put_varint(&mut &mut out[guessed..start], len);
    } else {
        let mut real = Vec::new();
        wire::put_varint(&mut real, len);
        out.splice(guessed..start, real);
    }
    Ok(())
}
