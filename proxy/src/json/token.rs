//! The tokens of a JSON text that is known to be well-formed, and where they stand, for the words of an error.

use super::scan::{Malformed, is_space};
use crate::go;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    ObjectOpen,
    ObjectClose,
    ArrayOpen,
    ArrayClose,
    Null,
    Bool(bool),
    Number(&'a str),
    /// Also the name of a field.
    String(String),
}

/// Where a token stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    start: usize,
    end: usize,
}

pub struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// The next token; commas and colons, whose places are known to be right, are passed over.
    pub fn next(&mut self) -> Result<(Token<'a>, At), Malformed> {
        let start = self.skip_to_token();
        let token = match self.text.get(start) {
            Some(b'{') => self.advance(1, Token::ObjectOpen),
            Some(b'}') => self.advance(1, Token::ObjectClose),
            Some(b'[') => self.advance(1, Token::ArrayOpen),
            Some(b']') => self.advance(1, Token::ArrayClose),
            Some(b'n') => self.advance(4, Token::Null),
            Some(b't') => self.advance(4, Token::Bool(true)),
            Some(b'f') => self.advance(5, Token::Bool(false)),
            Some(b'"') => self.string()?,
            Some(b'-' | b'0'..=b'9') => {
                let digits = &self.text[start..];
                let length = digits.iter().take_while(|byte| b"+-.eE0123456789".contains(byte)).count();
                let number = std::str::from_utf8(&digits[..length]).unwrap_or_default();
                self.advance(length, Token::Number(number))
            }
            _ => return Err(cut_short()),
        };
        Ok((token, At { start, end: self.at.min(self.text.len()) }))
    }

    /// Passes over a `null`, if that is next.
    pub fn takes_null(&mut self) -> bool {
        self.takes(b"null")
    }

    /// Passes over a `]`, if that is next.
    pub fn takes_array_close(&mut self) -> bool {
        self.takes(b"]")
    }

    /// A token as it stands in the text.
    pub fn raw(&self, at: At) -> String {
        String::from_utf8_lossy(self.text.get(at.start..at.end).unwrap_or_default()).into_owned()
    }

    /// What is wrong with a value.
    pub fn error(&self, at: At, what: impl std::fmt::Display) -> Malformed {
        let (line, column) = self.position(at.start);
        Malformed(format!("proto: (line {line}:{column}): {what}"))
    }

    /// A value of another form than the message has.
    pub fn unexpected(&self, at: At) -> Malformed {
        self.syntax_error(at.start, format_args!("unexpected token {}", self.raw(at)))
    }

    fn syntax_error(&self, at: usize, what: impl std::fmt::Display) -> Malformed {
        let (line, column) = self.position(at);
        Malformed(format!("proto: syntax error (line {line}:{column}): {what}"))
    }

    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let last = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let runes: usize = last.utf8_chunks().map(|chunk| chunk.valid().chars().count() + chunk.invalid().len()).sum();
        (line, runes + 1)
    }

    fn skip_to_token(&mut self) -> usize {
        while self.text.get(self.at).is_some_and(|byte| is_space(*byte) || matches!(byte, b',' | b':')) {
            self.at += 1;
        }
        self.at
    }

    fn takes(&mut self, token: &[u8]) -> bool {
        let start = self.skip_to_token();
        let found = self.text[start..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn advance(&mut self, length: usize, token: Token<'a>) -> Token<'a> {
        self.at += length;
        token
    }

    /// A string, which is the only token that can still be wrong: it must be UTF-8 and its surrogates in pairs.
    fn string(&mut self) -> Result<Token<'a>, Malformed> {
        let start = self.at;
        let mut out = String::new();
        let mut at = start + 1;
        loop {
            let rest = self.text.get(at..).unwrap_or_default();
            let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(rest.len());
            match std::str::from_utf8(&rest[..plain]) {
                Ok(text) => out.push_str(text),
                Err(_) => return Err(self.syntax_error(start, "invalid UTF-8 in string")),
            }
            at += plain;
            match self.text.get(at..).unwrap_or_default() {
                [b'"', ..] => break,
                [b'\\', b'u', ..] => {
                    let (character, length) = unescape(&self.text[at..]).map_err(|code| match code {
                        Some(code) => self.syntax_error(start, format_args!("invalid escape code {code} in string")),
                        None => cut_short(),
                    })?;
                    out.push(character);
                    at += length;
                }
                [b'\\', escaped, ..] => {
                    out.push(match escaped {
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        other => char::from(*other),
                    });
                    at += 2;
                }
                _ => return Err(cut_short()),
            }
        }
        self.at = at + 1;
        Ok(Token::String(out))
    }
}

fn cut_short() -> Malformed {
    Malformed("proto: unexpected EOF".to_owned())
}

/// The character of a `\u` escape, or of two that are a surrogate pair, and its length; else the code that is wrong, if
/// there is room for one.
fn unescape(text: &[u8]) -> Result<(char, usize), Option<String>> {
    let first = hex(text).ok_or(None)?;
    if let Some(character) = char::from_u32(first) {
        return Ok((character, 6));
    }
    let second = text.get(6..12).ok_or(None)?;
    let low = if second.starts_with(b"\\u") { hex(second) } else { None };
    let pair = match low {
        Some(low @ 0xdc00..0xe000) if first < 0xdc00 => {
            char::from_u32(0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00))
        }
        _ => None,
    };
    pair.map(|character| (character, 12)).ok_or_else(|| Some(go::quote(&String::from_utf8_lossy(second))))
}

fn hex(text: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(text.get(2..6)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}
