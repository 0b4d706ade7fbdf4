//! Damaged JSON becomes a message or a refusal, and what becomes a message can be written as JSON again.

use bytes::Bytes;

use super::{
    decode,
    encode::{self, Place},
    path,
    scan::Values,
    schema::Schema,
};
use crate::foreign::damaged;

/// The largest value that is taken here.
const LIMIT: usize = 1 << 20;

const TEXTS: [(&str, &[u8]); 4] = [
    ("/v3/kv/put", br#"{"key":"Zm9v","value":"YmFy","lease":"9223372036854775807","prev_kv":true,"unknown":[1,{"a":null}]}"#),
    (
        "/v3/kv/txn",
        br#"{"compare":[{"result":"EQUAL","target":1,"key":"Zm9v","version":"1"}],"success":[{"request_txn":{"failure":[{"request_range":{"key":"Zg==","limit":1e2}}]}}]}"#,
    ),
    ("/v3/watch", b"{\"create_request\":{\"key\":\"Zm9v\",\"filters\":[\"NOPUT\",1]}}\n {\"cancel_request\":{\"watch_id\":-1}}"),
    ("/v3/lease/grant", "{\"TTL\":\"\\u0031\\ud83d\\ude00\",\"ID\":0.0}".as_bytes()),
];

#[test]
fn damaged_json_is_read_or_refused_wherever_it_is_cut() {
    let schema = Schema::of_etcd();
    let inputs = TEXTS.map(|(_, text)| text);
    let values = |bytes: &[u8], step: usize| {
        let (mut values, mut found) = (Values::new(LIMIT), Vec::new());
        for piece in bytes.chunks(step.max(1)) {
            values.push(piece);
            loop {
                match values.next() {
                    Ok(Some(value)) => found.push(value),
                    Ok(None) => break,
                    Err(_) => return found,
                }
            }
        }
        while let Ok(Some(value)) = values.finish() {
            found.push(value);
        }
        found
    };
    damaged(&inputs, |bytes| {
        let whole = values(bytes, bytes.len());
        assert_eq!(whole, values(bytes, 5));
        for value in whole {
            for (path, _) in TEXTS {
                let message = &schema.find(path).expect("a path of etcd's").input;
                if let Ok(read) = decode::message(message, &value) {
                    encode::message(message, read.into(), Place::Answer).expect("what was read can be written");
                }
            }
        }
    });
}

#[test]
fn damaged_answers_are_written_or_withheld() {
    let schema = Schema::of_etcd();
    let output = &schema.find("/v3/kv/range").expect("a path of etcd's").output;
    let answer: &[u8] = b"\x0a\x04\x08\x01\x10\x02\x12\x0a\x0a\x03foo\x2a\x03bar\x18\x01\x20\x01";
    damaged(&[answer], |bytes| encode::message(output, Bytes::copy_from_slice(bytes), Place::Answer).map(drop));
}

#[test]
fn damaged_paths_are_decoded_and_escaped() {
    let paths: [&[u8]; 2] = [b"/v3/kv/%72ange?a=b#c", "/v3/\u{e9}%C3%A9%+f".as_bytes()];
    damaged(&paths, |bytes| {
        let decoded = path::decoded(&String::from_utf8_lossy(bytes));
        assert_eq!(path::decoded(&path::escaped(&decoded)), decoded);
    });
}
