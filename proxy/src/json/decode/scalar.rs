//! One value that is no message: what its token may be, and how it stands on the wire.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost::encoding::{WireType, encode_varint};
use prost_reflect::Kind;

use super::number;
use crate::json::token::Token;

/// The token is no value of the field's kind.
#[derive(Debug)]
pub struct Invalid;

/// A value as it stands on the wire.
#[derive(Debug, PartialEq, Eq)]
pub enum Scalar {
    Varint(u64),
    Bytes(Vec<u8>),
}

impl Scalar {
    pub fn is_default(&self) -> bool {
        match self {
            Scalar::Varint(number) => *number == 0,
            Scalar::Bytes(bytes) => bytes.is_empty(),
        }
    }

    pub fn wire_type(&self) -> WireType {
        match self {
            Scalar::Varint(_) => WireType::Varint,
            Scalar::Bytes(_) => WireType::LengthDelimited,
        }
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Scalar::Varint(number) => encode_varint(*number, out),
            Scalar::Bytes(bytes) => {
                encode_varint(bytes.len() as u64, out);
                out.extend_from_slice(bytes);
            }
        }
    }
}

/// Reads a token as a value of a kind. None is the name of an enum's value that the enum does not have.
pub fn read(kind: &Kind, token: Token) -> Result<Option<Scalar>, Invalid> {
    // A negative number of either size is sign-extended to 64 bits, which `as u64` does.
    let scalar = match (kind, token) {
        (Kind::Bool, Token::Bool(truth)) => Scalar::Varint(u64::from(truth)),
        (Kind::Int32, token) => Scalar::Varint(signed(&token, i64::from(i32::MIN), i64::from(i32::MAX))? as u64),
        (Kind::Int64, token) => Scalar::Varint(signed(&token, i64::MIN, i64::MAX)? as u64),
        (Kind::Uint32, token) => Scalar::Varint(unsigned(&token, u64::from(u32::MAX))?),
        (Kind::Uint64, token) => Scalar::Varint(unsigned(&token, u64::MAX)?),
        (Kind::String, Token::String(text)) => Scalar::Bytes(text.into_bytes()),
        (Kind::Bytes, Token::String(text)) => Scalar::Bytes(base64(&text).ok_or(Invalid)?),
        (Kind::Enum(names), Token::String(name)) => match names.get_value_by_name(&name) {
            Some(value) => Scalar::Varint(i64::from(value.number()) as u64),
            None => return Ok(None),
        },
        (Kind::Enum(_), Token::Number(text)) => {
            Scalar::Varint(number::signed(text, i64::from(i32::MIN), i64::from(i32::MAX)).ok_or(Invalid)? as u64)
        }
        // The other kinds are none of etcd's, which a test of the schema sees to.
        _ => return Err(Invalid),
    };
    Ok(Some(scalar))
}

/// As Go names a kind.
pub fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Double => "double",
        Kind::Float => "float",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Uint32 => "uint32",
        Kind::Uint64 => "uint64",
        Kind::Sint32 => "sint32",
        Kind::Sint64 => "sint64",
        Kind::Fixed32 => "fixed32",
        Kind::Fixed64 => "fixed64",
        Kind::Sfixed32 => "sfixed32",
        Kind::Sfixed64 => "sfixed64",
        Kind::Bool => "bool",
        Kind::String => "string",
        Kind::Bytes => "bytes",
        Kind::Message(_) => "message",
        Kind::Enum(_) => "enum",
    }
}

fn signed(token: &Token, least: i64, most: i64) -> Result<i64, Invalid> {
    number_text(token).and_then(|text| number::signed(text, least, most)).ok_or(Invalid)
}

fn unsigned(token: &Token, most: u64) -> Result<u64, Invalid> {
    number_text(token).and_then(|text| number::unsigned(text, most)).ok_or(Invalid)
}

/// A number stands as such or in a string.
fn number_text<'a>(token: &'a Token<'a>) -> Option<&'a str> {
    match token {
        Token::Number(text) => Some(text),
        Token::String(text) => Some(text.as_str()),
        _ => None,
    }
}

/// Either alphabet, chosen as Go chooses it; padded if the length says that it may be. Bits that belong to no byte may
/// be set, and line breaks are passed over.
fn base64(text: &str) -> Option<Vec<u8>> {
    let alphabet = if text.contains(['-', '_']) { alphabet::URL_SAFE } else { alphabet::STANDARD };
    let padding =
        if text.len().is_multiple_of(4) { DecodePaddingMode::RequireCanonical } else { DecodePaddingMode::RequireNone };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(padding).with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&alphabet, config);
    if text.contains(['\r', '\n']) {
        let joined: String = text.chars().filter(|character| !matches!(character, '\r' | '\n')).collect();
        return engine.decode(joined).ok();
    }
    engine.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_both_alphabets_is_taken_as_go_takes_it() {
        for (text, expected) in [
            ("", Some(&b""[..])),
            ("Zm9v", Some(b"foo")),
            ("Zg==", Some(b"f")),
            ("Zg", Some(b"f")),
            // Bits that belong to no byte.
            ("Zh==", Some(b"f")),
            ("//4=", Some(b"\xff\xfe")),
            ("__4=", Some(b"\xff\xfe")),
            ("__4", Some(b"\xff\xfe")),
            // With line breaks the length that Go judges by is that of the whole text.
            ("Zm\n9v", Some(b"foo")),
            ("Zm\r\n9v\n\n", Some(b"foo")),
            ("Zg=\n", None),
            ("/_4=", None),
            ("Zg=", None),
            ("Z", None),
            ("Zm9v Zm9v", None),
            ("Zg==Zg==", None),
        ] {
            assert_eq!(base64(text).as_deref(), expected, "{text:?}");
        }
    }
}
