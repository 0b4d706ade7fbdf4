//! The words of the command line: every spelling that pflag takes, and what is refused in whose words.

use super::*;

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
