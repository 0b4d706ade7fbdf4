//! The flags as a whole: every source of values, every text that scripts may match on, and the page made of the table.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use proptest::prelude::*;

use super::table::kind;
use super::*;

const START: [&str; 2] = ["grpc-proxy", "start"];

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, OsString> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect()
}

fn arguments(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn run(words: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, Refusal> {
    parse(arguments(words), &environment(variables))
}

fn started(words: &[&str], variables: &[(&str, &str)]) -> (Flags, Vec<String>) {
    match run(words, variables) {
        Ok(Invocation::Start { flags, warnings }) => (*flags, warnings),
        other => panic!("{words:?} and {variables:?} gave {other:?}"),
    }
}

fn start(words: &[&str]) -> Flags {
    let words: Vec<&str> = START.iter().chain(words).copied().collect();
    let (flags, warnings) = started(&words, &[]);
    assert_eq!(warnings, Vec::<String>::new(), "{words:?}");
    flags
}

fn refused(words: &[&str], variables: &[(&str, &str)]) -> String {
    match run(words, variables) {
        Err(refusal) => refusal.to_string(),
        Ok(other) => panic!("{words:?} gave {other:?}"),
    }
}

fn start_refused(words: &[&str]) -> String {
    refused(&START.iter().chain(words).copied().collect::<Vec<_>>(), &[])
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("a written file");
    file
}

fn with_file(text: &str) -> Result<(Flags, Vec<String>), String> {
    let file = file(text);
    let path = file.path().to_str().expect("temporary paths are UTF-8");
    match run(&["grpc-proxy", "start", "--config-file", path], &[]) {
        Ok(Invocation::Start { flags, warnings }) => Ok((Flags { config_file: None, ..*flags }, warnings)),
        Ok(other) => panic!("{text} gave {other:?}"),
        Err(refusal) => Err(refusal.to_string().replace(path, "FILE")),
    }
}

/// A change to one field.
type Change = fn(&mut Flags);

/// A value of each flag, and the field that it must set.
fn one_of_each() -> Vec<(&'static str, &'static str, Change)> {
    vec![
        ("listen-addr", "0.0.0.0:1", |f| f.listen_addr = "0.0.0.0:1".into()),
        ("endpoints", "a:1,b:2", |f| f.endpoints = vec!["a:1".into(), "b:2".into()]),
        ("endpoints-auto-sync-interval", "1m", |f| f.endpoints_auto_sync_interval = Duration::from_secs(60)),
        ("discovery-srv", "example.com", |f| f.discovery_srv = "example.com".into()),
        ("discovery-srv-name", "x", |f| f.discovery_srv_name = "x".into()),
        ("insecure-discovery", "true", |f| f.insecure_discovery = true),
        ("advertise-client-url", "c:3", |f| f.advertise_client_url = "c:3".into()),
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

fn names() -> Vec<String> {
    Flags::command().get_arguments().filter_map(|flag| flag.get_long().map(str::to_owned)).collect()
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

// === the command line ===

#[test]
fn flags_may_stand_anywhere_and_in_every_spelling_of_pflag() {
    let with = |change: Change| {
        let mut flags = Flags::default();
        change(&mut flags);
        (flags, vec![])
    };
    let debug: Change = |f| f.debug = true;
    let two: Change = |f| f.endpoints = vec!["a".into(), "b".into()];
    for words in [
        &["grpc-proxy", "--endpoints=a,b", "start"][..],
        &["grpc-proxy", "--endpoints", "a,b", "start"],
        &["--endpoints", "a,b", "grpc-proxy", "start"],
        &["grpc-proxy", "start", "--endpoints", "a,b"],
        &["grpc-proxy", "start", "--endpoints", "a", "--endpoints=b"],
        &["grpc-proxy", "start", "--endpoints=\"a\",\"b\""],
        &["grpc-proxy", "start", "--endpoints=", "--endpoints=a,b"],
    ] {
        assert_eq!(started(words, &[]), with(two), "{words:?}");
    }
    for words in [
        &["grpc-proxy", "--debug", "start"][..],
        &["grpc-proxy", "start", "--debug"],
        &["grpc-proxy", "start", "--debug=1"],
        &["grpc-proxy", "start", "--debug=t"],
        &["grpc-proxy", "start", "--debug=false", "--debug=true"],
    ] {
        assert_eq!(started(words, &[]), with(debug), "{words:?}");
    }
    for value in ["false", "0", "f", "F"] {
        assert_eq!(start(&[&format!("--debug={value}")]), Flags::default());
    }
    assert_eq!(start(&["--advertise-client-url", ""]).advertise_client_url, "");
    assert_eq!(start(&["--advertise-client-url="]).advertise_client_url, "");
    assert_eq!(start(&["--endpoints="]).endpoints, Vec::<String>::new());
    assert_eq!(start(&["--namespace", "--debug"]).namespace, b"--debug");
    assert_eq!(start(&["--listen-addr=a", "--listen-addr=b"]).listen_addr, "b");
    assert_eq!(start(&["--help=false"]), Flags::default());
    assert_eq!(start(&["--data-dir="]).data_dir, PathBuf::new());
}

#[test]
fn values_that_etcd_takes_to_mean_something_else_are_resolved() {
    assert_eq!(start(&["--max-send-bytes=0"]).max_send_bytes, 2_097_152);
    assert_eq!(start(&["--max-send-bytes=-5"]).max_send_bytes, 2_097_152);
    assert_eq!(start(&["--max-send-bytes=0x10"]).max_send_bytes, 16);
    assert_eq!(start(&["--max-recv-bytes=0"]).max_recv_bytes, 2_147_483_647);
    assert_eq!(start(&["--max-concurrent-streams=0"]).max_concurrent_streams, u32::MAX);
    assert_eq!(start(&["--dial-keepalive-time=0"]).dial_keepalive_time, Duration::ZERO);
    assert_eq!(start(&["--dial-keepalive-timeout=0"]).dial_keepalive_timeout, Duration::from_secs(20));
    assert_eq!(start(&["--grpc-keepalive-timeout=0"]).grpc_keepalive_timeout, Duration::from_secs(20));
    assert_eq!(start(&["--grpc-keepalive-interval=0"]).grpc_keepalive_interval, Duration::ZERO);
}

#[test]
fn a_namespace_and_a_path_may_be_any_bytes_and_nothing_else_may() {
    let with = |name: &str| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(OsString::from_vec(vec![b'a', 0xff]));
        parse(arguments(&START).into_iter().chain([argument]), &BTreeMap::new())
    };
    match with("namespace") {
        Ok(Invocation::Start { flags, .. }) => assert_eq!(flags.namespace, [b'a', 0xff]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(with("cert"), Ok(Invocation::Start { .. })));
    assert!(matches!(with("data-dir"), Ok(Invocation::Start { .. })));
    let refusal = with("listen-addr").expect_err("an address is a text").to_string();
    assert!(refusal.contains("for \"--listen-addr\" flag: not valid UTF-8"), "{refusal}");
}

/// Every pair was printed by `etcd grpc-proxy` 3.7.3 for the same arguments.
#[test]
fn a_wrong_command_line_is_refused_in_the_words_of_etcd() {
    let refusals = [
        (&["--foo"][..], "unknown flag: --foo"),
        (&["-foo"], "unknown shorthand flag: 'f' in -foo"),
        (&["--endpoints"], "flag needs an argument: --endpoints"),
        (
            &["--max-send-bytes", "x"],
            "invalid argument \"x\" for \"--max-send-bytes\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (
            &["--max-send-bytes", "99999999999999999999"],
            "invalid argument \"99999999999999999999\" for \"--max-send-bytes\" flag: \
             strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
        ),
        (
            &["--max-concurrent-streams=-1"],
            "invalid argument \"-1\" for \"--max-concurrent-streams\" flag: \
             strconv.ParseUint: parsing \"-1\": invalid syntax",
        ),
        (
            &["--max-concurrent-streams=4294967296"],
            "invalid argument \"4294967296\" for \"--max-concurrent-streams\" flag: \
             strconv.ParseUint: parsing \"4294967296\": value out of range",
        ),
        (
            &["--debug=x"],
            "invalid argument \"x\" for \"--debug\" flag: strconv.ParseBool: parsing \"x\": invalid syntax",
        ),
        (
            &["--debug=x", "--debug=true"],
            "invalid argument \"x\" for \"--debug\" flag: strconv.ParseBool: parsing \"x\": invalid syntax",
        ),
        (&["--debug="], "invalid argument \"\" for \"--debug\" flag: strconv.ParseBool: parsing \"\": invalid syntax"),
        (
            &["--grpc-keepalive-interval=5"],
            "invalid argument \"5\" for \"--grpc-keepalive-interval\" flag: time: missing unit in duration \"5\"",
        ),
        (
            &["--endpoints=a\"b"],
            "invalid argument \"a\\\"b\" for \"--endpoints\" flag: \
             parse error on line 1, column 2: bare \" in non-quoted-field",
        ),
        (
            &["--endpoints=\"a"],
            "invalid argument \"\\\"a\" for \"--endpoints\" flag: \
             parse error on line 1, column 3: extraneous or missing \" in quoted-field",
        ),
        (&["--=x"], "bad flag syntax: --=x"),
        (&["---x"], "bad flag syntax: ---x"),
        (&["help", "extra", "--bad"], "unknown flag: --bad"),
        (&["--help", "--foo"], "unknown flag: --foo"),
        (&["-hx"], "unknown shorthand flag: 'x' in -x"),
        (&["-h=x"], "invalid argument \"x\" for \"-h, --help\" flag: strconv.ParseBool: parsing \"x\": invalid syntax"),
    ];
    for (words, message) in refusals {
        let usage = format!("Usage:\n  etcd-proxy grpc-proxy start [flags]\n\n{ENDPOINTS}:\n");
        let refusal = start_refused(words);
        assert!(refusal.starts_with(&format!("Error: {message}\n{usage}")), "{words:?}: {refusal}");
        assert!(refusal.ends_with(&format!("\n\n{message}\n")), "{words:?}: {refusal}");
    }
    let group = refused(&["grpc-proxy", "--foo"], &[]);
    let usage = "Usage:\n  etcd-proxy grpc-proxy [command]\n\nAvailable Commands:\n  start ";
    assert!(group.starts_with(&format!("Error: unknown flag: --foo\n{usage}")), "{group}");
    let no_start = refused(&["grpc-proxy", "--endpoints=a"], &[]);
    assert!(no_start.starts_with(&format!("Error: unknown flag: --endpoints\n{usage}")), "{no_start}");
}

#[test]
fn a_refusal_names_what_was_probably_meant() {
    let end = |refusal: String| refusal.lines().last().unwrap_or_default().to_owned();
    assert_eq!(end(start_refused(&["--endpoint=a"])), "unknown flag: --endpoint (did you mean --endpoints?)");
    assert_eq!(end(start_refused(&["--wholly-other"])), "unknown flag: --wholly-other");
    assert_eq!(
        end(start_refused(&["-endpoints=a"])),
        "unknown shorthand flag: 'e' in -endpoints=a (did you mean --endpoints?)"
    );
}

#[test]
fn unknown_commands_are_refused_as_cobra_refuses_them() {
    assert_eq!(
        refused(&["grcp-proxy", "start"], &[]),
        "Error: unknown command \"grcp-proxy\" for \"etcd-proxy\"\n\nDid you mean this?\n\tgrpc-proxy\n\n\
         Run 'etcd-proxy --help' for usage.\nunknown command \"grcp-proxy\" for \"etcd-proxy\"\n"
    );
    assert_eq!(
        refused(&["server", "start"], &[]),
        "Error: unknown command \"server\" for \"etcd-proxy\"\nRun 'etcd-proxy --help' for usage.\n\
         unknown command \"server\" for \"etcd-proxy\"\n"
    );
    let strat = refused(&["grpc-proxy", "strat"], &[]);
    assert!(strat.starts_with("Error: unknown command \"strat\" for \"etcd-proxy grpc-proxy\"\n"), "{strat}");
    assert!(strat.contains("\tstart\n"), "{strat}");
}

#[test]
fn help_and_version_are_printed_and_start_nothing() {
    let printed = |words: &[&str]| match run(words, &[]) {
        Ok(Invocation::Print(text)) => text,
        other => panic!("{words:?} gave {other:?}"),
    };
    let pages = [
        (&[][..], "a gRPC proxy for etcd\n\nUsage:\n  etcd-proxy [command]\n"),
        (&["--help"], "a gRPC proxy for etcd\n\nUsage:\n  etcd-proxy [command]\n"),
        (&["help"], "a gRPC proxy for etcd\n\nUsage:\n  etcd-proxy [command]\n"),
        (&["grpc-proxy"], "grpc-proxy related command\n\nUsage:\n  etcd-proxy grpc-proxy [command]\n"),
        (&["grpc-proxy", "-h"], "grpc-proxy related command\n\nUsage:\n  etcd-proxy grpc-proxy [command]\n"),
        (&["grpc-proxy", "start", "--help"], "start the grpc proxy\n\nUsage:\n  etcd-proxy grpc-proxy start [flags]\n"),
        (&["grpc-proxy", "--help", "start"], "start the grpc proxy\n\nUsage:\n  etcd-proxy grpc-proxy start [flags]\n"),
        (&["help", "grpc-proxy", "start"], "start the grpc proxy\n\nUsage:\n  etcd-proxy grpc-proxy start [flags]\n"),
        (&["gateway"], "gateway related command\n\nUsage:\n  etcd-proxy gateway [command]\n"),
        (&["gateway", "start", "-h"], "start the gateway\n\nUsage:\n  etcd-proxy gateway start [flags]\n"),
        (&["http-proxy"], "http-proxy related command\n\nUsage:\n  etcd-proxy http-proxy [command]\n"),
        (&["http-proxy", "start", "-h"], "start the http proxy\n\nUsage:\n  etcd-proxy http-proxy start [flags]\n"),
        (&["help", "gateway", "start"], "start the gateway\n\nUsage:\n  etcd-proxy gateway start [flags]\n"),
        (&["version"], "etcd-proxy Version: "),
        (&["--version"], "etcd-proxy Version: "),
    ];
    for (words, beginning) in pages {
        let page = printed(words);
        assert!(page.starts_with(beginning), "{words:?}: {page}");
    }
    let page = printed(&["grpc-proxy", "start", "-h"]);
    for name in names() {
        assert!(page.contains(&format!("--{name} ")), "{name}");
    }
    assert!(page.contains(" (default [127.0.0.1:2379])\n"), "{page}");
    assert!(page.contains(" (default \"127.0.0.1:23790\")\n"), "{page}");
    assert!(refused(&["grpc-proxy", "start", "--version"], &[]).starts_with("Error: unknown flag: --version\n"));
}

#[test]
fn a_flag_of_one_name_takes_a_value_in_every_command_or_in_none() {
    let table = commands::Command::Root.table();
    for flag in table.flags() {
        let name = flag.get_long().expect("every flag has a long name");
        let first = table.find(name).expect("it is in the table");
        assert_eq!(kind(flag) == "bool", kind(first) == "bool", "{name}");
    }
}

#[test]
fn the_http_proxy_has_the_defaults_of_etcd_3_5_and_checks_its_flags() {
    let http_proxy = |words: &[&str]| match run(&[&["http-proxy", "start"], words].concat(), &[]) {
        Ok(Invocation::StartHttpProxy { flags, .. }) => *flags,
        other => panic!("{words:?} gave {other:?}"),
    };
    let flags = http_proxy(&[]);
    let times = [
        flags.proxy_failure_wait,
        flags.proxy_refresh_interval,
        flags.proxy_dial_timeout,
        flags.proxy_write_timeout,
        flags.proxy_read_timeout,
    ];
    assert_eq!(times, [5000, 30000, 1000, 5000, 0]);
    assert_eq!((flags.initial_cluster.as_str(), flags.check()), ("default=http://localhost:2380", Ok(vec![])));
    assert_eq!((flags.folder(), http_proxy(&["--name=m"]).folder()), ("default.etcd".into(), "m.etcd".into()));
    for (word, part) in [
        ("--proxy=off", "want on or readonly"),
        ("--listen-client-urls=a:1", "URL scheme must be"),
        ("--listen-client-urls=", "want URLs"),
        ("--listen-client-urls=https://a:1", "wants a certificate"),
        ("--proxy-dial-timeout=0", "it should be greater than 0"),
        ("--cert-file=x", "give --key-file as well"),
        ("--metrics-addr=https://a:1", "write http"),
    ] {
        let refusal = http_proxy(&[word]).check().expect_err(word).to_string();
        assert!(refusal.contains(part), "{word}: {refusal}");
    }
    let warnings = http_proxy(&["--auto-tls", "--discovery-srv-name=x"]).check().expect("it works all the same");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let shown = http_proxy(&["--discovery=https://me:word@a/b"]).effective();
    assert!(shown.contains("--discovery='https://***@a/b'") && !shown.contains("word@"), "{shown}");
}

#[test]
fn the_gateway_takes_its_own_flags_before_and_after_start_and_no_others() {
    let gateway = |words: &[&str]| match run(words, &[("ETCD_PROXY_THREADS", "2")]) {
        Ok(Invocation::StartGateway { flags, warnings }) => (*flags, warnings),
        other => panic!("{words:?} gave {other:?}"),
    };
    let flags = ["--endpoints=a:1,b:2", "--retry-delay", "5s", "--insecure-discovery"];
    let before: Vec<&str> = ["gateway"].into_iter().chain(flags).chain(["start"]).collect();
    let after: Vec<&str> = ["gateway", "start"].into_iter().chain(flags).collect();
    let (read, warnings) = gateway(&after);
    assert_eq!((gateway(&before), &warnings), ((read.clone(), vec![]), &vec![]));
    assert_eq!(
        (read.endpoints.as_slice(), read.retry_delay),
        (&["a:1".into(), "b:2".into()][..], Duration::from_secs(5))
    );
    assert_eq!((read.listen_addr.as_slice(), read.process.threads), (&["127.0.0.1:23790".to_owned()][..], 2));
    assert_eq!(read.check(), Ok(vec!["insecure-discovery has no effect without discovery-srv".to_owned()]));
    assert!(read.effective().starts_with("--listen-addr=127.0.0.1:23790 --endpoints=a:1,b:2 "), "{}", read.effective());
    let refusal = refused(&["gateway", "start", "--namespace=a"], &[]);
    assert!(
        refusal.starts_with("Error: unknown flag: --namespace\nUsage:\n  etcd-proxy gateway start [flags]"),
        "{refusal}"
    );
    let refusal = start_refused(&["--retry-delay=5s"]);
    assert!(
        refusal.starts_with("Error: unknown flag: --retry-delay\nUsage:\n  etcd-proxy grpc-proxy start"),
        "{refusal}"
    );
}

// === the sources ===

#[test]
fn a_flag_counts_more_than_a_variable_and_a_variable_more_than_the_file() {
    let file = file("listen-addr: file:1\nnamespace: file/\nresolver-prefix: file\nendpoints: [file:1, file:2]\n");
    let path = file.path().to_str().expect("temporary paths are UTF-8");
    let (flags, warnings) = started(
        &["grpc-proxy", "start", "--listen-addr=flag:1"],
        &[
            ("ETCD_PROXY_CONFIG_FILE", path),
            ("ETCD_PROXY_LISTEN_ADDR", "variable:1"),
            ("ETCD_PROXY_NAMESPACE", "variable/"),
            ("ETCD_PROXY_RESOLVER_PREFIX", ""),
        ],
    );
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(flags.listen_addr, "flag:1");
    assert_eq!(flags.namespace, b"variable/");
    assert_eq!(flags.resolver_prefix, "file");
    assert_eq!(flags.endpoints, ["file:1", "file:2"]);
    assert_eq!(flags.advertise_client_url, Flags::default().advertise_client_url);
}

#[test]
fn a_value_is_refused_with_the_place_that_it_comes_from() {
    assert_eq!(
        refused(&START, &[("ETCD_PROXY_DEBUG", "x")]),
        "invalid argument \"x\" for environment variable ETCD_PROXY_DEBUG: \
         strconv.ParseBool: parsing \"x\": invalid syntax\n"
    );
    assert_eq!(
        with_file("drain-timeout: 5"),
        Err("invalid argument \"5\" for drain-timeout in config file \"FILE\": time: missing unit in duration \"5\"\n"
            .to_owned())
    );
    assert_eq!(
        with_file("endpoint: a"),
        Err("cannot use config file \"FILE\": unknown key \"endpoint\", did you mean endpoints?\n".to_owned())
    );
    assert_eq!(
        refused(&["grpc-proxy", "start", "--config-file=/nonexistent"], &[]),
        "cannot use config file \"/nonexistent\": No such file or directory (os error 2)\n"
    );
    assert!(start_refused(&["--log-level=loud"]).contains("flag: must be one of: debug, info, warn, error\n"));
    assert!(start_refused(&["--log-format=xml"]).contains("flag: must be one of: json, text\n"));
}

#[test]
fn what_is_dropped_is_reported() {
    let (_, warnings) = started(&["grpc-proxy", "start", "--debug", "false"], &[]);
    assert_eq!(
        warnings,
        [
            "the argument \"false\" is not used; the value of a boolean flag is written with an equals sign: --debug=false"
        ]
    );
    let (flags, warnings) = started(&["grpc-proxy", "start", "--endpoints=a:1, b:2,"], &[]);
    assert_eq!(flags.endpoints, ["a:1", "b:2"]);
    assert_eq!(warnings, ["endpoints has blanks or empty items, which are dropped: [\"a:1\", \" b:2\", \"\"]"]);
    let (flags, warnings) = started(&START, &[("ETCD_PROXY_DIAL_KEEPALIVE_TIME", "-5s")]);
    assert_eq!(flags.dial_keepalive_time, Duration::ZERO);
    assert_eq!(warnings, ["ETCD_PROXY_DIAL_KEEPALIVE_TIME is negative, which means the same as 0"]);
    let (_, warnings) = started(&START, &[("ETCD_PROXY_ENDPOINT", "a"), ("ETCD_PROXY_UNRELATED_THING", "b")]);
    assert_eq!(
        warnings,
        ["the environment variable ETCD_PROXY_ENDPOINT is not used; did you mean ETCD_PROXY_ENDPOINTS?"]
    );
}

#[test]
fn the_variables_that_kubernetes_makes_for_a_service_named_etcd_proxy_are_no_flags() {
    let made = [
        ("ETCD_PROXY_SERVICE_HOST", "10.0.0.1"),
        ("ETCD_PROXY_SERVICE_PORT", "2379"),
        ("ETCD_PROXY_SERVICE_PORT_CLIENT", "2379"),
        ("ETCD_PROXY_PORT", "tcp://10.0.0.1:2379"),
        ("ETCD_PROXY_PORT_2379_TCP", "tcp://10.0.0.1:2379"),
        ("ETCD_PROXY_PORT_2379_TCP_PROTO", "tcp"),
        ("ETCD_PROXY_PORT_2379_TCP_ADDR", "10.0.0.1"),
    ];
    assert_eq!(started(&START, &made), (Flags::default(), vec![]));
}

// === what fits together ===

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

// === what is shown ===

#[test]
fn the_effective_flags_name_each_flag_and_hide_passwords() {
    let flags = start(&[
        "--endpoints=https://user:hidden@a:1,b:2",
        "--metrics-addr=http://me:hidden@m:1",
        "--advertise-client-url=hidden@c:3",
        "--namespace=it's here/",
        "--user=me:hidden",
    ]);
    let line = flags.effective();
    assert!(!line.contains("hidden"), "{line}");
    for part in [
        "--endpoints='https://***@a:1,b:2' ",
        "--advertise-client-url='***@c:3' ",
        "--namespace='it'\\''s here/' ",
        "--grpc-keepalive-interval=2h0m0s ",
        "--log-level=info ",
        "--user='me:***' ",
        "--cert= ",
        "--debug=false ",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    for name in names() {
        assert_eq!(line.matches(&format!("--{name}=")).count(), 1, "{name}: {line}");
    }
}

#[test]
fn a_shell_reads_the_effective_flags_back() {
    let mut flags = Flags::default();
    for (_, _, change) in one_of_each() {
        change(&mut flags);
    }
    flags.config_file = None;
    flags.endpoints = vec!["a,b".into(), "\"".into(), "$(c) 'd'".into()];
    flags.namespace = "a b\nc'd\\é".into();
    for flags in [flags, Flags::default(), Flags { endpoints: vec![], ..Flags::default() }] {
        let print_words = format!("printf '%s\\0' {}", flags.effective());
        let output = std::process::Command::new("sh").args(["-c", &print_words]).output().expect("a shell");
        let words = String::from_utf8(output.stdout).expect("the flags are UTF-8");
        let words: Vec<&str> = words.split_terminator('\0').collect();
        assert_eq!(start(&words), flags);
    }
}

#[test]
fn the_page_of_flags_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/flags.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, markdown()).expect("a docs folder that can be written to");
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(page == markdown(), "docs/flags.md is stale; UPDATE_DOCS=1 cargo test writes it anew");
    for line in page.lines().filter(|line| line.starts_with("| `--")) {
        assert_eq!(line.replace("\\|", "").matches('|').count(), 7, "{line}");
    }
}

// === any input ===

fn any_word() -> impl Strategy<Value = OsString> {
    let names: Vec<String> = names();
    prop_oneof![
        Just(OsString::from("grpc-proxy")),
        Just(OsString::from("start")),
        "(--|-)?[-a-z0-9=,\"\n:. ]{0,12}".prop_map(OsString::from),
        (proptest::sample::select(names), "=?[-a-z0-9=,\"\n:.]{0,8}")
            .prop_map(|(name, rest)| format!("--{name}{rest}").into()),
        proptest::collection::vec(any::<u8>(), 0..6).prop_map(OsString::from_vec),
    ]
}

proptest! {
    #[test]
    fn no_command_line_makes_the_parser_panic(words in proptest::collection::vec(any_word(), 0..6), started in any::<bool>()) {
        let beginning = if started { arguments(&START) } else { vec![] };
        if let Ok(Invocation::Start { flags, .. }) = parse(beginning.into_iter().chain(words), &BTreeMap::new()) {
            let _ = (flags.check(), flags.metrics_urls(), flags.effective());
        }
    }

    #[test]
    fn no_config_file_makes_the_parser_panic(lines in proptest::collection::vec((proptest::sample::select(names()), "[-\\[\\]{}a-z0-9,:'\" ]{0,10}"), 0..4)) {
        let text: String = lines.into_iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        if let Ok((flags, _)) = with_file(&text) {
            let _ = flags.check();
        }
    }
}
