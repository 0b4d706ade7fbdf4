//! What is read as which message, what is refused in which words, and that no damage does harm.

use std::sync::LazyLock;

use etcd_proxy_proto::{etcdserverpb as pb, mvccpb};
use prost::Message;

use super::*;
use crate::json::{
    encode,
    scan::{Broken, Values},
    schema::Schema,
};

static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::of_etcd);

fn input(path: &str) -> MessageDescriptor {
    SCHEMA.find(path).expect("a path of etcd's").input.clone()
}

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(path: &str, text: &str, expected: M) {
    let read = message(&input(path), text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(M::decode(read.as_slice()).expect("a whole message"), expected, "{text}");
}

fn refused(path: &str, text: impl AsRef<[u8]>, expected: &str) {
    let text = text.as_ref();
    let error = message(&input(path), text).expect_err("it is wrong");
    assert_eq!(error.0, expected, "{}", String::from_utf8_lossy(text));
}

#[test]
fn requests_are_read_by_either_name_and_in_either_spelling() {
    let range = pb::RangeRequest { key: "foo".into(), range_end: "fop".into(), limit: 5, ..Default::default() };
    check("/v3/kv/range", r#"{"key":"Zm9v","range_end":"Zm9w","limit":"5"}"#, range.clone());
    check("/v3/kv/range", r#"{"key":"Zm9v","rangeEnd":"Zm9w","limit":5}"#, range.clone());
    check(
        "/v3/kv/range",
        "{\"key\" : \"Zm9v\",\n\"rangeEnd\":\"Zm9w\", \"limit\":5.0, \"other\":[{\"a\":{}}, 1]}",
        range,
    );
    let sorted = pb::RangeRequest { sort_order: 2, sort_target: 1, serializable: true, ..Default::default() };
    check("/v3/kv/range", r#"{"sort_order":"DESCEND","sort_target":1,"serializable":true}"#, sorted.clone());
    check("/v3/kv/range", r#"{"sort_order":2,"sortTarget":"VERSION","serializable":true,"revision":null}"#, sorted);
    check("/v3/kv/range", r#"{"sort_order":"BOGUS"}"#, pb::RangeRequest::default());
    check("/v3/kv/range", "{}", pb::RangeRequest::default());
    let grant = pb::LeaseGrantRequest { ttl: -1, id: i64::MIN };
    check("/v3/lease/grant", r#"{"TTL":"-1","ID":"-9223372036854775808"}"#, grant);
    let filters = pb::WatchCreateRequest { filters: vec![0, 1], key: "\u{0}".into(), ..Default::default() };
    let union = pb::watch_request::RequestUnion::CreateRequest(filters);
    check(
        "/v3/watch",
        r#"{"create_request":{"filters":["NOPUT",1,"BOGUS"],"key":"AA=="}}"#,
        pb::WatchRequest { request_union: Some(union) },
    );
    let empty = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    check("/v3/watch", r#"{"progress_request":{}}"#, pb::WatchRequest { request_union: Some(empty) });
    let user = pb::AuthUserAddRequest { name: "né\u{1f600}\n".to_owned(), ..Default::default() };
    check("/v3/auth/user/add", r#"{"name":"n\u00e9\ud83d\ude00\n"}"#, user);
    let urls = pb::MemberAddRequest { peer_ur_ls: vec!["http://a".to_owned(), String::new()], is_learner: false };
    check("/v3/cluster/member/add", r#"{"peerURLs":["http://a",""],"isLearner":false}"#, urls);
}

#[test]
fn a_choice_keeps_a_value_that_is_zero() {
    let compare =
        pb::Compare { key: "a".into(), target_union: Some(pb::compare::TargetUnion::Version(0)), ..Default::default() };
    let txn = pb::TxnRequest { compare: vec![compare], ..Default::default() };
    check("/v3/kv/txn", r#"{"compare":[{"key":"YQ==","version":"0"}]}"#, txn);
}

#[test]
fn what_is_no_request_is_told_in_protojsons_words() {
    for (text, expected) in [
        (r#"{"key":1}"#, "proto: (line 1:8): invalid value for bytes field key: 1"),
        (r#"{"key":"?"}"#, "proto: (line 1:8): invalid value for bytes field key: \"?\""),
        (r#"{"key":{}}"#, "proto: (line 1:8): invalid value for bytes field key: {"),
        ("{\n\"é\":0, \"limit\":\"x\"}", "proto: (line 2:16): invalid value for int64 field limit: \"x\""),
        (r#"{"limit":1.5}"#, "proto: (line 1:10): invalid value for int64 field limit: 1.5"),
        (r#"{"limit":" 1"}"#, "proto: (line 1:10): invalid value for int64 field limit: \" 1\""),
        (r#"{"range_end":[]}"#, "proto: (line 1:14): invalid value for bytes field rangeEnd: ["),
        (r#"{"sort_order":true}"#, "proto: (line 1:15): invalid value for enum field sortOrder: true"),
        (r#"{"serializable":"true"}"#, "proto: (line 1:17): invalid value for bool field serializable: \"true\""),
        (r#"{"key":"","key":""}"#, "proto: (line 1:11): duplicate field \"key\""),
        (r#"{"range_end":null,"rangeEnd":""}"#, "proto: (line 1:19): duplicate field \"rangeEnd\""),
        ("[]", "proto: syntax error (line 1:1): unexpected token ["),
        ("null", "proto: syntax error (line 1:1): unexpected token null"),
        ("\"x\"", "proto: syntax error (line 1:1): unexpected token \"x\""),
        ("12", "proto: syntax error (line 1:1): unexpected token 12"),
        (r#"{"other":"\ud800"}"#, "proto: unexpected EOF"),
        (r#"{"other":"\ud800abcdefg"}"#, "proto: syntax error (line 1:10): invalid escape code \"abcdef\" in string"),
        (r#"{"other":"\ud800\u0041"}"#, "proto: syntax error (line 1:10): invalid escape code \"\\\\u0041\" in string"),
    ] {
        refused("/v3/kv/range", text, expected);
    }
    refused("/v3/kv/range", b"{\"a\":\"\xff\"}", "proto: syntax error (line 1:6): invalid UTF-8 in string");
    refused("/v3/kv/txn", r#"{"compare":{}}"#, "proto: syntax error (line 1:12): unexpected token {");
    refused("/v3/kv/txn", r#"{"compare":[null]}"#, "proto: syntax error (line 1:13): unexpected token null");
    refused(
        "/v3/watch",
        r#"{"create_request":{},"cancel_request":{}}"#,
        "proto: (line 1:22): error parsing \"cancel_request\", oneof etcdserverpb.WatchRequest.request_union is already set",
    );
}

#[test]
fn messages_within_messages_end_somewhere() {
    let nested = |depth: usize| {
        let open = r#"{"success":[{"request_txn":"#.repeat(depth);
        format!("{open}{{}}{}", "}]}".repeat(depth))
    };
    message(&input("/v3/kv/txn"), nested(40).as_bytes()).expect("it is not too deep");
    refused("/v3/kv/txn", nested(60), "proto: exceeded max recursion depth");
    refused("/v3/kv/txn", nested(3_000), "proto: exceeded max recursion depth");
}

/// What a client could send, for each RPC one message that says something.
const SAMPLES: [(&str, &str); 5] = [
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy","lease":"7587","prev_kv":true}"#),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",\n\"sort_order\":\"ASCEND\",\"limit\":1.0e2,\"x\":[{\"y\":null}]}"),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"target":"VERSION","key":"YQ==","version":"0"}],"success":[{"request_put":{"key":"YQ=="}}]}"#,
    ),
    ("/v3/watch", r#"{"create_request":{"key":"YQ==","filters":["NOPUT"],"start_revision":"5"}}{"cancel_request":{}}"#),
    ("/v3/auth/user/add", r#"{"name":"n\u00e9\ud83d\ude00","options":{"no_password":true}}"#),
];

/// Everything that a request goes through, as far as it goes.
fn read_all(descriptor: &MessageDescriptor, text: &[u8], pieces: usize) -> Result<Vec<Vec<u8>>, String> {
    const LIMIT: usize = 64 << 10;
    let mut values = Values::new(LIMIT);
    let mut found = Vec::new();
    let words = |broken| match broken {
        Broken::Malformed(error) => error.0,
        Broken::TooLarge(size) => format!("{size} bytes"),
    };
    for piece in text.chunks(pieces.max(1)) {
        values.push(piece);
        while let Some(value) = values.next().map_err(words)? {
            found.push(message(descriptor, &value).map_err(|error| error.0)?);
        }
    }
    while let Some(value) = values.finish().map_err(words)? {
        found.push(message(descriptor, &value).map_err(|error| error.0)?);
    }
    Ok(found)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2_000))]

    /// Whatever is done to a request, it is read to the same end wherever it is cut, what was read is a message, and
    /// nothing panics.
    #[test]
    fn a_damaged_request_is_read_or_refused(
        sample in 0..SAMPLES.len(),
        edits in proptest::collection::vec((proptest::num::usize::ANY, 0..4_u8, proptest::num::u8::ANY), 0..6),
        pieces in 1..40_usize,
    ) {
        let (path, text) = SAMPLES[sample];
        let mut text = text.as_bytes().to_vec();
        for (place, how, byte) in edits {
            let at = place % text.len().max(1);
            match how {
                0 if at < text.len() => text[at] = byte,
                1 if at < text.len() => { text.remove(at); }
                2 => text.truncate(at),
                _ => text.insert(at.min(text.len()), byte),
            }
        }
        let descriptor = input(path);
        let whole = read_all(&descriptor, &text, text.len());
        proptest::prop_assert_eq!(&read_all(&descriptor, &text, pieces), &whole);
        for read in whole.unwrap_or_default() {
            encode::message(&descriptor, read.into(), encode::Place::Answer).expect("what was read is a message");
        }
    }

    /// What is written here is read here as the same message.
    #[test]
    fn what_is_written_is_read_back(
        key in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        value in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        lease in proptest::num::i64::ANY,
        prev_kv in proptest::bool::ANY,
    ) {
        let put = pb::PutRequest { key: key.into(), value: value.into(), lease, prev_kv, ..Default::default() };
        let descriptor = input("/v3/kv/put");
        for place in [encode::Place::Answer, encode::Place::Stream] {
            let text = encode::message(&descriptor, put.encode_to_vec().into(), place).expect("a whole message");
            let read = message(&descriptor, text.as_bytes()).expect("it was written here");
            proptest::prop_assert_eq!(pb::PutRequest::decode(read.as_slice()).expect("a whole message"), put.clone());
        }
    }
}

#[test]
fn an_event_within_an_answer_is_written_with_its_kind() {
    let event = mvccpb::Event { r#type: 1, ..Default::default() };
    let answer = pb::WatchResponse { events: vec![event], ..Default::default() };
    let output = SCHEMA.find("/v3/watch").expect("a path of etcd's").output.clone();
    let line = encode::result_line(&output, answer.encode_to_vec().into()).expect("a whole message");
    assert_eq!(line, "{\"result\":{\"events\":[{\"type\":\"DELETE\"}]}}\n");
}
