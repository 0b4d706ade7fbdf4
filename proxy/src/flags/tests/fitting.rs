//! Flags that must fit together.

use super::*;

#[test]
fn check_refuses_what_etcd_refuses_in_its_words() {
    let refusals = [
        (&["--resolver-prefix=a"][..], "invalid resolver-ttl 0"),
        (&["--resolver-prefix=a", "--resolver-ttl=-3"], "invalid resolver-ttl -3"),
        (&["--resolver-ttl=3"], "invalid resolver-prefix \"\""),
        (&["--resolver-prefix=a", "--resolver-ttl=3", "--advertise-client-url="], "invalid advertise-client-url \"\""),
        (
            &["--auto-tls", "--self-signed-cert-validity=0"],
            "selfSignedCertValidity is invalid,it should be greater than 0",
        ),
        (
            &["--tls-min-version=TLS1.1"],
            "tls-min-version is invalid: unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)",
        ),
        (
            &["--tls-max-version=x"],
            "tls-max-version is invalid: unexpected TLS version \"x\" (must be one of: TLS1.2, TLS1.3)",
        ),
        (
            &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (
            &["--tls-min-version=TLS1.3", "--listen-cipher-suites=x"],
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
    ];
    for (words, message) in refusals {
        let refusal = start(words).check().expect_err(message);
        assert_eq!(refusal.to_string(), format!("{message}\n"), "{words:?}");
    }
}

#[test]
fn check_refuses_what_cannot_work_and_says_what_would_be_right() {
    let refusals = [
        (
            &["--listen-addr=foo"][..],
            "invalid listen-addr \"foo\": address foo: missing port in address; \
             want host:port, such as 127.0.0.1:23790",
        ),
        (&["--listen-addr=::1:5"], "too many colons in address"),
        (&["--listen-addr=[::1"], "missing ']' in address"),
        (&["--listen-addr=[::1]"], "missing port in address"),
        (&["--listen-addr=127.0.0.1:99999"], "invalid port"),
        (&["--listen-addr=http://a:1"], "too many colons in address"),
        (&["--endpoints="], "etcdclient: no available endpoints: give --endpoints or --discovery-srv"),
        (&["--cert=x"], "KeyFile and CertFile must both be present[key: , cert: x]: give --key as well"),
        (&["--key=x"], "KeyFile and CertFile must both be present[key: x, cert: ]: give --cert as well"),
        (&["--cert-file=x"], "KeyFile and CertFile must both be present[key: , cert: x]: give --key-file as well"),
        (&["--auto-tls", "--key-file=x"], "give --cert-file as well"),
        (&["--trusted-ca-file=x"], "give --cert-file and --key-file as well"),
        (&["--metrics-addr=127.0.0.1:1"], "the scheme is missing; want a URL, such as http://127.0.0.1:2381"),
        (&["--metrics-addr=localhost:1"], "the scheme is missing"),
        (&["--metrics-addr=unix://a:1"], "the scheme is neither http nor https"),
        (&["--metrics-addr=http://a"], "invalid metrics-addr \"a\": address a: missing port in address"),
        (&["--metrics-addr=https://a:1"], "https wants a certificate"),
        (&["--metrics-addr=http://a:1,x"], "invalid metrics-addr \"x\""),
        (&["--cors=a.example"], "invalid cors \"a.example\": an origin is written as scheme://host:port"),
        (&["--cors=*,https://a.example/"], "invalid cors \"https://a.example/\""),
        (&["--cors=ftp://a.example"], "invalid cors \"ftp://a.example\""),
        (&["--resolver-prefix=a", "--resolver-ttl=9000000001"], "etcd's leases last at most 9000000000 seconds"),
        (&["--health-interval=0"], "invalid health-interval 0s: it should be greater than 0"),
        (&["--health-timeout=-1s"], "invalid health-timeout 0s: it should be greater than 0"),
        (&["--connection-timeout=0"], "invalid connection-timeout 0s: it should be greater than 0"),
        (&["--threads=1025"], "invalid threads 1025: it should be 0 to 1024"),
        (&["--watch-log-max-bytes=1"], "invalid watch-log-max-bytes 1: it should be 65536 to 4294967295"),
        (&["--leasing-ttl=1"], "invalid leasing-ttl 1: it should be 2 to 86400"),
        (
            &["--advertise-client-url=a:1", "--advertise-pod-domain=b.svc"],
            "invalid advertise-pod-domain \"b.svc\": it wants an advertise-client-url of an IP address and a port, and not \"a:1\"",
        ),
        (&["--leasing-max-bytes=1"], "invalid leasing-max-bytes 1: it should be 65536 to 4294967295"),
        (&["--max-header-list-bytes=1"], "invalid max-header-list-bytes 1: it should be 4096 to 16777216"),
    ];
    for (words, part) in refusals {
        let words: Vec<&str> = START.iter().chain(words).copied().collect();
        let refusal = started(&words, &[]).0.check().expect_err(part).to_string();
        assert!(refusal.contains(part), "{words:?}: {refusal}");
        assert_eq!(refusal.lines().count(), 1, "{words:?}: {refusal}");
    }
}

#[test]
fn check_lets_through_what_etcd_accepts_and_can_work() {
    for words in [
        &[][..],
        &["--listen-addr=:23790"],
        &["--listen-addr=[::]:23790"],
        &["--listen-addr=localhost:"],
        &["--endpoints=", "--discovery-srv=example.com"],
        &["--cacert=x"],
        &["--cert=x", "--key=y"],
        &["--cert-file=x", "--key-file=y", "--trusted-ca-file=z", "--client-crl-file=c"],
        &["--auto-tls", "--metrics-addr=https://:1,http://[::1]:2/metrics"],
        &["--tls-min-version=", "--tls-max-version=TLS1.2"],
        &["--resolver-ttl=-1"],
        &["--max-concurrent-streams=0"],
        &["--grpc-keepalive-interval=0", "--grpc-keepalive-timeout=0", "--drain-timeout=0"],
    ] {
        assert_eq!(start(words).check(), Ok(vec![]), "{words:?}");
    }
}

#[test]
fn check_reports_what_has_no_effect() {
    let warnings = [
        (&["--auto-tls", "--cert-file=x", "--key-file=y"][..], "auto-tls has no effect, since cert-file is given"),
        (&["--client-crl-file=x"], "client-crl-file has no effect without cert-file, key-file and trusted-ca-file"),
        (
            &["--client-crl-file=x", "--cert-file=x", "--key-file=y"],
            "client-crl-file has no effect without trusted-ca-file: clients show no certificate",
        ),
        (&["--listen-cipher-suites=x"], "listen-cipher-suites has no effect, since clients are served without TLS"),
        (&["--discovery-srv-name=x"], "discovery-srv-name has no effect without discovery-srv"),
        (&["--insecure-discovery"], "insecure-discovery has no effect without discovery-srv"),
    ];
    for (words, warning) in warnings {
        assert_eq!(start(words).check(), Ok(vec![warning.to_owned()]), "{words:?}");
    }
}

#[test]
fn metrics_urls_are_taken_apart() {
    let url = |tls, address: &str| MetricsUrl { tls, address: address.to_owned() };
    let flags = start(&["--metrics-addr=http://a:1/x,HTTPS://[::1]:2", "--metrics-addr=http://user:word@:3?q"]);
    assert_eq!(flags.metrics_urls(), Ok(vec![url(false, "a:1"), url(true, "[::1]:2"), url(false, ":3")]));
}
