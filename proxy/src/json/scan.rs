//! A stream of bytes cut into JSON values, with the errors that Go's `encoding/json` has for what is none.
//!
//! etcd's gateway reads each request with that package, and its words reach the client. So this is its scanner, state
//! by state; a value that has passed it is well-formed but for the contents of its strings.

use std::fmt;

use crate::go;

/// Why a text is not a request, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What stands between a client's bytes and its next request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    Malformed(Malformed),
    /// A value that is longer than the limit; this much of it has come.
    TooLarge(usize),
}

/// How deep objects and arrays may stand in each other, as in Go.
const MAX_NESTING: usize = 10_000;

/// Cuts bytes into values. Holds at most one unfinished value and what came with it.
pub struct Values {
    buffer: Vec<u8>,
    /// Where the value begins that is being read. What is before it has been given out, and goes when more comes: to
    /// move the rest for each value would cost the square of what a client packs into one piece.
    start: usize,
    /// What of the buffer has been looked at.
    scanned: usize,
    scanner: Scanner,
    limit: usize,
}

impl Values {
    /// `limit` bounds one value, in bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, scanned: 0, scanner: Scanner::default(), limit }
    }

    pub fn push(&mut self, data: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(data);
    }

    /// The next whole value without the blanks around it, if one has come.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            match self.scanner.step(byte) {
                Step::Continue => self.scanned += 1,
                // A number or a literal ends before the byte that follows it.
                Step::End => return Ok(Some(self.cut())),
                Step::Closed => {
                    self.scanned += 1;
                    return Ok(Some(self.cut()));
                }
                Step::Error => return Err(Broken::Malformed(self.scanner.error())),
            }
        }
        if self.is_blank() {
            // Blanks between values need not be kept.
            self.start = self.scanned;
        }
        let held = self.buffer.len() - self.start;
        if held > self.limit { Err(Broken::TooLarge(held)) } else { Ok(None) }
    }

    /// The last value, when no more bytes will come.
    pub fn finish(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        if let Some(value) = self.next()? {
            return Ok(Some(value));
        }
        match self.scanner.step(b' ') {
            Step::End | Step::Closed => Ok(Some(self.cut())),
            _ if self.is_blank() => Ok(None),
            _ => Err(Broken::Malformed(Malformed("unexpected EOF".to_owned()))),
        }
    }

    fn is_blank(&self) -> bool {
        self.buffer[self.start..].iter().all(|byte| is_space(*byte))
    }

    fn cut(&mut self) -> Vec<u8> {
        let value = self.buffer[self.start..self.scanned].trim_ascii_start().to_vec();
        self.start = self.scanned;
        self.scanner = Scanner::default();
        value
    }
}

/// What a byte was to the value that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Continue,
    /// The value has ended before this byte.
    End,
    /// The value has ended with this byte.
    Closed,
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    BeginValue,
    BeginValueOrEmpty,
    BeginString,
    BeginStringOrEmpty,
    EndValue,
    InString,
    Escape,
    /// So many digits of a `\u` escape are still to come.
    Hex(u8),
    Negative,
    Zero,
    Integer,
    Dot,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// The next letter of `true`, `false` or `null`.
    Literal(&'static str, usize),
    Error,
}

/// What the innermost open object or array waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    ObjectKey,
    ObjectValue,
    ArrayValue,
}

struct Scanner {
    state: State,
    open: Vec<Open>,
    error: Option<Malformed>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::BeginValue, open: Vec::new(), error: None }
    }
}

impl Scanner {
    fn error(&self) -> Malformed {
        self.error.clone().unwrap_or_else(|| Malformed("unexpected end of JSON input".to_owned()))
    }

    fn step(&mut self, byte: u8) -> Step {
        match self.state {
            State::BeginValueOrEmpty if byte == b']' => self.end_value(byte),
            State::BeginValue | State::BeginValueOrEmpty => self.begin_value(byte),
            State::BeginStringOrEmpty if byte == b'}' => {
                if let Some(open) = self.open.last_mut() {
                    *open = Open::ObjectValue;
                }
                self.end_value(byte)
            }
            State::BeginString | State::BeginStringOrEmpty => match byte {
                _ if is_space(byte) => Step::Continue,
                b'"' => self.go_on(State::InString),
                _ => self.fail(byte, "looking for beginning of object key string"),
            },
            State::EndValue => self.end_value(byte),
            State::InString => match byte {
                b'"' => self.go_on(State::EndValue),
                b'\\' => self.go_on(State::Escape),
                0..0x20 => self.fail(byte, "in string literal"),
                _ => Step::Continue,
            },
            State::Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.go_on(State::InString),
                b'u' => self.go_on(State::Hex(4)),
                _ => self.fail(byte, "in string escape code"),
            },
            State::Hex(left) if byte.is_ascii_hexdigit() => {
                self.go_on(if left == 1 { State::InString } else { State::Hex(left - 1) })
            }
            State::Hex(_) => self.fail(byte, "in \\u hexadecimal character escape"),
            State::Negative => match byte {
                b'0' => self.go_on(State::Zero),
                b'1'..=b'9' => self.go_on(State::Integer),
                _ => self.fail(byte, "in numeric literal"),
            },
            State::Integer if byte.is_ascii_digit() => Step::Continue,
            State::Integer | State::Zero => match byte {
                b'.' => self.go_on(State::Dot),
                b'e' | b'E' => self.go_on(State::Exponent),
                _ => self.end_value(byte),
            },
            State::Dot if byte.is_ascii_digit() => self.go_on(State::Fraction),
            State::Dot => self.fail(byte, "after decimal point in numeric literal"),
            State::Fraction => match byte {
                b'0'..=b'9' => Step::Continue,
                b'e' | b'E' => self.go_on(State::Exponent),
                _ => self.end_value(byte),
            },
            State::Exponent if matches!(byte, b'+' | b'-') => self.go_on(State::ExponentSign),
            State::Exponent | State::ExponentSign if byte.is_ascii_digit() => self.go_on(State::ExponentDigits),
            State::Exponent | State::ExponentSign => self.fail(byte, "in exponent of numeric literal"),
            State::ExponentDigits if byte.is_ascii_digit() => Step::Continue,
            State::ExponentDigits => self.end_value(byte),
            State::Literal(word, at) => match word.as_bytes().get(at) {
                Some(expected) if *expected == byte => {
                    let ended = at + 1 == word.len();
                    self.go_on(if ended { State::EndValue } else { State::Literal(word, at + 1) })
                }
                Some(expected) => {
                    let context = format!("in literal {word} (expecting '{}')", char::from(*expected));
                    self.fail(byte, &context)
                }
                None => self.end_value(byte),
            },
            State::Error => Step::Error,
        }
    }

    fn begin_value(&mut self, byte: u8) -> Step {
        match byte {
            _ if is_space(byte) => Step::Continue,
            b'{' => self.begin(byte, Open::ObjectKey, State::BeginStringOrEmpty),
            b'[' => self.begin(byte, Open::ArrayValue, State::BeginValueOrEmpty),
            b'"' => self.go_on(State::InString),
            b'-' => self.go_on(State::Negative),
            b'0' => self.go_on(State::Zero),
            b'1'..=b'9' => self.go_on(State::Integer),
            b't' => self.go_on(State::Literal("true", 1)),
            b'f' => self.go_on(State::Literal("false", 1)),
            b'n' => self.go_on(State::Literal("null", 1)),
            _ => self.fail(byte, "looking for beginning of value"),
        }
    }

    fn begin(&mut self, byte: u8, open: Open, state: State) -> Step {
        self.open.push(open);
        if self.open.len() > MAX_NESTING { self.fail(byte, "exceeded max depth") } else { self.go_on(state) }
    }

    fn end_value(&mut self, byte: u8) -> Step {
        let Some(open) = self.open.last_mut() else { return Step::End };
        if is_space(byte) {
            return self.go_on(State::EndValue);
        }
        match (*open, byte) {
            (Open::ObjectKey, b':') => {
                *open = Open::ObjectValue;
                self.go_on(State::BeginValue)
            }
            (Open::ObjectValue, b',') => {
                *open = Open::ObjectKey;
                self.go_on(State::BeginString)
            }
            (Open::ArrayValue, b',') => self.go_on(State::BeginValue),
            (Open::ObjectValue, b'}') | (Open::ArrayValue, b']') => {
                self.open.pop();
                if self.open.is_empty() { Step::Closed } else { self.go_on(State::EndValue) }
            }
            (Open::ObjectKey, _) => self.fail(byte, "after object key"),
            (Open::ObjectValue, _) => self.fail(byte, "after object key:value pair"),
            (Open::ArrayValue, _) => self.fail(byte, "after array element"),
        }
    }

    fn go_on(&mut self, state: State) -> Step {
        self.state = state;
        Step::Continue
    }

    fn fail(&mut self, byte: u8, context: &str) -> Step {
        self.state = State::Error;
        self.error = Some(Malformed(format!("invalid character {} {context}", quoted(byte))));
        Step::Error
    }
}

pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// A byte as Go shows a character.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        _ => {
            let quoted = go::quote(&char::from(byte).to_string());
            format!("'{}'", &quoted[1..quoted.len() - 1])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value of a text, given in pieces of each size, and how it ends.
    fn check(text: &[u8], expected: &[&str], end: Option<&str>) {
        for step in 1..=text.len().max(1) {
            let mut values = Values::new(1 << 20);
            let mut found = Vec::new();
            let mut broken = None;
            'pieces: for piece in text.chunks(step) {
                values.push(piece);
                loop {
                    match values.next() {
                        Ok(Some(value)) => found.push(String::from_utf8_lossy(&value).into_owned()),
                        Ok(None) => break,
                        Err(error) => {
                            broken = Some(error);
                            break 'pieces;
                        }
                    }
                }
            }
            while broken.is_none() {
                match values.finish() {
                    Ok(Some(value)) => found.push(String::from_utf8_lossy(&value).into_owned()),
                    Ok(None) => break,
                    Err(error) => broken = Some(error),
                }
            }
            let words = end.map(|end| Broken::Malformed(Malformed(end.to_owned())));
            let text = String::from_utf8_lossy(text);
            assert_eq!((found, broken), (expected.iter().map(|one| (*one).to_owned()).collect(), words), "{text}");
        }
    }

    #[test]
    fn values_are_cut_wherever_their_bytes_are_and_blanks_are_left_out() {
        check(b"", &[], None);
        check(b" \n\t", &[], None);
        check(b"{} {\"a\":[1,2.5e+3,-0]}\n[]null 12", &["{}", "{\"a\":[1,2.5e+3,-0]}", "[]", "null", "12"], None);
        check(br#"{"a":"\u00e9\"}"}{"b":true}"#, &[r#"{"a":"\u00e9\"}"}"#, r#"{"b":true}"#], None);
    }

    #[test]
    fn what_is_no_json_is_told_in_gos_words() {
        for (text, expected) in [
            ("xx", "invalid character 'x' looking for beginning of value"),
            ("{\"a\":}", "invalid character '}' looking for beginning of value"),
            ("{'a'", "invalid character '\\'' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 1}", "invalid character '1' after object key:value pair"),
            ("[1 \"", "invalid character '\"' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{\"a\":\"\n\"}", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u00g0\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("nulx", "invalid character 'x' in literal null (expecting 'l')"),
            ("{", "unexpected EOF"),
            ("tru", "unexpected EOF"),
            ("\"", "unexpected EOF"),
        ] {
            check(text.as_bytes(), &[], Some(expected));
        }
        check(b"{}x", &["{}"], Some("invalid character 'x' looking for beginning of value"));
        check(b"\xe9", &[], Some("invalid character '\u{e9}' looking for beginning of value"));
    }

    #[test]
    fn a_value_that_has_no_end_is_given_up_at_the_limit() {
        let mut values = Values::new(100);
        values.push(b"   ");
        assert_eq!(values.next(), Ok(None));
        values.push(&[b'['; 101]);
        assert_eq!(values.next(), Err(Broken::TooLarge(101)));
        let mut values = Values::new(100);
        values.push("{} ".repeat(1_000).as_bytes());
        let given = std::iter::from_fn(|| values.next().expect("what is given out counts no more")).count();
        assert_eq!(given, 1_000);
        let mut values = Values::new(1 << 20);
        values.push(&[b'['; MAX_NESTING + 1]);
        let deep = Malformed("invalid character '[' exceeded max depth".to_owned());
        assert_eq!(values.next(), Err(Broken::Malformed(deep)));
    }
}
