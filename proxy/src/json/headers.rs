//! HTTP's headers as gRPC's metadata and back, as grpc-gateway passes them.

use std::{net::SocketAddr, time::Duration};

use base64::{
    DecodeError, Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

use crate::rules::status::{self, Status};

/// What of a request's headers travels on.
#[derive(Debug)]
pub struct Metadata {
    pub headers: HeaderMap,
    /// How long the caller will wait; none is for ever.
    pub timeout: Option<Duration>,
}

const METADATA: &str = "grpc-metadata-";
const TRAILER: &str = "grpc-trailer-";
const GATEWAY: &str = "grpcgateway-";
const TIMEOUT: &str = "grpc-timeout";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What IANA lists as permanent request headers, in grpc-gateway's view.
const PERMANENT: [&str; 24] = [
    "accept",
    "accept-charset",
    "accept-language",
    "accept-ranges",
    "authorization",
    "cache-control",
    "content-type",
    "cookie",
    "date",
    "expect",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-schedule-tag-match",
    "if-unmodified-since",
    "max-forwards",
    "origin",
    "pragma",
    "referer",
    "user-agent",
    "via",
    "warning",
];

/// Metadata that is gRPC's own, which grpc-go neither sends nor shows for its caller.
fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "content-type" | "user-agent" | "te" | "host" | "connection" | "content-length" | "transfer-encoding"
    ) || (name.starts_with("grpc-") && !name.starts_with("grpc-gateway"))
}

/// The metadata of a request, or why it has none.
pub fn to_grpc(headers: &HeaderMap, host: Option<&str>, peer: Option<SocketAddr>) -> Result<Metadata, Status> {
    let mut metadata = HeaderMap::with_capacity(headers.len() + 4);
    let timeout = headers.get(TIMEOUT).filter(|value| !value.is_empty()).map(timeout).transpose()?.flatten();
    for (name, value) in headers {
        let key = name.as_str();
        if *name == FORWARDED_FOR || *name == FORWARDED_HOST {
            continue;
        }
        if key == "authorization" {
            add(&mut metadata, key, value);
        }
        let target = if PERMANENT.contains(&key) {
            format!("{GATEWAY}{key}")
        } else if let Some(rest) = key.strip_prefix(METADATA).filter(|rest| !is_reserved(rest)) {
            rest.to_owned()
        } else {
            continue;
        };
        if key.ends_with("-bin") {
            let binary = binary(value).map_err(|why| status::bad_binary_header(&canonical(name), &why))?;
            add(&mut metadata, &target, &binary);
        } else {
            add(&mut metadata, &target, value);
        }
    }
    if let Some(host) = headers.get(&FORWARDED_HOST).and_then(|host| host.to_str().ok()).or(host)
        && let Ok(host) = HeaderValue::from_str(host)
    {
        metadata.insert(FORWARDED_HOST, host);
    }
    let forwarded = headers.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok().map(str::to_owned));
    let forwarded: Vec<String> = forwarded.chain(peer.map(|peer| peer.ip().to_string())).collect();
    if let Ok(forwarded) = HeaderValue::try_from(forwarded.join(", "))
        && !forwarded.is_empty()
    {
        metadata.insert(FORWARDED_FOR, forwarded);
    }
    Ok(Metadata { headers: metadata, timeout })
}

/// Metadata must be printable ASCII under a plain name; what is not stays behind.
fn add(metadata: &mut HeaderMap, name: &str, value: &HeaderValue) {
    let plain_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    let printable = value.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte));
    if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
        && plain_name
        && printable
    {
        metadata.append(name, value.clone());
    }
}

/// A binary header as gRPC has it on the wire, which is base64 without padding.
fn binary(value: &HeaderValue) -> Result<HeaderValue, String> {
    let text = value.as_bytes();
    let decoded = if text.len().is_multiple_of(4) { STANDARD.decode(text) } else { STANDARD_NO_PAD.decode(text) };
    let decoded = decoded.map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
        };
        format!("illegal base64 data at input byte {at}")
    })?;
    Ok(HeaderValue::try_from(STANDARD_NO_PAD.encode(decoded)).expect("base64 is printable ASCII"))
}

/// A name as Go spells it.
pub fn canonical(name: &HeaderName) -> String {
    let words = name.as_str().split('-').map(|word| {
        let mut letters = word.chars();
        letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    });
    words.collect::<Vec<_>>().join("-")
}

/// `Grpc-Timeout`: none for zero, and at once for what is below it.
fn timeout(value: &HeaderValue) -> Result<Option<Duration>, Status> {
    let text = String::from_utf8_lossy(value.as_bytes());
    let refused = || status::bad_timeout(&text);
    let unit = text.chars().last().filter(|_| text.len() >= 2).ok_or_else(refused)?;
    let nanos: i64 = match unit {
        'H' => 3_600_000_000_000,
        'M' => 60_000_000_000,
        'S' => 1_000_000_000,
        'm' => 1_000_000,
        'u' => 1_000,
        'n' => 1,
        _ => return Err(refused()),
    };
    let amount: i64 = text[..text.len() - 1].parse().map_err(|_| refused())?;
    match u64::try_from(nanos.saturating_mul(amount)) {
        Ok(0) => Ok(None),
        Ok(nanos) => Ok(Some(Duration::from_nanos(nanos))),
        Err(_) => Err(status::deadline_exceeded()),
    }
}

/// A timeout as gRPC has it on the wire: at most eight digits and a unit.
pub fn grpc_timeout(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let nanos = timeout.as_nanos();
    let units = [('n', 1), ('u', 1_000), ('m', 1_000_000), ('S', 1_000_000_000), ('M', 60_000_000_000)];
    let fitting = units.into_iter().find(|(_, size)| nanos.div_ceil(*size) <= MOST);
    let (unit, size) = fitting.unwrap_or(('H', 3_600_000_000_000));
    let text = format!("{}{unit}", nanos.div_ceil(size).min(MOST));
    HeaderValue::try_from(text).expect("digits and a letter are a header value")
}

/// The headers of an answer.
pub fn to_http(metadata: &HeaderMap, headers: &mut HeaderMap) {
    prefixed(METADATA, metadata, headers);
}

/// The trailers of an answer, for those who take them.
pub fn trailers(metadata: &HeaderMap) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    prefixed(TRAILER, metadata, &mut trailers);
    trailers
}

/// grpc-go shows the content type among the metadata that came first, which are a failure's trailers.
fn prefixed(prefix: &str, metadata: &HeaderMap, headers: &mut HeaderMap) {
    for (name, value) in metadata {
        if (name == CONTENT_TYPE || !is_reserved(name.as_str()))
            && let Ok(name) = HeaderName::from_bytes(format!("{prefix}{name}").as_bytes())
        {
            headers.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, HeaderValue::from_str(value).expect("a value"))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            headers.append(name, value);
        }
        headers
    }

    fn check(lines: &[(&str, &str)], expected: &[(&str, &str)]) {
        let peer = "10.0.0.7:5".parse().ok();
        let metadata = to_grpc(&headers(lines), Some("etcd:2379"), peer).expect("good headers");
        let mut all: Vec<(&str, &str)> = metadata
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().expect("printable")))
            .filter(|(name, _)| lines.iter().any(|(line, _)| line.starts_with("x-f")) || !name.starts_with("x-f"))
            .collect();
        all.sort_unstable();
        assert_eq!(all, expected);
    }

    #[test]
    fn headers_become_metadata_as_grpc_gateway_has_it() {
        check(
            &[("Authorization", "t"), ("Accept", "*/*"), ("X-Other", "no"), ("Grpc-Metadata-Token", "u")],
            &[
                ("authorization", "t"),
                ("grpcgateway-accept", "*/*"),
                ("grpcgateway-authorization", "t"),
                ("token", "u"),
            ],
        );
        check(&[("Grpc-Metadata-Grpc-Status", "0"), ("Grpc-Metadata-Content-Type", "x"), ("Grpc-Metadata-", "x")], &[]);
        check(
            &[("Grpc-Metadata-A-Bin", "AQI="), ("Grpc-Metadata-B-Bin", "AQI")],
            &[("a-bin", "AQI"), ("b-bin", "AQI")],
        );
        check(
            &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8"), ("x-forwarded-host", "front")],
            &[("x-forwarded-for", "1.2.3.4, 5.6.7.8, 10.0.0.7"), ("x-forwarded-host", "front")],
        );
        check(
            &[("x-forwarded-for", "1.2.3.4")],
            &[("x-forwarded-for", "1.2.3.4, 10.0.0.7"), ("x-forwarded-host", "etcd:2379")],
        );
        let refused = to_grpc(&headers(&[("Grpc-Metadata-X-Bin", "!!!")]), None, None).expect_err("it is no base64");
        assert_eq!(refused.message(), "invalid binary header Grpc-Metadata-X-Bin: illegal base64 data at input byte 0");
    }

    #[test]
    fn timeouts_are_taken_in_every_unit_and_travel_in_at_most_eight_digits() {
        for (text, expected) in [
            ("1n", Some("1n")),
            ("5S", Some("5000000u")),
            ("250m", Some("250000u")),
            ("0S", None),
            ("", None),
            ("999999999n", Some("1000000u")),
            ("3H", Some("10800000m")),
            ("99999999H", Some("2562048H")),
        ] {
            let metadata = to_grpc(&headers(&[(TIMEOUT, text)]), None, None).expect("a good timeout");
            let found = metadata.timeout.map(grpc_timeout);
            assert_eq!(found.as_ref().and_then(|value| value.to_str().ok()), expected, "{text}");
        }
        for text in ["S", "5", "xx", "5X", "1.5S", "5é"] {
            let refused = to_grpc(&headers(&[]), None, None).and_then(|_| {
                let value = HeaderValue::from_bytes(text.as_bytes()).expect("a value");
                to_grpc(&HeaderMap::from_iter([(HeaderName::from_static(TIMEOUT), value)]), None, None)
            });
            assert_eq!(refused.expect_err("it is none").message(), format!("invalid grpc-timeout: {text}"));
        }
        let over = to_grpc(&headers(&[(TIMEOUT, "-5S")]), None, None).expect_err("it is over");
        assert_eq!(over.code(), status::Code::DeadlineExceeded);
    }

    #[test]
    fn metadata_of_an_answer_becomes_headers_and_trailers() {
        let metadata =
            headers(&[("content-type", "application/grpc"), ("grpc-status", "0"), ("x-a", "1"), ("x-a", "2")]);
        let mut shown = HeaderMap::new();
        to_http(&metadata, &mut shown);
        let expected = [
            ("grpc-metadata-content-type", "application/grpc"),
            ("grpc-metadata-x-a", "1"),
            ("grpc-metadata-x-a", "2"),
        ];
        assert_eq!(shown, headers(&expected));
        let expected = expected.map(|(name, value)| (name.replace("metadata", "trailer"), value));
        let expected: Vec<(&str, &str)> = expected.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(trailers(&metadata), headers(&expected));
    }
}
