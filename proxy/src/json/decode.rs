//! JSON as a protobuf message on the wire, as protojson reads it for etcd's gateway: fields by either name, numbers as
//! numbers or strings, base64 of both alphabets, unknown fields and enum names passed over, and its words for the rest.

use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::{
    scan::Malformed,
    token::{Reader, Token},
};

mod number;
mod scalar;

use scalar::Scalar;

/// How deep messages may stand in each other, as protobuf decoders have it. Only a transaction within a transaction
/// goes deeper than five.
const MAX_DEPTH: usize = 100;

/// Reads one whole JSON value, which [`super::scan`] has found to be well-formed, as a message.
pub fn message(descriptor: &MessageDescriptor, text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(text.len());
    Decoder { reader: Reader::new(text) }.message(descriptor, &mut out, MAX_DEPTH)?;
    Ok(out)
}

struct Decoder<'a> {
    reader: Reader<'a>,
}

impl Decoder<'_> {
    fn message(&mut self, descriptor: &MessageDescriptor, out: &mut Vec<u8>, depth: usize) -> Result<(), Malformed> {
        if depth == 0 {
            return Err(Malformed("proto: exceeded max recursion depth".to_owned()));
        }
        self.expect(Token::ObjectOpen)?;
        let mut seen: Vec<u32> = Vec::new();
        let mut chosen: Vec<String> = Vec::new();
        loop {
            let (name, at) = match self.reader.next()? {
                (Token::ObjectClose, _) => return Ok(()),
                (Token::String(name), at) => (name, at),
                (_, at) => return Err(self.reader.unexpected(at)),
            };
            let field = descriptor.get_field_by_json_name(&name).or_else(|| descriptor.get_field_by_name(&name));
            let Some(field) = field else {
                self.skip()?;
                continue;
            };
            if seen.contains(&field.number()) {
                return Err(self.reader.error(at, format!("duplicate field {}", self.reader.raw(at))));
            }
            seen.push(field.number());
            if self.reader.takes_null() {
                continue;
            }
            if field.is_list() {
                self.list(&field, out, depth)?;
                continue;
            }
            if let Some(oneof) = field.containing_oneof() {
                let name = oneof.full_name();
                if chosen.iter().any(|one| one == name) {
                    let raw = self.reader.raw(at);
                    return Err(self.reader.error(at, format!("error parsing {raw}, oneof {name} is already set")));
                }
                chosen.push(name.to_owned());
            }
            self.singular(&field, out, depth)?;
        }
    }

    fn singular(&mut self, field: &FieldDescriptor, out: &mut Vec<u8>, depth: usize) -> Result<(), Malformed> {
        if let Kind::Message(inner) = field.kind() {
            return self.inner(field, &inner, out, depth);
        }
        if let Some(scalar) = self.scalar(field)?
            && (field.supports_presence() || !scalar.is_default())
        {
            encode_key(field.number(), scalar.wire_type(), out);
            scalar.write(out);
        }
        Ok(())
    }

    fn inner(
        &mut self,
        field: &FieldDescriptor,
        descriptor: &MessageDescriptor,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Malformed> {
        let mut inner = Vec::new();
        self.message(descriptor, &mut inner, depth - 1)?;
        write_delimited(field, &inner, out);
        Ok(())
    }

    fn list(&mut self, field: &FieldDescriptor, out: &mut Vec<u8>, depth: usize) -> Result<(), Malformed> {
        self.expect(Token::ArrayOpen)?;
        let mut packed = Vec::new();
        while !self.reader.takes_array_close() {
            if let Kind::Message(inner) = field.kind() {
                self.inner(field, &inner, out, depth)?;
                continue;
            }
            let Some(scalar) = self.scalar(field)? else { continue };
            if field.is_packed() {
                scalar.write(&mut packed);
            } else {
                encode_key(field.number(), scalar.wire_type(), out);
                scalar.write(out);
            }
        }
        if !packed.is_empty() {
            write_delimited(field, &packed, out);
        }
        Ok(())
    }

    /// A value that is no message; none for the name of an enum's value that nobody here knows.
    fn scalar(&mut self, field: &FieldDescriptor) -> Result<Option<Scalar>, Malformed> {
        let (token, at) = self.reader.next()?;
        scalar::read(&field.kind(), token).map_err(|scalar::Invalid| {
            let (kind, name, raw) = (scalar::kind_name(&field.kind()), field.json_name(), self.reader.raw(at));
            self.reader.error(at, format!("invalid value for {kind} field {name}: {raw}"))
        })
    }

    fn expect(&mut self, expected: Token) -> Result<(), Malformed> {
        let (token, at) = self.reader.next()?;
        if token == expected { Ok(()) } else { Err(self.reader.unexpected(at)) }
    }

    /// Passes over the value of a field that nobody here knows. It still has to be text.
    fn skip(&mut self) -> Result<(), Malformed> {
        let mut open = 0_usize;
        loop {
            match self.reader.next()?.0 {
                Token::ObjectOpen | Token::ArrayOpen => open += 1,
                Token::ObjectClose | Token::ArrayClose => open = open.saturating_sub(1),
                _ => (),
            }
            if open == 0 {
                return Ok(());
            }
        }
    }
}

fn write_delimited(field: &FieldDescriptor, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(field.number(), WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
