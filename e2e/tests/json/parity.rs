//! One list of requests, sent to etcd's own gateway, through the proxy, and through the proxy with a namespace: status,
//! headers and body must be the same, byte for byte but for the blanks that Go's protojson puts in by the build.
//!
//! grpc-gateway 2, which etcd has from 3.6 on, is the measure. Before it refusals had another form, so of 3.5 only what
//! succeeds is compared, and of what fails the code and the words.

use std::fmt::Write as _;

use etcd_proxy_e2e::{Etcd, Proxy, Version};

use crate::raw::{self, Answer, Wire, request};

/// How a side reaches etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Proxied,
    Namespaced,
}

struct Side {
    /// Held so that they live; what they log is shown when the test fails.
    _etcd: Etcd,
    _proxy: Option<Proxy>,
    address: String,
}

fn start(version: Version, way: Way) -> Side {
    // Ids are made of the advertised peer URL, so they are the same everywhere; nobody connects to it.
    let peer = "http://127.0.0.1:2380";
    let etcd = Etcd::builder()
        .version(version)
        .flag(format!("--initial-advertise-peer-urls={peer}"))
        .flag(format!("--initial-cluster=m0={peer}"))
        .start();
    // With nothing to advertise, the proxy shows the members as they are.
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--advertise-client-url=");
    let proxy = match way {
        Way::Direct => None,
        Way::Proxied => Some(proxy.start()),
        Way::Namespaced => Some(proxy.flag("--namespace=tenant/").start()),
    };
    let address = proxy.as_ref().map_or(etcd.address(), Proxy::address).to_owned();
    Side { _etcd: etcd, _proxy: proxy, address }
}

/// Which versions answer in the same form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Always,
    /// From 3.6 on.
    Gateway2,
}

struct Case {
    name: &'static str,
    form: Form,
    bytes: Vec<u8>,
    /// Of an answer that does not end, so many lines are read.
    lines: Option<usize>,
}

fn post(name: &'static str, path: &str, body: &str) -> Case {
    with(name, path, &[], body)
}

fn with(name: &'static str, path: &str, headers: &[&str], body: &str) -> Case {
    any(name, "POST", path, headers, body.as_bytes())
}

fn any(name: &'static str, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Case {
    Case { name, form: Form::Always, bytes: request(method, path, headers, body), lines: None }
}

/// [`RANGE`] in pieces that are said to be so long.
fn chunked(name: &'static str, path: &str, encoding: &str, lengths: [&str; 3]) -> Case {
    let mut bytes = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {encoding}\r\n\r\n");
    let (first, second) = RANGE.split_at(10);
    for (length, piece) in lengths.into_iter().zip([first, second, ""]) {
        bytes.push_str(&format!("{length}\r\n{piece}\r\n"));
    }
    Case { name, form: Form::Always, bytes: bytes.into_bytes(), lines: None }
}

impl Case {
    fn of_gateway_2(self) -> Case {
        Case { form: Form::Gateway2, ..self }
    }

    fn lines(self, count: usize) -> Case {
        Case { lines: Some(count), ..self }
    }
}

const RANGE: &str = r#"{"key":"Zm9v"}"#;
const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

fn cases() -> Vec<Case> {
    let path = "/v3/kv/range";
    let range = |name, body: &str| post(name, path, body);
    let gzipped = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00\x43\xbf\xa6\xa3\x02\x00\x00\x00";
    vec![
        post("put", "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
        post("put by the other names", "/v3/kv/put", r#"{"key":"Zm9v","value":"BAR=","prevKv":true,"lease":"0"}"#),
        range("range", RANGE),
        range("a key in base64 for URLs", r#"{"key":"_-8"}"#).of_gateway_2(),
        range("range of all", r#"{"key":"AA==","range_end":"AA==","limit":"5","sort_order":"DESCEND","sort_target":1}"#),
        range("keys only", r#"{"key":"AA==","range_end":"AA==","keys_only":true,"serializable":true}"#),
        range("what is unknown", r#"{"key":"Zm9v","bogus":[1,{"x":2}],"sort_order":null}"#),
        range("an enum's value that is unknown", r#"{"key":"Zm9v","sort_order":"BOGUS"}"#).of_gateway_2(),
        range("two requests where one is asked for", r#"{"key":"Zm9v"}{"key":"eA=="}"#),
        range("rubbish after the request", r#"{"key":"Zm9v"}xxxx"#),
        range("blanks", "\n\t {\r\n \"key\" : \"Zm9v\" } \n"),
        range("numbers in every spelling", r#"{"key":"Zm9v","limit":1.0e1,"revision":"2"}"#).of_gateway_2(),
        post("delete", "/v3/kv/deleterange", r#"{"key":"bm9uZQ==","prev_kv":true}"#),
        post(
            "txn",
            "/v3/kv/txn",
            r#"{"compare":[{"result":"GREATER","target":"CREATE","key":"Zm9v","createRevision":"0"}],
                "success":[{"requestRange":{"key":"Zm9v"}},{"request_put":{"key":"YQ==","value":"Yg=="}}],
                "failure":[{"request_delete_range":{"key":"Zm9v"}}]}"#,
        ),
        post("a txn without an operation", "/v3/kv/txn", r#"{"success":[{}]}"#),
        post("grant", "/v3/lease/grant", r#"{"TTL":"600","ID":"77"}"#),
        post("grant twice", "/v3/lease/grant", r#"{"TTL":600,"ID":77}"#),
        post("grant too long", "/v3/lease/grant", r#"{"TTL":"9000000001"}"#),
        post("put with a lease", "/v3/kv/put", r#"{"key":"bGVhc2Vk","lease":"77"}"#),
        post("time to live", "/v3/lease/timetolive", r#"{"ID":"78","keys":true}"#),
        post("leases", "/v3/lease/leases", "{}"),
        post("leases by the old path", "/v3/kv/lease/leases", "{}"),
        post("keep alive", "/v3/lease/keepalive", r#"{"ID":"77"}{"ID":"78"}"#),
        post("keep nothing alive", "/v3/lease/keepalive", "").of_gateway_2(),
        post("revoke", "/v3/kv/lease/revoke", r#"{"ID":"77"}"#),
        post("revoke again", "/v3/lease/revoke", r#"{"ID":"77"}"#),
        post("lock", "/v3/lock/unlock", r#"{"key":"bm9uZQ=="}"#),
        post("leader of nothing", "/v3/election/leader", r#"{"name":"Zm9v"}"#),
        post("resign from nothing", "/v3/election/resign", "{}"),
        post("members", "/v3/cluster/member/list", "{}"),
        post("remove a member", "/v3/cluster/member/remove", r#"{"ID":"5"}"#),
        post("promote a member", "/v3/cluster/member/promote", r#"{"ID":"5"}"#),
        post("alarms", "/v3/maintenance/alarm", r#"{"action":"GET","alarm":"NOSPACE"}"#),
        post("defragment", "/v3/maintenance/defragment", "{}"),
        post("move the leader", "/v3/maintenance/transfer-leadership", r#"{"targetID":"5"}"#),
        post("downgrade", "/v3/maintenance/downgrade", r#"{"action":"VALIDATE","version":"bogus"}"#),
        post("auth status", "/v3/auth/status", "{}"),
        post("authenticate without auth", "/v3/auth/authenticate", r#"{"name":"a","password":"b"}"#),
        post("a user", "/v3/auth/user/add", r#"{"name":"<n\u00e9>\ud83d\ude00","password":"p"}"#),
        post("users", "/v3/auth/user/list", "{}").of_gateway_2(),
        post("a user that there is not", "/v3/auth/user/get", r#"{"name":"x"}"#),
        post("a user again", "/v3/auth/user/add", r#"{"name":"<n\u00e9>\ud83d\ude00","password":"p"}"#),
        post("a role", "/v3/auth/role/add", r#"{"name":"r"}"#),
        post("compact", "/v3/kv/compaction", r#"{"revision":"3","physical":true}"#),
        post("compact again", "/v3/kv/compaction", r#"{"revision":"3"}"#),
        range("a revision that is compacted", r#"{"key":"Zm9v","revision":"2"}"#),
        range("a revision to come", r#"{"key":"Zm9v","revision":"1000"}"#),
        range("no key", "{}"),
        range("nothing", ""),
        range("null", "null").of_gateway_2(),
        range("an array", "[]").of_gateway_2(),
        range("a number for bytes", r#"{"key":1}"#).of_gateway_2(),
        range("no base64", r#"{"key":"?"}"#).of_gateway_2(),
        range("a text for a number", "{\n \"key\":\"Zm9v\",\n  \"limit\": \"x\"}").of_gateway_2(),
        range("a half", r#"{"limit":1.5}"#).of_gateway_2(),
        range("a number too large", r#"{"limit":"9223372036854775808"}"#).of_gateway_2(),
        range("a text for a truth", r#"{"serializable":"true"}"#).of_gateway_2(),
        range("a truth for an enum", r#"{"sort_order":true}"#).of_gateway_2(),
        range("a field twice", r#"{"key":"Zm9v","key":"Zm9v"}"#).of_gateway_2(),
        range("a field by both names", r#"{"range_end":"","rangeEnd":""}"#).of_gateway_2(),
        post("two of a choice", "/v3/kv/txn", r#"{"success":[{"request_put":{},"request_range":{}}]}"#).of_gateway_2(),
        post("an object for a list", "/v3/kv/txn", r#"{"compare":{}}"#).of_gateway_2(),
        post("null in a list", "/v3/kv/txn", r#"{"compare":[null]}"#).of_gateway_2(),
        any("bytes that are no text", "POST", path, &[], b"{\"a\":\"\xff\"}").of_gateway_2(),
        range("half a surrogate", r#"{"a":"\ud800\u0041"}"#).of_gateway_2(),
        range("no JSON", "xx"),
        range("a value missing", r#"{"key":}"#),
        range("a brace missing", r#"{"key":"Zm9v""#),
        range("a quote missing", r#"{"key":"Zm9v"#),
        range("a comma too many", r#"{"key":"Zm9v",}"#),
        range("a line break in a text", "{\"key\":\"Zm\n9v\"}"),
        range("an escape that is none", r#"{"key":"\x"}"#),
        range("a quote of the wrong kind", "{'key'"),
        any("gzip", "POST", path, &["Content-Encoding: gzip"], gzipped),
        with("an answer in gzip", path, &["Accept-Encoding: gzip"], RANGE),
        with("xml", path, &["Content-Type: text/xml"], RANGE),
        with("a form", path, &[FORM], RANGE),
        with("a form by another method", path, &[FORM, "X-HTTP-Method-Override: put"], RANGE).of_gateway_2(),
        with("a form by the same method", path, &[FORM, "X-HTTP-Method-Override: POST"], RANGE).of_gateway_2(),
        with("another method without a form", path, &["X-HTTP-Method-Override: PUT"], RANGE),
        with("trailers", path, &["TE: trailers"], RANGE).of_gateway_2(),
        with("trailers of a failure", path, &["TE: trailers"], "{}").of_gateway_2(),
        with("no time", path, &["Grpc-Timeout: 1n"], RANGE),
        with("less than no time", path, &["Grpc-Timeout: -5S"], RANGE),
        with("all time", path, &["Grpc-Timeout: 0S"], RANGE),
        with("enough time", path, &["Grpc-Timeout: 60S"], RANGE),
        with("a time that is none", path, &["Grpc-Timeout: xx"], RANGE),
        with("binary metadata", path, &["Grpc-Metadata-X-Bin: AQI="], RANGE),
        with("binary metadata that is none", path, &["Grpc-Metadata-X-Bin: !!!"], RANGE),
        with("metadata", path, &["Grpc-Metadata-X: y", "Grpc-Metadata-Grpc-Status: 5", "X-Forwarded-For: 1.2.3.4"], RANGE),
        with("a token where none is wanted", path, &["Authorization: x"], RANGE),
        with("a leader", path, &["Grpc-Metadata-Hasleader: true"], RANGE),
        with("waiting to be told to go on", path, &["Expect: 100-continue"], RANGE),
        with("waiting for what is not known", path, &["Expect: a-miracle"], RANGE),
        with("two hosts", path, &["Host: a", "Host: b"], RANGE),
        with("a host that is none", path, &["Host: a b"], RANGE),
        with("a host with a path", path, &["Host: a/b"], RANGE),
        chunked("a body in pieces", path, "Chunked", ["a", "4", "0"]),
        chunked("a body in pieces of pieces", path, "chunked, chunked", ["a", "4", "0"]),
        any("get", "GET", path, &[], b"").of_gateway_2(),
        any("head", "HEAD", path, &[], b"").of_gateway_2(),
        any("put as a method", "PUT", path, &[], b"{}").of_gateway_2(),
        any("options", "OPTIONS", path, &[], b""),
        any("options of what is not there", "OPTIONS", "/nothing", &[], b""),
        post("a path that is none", "/v3/kv/nothing", "{}").of_gateway_2(),
        any("a path that is none by get", "GET", "/v3/nothing", &[], b"").of_gateway_2(),
        post("a path with a verb", "/v3/kv/range:x", "{}").of_gateway_2(),
        post("a path with a verb only", "/v3/kv/:x", "{}").of_gateway_2(),
        post("a path with a slash", "/v3/kv/range/", "{}").of_gateway_2(),
        post("the root", "/v3/", "{}").of_gateway_2(),
        any("the root without a slash", "GET", "/v3", &[], b""),
        any("two slashes", "GET", "/v3//kv/range?a=b&c", &[], b""),
        post("two slashes by post", "/v3//kv/range", "{}"),
        post("dots", "/v3/x/../kv/./range", "{}"),
        post("percent signs", "/v3/kv/r%61nge", RANGE),
        post("a query", "/v3/kv/range?key=eA==", RANGE),
        post("the old name", "/v3beta/kv/range", RANGE),
        any("a connection that is to be upgraded", "GET", "/v3/watch", &["Connection: Upgrade", "Upgrade: websocket"], b""),
        post("watch", "/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":"4","prev_kv":true}}"#).lines(1),
        post("watch the past", "/v3/watch", r#"{"create_request":{"key":"YQ==","start_revision":"4"}}"#).lines(2),
        post("watch what is compacted", "/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":"1"}}"#).lines(2),
        post("watch by a chosen id", "/v3/watch", r#"{"create_request":{"key":"AA==","range_end":"AA==","watch_id":"5"}}"#)
            .lines(1),
        post("rubbish after a watch", "/v3/watch", r#"{"create_request":{"key":"Zm9v"}}zz"#).lines(1),
        post(
            "two watches and a cancel",
            "/v3/watch",
            r#"{"create_request":{"key":"YQ=="}} {"create_request":{"key":"Yg=="}} {"cancel_request":{"watch_id":"1"}}"#,
        )
        .lines(3),
        post("rubbish before a snapshot", "/v3/maintenance/snapshot", "xx"),
    ]
}

/// What a server says to a request.
fn said(address: &str, case: &Case) -> Answer {
    // Shown when the test fails.
    println!("{} at {address}", case.name);
    let Some(lines) = case.lines else { return raw::ask(address, &case.bytes) };
    let mut wire = Wire::connect(address);
    wire.send(&case.bytes);
    let head = wire.head();
    let body = (0..lines).map(|_| wire.line().unwrap_or_else(|| "(the end)".to_owned()) + "\n").collect();
    Answer { head, body, trailers: Vec::new() }
}

/// An answer without what Go chooses by the build, and without the addresses of the test.
fn normal(version: Version, answer: Answer, clients: &str) -> Answer {
    let mut body = String::new();
    let (mut in_text, mut escaped, mut after_comma) = (false, false, false);
    for character in answer.body.replace('\u{a0}', " ").replace(clients, "(etcd)").chars() {
        if !(after_comma && character == ' ') {
            body.push(character);
        }
        after_comma = !in_text && character == ',';
        match character {
            '"' if !escaped => in_text = !in_text,
            _ => (),
        }
        escaped = in_text && character == '\\' && !escaped;
    }
    if version == Version::V3_5 && answer.head.status >= 400 {
        // {"error":"...","code":5,"message":"..."}
        if let Some(at) = body.find(",\"code\":").filter(|_| body.starts_with("{\"error\":\"")) {
            body = format!("{{{}", &body[at + 1..]);
        }
    }
    Answer { body, ..answer }
}

fn compare(version: Version, ways: &[Way], script: impl Fn(&Side, Way) -> Vec<(String, Answer)>) {
    let direct = start(version, Way::Direct);
    let expected = script(&direct, Way::Direct);
    let mut differences = String::new();
    for way in ways {
        let side = start(version, *way);
        let found = script(&side, *way);
        assert_eq!(found.len(), expected.len());
        for ((name, expected), (_, found)) in expected.iter().zip(&found) {
            if found != expected {
                let _ = writeln!(differences, "{name}, {way:?}:\n  etcd says {expected:#?}\n  here {found:#?}");
            }
        }
    }
    assert!(differences.is_empty(), "{version:?}\n{differences}");
}

fn answers_are_those_of(version: Version) {
    compare(version, &[Way::Proxied, Way::Namespaced], |side, _| {
        let cases = cases().into_iter().filter(|case| version != Version::V3_5 || case.form == Form::Always);
        let answer = |case: &Case| normal(version, said(&side.address, case), side._etcd.address());
        cases.map(|case| (case.name.to_owned(), answer(&case))).collect()
    });
}

#[test]
fn answers_are_those_of_etcd_3_7() {
    answers_are_those_of(Version::V3_7);
}

#[test]
fn answers_are_those_of_etcd_3_6() {
    answers_are_those_of(Version::V3_6);
}

#[test]
fn what_succeeds_is_answered_as_by_etcd_3_5() {
    answers_are_those_of(Version::V3_5);
}

#[test]
fn with_auth_on_tokens_and_refusals_are_those_of_etcd() {
    compare(Version::V3_7, &[Way::Proxied], |side, _| {
        let mut said: Vec<(String, Answer)> = Vec::new();
        let mut ask = |name: &str, path: &str, headers: &[&str], body: &str| {
            let answer = raw::ask(&side.address, &request("POST", path, headers, body.as_bytes()));
            said.push((name.to_owned(), normal(Version::V3_7, answer.clone(), side._etcd.address())));
            answer
        };
        ask("root", "/v3/auth/user/add", &[], r#"{"name":"root","password":"p"}"#);
        ask("root's role", "/v3/auth/role/add", &[], r#"{"name":"root"}"#);
        ask("grant", "/v3/auth/user/grant", &[], r#"{"user":"root","role":"root"}"#);
        ask("guest", "/v3/auth/user/add", &[], r#"{"name":"guest","password":"p"}"#);
        ask("enable", "/v3/auth/enable", &[], "{}");
        ask("nobody", "/v3/kv/range", &[], RANGE);
        ask("nobody's stream", "/v3/maintenance/snapshot", &[], "{}");
        ask("a token that is none", "/v3/kv/range", &["Authorization: nonsense"], RANGE);
        ask("a stream with a token that is none", "/v3/maintenance/snapshot", &["Authorization: nonsense"], "{}");
        ask("a leader with a token that is none", "/v3/lease/keepalive", &["Authorization: x"], r#"{"ID":"5"}"#);
        ask("a password that is none", "/v3/auth/authenticate", &[], r#"{"name":"root","password":"x"}"#);
        let token = |name: &str| {
            let body = format!(r#"{{"name":"{name}","password":"p"}}"#);
            let answer = raw::post(&side.address, "/v3/auth/authenticate", &body);
            let token = answer.body.split("\"token\":").nth(1).and_then(|rest| rest.split('"').nth(1));
            format!("Authorization: {}", token.unwrap_or_else(|| panic!("no token in {answer:?}")))
        };
        let (root, guest) = (token("root"), token("guest"));
        ask("root writes", "/v3/kv/put", &[&root], r#"{"key":"Zm9v"}"#);
        ask("root reads", "/v3/kv/range", &[&root], RANGE);
        ask(
            "root reads with its token as metadata",
            "/v3/kv/range",
            &[&root.replace("Authorization", "Grpc-Metadata-Token")],
            RANGE,
        );
        ask("a guest may not", "/v3/kv/range", &[&guest], RANGE);
        ask("a guest's snapshot", "/v3/maintenance/snapshot", &[&guest], "{}");
        ask("disable", "/v3/auth/disable", &[&root], "{}");
        said
    });
}

#[test]
fn a_body_in_pieces_of_no_length_is_refused_as_malformed() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let bytes = chunked("", "/v3/kv/range", "chunked", ["a", "zz", "0"]).bytes;
    let said = [etcd.address(), proxy.address()].map(|address| {
        let answer = normal(Version::V3_7, raw::ask(address, &bytes), "-");
        (answer.head.status, answer.body)
    });
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].0, 400);
}

/// What the proxy's own list of paths has, the descriptors' of the newest etcd, is found at etcd too, and the other way
/// round nothing is missing.
#[test]
fn every_path_of_etcds_gateway_is_here_and_ranges_may_be_streamed() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let document = proxy.get("/openapi.json").body;
    let document: serde_json::Value = serde_json::from_str(&document).expect("it is JSON");
    let paths: Vec<&String> = document["paths"].as_object().expect("it has paths").keys().collect();
    assert!(paths.len() > 50, "{paths:?}");
    for path in paths {
        // A client's stream that begins with rubbish is left without an answer by etcd, and refused here.
        let is_stream = ["/v3/watch", "/v3/lease/keepalive"].contains(&path.as_str());
        let found = normal(Version::V3_7, raw::post(proxy.address(), path, "[]"), "-");
        assert_eq!(found.head.status, 400, "{path}: {found:?}");
        assert_eq!(
            found.body, r#"{"code":3,"message":"proto: syntax error (line 1:1): unexpected token ["}"#,
            "{path}"
        );
        let expected = if is_stream { found.clone() } else { raw::post(etcd.address(), path, "[]") };
        match path.as_str() {
            "/v3/kv/rangestream" => assert_eq!(expected.head.status, 404),
            _ => assert_eq!(normal(Version::V3_7, expected, "-"), found, "{path}"),
        }
    }
    raw::post(proxy.address(), "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#);
    let streamed = raw::post(proxy.address(), "/v3/kv/rangestream", RANGE);
    assert_eq!(streamed.head.status, 200, "{streamed:?}");
    assert!(streamed.body.starts_with(r#"{"result":{"#) && streamed.body.contains(r#""key":"Zm9v""#), "{streamed:?}");
}
