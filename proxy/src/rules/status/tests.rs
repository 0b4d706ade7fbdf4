//! The words and codes, as they stand on the wire.

use super::*;

#[test]
fn http_errors_have_the_codes_of_grpc_s_table() {
    for (http_status, code, words) in [
        (400, Code::Internal, "400 (Bad Request)"),
        (404, Code::Unimplemented, "404 (Not Found)"),
        (503, Code::Unavailable, "503 (Service Unavailable)"),
        (500, Code::Unknown, "500 (Internal Server Error)"),
    ] {
        let status = not_grpc_answer(http::StatusCode::from_u16(http_status).expect("a status of HTTP"));
        assert_eq!((status.code(), status.message()), (code, &*format!("{NOT_GRPC_ANSWER}: {words}")));
    }
}

#[test]
fn words_are_spelled_as_grpc_go_spells_them() {
    for (words, spelled) in
        [("etcdserver: no leader", "etcdserver: no leader"), ("100%\n", "100%25%0A"), ("\u{e9}~", "%C3%A9~"), ("", "")]
    {
        let trailers = trailers(&Status::internal(words));
        assert_eq!(trailers["grpc-message"], spelled);
        assert_eq!(trailers["grpc-status"], "13");
        assert_eq!(of_trailers(&trailers).expect("a status").message(), words);
    }
}

#[test]
fn who_is_refused_for_a_time_is_told_how_long_in_three_ways() {
    let wait = std::time::Duration::from_millis(1500);
    let trailers = trailers(&exhausted(Exceeded { limit: Limit::RequestRate, wait }));
    let status = of_trailers(&trailers).expect("a status");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("etcdserver: too many requests"), "{status:?}");
    assert!(status.message().ends_with("try again in 1500ms"), "{status:?}");
    assert_eq!(trailers["retry-after"], "2");
    let details = RichStatus::decode(status.details()).expect("google.rpc.Status");
    assert_eq!((details.code, details.message.as_str()), (8, status.message()));
    let retry = RetryInfo::decode(&details.details[0].value[..]).expect("RetryInfo");
    assert_eq!(retry.retry_delay, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }));
}

#[test]
fn each_code_has_the_http_status_that_grpc_gateway_gives_it() {
    let expected = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401];
    for (code, expected) in (0..).zip(expected) {
        assert_eq!(http_status(Code::from_i32(code)), expected, "{code}");
    }
}

#[test]
fn details_that_are_no_base64_do_no_harm() {
    for details in ["????", "a", "aGk", "aGk=", "a\u{ff}"] {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("5"));
        trailers.insert("grpc-message", HeaderValue::from_static("lost%zz"));
        let details = HeaderValue::from_bytes(details.as_bytes()).expect("a value");
        trailers.insert(DETAILS, details);
        let status = of_trailers(&trailers).expect("a status");
        assert_eq!((status.code(), status.message()), (Code::NotFound, "lost%zz"));
    }
}
