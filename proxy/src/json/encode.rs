//! A protobuf message as JSON, as protojson writes it for etcd's gateway: original field names, 64-bit numbers as
//! strings, bytes as base64, enums by name, and nothing for what is not set.

use std::fmt::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use prost::DecodeError;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::rules::status::Status;

/// Where a text goes, which decides how it is escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The whole answer.
    Answer,
    /// One of a stream's answers: these pass through Go's encoding/json as well, which also escapes what HTML would read.
    Stream,
}

/// Writes a message.
pub fn message(descriptor: &MessageDescriptor, message: Bytes, place: Place) -> Result<String, DecodeError> {
    let message = DynamicMessage::decode(descriptor.clone(), message)?;
    let mut out = String::new();
    write_message(&mut out, &message, place);
    Ok(out)
}

/// Writes one answer of a stream, as a line.
pub fn result_line(descriptor: &MessageDescriptor, bytes: Bytes) -> Result<String, DecodeError> {
    Ok(format!("{{\"result\":{}}}\n", message(descriptor, bytes, Place::Stream)?))
}

/// Writes the end of a stream that failed, as a line.
pub fn error_line(failure: &Status) -> String {
    format!("{{\"error\":{}}}\n", status(failure, Place::Stream))
}

/// Writes a status as `google.rpc.Status` has it.
pub fn status(status: &Status, place: Place) -> String {
    let mut out = format!("{{\"code\":{}", status.code() as i32);
    if !status.message().is_empty() {
        out.push_str(",\"message\":");
        write_string(&mut out, status.message(), place);
    }
    out.push('}');
    out
}

fn write_message(out: &mut String, message: &DynamicMessage, place: Place) {
    out.push('{');
    let mut first = true;
    // Those that are set, by number, which in etcd's messages is the order of declaration.
    for (field, value) in message.fields() {
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        write_string(out, field.name(), place);
        out.push(':');
        write_field(out, &field, value, place);
    }
    out.push('}');
}

fn write_field(out: &mut String, field: &FieldDescriptor, value: &Value, place: Place) {
    let Some(list) = value.as_list() else { return write_value(out, field, value, place) };
    out.push('[');
    for (index, value) in list.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_value(out, field, value, place);
    }
    out.push(']');
}

fn write_value(out: &mut String, field: &FieldDescriptor, value: &Value, place: Place) {
    // Writing to a String cannot fail.
    let _ = match value {
        Value::Message(message) => {
            write_message(out, message, place);
            Ok(())
        }
        Value::Bytes(bytes) => {
            out.push('"');
            STANDARD.encode_string(bytes, out);
            out.push('"');
            Ok(())
        }
        Value::String(text) => {
            write_string(out, text, place);
            Ok(())
        }
        Value::I64(number) => write!(out, "\"{number}\""),
        Value::U64(number) => write!(out, "\"{number}\""),
        Value::I32(number) => write!(out, "{number}"),
        Value::U32(number) => write!(out, "{number}"),
        Value::Bool(truth) => write!(out, "{truth}"),
        Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(names) if names.get_value(*number).is_some() => {
                let name = names.get_value(*number);
                write!(out, "\"{}\"", name.as_ref().map_or("", |name| name.name()))
            }
            _ => write!(out, "{number}"),
        },
        // No message of etcd's holds them, which a test of the schema sees to.
        Value::F32(_) | Value::F64(_) | Value::List(_) | Value::Map(_) => write!(out, "null"),
    };
}

fn write_string(out: &mut String, text: &str, place: Place) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..' ' => escape(out, character),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if place == Place::Stream => escape(out, character),
            _ => out.push(character),
        }
    }
    out.push('"');
}

fn escape(out: &mut String, character: char) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\\u{:04x}", u32::from(character));
}

#[cfg(test)]
mod tests {
    use etcd_proxy_proto::{etcdserverpb as pb, mvccpb};
    use prost::Message;

    use super::*;
    use crate::json::schema::Schema;

    fn check(path: &str, answer: &impl Message, expected: &str) {
        let schema = Schema::of_etcd();
        let output = &schema.find(path).expect("a path of etcd's").output;
        let written = message(output, answer.encode_to_vec().into(), Place::Answer).expect("a whole message");
        assert_eq!(written, expected);
        let line = result_line(output, answer.encode_to_vec().into()).expect("a whole message");
        assert_eq!(line, format!("{{\"result\":{expected}}}\n"));
    }

    #[test]
    fn answers_are_written_as_etcd_writes_them() {
        let header = pb::ResponseHeader { cluster_id: u64::MAX, member_id: 1, revision: 2, raft_term: 0 };
        let kv =
            mvccpb::KeyValue { key: "foo".into(), lease: -1, value: vec![0xff, 0xfe].into(), ..Default::default() };
        let answer = pb::RangeResponse { header: Some(header), kvs: vec![kv], more: true, count: 1 };
        check(
            "/v3/kv/range",
            &answer,
            "{\"header\":{\"cluster_id\":\"18446744073709551615\",\"member_id\":\"1\",\"revision\":\"2\"},\
             \"kvs\":[{\"key\":\"Zm9v\",\"value\":\"//4=\",\"lease\":\"-1\"}],\"more\":true,\"count\":\"1\"}",
        );
        check("/v3/kv/range", &pb::RangeResponse::default(), "{}");
        let empty = pb::RangeResponse { header: Some(pb::ResponseHeader::default()), ..Default::default() };
        check("/v3/kv/range", &empty, "{\"header\":{}}");
        let event = |kind| mvccpb::Event { r#type: kind, kv: None, prev_kv: None };
        let events = pb::WatchResponse { events: vec![event(0), event(1), event(7)], ..Default::default() };
        check("/v3/watch", &events, "{\"events\":[{},{\"type\":\"DELETE\"},{\"type\":7}]}");
        let hash = pb::HashKvResponse { hash: 7, ..Default::default() };
        check("/v3/maintenance/hashkv", &hash, "{\"hash\":7}");
    }

    #[test]
    fn texts_are_escaped_as_go_escapes_them() {
        let failure = Status::internal("a\"b\\c\n\u{1}\u{7f}<é>\u{2028}");
        assert_eq!(
            status(&failure, Place::Answer),
            "{\"code\":13,\"message\":\"a\\\"b\\\\c\\n\\u0001\u{7f}<é>\u{2028}\"}"
        );
        assert_eq!(
            error_line(&failure),
            "{\"error\":{\"code\":13,\"message\":\"a\\\"b\\\\c\\n\\u0001\u{7f}\\u003cé\\u003e\\u2028\"}}\n"
        );
        assert_eq!(status(&Status::unknown(""), Place::Answer), "{\"code\":2}");
    }

    #[test]
    fn an_answer_that_is_no_message_is_refused() {
        let schema = Schema::of_etcd();
        let output = &schema.find("/v3/kv/range").expect("a path of etcd's").output;
        assert!(message(output, Bytes::from_static(b"\x0a\x7f"), Place::Answer).is_err());
    }
}
