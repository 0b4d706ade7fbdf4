//! Protobuf wire format, read and written in place, so that a message can be edited without being decoded.
//!
//! An edit keeps every byte that it has no reason to touch, unknown fields with it, and costs a fraction of a decode
//! and an encode. The reader is strict where decoders differ (etcd was built on two Go decoders over the years, and
//! they do not agree on overlong numbers and on groups that do not match): what it accepts has one meaning for all.

use bytes::BufMut;

/// Groups in groups that are skipped before the message is refused. The etcd API has no groups at all, so they occur
/// as unknown fields only; the bound keeps the recursion off the end of the stack. It is what prost allows.
const MAX_GROUP_DEPTH: usize = 100;

/// A 64-bit varint has at most this many bytes.
const MAX_VARINT_LEN: usize = 10;

/// Bytes that are not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("message ends inside a field")]
    Truncated,
    #[error("varint does not fit into 64 bits")]
    Varint,
    #[error("invalid field number or wire type")]
    Tag,
    #[error("group without its end, or an end without its group")]
    Group,
    #[error("messages nested too deep")]
    Depth,
    #[error("a request where an answer belongs, or an answer where a request does")]
    Direction,
}

/// The payload of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Varint(u64),
    /// String, bytes, submessage or packed numbers.
    Bytes(&'a [u8]),
    /// A fixed-width number or a group: no field of the etcd API has one.
    Other,
}

/// One field and where it lies in its message, tag included.
#[derive(Debug, Clone, Copy)]
pub struct Field<'a> {
    pub number: u32,
    pub value: Value<'a>,
    pub start: usize,
    pub end: usize,
}

impl<'a> Field<'a> {
    /// The payload, if this is field `number` and length-delimited. A known field with another wire type is an unknown
    /// field to one decoder of etcd's and an error to the other; to neither is it a value.
    #[inline]
    pub fn bytes(&self, number: u32) -> Option<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) if self.number == number => Some(bytes),
            _ => None,
        }
    }

    /// The number, if this is field `number` and a varint.
    #[inline]
    pub fn varint(&self, number: u32) -> Option<u64> {
        match self.value {
            Value::Varint(varint) if self.number == number => Some(varint),
            _ => None,
        }
    }
}

/// Walks the fields of `message` in order. After an error there is nothing more.
#[inline]
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { message, at: 0 }
}

/// See [`fields`].
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.len() {
            return None;
        }
        let field = read_field(self.message, &mut self.at);
        if field.is_err() {
            self.at = self.message.len();
        }
        Some(field)
    }
}

#[inline(always)]
fn read_field<'a>(message: &'a [u8], at: &mut usize) -> Result<Field<'a>, Malformed> {
    let start = *at;
    let (number, wire_type) = read_tag(message, at)?;
    let value = match wire_type {
        0 => Value::Varint(read_varint(message, at)?),
        2 => Value::Bytes(read_bytes(message, at)?),
        END_GROUP => return Err(Malformed::Group),
        _ => {
            skip(message, at, number, wire_type, 0)?;
            Value::Other
        }
    };
    Ok(Field { number, value, start, end: *at })
}

const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;

/// Steps over the payload of a field of any wire type but the end of a group.
fn skip(message: &[u8], at: &mut usize, number: u32, wire_type: u8, depth: usize) -> Result<(), Malformed> {
    match wire_type {
        0 => read_varint(message, at).map(drop),
        1 => read_exact(message, at, 8).map(drop),
        2 => read_bytes(message, at).map(drop),
        START_GROUP if depth >= MAX_GROUP_DEPTH => Err(Malformed::Depth),
        START_GROUP => loop {
            let (inner, wire_type) = read_tag(message, at)?;
            if wire_type == END_GROUP {
                return if inner == number { Ok(()) } else { Err(Malformed::Group) };
            }
            skip(message, at, inner, wire_type, depth + 1)?;
        },
        5 => read_exact(message, at, 4).map(drop),
        _ => Err(Malformed::Tag),
    }
}

#[inline(always)]
fn read_tag(message: &[u8], at: &mut usize) -> Result<(u32, u8), Malformed> {
    match message.get(*at) {
        // The fields 1 to 15, which is nearly all there are.
        Some(&tag) if (8..0x80).contains(&tag) => {
            *at += 1;
            Ok((u32::from(tag >> 3), tag & 7))
        }
        _ => read_long_tag(message, at),
    }
}

/// A tag that does not fit into 32 bits is refused, since one of etcd's decoders cuts it off and would see another
/// field than the rest of the world.
#[cold]
fn read_long_tag(message: &[u8], at: &mut usize) -> Result<(u32, u8), Malformed> {
    let tag = u32::try_from(read_varint(message, at)?).map_err(|_| Malformed::Tag)?;
    let number = tag >> 3;
    if number == 0 {
        return Err(Malformed::Tag);
    }
    Ok((number, (tag & 7) as u8))
}

#[inline(always)]
fn read_varint(message: &[u8], at: &mut usize) -> Result<u64, Malformed> {
    match message.get(*at) {
        Some(&byte) if byte < 0x80 => {
            *at += 1;
            Ok(u64::from(byte))
        }
        Some(_) => match message[*at..].first_chunk() {
            Some(chunk) => read_chunk_varint(*chunk, message, at),
            None => read_long_varint(message, at),
        },
        None => Err(Malformed::Truncated),
    }
}

/// Reads a varint of up to eight bytes, such as a revision, all bytes at a time: this is where the time goes when a
/// hundred key-values are walked through.
#[inline(always)]
fn read_chunk_varint(chunk: [u8; 8], message: &[u8], at: &mut usize) -> Result<u64, Malformed> {
    let bytes = u64::from_le_bytes(chunk);
    // The top bit of each byte that has it clear; the lowest of them ends the varint.
    let ends = !bytes & 0x8080_8080_8080_8080;
    if ends == 0 {
        return read_long_varint(message, at);
    }
    *at += ends.trailing_zeros() as usize / 8 + 1;
    // Drop what follows and all top bits, then close the gaps: 7 bits to 14, to 28, to 56.
    let septets = bytes & (ends ^ (ends - 1)) & 0x7f7f_7f7f_7f7f_7f7f;
    let pairs = (septets & 0x007f_007f_007f_007f) | ((septets & 0x7f00_7f00_7f00_7f00) >> 1);
    let quads = (pairs & 0x0000_3fff_0000_3fff) | ((pairs & 0x3fff_0000_3fff_0000) >> 2);
    Ok((quads & 0x0fff_ffff) | ((quads & 0x0fff_ffff_0000_0000) >> 4))
}

#[cold]
fn read_long_varint(message: &[u8], at: &mut usize) -> Result<u64, Malformed> {
    let mut varint = 0;
    for (index, &byte) in message[*at..].iter().take(MAX_VARINT_LEN).enumerate() {
        if index == MAX_VARINT_LEN - 1 && byte > 1 {
            return Err(Malformed::Varint);
        }
        varint |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *at += index + 1;
            return Ok(varint);
        }
    }
    Err(Malformed::Truncated)
}

#[inline(always)]
fn read_bytes<'a>(message: &'a [u8], at: &mut usize) -> Result<&'a [u8], Malformed> {
    let len = read_varint(message, at)?;
    read_exact(message, at, usize::try_from(len).map_err(|_| Malformed::Truncated)?)
}

#[inline(always)]
fn read_exact<'a>(message: &'a [u8], at: &mut usize, len: usize) -> Result<&'a [u8], Malformed> {
    let end = at.checked_add(len).ok_or(Malformed::Truncated)?;
    let bytes = message.get(*at..end).ok_or(Malformed::Truncated)?;
    *at = end;
    Ok(bytes)
}

/// The bytes field `number` as a decoder sees it: the last one wins, and none is an empty one.
pub fn last_bytes(message: &[u8], number: u32) -> Result<&[u8], Malformed> {
    let mut last: &[u8] = &[];
    for field in fields(message) {
        last = field?.bytes(number).unwrap_or(last);
    }
    Ok(last)
}

/// The `int64` field `number` as a decoder sees it: the last one wins, and none is 0.
pub fn last_int64(message: &[u8], number: u32) -> Result<i64, Malformed> {
    let mut last = 0;
    for field in fields(message) {
        last = field?.varint(number).map_or(last, |varint| varint as i64);
    }
    Ok(last)
}

/// `header.revision` of any answer of etcd's, if it shows one: field 1 of each is the header, whose field 3 is the
/// revision. etcd writes the header first, so the answer need not be here whole; only its first field is looked at.
pub fn header_revision(response: &[u8]) -> Option<i64> {
    let header = fields(response).next()?.ok()?.bytes(1)?;
    let revision = last_int64(header, 3).ok()?;
    (revision != 0).then_some(revision)
}

/// Of the header of an answer: who answered, and where the store stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub member_id: u64,
    pub revision: i64,
}

/// The header of an answer that shows the store's revision, as [`header_revision`] finds it.
pub fn header(response: &[u8]) -> Option<Header> {
    let mut header = Header { member_id: 0, revision: 0 };
    for field in fields(fields(response).next()?.ok()?.bytes(1)?) {
        match field.ok()? {
            Field { number: 2, value: Value::Varint(varint), .. } => header.member_id = varint,
            Field { number: 3, value: Value::Varint(varint), .. } => header.revision = varint as i64,
            _ => (),
        }
    }
    (header.revision != 0).then_some(header)
}

/// How many bytes `varint` takes.
#[inline]
pub fn varint_len(varint: u64) -> usize {
    // Seven bits go into a byte, and 0 takes one as well: ceil(bits / 7), without a division.
    ((63 - (varint | 1).leading_zeros() as usize) * 9 + 73) / 64
}

/// How many bytes a length-delimited field takes with a payload of `len` bytes.
#[inline]
pub fn bytes_field_len(number: u32, len: usize) -> usize {
    varint_len(u64::from(number) << 3) + varint_len(len as u64) + len
}

#[inline]
pub fn put_varint(out: &mut impl BufMut, mut varint: u64) {
    while varint >= 0x80 {
        out.put_u8(varint as u8 | 0x80);
        varint >>= 7;
    }
    out.put_u8(varint as u8);
}

/// Writes all of a length-delimited field but its payload of `len` bytes.
#[inline]
pub fn put_bytes_header(out: &mut impl BufMut, number: u32, len: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, len as u64);
}

/// Writes a whole field that is a number.
#[inline]
pub fn put_varint_field(out: &mut impl BufMut, number: u32, varint: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, varint);
}

/// The message with `int64` in field `number`, and in no other place of that number.
pub fn with_int64(message: &[u8], number: u32, int64: i64) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(message.len() + MAX_VARINT_LEN);
    for field in fields(message) {
        let field = field?;
        if field.number != number {
            out.put_slice(&message[field.start..field.end]);
        }
    }
    put_varint_field(&mut out, number, int64 as u64);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the reader makes of `message`: numbers and payloads, or the error.
    fn check(message: &[u8], expected: Result<&[(u32, Value<'_>)], Malformed>) {
        let read: Result<Vec<_>, _> = fields(message).map(|field| field.map(|f| (f.number, f.value))).collect();
        assert_eq!(read.as_deref().map_err(|e| *e), expected, "{message:02x?}");
    }

    #[test]
    fn each_wire_type_is_read() {
        check(b"", Ok(&[]));
        check(b"\x08\x96\x01", Ok(&[(1, Value::Varint(150))]));
        check(b"\x12\x02hi\x18\x00", Ok(&[(2, Value::Bytes(b"hi")), (3, Value::Varint(0))]));
        check(b"\x09\x01\x02\x03\x04\x05\x06\x07\x08\x0d\x01\x02\x03\x04", Ok(&[(1, Value::Other), (1, Value::Other)]));
        check(b"\x82\x04\x01x", Ok(&[(64, Value::Bytes(b"x"))]));
        check(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Ok(&[(1, Value::Varint(u64::MAX))]));
    }

    #[test]
    fn a_group_is_one_field_whatever_it_holds() {
        check(b"\x0b\x0c", Ok(&[(1, Value::Other)]));
        check(b"\x0b\x0a\x01k\x13\x08\x01\x14\x0c\x08\x07", Ok(&[(1, Value::Other), (1, Value::Varint(7))]));
        check(b"\x0b", Err(Malformed::Truncated));
        check(b"\x0c", Err(Malformed::Group));
        check(b"\x0b\x14", Err(Malformed::Group));
        let deep = |depth| [vec![0x0b; depth], vec![0x0c; depth]].concat();
        check(&deep(MAX_GROUP_DEPTH), Ok(&[(1, Value::Other)]));
        check(&deep(MAX_GROUP_DEPTH + 1), Err(Malformed::Depth));
        check(&vec![0x0b; 1 << 20], Err(Malformed::Depth));
    }

    #[test]
    fn what_decoders_disagree_about_is_refused() {
        // Field 1 for a decoder that keeps 32 bits of a tag, none for the others.
        check(b"\x8a\x80\x80\x80\x80\x01\x01k", Err(Malformed::Tag));
        // The tenth byte of a varint has room for one bit.
        check(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", Err(Malformed::Varint));
        check(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x81\x00", Err(Malformed::Varint));
        // An overlong tag that fits means the same to all of them.
        check(b"\x8a\x80\x80\x80\x80\x00\x01k", Ok(&[(1, Value::Bytes(b"k"))]));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        check(b"\x00", Err(Malformed::Tag));
        check(b"\x0e", Err(Malformed::Tag));
        check(b"\x0f", Err(Malformed::Tag));
        check(b"\x08", Err(Malformed::Truncated));
        check(b"\x08\x80", Err(Malformed::Truncated));
        check(b"\x0a\x02k", Err(Malformed::Truncated));
        check(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Err(Malformed::Truncated));
        check(b"\x0d\x01\x02\x03", Err(Malformed::Truncated));
    }

    #[test]
    fn after_an_error_there_is_nothing_more() {
        let mut fields = fields(b"\x08\x01\x00\x08\x01");
        assert!(fields.next().is_some_and(|field| field.is_ok()));
        assert!(fields.next().is_some_and(|field| field.is_err()));
        assert!(fields.next().is_none());
    }

    #[test]
    fn the_last_of_a_repeated_scalar_wins() {
        assert_eq!(last_bytes(b"\x0a\x01a\x12\x01b\x0a\x01c", 1), Ok(&b"c"[..]));
        assert_eq!(last_bytes(b"\x08\x01", 1), Ok(&b""[..]));
        assert_eq!(last_int64(b"\x08\x01\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 1), Ok(-1));
        assert_eq!(last_int64(b"", 1), Ok(0));
    }

    #[test]
    fn a_number_is_set_wherever_it_was() {
        assert_eq!(with_int64(b"\x08\x01\x12\x01a\x08\x02", 1, 5), Ok(b"\x12\x01a\x08\x05".to_vec()));
        assert_eq!(with_int64(b"", 2, 300), Ok(b"\x10\xac\x02".to_vec()));
        assert_eq!(with_int64(b"\x08", 1, 5), Err(Malformed::Truncated));
    }

    #[test]
    fn the_revision_is_found_although_the_answer_is_cut_short() {
        assert_eq!(header_revision(b"\x0a\x04\x08\x01\x18\x07\x12\x7f\x01"), Some(7));
        assert_eq!(header_revision(b""), None);
        assert_eq!(header_revision(b"\x0a\x02\x18\x00"), None);
        assert_eq!(header_revision(b"\x0a\x01\x18"), None);
    }

    #[test]
    fn what_is_written_has_the_length_foretold_and_reads_back() {
        for shift in 0..64 {
            for varint in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, varint);
                assert_eq!(out.len(), varint_len(varint), "{varint}");
                assert_eq!(read_varint(&out, &mut 0), Ok(varint));
                // What follows, or does not, makes no difference.
                out.extend([0xff; 8]);
                let mut at = 0;
                assert_eq!(read_varint(&out, &mut at), Ok(varint));
                assert_eq!(at, varint_len(varint));
            }
        }
        for (number, len) in [(1, 0), (15, 127), (16, 128), (64, 20_000)] {
            let mut out = Vec::new();
            put_bytes_header(&mut out, number, len);
            out.resize(out.len() + len, 7);
            assert_eq!(out.len(), bytes_field_len(number, len));
            check(&out, Ok(&[(number, Value::Bytes(&vec![7; len]))]));
        }
    }
}
