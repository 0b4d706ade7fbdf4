//! The way up: the prefix goes in front of every key of a request.
//!
//! Which field is what is said once, in [`Message`]; how each kind of edit is written is said below it.

use bytes::{BufMut, Bytes};

use super::{MAX_DEPTH, Namespace, Shape, put_message};
use crate::rules::keys::NUL;
use crate::rules::wire::{self, Field, Malformed, Value};

/// Messages that hold keys or hold such messages.
#[derive(Clone, Copy)]
enum Message {
    /// `key` and perhaps `range_end`, each with its field number.
    Keys {
        key: u32,
        range_end: Option<u32>,
        lease: Option<u32>,
    },
    /// The `name` of a lock or an election in field 1, to which etcd appends `/` and a lease: it makes a key even when
    /// it is empty or missing.
    Named {
        lease: Option<u32>,
    },
    /// A lease in field 1 and no key.
    Lease,
    /// A submessage `leader` in field 1.
    Led,
    LeaderKey,
    Txn,
    RequestOp,
}

const RANGE: Message = Message::Keys { key: 1, range_end: Some(2), lease: None };
const PUT: Message = Message::Keys { key: 1, range_end: None, lease: Some(3) };
const DELETE_RANGE: Message = Message::Keys { key: 1, range_end: Some(2), lease: None };
const COMPARE: Message = Message::Keys { key: 3, range_end: Some(64), lease: None };
const UNLOCK: Message = Message::Keys { key: 1, range_end: None, lease: None };

impl Message {
    fn of(shape: Shape) -> Result<Self, Malformed> {
        match shape {
            Shape::Range => Ok(RANGE),
            Shape::Put => Ok(PUT),
            Shape::DeleteRange => Ok(DELETE_RANGE),
            Shape::Txn => Ok(Self::Txn),
            Shape::Unlock => Ok(UNLOCK),
            Shape::Lock | Shape::Campaign => Ok(Self::Named { lease: Some(2) }),
            Shape::Leader => Ok(Self::Named { lease: None }),
            Shape::Lease => Ok(Self::Lease),
            Shape::Proclaim | Shape::Resign => Ok(Self::Led),
            Shape::RangeResponse
            | Shape::RangeStreamResponse
            | Shape::PutResponse
            | Shape::DeleteRangeResponse
            | Shape::TxnResponse
            | Shape::LeaseTimeToLiveResponse
            | Shape::LockResponse
            | Shape::CampaignResponse
            | Shape::LeaderResponse => Err(Malformed::Direction),
        }
    }

    /// The message that field `number` holds, if that can hold keys.
    fn submessage(self, number: u32) -> Option<Self> {
        match (self, number) {
            (Self::Txn, 1) => Some(COMPARE),
            (Self::Txn, 2 | 3) => Some(Self::RequestOp),
            (Self::RequestOp, 1) => Some(RANGE),
            (Self::RequestOp, 2) => Some(PUT),
            (Self::RequestOp, 3) => Some(DELETE_RANGE),
            (Self::RequestOp, 4) => Some(Self::Txn),
            (Self::Led, 1) => Some(Self::LeaderKey),
            _ => None,
        }
    }
}

/// See [`Namespace::request`]; the namespace is not the empty one.
pub(super) fn prefix(namespace: &Namespace, shape: Shape, request: Bytes) -> Result<Bytes, Malformed> {
    let message = Message::of(shape)?;
    if let Message::Keys { key, range_end, lease } = message {
        let edit = KeysEdit::of(namespace, &request, key, range_end, lease)?;
        let mut out = Vec::with_capacity(edit.len());
        edit.put(&mut out);
        return Ok(out.into());
    }
    let mut out = Vec::with_capacity(request.len() + grown_by(namespace, shape));
    put(namespace, message, &request, &mut out, 0)?;
    Ok(out.into())
}

/// A guess at how much a request grows, so that its buffer need not. Of a transaction it is the usual one: a
/// comparison, something to do and something to do else.
fn grown_by(namespace: &Namespace, shape: Shape) -> usize {
    const HEADERS: usize = 4;
    let keys = if shape == Shape::Txn { 3 } else { 2 };
    keys * (namespace.prefix.len() + HEADERS)
}

/// Appends `body`, an encoded `message`, with its keys prefixed.
fn put(namespace: &Namespace, message: Message, body: &[u8], out: &mut Vec<u8>, depth: usize) -> Result<(), Malformed> {
    if depth >= MAX_DEPTH {
        return Err(Malformed::Depth);
    }
    match message {
        Message::Keys { key, range_end, lease } => KeysEdit::of(namespace, body, key, range_end, lease)?.put(out),
        Message::Named { lease } => put_name(namespace, body, lease, out)?,
        Message::Lease => {
            for field in wire::fields(body) {
                put_other(namespace, body, &field?, Some(1), out);
            }
        }
        Message::LeaderKey => put_leader_key(namespace, body, out)?,
        Message::RequestOp => match merged_op(body)? {
            Some(merged) => put_submessages(namespace, message, &merged, out, depth)?,
            None => put_submessages(namespace, message, body, out, depth)?,
        },
        Message::Txn | Message::Led => put_submessages(namespace, message, body, out, depth)?,
    }
    Ok(())
}

fn put_submessages(
    namespace: &Namespace,
    message: Message,
    body: &[u8],
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Malformed> {
    for field in wire::fields(body) {
        let field = field?;
        match (message.submessage(field.number), field.value) {
            (Some(Message::Keys { key, range_end, lease }), Value::Bytes(body)) => {
                let edit = KeysEdit::of(namespace, body, key, range_end, lease)?;
                wire::put_bytes_header(out, field.number, edit.len());
                edit.put(out);
            }
            (Some(submessage), Value::Bytes(body)) => {
                put_message(out, field.number, body.len() + namespace.prefix.len(), |out| {
                    put(namespace, submessage, body, out, depth + 1)
                })?;
            }
            _ => out.put_slice(&body[field.start..field.end]),
        }
    }
    Ok(())
}

/// The `RequestOp` with its one member, if `body` names several: the last one counts, and pieces of it that follow on
/// each other are merged, which for two messages means concatenated. etcd's older decoder replaces instead of merging,
/// so that only a single piece means the same to every etcd; and whether a range has a key can be seen only when it is
/// whole.
fn merged_op(body: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let is_member = |number| Message::RequestOp.submessage(number).is_some();
    let mut members = 0;
    let mut last = 0;
    let mut merged = Vec::new();
    let mut others = Vec::new();
    for field in wire::fields(body) {
        let field = field?;
        match field.value {
            Value::Bytes(_) if is_member(field.number) => members += 1,
            _ => {}
        }
    }
    if members < 2 {
        return Ok(None);
    }
    for field in wire::fields(body) {
        let field = field?;
        match field.value {
            Value::Bytes(member) if is_member(field.number) => {
                if last != field.number {
                    merged.clear();
                    last = field.number;
                }
                merged.extend_from_slice(member);
            }
            _ => others.extend_from_slice(&body[field.start..field.end]),
        }
    }
    let mut op = others;
    wire::put_bytes_header(&mut op, last, merged.len());
    op.extend_from_slice(&merged);
    Ok(Some(op))
}

/// A message with a key, and how to write it: key and range end first and once, the last of each being the one that
/// counts, then everything else as it was.
struct KeysEdit<'a> {
    namespace: &'a Namespace,
    body: &'a [u8],
    key_number: u32,
    range_end_number: Option<u32>,
    lease_number: Option<u32>,
    key: &'a [u8],
    range_end: &'a [u8],
    /// How many bytes are neither key nor range end, and where they are if they are in one piece.
    others_len: usize,
    others: Option<&'a [u8]>,
}

impl<'a> KeysEdit<'a> {
    #[inline]
    fn of(
        namespace: &'a Namespace,
        body: &'a [u8],
        key_number: u32,
        range_end_number: Option<u32>,
        lease_number: Option<u32>,
    ) -> Result<Self, Malformed> {
        let lease_number = lease_number.filter(|_| namespace.leases.is_some());
        let mut key: &[u8] = &[];
        let mut range_end: &[u8] = &[];
        let mut others_len = 0;
        let mut others_start = 0;
        let mut others_end = 0;
        let mut is_edited = false;
        for field in wire::fields(body) {
            let field = field?;
            if let Some(bytes) = field.bytes(key_number) {
                key = bytes;
            } else if let Some(bytes) = range_end_number.and_then(|number| field.bytes(number)) {
                range_end = bytes;
            } else {
                if others_len == 0 {
                    others_start = field.start;
                }
                others_end = field.end;
                match foreign_lease(namespace, &field, lease_number) {
                    Some(instead) => {
                        others_len += varint_field_len(field.number, instead);
                        is_edited = true;
                    }
                    None => others_len += field.end - field.start,
                }
            }
        }
        // Without a key there is no range: etcd refuses the request, and must not find an end to it either.
        if key.is_empty() {
            range_end = &[];
        }
        let in_one_piece = !is_edited && others_end - others_start == others_len;
        let others = in_one_piece.then_some(&body[others_start..others_end]);
        Ok(Self { namespace, body, key_number, range_end_number, lease_number, key, range_end, others_len, others })
    }

    fn len(&self) -> usize {
        let mut len = self.others_len;
        if !self.key.is_empty() {
            len += wire::bytes_field_len(self.key_number, self.namespace.prefix.len() + self.key.len());
        }
        if let Some((number, head, tail)) = self.prefixed_end() {
            len += wire::bytes_field_len(number, head.len() + tail.len());
        }
        len
    }

    fn put(&self, out: &mut Vec<u8>) {
        if !self.key.is_empty() {
            let prefix = &self.namespace.prefix;
            wire::put_bytes_header(out, self.key_number, prefix.len() + self.key.len());
            out.put_slice(prefix);
            out.put_slice(self.key);
        }
        if let Some((number, head, tail)) = self.prefixed_end() {
            wire::put_bytes_header(out, number, head.len() + tail.len());
            out.put_slice(head);
            out.put_slice(tail);
        }
        match self.others {
            Some(others) => out.put_slice(others),
            None => self.put_others(out),
        }
    }

    /// Its field number, and the range end that etcd shall get in two parts.
    fn prefixed_end(&self) -> Option<(u32, &[u8], &[u8])> {
        let number = self.range_end_number.filter(|_| !self.range_end.is_empty())?;
        match self.range_end {
            NUL => Some((number, &self.namespace.end, &[])),
            range_end => Some((number, &self.namespace.prefix, range_end)),
        }
    }

    #[cold]
    fn put_others(&self, out: &mut Vec<u8>) {
        for field in wire::fields(self.body).flatten() {
            let is_end = self.range_end_number.is_some_and(|number| field.bytes(number).is_some());
            if field.bytes(self.key_number).is_none() && !is_end {
                put_other(self.namespace, self.body, &field, self.lease_number, out);
            }
        }
    }
}

/// A lock or an election: prefix the name, and give one to whoever has none, or its keys would start with `/`.
fn put_name(namespace: &Namespace, body: &[u8], lease: Option<u32>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    const NAME: u32 = 1;
    let name = wire::last_bytes(body, NAME)?;
    put_prefixed(namespace, NAME, name, out);
    for field in wire::fields(body) {
        let field = field?;
        if field.bytes(NAME).is_none() {
            put_other(namespace, body, &field, lease, out);
        }
    }
    Ok(())
}

/// The leader of an election, which the client has from a Campaign. Field by field, so that a leader in several pieces
/// merges to the same as before. An empty key stays empty and etcd refuses it. The name plays no part in a Proclaim or
/// a Resign, so that a missing one may be missing.
fn put_leader_key(namespace: &Namespace, body: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    const NAME: u32 = 1;
    const KEY: u32 = 2;
    const LEASE: u32 = 4;
    for field in wire::fields(body) {
        let field = field?;
        match (field.bytes(NAME), field.bytes(KEY)) {
            (Some(name), _) if !name.is_empty() => put_prefixed(namespace, NAME, name, out),
            (_, Some(key)) if !key.is_empty() => put_prefixed(namespace, KEY, key, out),
            _ => put_other(namespace, body, &field, Some(LEASE), out),
        }
    }
    Ok(())
}

fn put_prefixed(namespace: &Namespace, number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    wire::put_bytes_header(out, number, namespace.prefix.len() + bytes.len());
    out.put_slice(&namespace.prefix);
    out.put_slice(bytes);
}

/// What is to stand in a field that holds a lease of somebody else's.
#[inline]
fn foreign_lease(namespace: &Namespace, field: &Field<'_>, lease: Option<u32>) -> Option<u64> {
    let (block, found) = (namespace.leases?, field.varint(lease?)?);
    let instead = block.as_asked(found as i64) as u64;
    (instead != found).then_some(instead)
}

fn varint_field_len(number: u32, varint: u64) -> usize {
    wire::varint_len(u64::from(number) << 3) + wire::varint_len(varint)
}

/// A field without a key. Each lease in it is judged where it stands, so that whichever of several counts to a decoder,
/// it is no foreign one.
fn put_other(namespace: &Namespace, body: &[u8], field: &Field<'_>, lease: Option<u32>, out: &mut Vec<u8>) {
    match foreign_lease(namespace, field, lease) {
        Some(instead) => wire::put_varint_field(out, field.number, instead),
        None => out.put_slice(&body[field.start..field.end]),
    }
}
