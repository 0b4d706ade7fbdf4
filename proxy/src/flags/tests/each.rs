//! Each flag from every source of values, and all of etcd's with their types and defaults.

use super::*;

/// A value of each flag, and the field that it must set.
pub fn one_of_each() -> Vec<(&'static str, &'static str, Change)> {
    vec![
        ("listen-addr", "0.0.0.0:1", |f| f.listen_addr = "0.0.0.0:1".into()),
        ("endpoints", "a:1,b:2", |f| f.endpoints = vec!["a:1".into(), "b:2".into()]),
        ("endpoints-auto-sync-interval", "1m", |f| f.endpoints_auto_sync_interval = Duration::from_secs(60)),
        ("discovery-srv", "example.com", |f| f.discovery_srv = "example.com".into()),
        ("discovery-srv-name", "x", |f| f.discovery_srv_name = "x".into()),
        ("insecure-discovery", "true", |f| f.insecure_discovery = true),
        ("advertise-client-url", "c:3", |f| f.advertise_client_url = "c:3".into()),
        ("advertise-pod-domain", "pods.a.svc", |f| f.advertise_pod_domain = "pods.a.svc".into()),
        ("resolver-prefix", "p", |f| f.resolver_prefix = "p".into()),
        ("resolver-ttl", "60", |f| f.resolver_ttl = 60),
        ("namespace", "ns/", |f| f.namespace = b"ns/".to_vec()),
        ("cert", "/c", |f| f.cert = Some("/c".into())),
        ("key", "/k", |f| f.key = Some("/k".into())),
        ("cacert", "/ca", |f| f.cacert = Some("/ca".into())),
        ("insecure-skip-tls-verify", "true", |f| f.insecure_skip_tls_verify = true),
        ("tls-server-name", "etcd", |f| f.tls_server_name = "etcd".into()),
        ("user", "root", |f| f.login.user = "root".into()),
        ("password-file", "p", |f| f.login.password_file = Some("p".into())),
        ("cert-file", "/cf", |f| f.cert_file = Some("/cf".into())),
        ("key-file", "/kf", |f| f.key_file = Some("/kf".into())),
        ("trusted-ca-file", "/t", |f| f.trusted_ca_file = Some("/t".into())),
        ("client-crl-file", "/crl", |f| f.client_crl_file = Some("/crl".into())),
        ("listen-cipher-suites", "A,B", |f| f.listen_cipher_suites = vec!["A".into(), "B".into()]),
        ("tls-min-version", "TLS1.3", |f| f.tls_min_version = "TLS1.3".into()),
        ("tls-max-version", "TLS1.3", |f| f.tls_max_version = "TLS1.3".into()),
        ("auto-tls", "true", |f| f.auto_tls = true),
        ("self-signed-cert-validity", "2", |f| f.self_signed_cert_validity = 2),
        ("data-dir", "/d", |f| f.data_dir = "/d".into()),
        ("max-send-bytes", "1000", |f| f.max_send_bytes = 1000),
        ("max-recv-bytes", "2000", |f| f.max_recv_bytes = 2000),
        ("max-concurrent-streams", "7", |f| f.max_concurrent_streams = 7),
        ("dial-keepalive-time", "11s", |f| f.dial_keepalive_time = Duration::from_secs(11)),
        ("dial-keepalive-timeout", "12s", |f| f.dial_keepalive_timeout = Duration::from_secs(12)),
        ("permit-without-stream", "true", |f| f.permit_without_stream = true),
        ("grpc-keepalive-min-time", "1s", |f| f.grpc_keepalive_min_time = Duration::from_secs(1)),
        ("grpc-keepalive-interval", "1h2m3.5s", |f| f.grpc_keepalive_interval = Duration::from_millis(3_723_500)),
        ("grpc-keepalive-timeout", "100ms", |f| f.grpc_keepalive_timeout = Duration::from_millis(100)),
        ("metrics-addr", "http://m:1", |f| f.metrics_addr = vec!["http://m:1".into()]),
        ("enable-pprof", "true", |f| f.enable_pprof = true),
        ("enable-grpc-gateway", "false", |f| f.json.enable_grpc_gateway = false),
        ("cors", "http://a:1,https://b", |f| f.json.cors = vec!["http://a:1".into(), "https://b".into()]),
        ("host-whitelist", "a,b", |f| f.json.host_whitelist = vec!["a".into(), "b".into()]),
        ("debug", "true", |f| f.debug = true),
        ("log-level", "warn", |f| f.log_level = tracing::Level::WARN),
        ("log-format", "text", |f| f.log_format = LogFormat::Text),
        ("experimental-serializable-ordering", "true", |f| f.experimental_serializable_ordering = true),
        ("experimental-leasing-prefix", "l", |f| f.experimental_leasing_prefix = "l".into()),
        ("experimental-enable-grpc-logging", "true", |f| f.experimental_enable_grpc_logging = true),
        ("api-profile", "tenant", |f| f.tenancy.api_profile = "tenant".into()),
        ("api-compact", "ignore", |f| f.tenancy.api_compact = "ignore".into()),
        ("lease-key-file", "/lk", |f| f.tenancy.lease_key_file = Some("/lk".into())),
        ("api-allow", "KV/Compact", |f| f.tenancy.api_allow = vec!["KV/Compact".into()]),
        ("api-deny", "KV/Put,Lock/Lock", |f| f.tenancy.api_deny = vec!["KV/Put".into(), "Lock/Lock".into()]),
        ("audit-log", "/al", |f| f.audit.audit_log = Some("/al".into())),
        ("audit-sample", "10", |f| f.audit.audit_sample = 10),
        ("tenant-max-connections", "21", |f| f.tenant_limits.tenant_max_connections = 21),
        ("tenant-max-streams", "22", |f| f.tenant_limits.tenant_max_streams = 22),
        ("tenant-max-watches", "23", |f| f.tenant_limits.tenant_max_watches = 23),
        ("tenant-max-concurrent-requests", "24", |f| f.tenant_limits.tenant_max_concurrent_requests = 24),
        ("tenant-max-requests-per-second", "25", |f| f.tenant_limits.tenant_max_requests_per_second = 25),
        ("tenant-request-burst", "26", |f| f.tenant_limits.tenant_request_burst = 26),
        ("tenant-max-received-bytes-per-second", "27", |f| f.tenant_limits.tenant_max_received_bytes_per_second = 27),
        ("tenant-max-sent-bytes-per-second", "28", |f| f.tenant_limits.tenant_max_sent_bytes_per_second = 28),
        ("tenant-max-request-bytes", "29", |f| f.tenant_limits.tenant_max_request_bytes = 29),
        ("tenant-max-answer-bytes", "30", |f| f.tenant_limits.tenant_max_answer_bytes = 30),
        ("tenant-max-keys", "31", |f| f.tenant_limits.tenant_max_keys = 31),
        ("tenant-max-stored-bytes", "32", |f| f.tenant_limits.tenant_max_stored_bytes = 32),
        ("connection-max-watches", "33", |f| f.tenant_limits.connection_max_watches = 33),
        ("connection-max-requests-per-second", "34", |f| f.tenant_limits.connection_max_requests_per_second = 34),
        ("connection-max-received-bytes-per-second", "35", |f| {
            f.tenant_limits.connection_max_received_bytes_per_second = 35
        }),
        ("connection-max-sent-bytes-per-second", "36", |f| f.tenant_limits.connection_max_sent_bytes_per_second = 36),
        ("max-upstream-requests", "37", |f| f.tenant_limits.max_upstream_requests = 37),
        ("max-upstream-slowdown", "39", |f| f.tenant_limits.max_upstream_slowdown = 39),
        ("max-answer-memory", "38", |f| f.tenant_limits.max_answer_memory = 38),
        ("config-file", "/dev/null", |f| f.config_file = Some("/dev/null".into())),
        ("drain-timeout", "1s", |f| f.drain_timeout = Duration::from_secs(1)),
        ("threads", "3", |f| f.threads = 3),
        ("health-interval", "7s", |f| f.health_interval = Duration::from_secs(7)),
        ("health-timeout", "3s", |f| f.health_timeout = Duration::from_secs(3)),
        ("watch-log-max-bytes", "65536", |f| f.watch_log_max_bytes = 65_536),
        ("watch-coalesce-threshold", "10", |f| f.watch_coalesce_threshold = 10),
        ("watch-rights-interval", "2s", |f| f.watch_rights_interval = Duration::from_secs(2)),
        ("cache-bytes", "1048576", |f| f.cache_bytes = 1_048_576),
        ("cache-staleness", "5ms", |f| f.cache_staleness = Duration::from_millis(5)),
        ("leasing-ttl", "5", |f| f.leasing_ttl = 5),
        ("leasing-max-bytes", "1048576", |f| f.leasing_max_bytes = 1_048_576),
        ("max-header-list-bytes", "8192", |f| f.max_header_list_bytes = 8_192),
        ("max-connections", "9", |f| f.max_connections = 9),
        ("connection-timeout", "4s", |f| f.connection_timeout = Duration::from_secs(4)),
    ]
}

#[test]
fn each_flag_is_read_from_the_command_line_the_environment_and_the_file() {
    let table = one_of_each();
    assert_eq!(table.iter().map(|(name, ..)| (*name).to_owned()).collect::<Vec<_>>(), names());
    for (name, value, change) in table {
        let mut expected = Flags::default();
        change(&mut expected);
        assert_ne!(expected, Flags::default(), "{name}");
        assert_eq!(start(&[&format!("--{name}={value}")]), expected);
        let (from_environment, warnings) = started(&START, &[(&env_name(name), value)]);
        assert_eq!((from_environment, warnings), (expected.clone(), vec![]), "{name}");
        if kind_of(name) == "bool" {
            // Without a value it is switched on.
            let switched_on = if value == "true" { expected.clone() } else { Flags::default() };
            assert_eq!(start(&[&format!("--{name}")]), switched_on);
        } else {
            assert_eq!(start(&[&format!("--{name}"), value]), expected);
        }
        if name != "config-file" {
            assert_eq!(with_file(&format!("{name}: {value}")), Ok((expected, vec![])));
        }
    }
}

fn kind_of(name: &str) -> String {
    let command = Flags::command();
    let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name)).expect("a flag of the table");
    kind(flag).to_owned()
}

/// What `etcd grpc-proxy start --help` of version 3.7.3 lists: name, type and default.
const ETCD: &[(&str, &str, &str)] = &[
    ("advertise-client-url", "string", "127.0.0.1:23790"),
    ("auto-tls", "bool", "false"),
    ("cacert", "string", ""),
    ("cert", "string", ""),
    ("cert-file", "string", ""),
    ("client-crl-file", "string", ""),
    ("data-dir", "string", "default.proxy"),
    ("debug", "bool", "false"),
    ("dial-keepalive-time", "duration", "0s"),
    ("dial-keepalive-timeout", "duration", "20s"),
    ("discovery-srv", "string", ""),
    ("discovery-srv-name", "string", ""),
    ("enable-pprof", "bool", "false"),
    ("endpoints", "strings", "127.0.0.1:2379"),
    ("endpoints-auto-sync-interval", "duration", "0s"),
    ("experimental-enable-grpc-logging", "bool", "false"),
    ("experimental-leasing-prefix", "string", ""),
    ("experimental-serializable-ordering", "bool", "false"),
    ("grpc-keepalive-interval", "duration", "2h0m0s"),
    ("grpc-keepalive-min-time", "duration", "5s"),
    ("grpc-keepalive-timeout", "duration", "20s"),
    ("insecure-discovery", "bool", "false"),
    ("insecure-skip-tls-verify", "bool", "false"),
    ("key", "string", ""),
    ("key-file", "string", ""),
    ("listen-addr", "string", "127.0.0.1:23790"),
    ("listen-cipher-suites", "strings", ""),
    ("max-concurrent-streams", "uint32", "4294967295"),
    ("max-recv-bytes", "int", "2147483647"),
    ("max-send-bytes", "int", "1572864"),
    // One URL in etcd, a list here, which takes the same one URL.
    ("metrics-addr", "strings", ""),
    ("namespace", "string", ""),
    ("permit-without-stream", "bool", "false"),
    ("resolver-prefix", "string", ""),
    ("resolver-ttl", "int", "0"),
    ("self-signed-cert-validity", "uint", "1"),
    ("tls-max-version", "string", ""),
    ("tls-min-version", "string", "TLS1.2"),
    ("trusted-ca-file", "string", ""),
];

#[test]
fn every_flag_of_etcd_is_here_with_its_type_and_default() {
    let command = Flags::command();
    for (name, expected_kind, default) in ETCD {
        let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name)).expect(name);
        assert_eq!(kind(flag), *expected_kind, "{name}");
        assert_eq!(flag.get_default_values(), [*default], "{name}");
    }
}

#[test]
fn every_flag_stands_in_a_group_and_says_what_it_means() {
    for flag in Flags::command().get_arguments() {
        let group = flag.get_help_heading().expect("every flag has a heading");
        assert!(GROUPS.contains(&group), "{group}");
        assert!(flag.get_help().is_some_and(|help| help.to_string().len() > 5), "{flag}");
    }
}
