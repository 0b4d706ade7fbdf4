//! Command line, environment and config file beside each other.

use super::*;

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
