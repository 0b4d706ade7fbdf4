//! Web pages and names: the same flags at etcd and at the proxy give the same answers.

use etcd_proxy_e2e::{Etcd, Proxy};

use crate::raw::{Answer, ask, request};

fn both(flags: &[&str]) -> (Etcd, Proxy) {
    let etcd = flags.iter().fold(Etcd::builder(), |etcd, flag| etcd.flag(*flag)).start();
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flags(flags.iter().copied()).start();
    (etcd, proxy)
}

/// Both answers, without the blanks that Go's protojson puts in by the build.
fn compare(etcd: &Etcd, proxy: &Proxy, method: &str, path: &str, headers: &[&str]) -> Answer {
    let bytes = request(method, path, headers, b"");
    let plain = |address: &str| {
        let answer = ask(address, &bytes);
        Answer { body: answer.body.replace(", \"", ",\""), ..answer }
    };
    let (expected, found) = (plain(etcd.address()), plain(proxy.address()));
    assert_eq!(found, expected, "{method} {path} {headers:?}");
    found
}

const ORIGIN: &str = "access-control-allow-origin";

#[test]
fn pages_of_the_origins_that_are_named_may_read_and_others_not() {
    let (etcd, proxy) = both(&["--cors=http://a.example:80,https://b.example:443"]);
    for (origin, expected) in [
        (Some("http://a.example:80"), Some("http://a.example:80")),
        (Some("https://b.example:443"), Some("https://b.example:443")),
        (Some("http://b.example:443"), None),
        (Some("null"), None),
        (None, None),
    ] {
        let origin = origin.map(|origin| format!("Origin: {origin}"));
        let headers: Vec<&str> = origin.as_deref().into_iter().collect();
        for (method, path) in
            [("POST", "/v3/kv/range"), ("OPTIONS", "/v3/kv/range"), ("OPTIONS", "/"), ("GET", "/health")]
        {
            let answer = compare(&etcd, &proxy, method, path, &headers);
            assert_eq!(answer.head.header(ORIGIN), expected, "{method} {path} {origin:?}");
        }
    }
}

#[test]
fn a_name_that_is_not_on_the_list_is_refused_in_etcds_words() {
    let (etcd, proxy) = both(&["--host-whitelist=localhost,etcd.example"]);
    for (host, expected) in [
        ("localhost", 400),
        ("localhost:2379", 400),
        ("etcd.example:80", 400),
        ("evil.example", 421),
        ("evil.example:2379", 421),
        ("[::1]:2379", 421),
        ("localhost.evil.example", 421),
    ] {
        let answer = compare(&etcd, &proxy, "POST", "/v3/kv/range", &[&format!("Host: {host}")]);
        assert_eq!(answer.head.status, expected, "{host}");
        if expected == 421 {
            assert!(answer.body.contains("DNS Rebinding"), "{answer:?}");
        }
        compare(&etcd, &proxy, "OPTIONS", "/v3/kv/range", &[&format!("Host: {host}")]);
    }
}

#[test]
fn without_flags_every_page_and_every_name_is_welcome() {
    let (etcd, proxy) = both(&[]);
    let answer = compare(&etcd, &proxy, "POST", "/v3/kv/range", &["Host: any.example", "Origin: http://any.example"]);
    assert_eq!((answer.head.status, answer.head.header(ORIGIN)), (400, Some("*")));
}
