//! Damaged JSON becomes a message or a refusal, and what becomes a message can be written as JSON again.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, ReadBuf};

use super::{
    decode,
    encode::{self, Place},
    path,
    scan::Values,
    schema::Schema,
    websocket,
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

/// A socket that gives so many bytes at a time.
struct Slowly {
    bytes: Bytes,
    step: usize,
}

impl AsyncRead for Slowly {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.step.min(self.bytes.len()).min(buffer.remaining());
        buffer.put_slice(&self.bytes.split_to(length));
        Poll::Ready(Ok(()))
    }
}

/// A frame as a client sends it, masked by a key of noughts and so in plain sight.
fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![head];
    match u8::try_from(payload.len()) {
        Ok(short @ 0..126) => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(payload.len()).expect("inputs are short").to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn damaged_frames_of_a_websocket_are_read_or_refused_wherever_they_are_cut() {
    const FINAL: u8 = 0x80;
    const TEXT: u8 = 1;
    const BINARY: u8 = 2;
    const CLOSE: u8 = 8;
    const PING: u8 = 9;
    let (whole, long) = (TEXTS[0].1, TEXTS[1].1.repeat(3));
    let (first, second) = whole.split_at(9);
    let inputs: [Vec<u8>; 4] = [
        [frame(FINAL | TEXT, whole), frame(FINAL | PING, b"ping"), frame(FINAL | BINARY, &long)].concat(),
        // One text in two parts, with a ping between them.
        [frame(TEXT, first), frame(FINAL | PING, b""), frame(FINAL, second)].concat(),
        [frame(FINAL | TEXT, TEXTS[3].1), frame(FINAL | CLOSE, b"\x03\xe8bye"), frame(FINAL | TEXT, whole)].concat(),
        // A length that is spelled in eight bytes.
        [&[FINAL | TEXT, 0xff, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0][..], b"{}"].concat(),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be built");
    let read = |bytes: &[u8], step: usize| {
        let socket = tokio::io::join(Slowly { bytes: Bytes::copy_from_slice(bytes), step }, tokio::io::sink());
        runtime.block_on(async {
            let (_, stream) = websocket::serving(socket, LIMIT).await.split();
            let lines = websocket::texts(stream).map(|line| line.expect("a text is a line"));
            lines.collect::<Vec<Bytes>>().await
        })
    };
    let [first, second, closed, _] = &inputs;
    assert_eq!(read(first, 3).len(), 2);
    assert_eq!(read(second, 3), [[whole, b"\n"].concat()]);
    assert_eq!(read(closed, 3).len(), 1);
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    damaged(&inputs, |bytes| {
        let lines = read(bytes, usize::MAX);
        assert_eq!(lines, read(bytes, 61));
        assert!(lines.iter().all(|line| line.len() <= bytes.len() + 1));
    });
}
