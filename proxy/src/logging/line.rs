//! One event as one line: the keys, their order and their spelling are those of etcd's zap encoder.

use std::cell::RefCell;
use std::error::Error;
use std::fmt::{self, Debug, Write};

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::Format;

/// A text longer than this is cut, so that one message of a client cannot fill the queue of lines.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// What a line's buffer keeps for the next one of its thread.
const KEPT_BYTES: usize = 16 << 10;

/// Makes the line in a buffer of this thread and hands it over.
pub(super) fn with_line(format: Format, event: &Event<'_>, then: impl FnOnce(&[u8])) {
    thread_local! {
        static BUFFERS: RefCell<Buffers> = RefCell::default();
    }
    BUFFERS.with(|buffers| match buffers.try_borrow_mut() {
        Ok(mut buffers) => buffers.write(format, event, then),
        // A field that logs while it is formatted, as a library's `Debug` might.
        Err(_) => Buffers::default().write(format, event, then),
    });
}

/// zap samples by message; this finds the message without formatting anything else.
pub(super) fn message_hash(event: &Event<'_>) -> u32 {
    let mut hash = MessageHash(Fnv(0x811c_9dc5));
    event.record(&mut hash);
    hash.0.0
}

/// The line that tells of dropped ones, written by the thread that drops them.
pub(super) fn dropped_notice(format: Format, dropped: u64, out: &mut Vec<u8>) {
    let fields = format!(",\"dropped\":{dropped}");
    let parts = Parts {
        level: Level::WARN,
        file: Some(file!()),
        line: Some(line!()),
        message: b"log lines were dropped, since stderr did not take them",
        fields: fields.as_bytes(),
    };
    parts.write(format, OffsetDateTime::now_utc(), out);
}

// === impl Buffers ===

#[derive(Default)]
struct Buffers {
    message: Vec<u8>,
    fields: Vec<u8>,
    line: Vec<u8>,
}

impl Buffers {
    fn write(&mut self, format: Format, event: &Event<'_>, then: impl FnOnce(&[u8])) {
        for buffer in [&mut self.message, &mut self.fields, &mut self.line] {
            buffer.clear();
            buffer.shrink_to(KEPT_BYTES);
        }
        event.record(&mut Fields { message: &mut self.message, fields: &mut self.fields });
        let metadata = event.metadata();
        let parts = Parts {
            level: *metadata.level(),
            file: metadata.file(),
            line: metadata.line(),
            message: &self.message,
            fields: &self.fields,
        };
        parts.write(format, OffsetDateTime::now_utc(), &mut self.line);
        then(&self.line);
    }
}

/// A line in parts. The message is escaped for JSON but has no quotes; each field has a comma before it.
struct Parts<'a> {
    level: Level,
    file: Option<&'a str>,
    line: Option<u32>,
    message: &'a [u8],
    fields: &'a [u8],
}

impl Parts<'_> {
    fn write(&self, format: Format, now: OffsetDateTime, out: &mut Vec<u8>) {
        match format {
            Format::Json => {
                out.extend_from_slice(b"{\"level\":\"");
                out.extend_from_slice(level_name(self.level).as_bytes());
                out.extend_from_slice(b"\",\"ts\":\"");
                write_time(now, out);
                out.extend_from_slice(b"\",\"caller\":\"");
                self.write_caller(out);
                out.extend_from_slice(b"\",\"msg\":\"");
                out.extend_from_slice(self.message);
                out.push(b'"');
                out.extend_from_slice(self.fields);
                out.extend_from_slice(b"}\n");
            }
            Format::Text => {
                write_time(now, out);
                out.push(b'\t');
                out.extend_from_slice(level_name(self.level).as_bytes());
                out.push(b'\t');
                self.write_caller(out);
                out.push(b'\t');
                out.extend_from_slice(self.message);
                if let Some(fields) = self.fields.strip_prefix(b",") {
                    out.extend_from_slice(b"\t{");
                    out.extend_from_slice(fields);
                    out.push(b'}');
                }
                out.push(b'\n');
            }
        }
    }

    /// zap's short caller: the last folder, the file and the line. Cargo's `src` says nothing, so the crate stands for it.
    fn write_caller(&self, out: &mut Vec<u8>) {
        let Some(file) = self.file else {
            return out.extend_from_slice(b"undefined");
        };
        let mut parts = file.rsplit('/').filter(|part| *part != "src");
        let name = parts.next().unwrap_or_default();
        let mut text = Escaped::new(out);
        // Writing to a buffer does not fail.
        let _ = match parts.next() {
            Some(folder) => write!(text, "{folder}/{name}:{}", self.line.unwrap_or(0)),
            None => write!(text, "{name}:{}", self.line.unwrap_or(0)),
        };
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        // zap has nothing below debug.
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// `2006-01-02T15:04:05.000000Z0700`, which ends with a Z in UTC.
fn write_time(now: OffsetDateTime, out: &mut Vec<u8>) {
    let (date, time) = (now.date(), now.time());
    let text = format_args!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.microsecond()
    )
    .to_string();
    out.extend_from_slice(text.as_bytes());
}

// === impl Fields ===

/// Writes the message and the fields of an event as JSON.
struct Fields<'a> {
    message: &'a mut Vec<u8>,
    fields: &'a mut Vec<u8>,
}

impl Fields<'_> {
    fn key(&mut self, field: &Field) {
        // A field named by a keyword carries the mark of a raw identifier.
        let name = field.name();
        self.fields.extend_from_slice(b",\"");
        let _ = Escaped::new(self.fields).write_str(name.strip_prefix("r#").unwrap_or(name));
        self.fields.extend_from_slice(b"\":");
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            let _ = Escaped::new(self.message).write_fmt(value);
            return;
        }
        self.key(field);
        self.fields.push(b'"');
        let _ = Escaped::new(self.fields).write_fmt(value);
        self.fields.push(b'"');
    }

    fn bare(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.key(field);
        let _ = Escaped::new(self.fields).write_fmt(value);
    }
}

/// Fields that are lists of texts in etcd's lines. tracing has no lists, but Rust shows one of plain texts as JSON does.
const LISTS: [&str; 3] = ["args", "endpoints", "peer-urls"];
/// A longer list is written as a text, which is cut; a hundred endpoints are shorter.
const LONGEST_LIST: usize = 8 << 10;

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if LISTS.contains(&field.name()) {
            let list = format!("{value:?}");
            if list.len() <= LONGEST_LIST && serde_json::from_str::<Vec<String>>(&list).is_ok() {
                self.key(field);
                // It has just been read as JSON, so it needs no escapes.
                return self.fields.extend_from_slice(list.as_bytes());
            }
        }
        self.text(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, format_args!("{value}"));
    }

    /// JSON has no word for what is no number; zap writes these texts.
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.bare(field, format_args!("{value}"));
        } else if value.is_nan() {
            self.text(field, format_args!("NaN"));
        } else {
            self.text(field, format_args!("{}", if value > 0.0 { "+Inf" } else { "-Inf" }));
        }
    }

    /// The error with its causes, as Go's errors carry theirs in their text; a text that has its cause in it already
    /// does not get it twice.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        // Longer chains are loops.
        const MOST_CAUSES: usize = 16;
        let mut text = value.to_string();
        let causes = std::iter::successors(value.source(), |cause| (*cause).source());
        for cause in causes.take(MOST_CAUSES).map(ToString::to_string) {
            if !text.contains(&cause) {
                text.push_str(": ");
                text.push_str(&cause);
            }
        }
        self.text(field, format_args!("{text}"));
    }
}

// === impl Escaped ===

/// The inside of a JSON string, of bounded length. Formatting goes through it with no text in between.
struct Escaped<'a> {
    out: &'a mut Vec<u8>,
    left: usize,
}

impl<'a> Escaped<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Escaped { out, left: MAX_TEXT_BYTES }
    }
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.left == 0 {
            return Ok(());
        }
        let mut taken = text.len().min(self.left);
        while !text.is_char_boundary(taken) {
            taken -= 1;
        }
        self.left -= taken;
        for c in text[..taken].chars() {
            match c {
                '"' => self.out.extend_from_slice(b"\\\""),
                '\\' => self.out.extend_from_slice(b"\\\\"),
                '\n' => self.out.extend_from_slice(b"\\n"),
                '\r' => self.out.extend_from_slice(b"\\r"),
                '\t' => self.out.extend_from_slice(b"\\t"),
                c if c < ' ' || c == '\u{7f}' => {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    let code = c as usize;
                    self.out.extend_from_slice(b"\\u00");
                    self.out.extend_from_slice(&[HEX[code >> 4], HEX[code & 15]]);
                }
                c => self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if taken < text.len() {
            self.left = 0;
            self.out.extend_from_slice(b"...");
        }
        Ok(())
    }
}

// === impl MessageHash ===

struct MessageHash(Fnv);

impl Visit for MessageHash {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            let _ = self.0.write_str(value);
        }
    }

    // These would be formatted by default, for nothing.
    fn record_error(&mut self, _: &Field, _: &(dyn Error + 'static)) {}
    fn record_i64(&mut self, _: &Field, _: i64) {}
    fn record_u64(&mut self, _: &Field, _: u64) {}
    fn record_bool(&mut self, _: &Field, _: bool) {}
    fn record_f64(&mut self, _: &Field, _: f64) {}
}

/// FNV-1a of 32 bits, which is what zap counts by.
struct Fnv(u32);

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_the_last_folder_and_never_a_path_of_the_machine() {
        let callers = [
            (Some("proxy/src/server.rs"), "proxy/server.rs:7"),
            (Some("proxy/src/services/watch.rs"), "services/watch.rs:7"),
            (Some("/home/someone/registry/src/index-1/h2-0.4.20/src/codec/mod.rs"), "codec/mod.rs:7"),
            (Some("/home/someone/registry/src/index-1/h2-0.4.20/src/lib.rs"), "h2-0.4.20/lib.rs:7"),
            (Some("main.rs"), "main.rs:7"),
            (Some(""), ":7"),
            (None, "undefined"),
        ];
        for (file, caller) in callers {
            let mut out = Vec::new();
            Parts { level: Level::INFO, file, line: Some(7), message: b"", fields: b"" }.write_caller(&mut out);
            assert_eq!(String::from_utf8(out).expect("a text"), caller);
        }
    }
}
