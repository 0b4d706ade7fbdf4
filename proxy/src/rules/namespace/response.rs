//! The way down: every key of an answer loses the prefix, or the answer is not handed on.
//!
//! Which field is what is said once, in [`Message::part`]. Each field is edited where it stands, so that whatever a decoder makes
//! of a field that comes twice, it finds stripped keys only.

use bytes::{BufMut, Bytes};

use super::{Broken, MAX_DEPTH, Namespace, Shape, put_message};
use crate::rules::wire::{self, Malformed, Value};

/// Answers that hold keys, and what they are made of.
#[derive(Clone, Copy)]
enum Message {
    /// `kvs` or `kv` in field 2: RangeResponse, PutResponse, LeaderResponse.
    KeyValues2,
    /// `prev_kvs` in field 3: DeleteRangeResponse.
    KeyValues3,
    RangeStream,
    Txn,
    ResponseOp,
    LeaseTimeToLive,
    Lock,
    Campaign,
    LeaderKey,
}

/// What a field is.
enum Part {
    KeyValue,
    /// A key that must be in the namespace.
    Key,
    /// The name of an election, which may be empty to the client.
    Name,
    /// A key that is nobody's business if it is in another namespace: a lease may hold keys of several.
    KeyIfOurs,
    Message(Message),
    Other,
}

impl Message {
    fn of(shape: Shape) -> Result<Self, Malformed> {
        match shape {
            Shape::RangeResponse | Shape::PutResponse | Shape::LeaderResponse => Ok(Self::KeyValues2),
            Shape::RangeStreamResponse => Ok(Self::RangeStream),
            Shape::DeleteRangeResponse => Ok(Self::KeyValues3),
            Shape::TxnResponse => Ok(Self::Txn),
            Shape::LeaseTimeToLiveResponse => Ok(Self::LeaseTimeToLive),
            Shape::LockResponse => Ok(Self::Lock),
            Shape::CampaignResponse => Ok(Self::Campaign),
            Shape::Range
            | Shape::Put
            | Shape::DeleteRange
            | Shape::Txn
            | Shape::Lock
            | Shape::Unlock
            | Shape::Campaign
            | Shape::Proclaim
            | Shape::Leader
            | Shape::Resign
            | Shape::Lease => Err(Malformed::Direction),
        }
    }

    #[inline]
    fn part(self, number: u32) -> Part {
        match (self, number) {
            (Self::KeyValues2, 2) | (Self::KeyValues3, 3) => Part::KeyValue,
            (Self::RangeStream, 1) => Part::Message(Self::KeyValues2),
            (Self::Txn, 3) => Part::Message(Self::ResponseOp),
            (Self::ResponseOp, 1 | 2) => Part::Message(Self::KeyValues2),
            (Self::ResponseOp, 3) => Part::Message(Self::KeyValues3),
            (Self::ResponseOp, 4) => Part::Message(Self::Txn),
            (Self::LeaseTimeToLive, 5) => Part::KeyIfOurs,
            (Self::Lock, 2) | (Self::LeaderKey, 2) => Part::Key,
            (Self::Campaign, 2) => Part::Message(Self::LeaderKey),
            (Self::LeaderKey, 1) => Part::Name,
            _ => Part::Other,
        }
    }
}

/// See [`Namespace::response`]; the namespace is not the empty one.
pub(super) fn strip(namespace: &Namespace, shape: Shape, response: Bytes) -> Result<Bytes, Broken> {
    let message = Message::of(shape)?;
    // Most answers to a Put and many others hold no key at all.
    let mut unchanged = true;
    for field in wire::fields(&response) {
        let field = field?;
        if !matches!((message.part(field.number), field.value), (Part::Other, _) | (_, Value::Varint(_) | Value::Other))
        {
            unchanged = false;
            break;
        }
    }
    if unchanged {
        return Ok(response);
    }
    let mut out = Vec::with_capacity(response.len());
    put(namespace, message, &response, &mut out, 0)?;
    Ok(out.into())
}

/// Appends `body`, an encoded `message`, with its keys stripped.
fn put(namespace: &Namespace, message: Message, body: &[u8], out: &mut Vec<u8>, depth: usize) -> Result<(), Broken> {
    if depth >= MAX_DEPTH {
        return Err(Malformed::Depth.into());
    }
    for field in wire::fields(body) {
        let field = field?;
        let Value::Bytes(bytes) = field.value else {
            out.put_slice(&body[field.start..field.end]);
            continue;
        };
        match message.part(field.number) {
            Part::KeyValue => {
                let edit = namespace.edit_key_value(bytes)?;
                wire::put_bytes_header(out, field.number, edit.len());
                edit.put(out);
            }
            Part::Key => put_bytes(out, field.number, namespace.strip_key(bytes).ok_or(Broken::Outside)?),
            Part::Name => {
                let name = bytes.strip_prefix(&namespace.prefix[..]).ok_or(Broken::Outside)?;
                put_bytes(out, field.number, name);
            }
            Part::KeyIfOurs => {
                if let Some(key) = namespace.strip_key(bytes) {
                    put_bytes(out, field.number, key);
                }
            }
            Part::Message(submessage) => {
                put_message(out, field.number, bytes.len(), |out| put(namespace, submessage, bytes, out, depth + 1))?;
            }
            Part::Other => out.put_slice(&body[field.start..field.end]),
        }
    }
    Ok(())
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    wire::put_bytes_header(out, number, bytes.len());
    out.put_slice(bytes);
}
