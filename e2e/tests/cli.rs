//! The process as people and scripts know it from etcd's own proxy: refusals, log lines, variables, end, readiness.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_proxy_e2e::process::PATIENCE;
use etcd_proxy_e2e::proxy::Program;
use etcd_proxy_e2e::{Authority, Etcd, Outcome, Proxy, Version, grpc, http, ports, programs};
use etcd_proxy_proto::etcdserverpb::{
    PutRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use serde_json::Value;
use tonic::Code;

/// What etcd's proxy does with these arguments, and what ours does.
fn both(arguments: &[&str]) -> [Outcome; 2] {
    let address = ports::free_address();
    let common = [format!("--listen-addr={address}"), format!("--advertise-client-url={address}")];
    [Program::Etcd(Version::V3_7), Program::Ours].map(|program| {
        let builder = Proxy::builder().program(program).flags(common.iter().map(String::as_str));
        builder.flags(arguments.iter().copied()).run()
    })
}

/// The last line for people: the reason.
fn reason(outcome: &Outcome) -> &str {
    outcome.stderr.lines().rfind(|line| !line.is_empty() && !line.starts_with('{')).unwrap_or_default()
}

#[test]
fn what_etcd_refuses_is_refused_in_its_words_with_its_exit_code() {
    let cases: [&[&str]; 14] = [
        &["--resolver-prefix=a"],
        &["--resolver-ttl=5"],
        &["--resolver-prefix=a", "--resolver-ttl=5", "--advertise-client-url="],
        &["--auto-tls", "--self-signed-cert-validity=0"],
        &["--tls-min-version=TLS1.1"],
        &["--tls-max-version=nonsense"],
        &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
        &["--tls-min-version=TLS1.3", "--listen-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
        &["--no-such-flag"],
        &["-x"],
        &["--resolver-ttl=abc"],
        &["--dial-keepalive-time=xyz"],
        &["--auto-tls=perhaps"],
        &["--max-concurrent-streams=-1"],
    ];
    for arguments in cases {
        let [theirs, ours] = both(arguments);
        assert_eq!((ours.code, reason(&ours)), (theirs.code, reason(&theirs)), "{arguments:?}");
        assert_eq!(ours.code, 1, "{arguments:?}");
        assert_eq!(ours.stdout, "", "{arguments:?}");
    }
}

#[test]
fn what_etcd_refuses_after_its_start_begins_with_its_words() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let named = authority.client("named", "root");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("a bound listener has an address");
    let flag = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    let cases: [Vec<String>; 5] = [
        vec![flag("listen-addr", &taken)],
        vec![flag("metrics-addr", &format_args!("http://{taken}"))],
        vec![flag("cert", &named.cert.display()), flag("key", &named.key.display())],
        vec![flag("cert", &"no.crt"), flag("key", &"no.key")],
        vec!["--endpoints=".to_owned()],
    ];
    for arguments in cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let [theirs, ours] = both(&arguments);
        assert_eq!((ours.code, theirs.code), (1, 1), "{arguments:?}");
        assert!(!reason(&theirs).is_empty(), "{theirs:?}");
        assert!(
            reason(&ours).starts_with(reason(&theirs)),
            "{arguments:?}: {:?}, {:?}",
            reason(&ours),
            reason(&theirs)
        );
    }
}

#[test]
fn what_only_we_refuse_says_what_would_be_right() {
    for (argument, remedy) in [
        ("--endpoints=ftp://a:1", "write host:port"),
        ("--metrics-addr=nonsense", "such as http://127.0.0.1:2381"),
        ("--listen-addr=nonsense", "want host:port"),
        ("--cert-file=no.crt", "key-file"),
    ] {
        let outcome = Proxy::builder().flag(argument).run();
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(reason(&outcome).contains(remedy), "{argument}: {outcome:?}");
    }
}

/// A log line without what differs from run to run.
fn line<'a>(log: &'a [Value], message: &str) -> &'a Value {
    log.iter().find(|line| line["msg"] == message).unwrap_or_else(|| panic!("nobody logged {message:?}: {log:#?}"))
}

#[test]
fn the_lines_that_people_grep_have_the_same_message_level_and_fields() {
    const MESSAGES: [&str; 11] = [
        "gRPC proxy server TLS",
        "listening for gRPC proxy client requests",
        "gRPC proxy client TLS",
        "create proxy client",
        "gRPC proxy enabled pprof",
        "gRPC proxy listening for metrics",
        "gRPC proxy server metrics URL serving",
        "started gRPC proxy",
        "notifying init daemon",
        "successfully notified init daemon",
        "registered session with lease",
    ];
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let server = authority.server("server");
    let client = authority.nameless_client("client");
    let etcd = Etcd::start();
    let logs = [Program::Etcd(Version::V3_7), Program::Ours].map(|program| {
        let flags = [
            format!("--endpoints={}", etcd.endpoints()),
            format!("--cert-file={}", server.cert.display()),
            format!("--key-file={}", server.key.display()),
            format!("--cert={}", client.cert.display()),
            format!("--key={}", client.key.display()),
            format!("--cacert={}", authority.ca().display()),
            format!("--metrics-addr=http://{}", ports::free_address()),
            "--enable-pprof".to_owned(),
            "--resolver-prefix=proxies".to_owned(),
            "--resolver-ttl=30".to_owned(),
            "--insecure-skip-tls-verify".to_owned(),
        ];
        let proxy = Proxy::builder().program(program).flags(flags.iter().map(String::as_str)).start();
        // Registration happens on the side, in both.
        let deadline = Instant::now() + PATIENCE;
        while !proxy.log().iter().any(|line| line["msg"] == "registered session with lease") {
            assert!(Instant::now() < deadline, "not registered: {:#?}", proxy.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        proxy.log()
    });
    for message in MESSAGES {
        let [theirs, ours] = [&logs[0], &logs[1]].map(|log| line(log, message).as_object().expect("an object"));
        assert_eq!(ours["level"], theirs["level"], "{message}");
        let missing: Vec<_> = theirs.keys().filter(|field| !ours.contains_key(*field)).collect();
        assert!(missing.is_empty(), "{message} lacks {missing:?} of {theirs:?}");
    }
    for message in ["gRPC proxy server TLS", "gRPC proxy client TLS"] {
        let [theirs, ours] = [&logs[0], &logs[1]].map(|log| &line(log, message)["tls-info"]);
        assert_eq!(ours, theirs);
    }
    let skipping = |log: &Vec<Value>| {
        let warning =
            log.iter().find(|line| line["msg"].as_str().is_some_and(|msg| msg.starts_with("--insecure-skip")));
        warning.map(|line| (line["level"].clone(), line["msg"].clone()))
    };
    assert!(skipping(&logs[0]).is_some());
    assert_eq!(skipping(&logs[1]), skipping(&logs[0]));
}

#[test]
fn variables_and_a_config_file_set_flags_and_a_flag_counts_most() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let etcd = Etcd::start();
    let file = folder.path().join("proxy.yaml");
    let (from_file, from_variable, from_flag) = (ports::free_address(), ports::free_address(), ports::free_address());
    let text = format!("listen-addr: {from_file}\nendpoints: {}\nnamespace: file/\n", etcd.endpoints());
    std::fs::write(&file, text).expect("the file can be written");
    let start = |variable: Option<&str>, flag: Option<&str>, address: &str| {
        let mut builder = Proxy::builder().flag(format!("--config-file={}", file.display()));
        builder = flag.iter().fold(builder, |builder, flag| builder.flag(format!("--listen-addr={flag}")));
        builder = variable.iter().fold(builder, |builder, value| builder.env("ETCD_PROXY_LISTEN_ADDR", *value));
        let process = builder.spawn();
        process.expect_stderr("started gRPC proxy");
        etcd_proxy_e2e::Etcdctl::new(Version::V3_7, address).ok(&["put", address, "v"]);
        assert_eq!(etcd.etcdctl().ok(&["get", &format!("file/{address}"), "--print-value-only"]), "v");
    };
    start(None, None, &from_file);
    start(Some(&from_variable), None, &from_variable);
    start(Some(&from_variable), Some(&from_flag), &from_flag);
}

#[test]
fn the_init_daemon_is_told_of_readiness_and_of_the_end() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("notify");
    let daemon = UnixDatagram::bind(&path).expect("a socket at a fresh path");
    daemon.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    let heard = || {
        let mut buffer = [0; 256];
        let length = daemon.recv(&mut buffer).expect("a message in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut proxy = Proxy::builder().env("NOTIFY_SOCKET", &path).start();
    assert_eq!(heard(), "READY=1");
    assert_eq!(proxy.terminate(), 0);
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn it_serves_as_soon_as_it_says_that_it_is_started() {
    let etcd = Etcd::start();
    let mut times = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let proxy = Proxy::start(&etcd.endpoints());
        times.push(started.elapsed());
        assert_eq!(proxy.etcdctl().run(&["put", "k", "v"]).code, 0);
    }
    println!("from exec to started: {times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_watches_with_unavailable_lets_a_put_finish_and_exits_with_zero() {
    let mut etcd = Etcd::start();
    let mut proxy = Proxy::builder()
        .flags([&format!("--endpoints={}", etcd.endpoints()), "--health-interval=1m", "--health-timeout=1m"])
        .start();
    let channel = grpc::channel(proxy.address()).await;
    let create = WatchCreateRequest { key: "k".into(), ..WatchCreateRequest::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (_asks, receiver) = {
        let (asks, receiver) = tokio::sync::mpsc::channel(1);
        asks.send(request).await.expect("there is room");
        (asks, receiver)
    };
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut watch = WatchClient::new(channel.clone()).watch(stream).await.expect("the watch opens").into_inner();
    assert!(watch.message().await.expect("an answer").expect("a response").created);

    etcd.member(0).pause();
    let put = PutRequest { key: "other".into(), value: "v".into(), ..PutRequest::default() };
    let put = tokio::spawn(async move { KvClient::new(channel).put(put).await });
    wait_for_calls(&proxy, "Put", 1.0).await;
    // Programs in Go pass over these two, by which the kernel ends others.
    proxy.process.signal(libc::SIGUSR1);
    proxy.process.signal(libc::SIGUSR2);
    proxy.process.signal(libc::SIGTERM);
    let status = loop {
        match watch.message().await {
            Ok(Some(_)) => (),
            Ok(None) => panic!("a watch never ends well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // New clients are refused while the put still waits for its etcd.
    assert!(std::net::TcpStream::connect(proxy.address()).is_err());
    assert!(!put.is_finished());
    etcd.member(0).resume();
    put.await.expect("the put does not panic").expect("a put that was under way succeeds");
    assert_eq!(proxy.process.wait(), 0);
    let log = proxy.log();
    for message in ["received SIGTERM, draining", "stop listening gRPC proxy client requests"] {
        assert_eq!(line(&log, message)["level"], "info");
    }
}

async fn wait_for_calls(proxy: &Proxy, method: &str, count: f64) {
    let name = format!("grpc_server_started_total{{grpc_method=\"{method}\"");
    let started = || {
        let page = http::get(proxy.address(), "/proxy/metrics").expect("the proxy answers");
        let line = page.body.lines().find(|line| line.starts_with(&name)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let deadline = Instant::now() + PATIENCE;
    while started() < count {
        assert!(Instant::now() < deadline, "no {method} was started");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn each_call_is_logged_when_asked_for_and_its_content_never() {
    const SECRET: &str = "s3cr3t-value";
    let etcd = Etcd::start();
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let logging = Proxy::builder().flags([&endpoints, "--experimental-enable-grpc-logging"]).start();
    logging.etcdctl().ok(&["put", "key-of-secret", SECRET]);
    let refused = logging.etcdctl().run(&["lease", "revoke", "1234abcd"]);
    assert_ne!(refused.code, 0);
    let put = logging.expect_log("\"grpc.method\":\"Put\"");
    assert_eq!(put["msg"], "finished call");
    assert_eq!(put["level"], "info");
    assert_eq!(put["grpc.service"], "etcdserverpb.KV");
    assert_eq!(put["grpc.code"], "OK");
    assert!(put["grpc.duration"].as_str().is_some_and(|duration| duration.ends_with('s')), "{put}");
    assert!(put["peer.address"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{put}");
    let request = put["grpc.request.bytes"].as_u64().expect("a number");
    assert!((30..60).contains(&request), "{put}");
    assert!(put["grpc.response.bytes"].as_u64().is_some_and(|bytes| bytes > 5), "{put}");
    assert_eq!(logging.expect_log("\"grpc.method\":\"LeaseRevoke\"")["grpc.code"], "NotFound");
    let whole = logging.process.stderr.text();
    assert!(!whole.contains(SECRET) && !whole.contains("key-of-secret"));

    let silent = Proxy::builder().flag(&endpoints).start();
    silent.etcdctl().ok(&["put", "k", "v"]);
    assert!(!silent.process.stderr.text().contains("finished call"));
}

/// What `--help` of a command prints.
fn help(program: &Path, words: &[&str]) -> String {
    let output = Command::new(program).args(words).arg("--help").output().expect("the program can be started");
    assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The flags of a page in cobra's form: each one's type and default, both empty where there is none.
fn flags(page: &str) -> BTreeMap<String, (String, String)> {
    let rows = page.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    rows.map(|row| {
        let (left, usage) = row.split_once("  ").unwrap_or((row, ""));
        let (name, kind) = left.split_once(' ').unwrap_or((left, ""));
        let default = usage.strip_suffix(')').and_then(|usage| usage.rsplit_once("(default "));
        (name.to_owned(), (kind.to_owned(), default.map_or(String::new(), |(_, value)| bare(value))))
    })
    .collect()
}

/// A default without what its type puts around it.
fn bare(value: &str) -> String {
    value.trim_matches(['"', '\'', '[', ']']).to_owned()
}

#[test]
fn help_lists_every_flag_of_etcds_with_its_type_and_default() {
    let etcd = Version::V3_7.etcd();
    for door in ["grpc-proxy", "gateway"] {
        let [theirs, ours] =
            [etcd.clone(), programs::etcd_proxy()].map(|program| flags(&help(&program, &[door, "start"])));
        assert!(theirs.len() > 6, "{theirs:?}");
        for (name, (kind, default)) in theirs {
            let (our_kind, our_default) = ours.get(&name).unwrap_or_else(|| panic!("{door} start has no --{name}"));
            assert_eq!(our_default, &default, "{door} start --{name}");
            // Some of ours take several values where etcd's take one.
            assert!(*our_kind == kind || *our_kind == format!("{kind}s"), "{door} start --{name}: {our_kind}, {kind}");
        }
    }
}

#[test]
fn help_of_the_http_proxy_has_the_defaults_of_etcd_3_5() {
    // A command that is a proxy is not off, and has a folder for each name.
    const OTHERS: [&str; 2] = ["proxy", "data-dir"];
    let output = Command::new(Version::V3_5.etcd()).arg("--help").output().expect("etcd can be started");
    let page = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let theirs: BTreeMap<&str, String> = page
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--")?.split_once(' '))
        .map(|(name, default)| (name, bare(default.trim())))
        .collect();
    let ours = flags(&help(&programs::etcd_proxy(), &["http-proxy", "start"]));
    for name in ["failure-wait", "refresh-interval", "dial-timeout", "write-timeout", "read-timeout"] {
        assert!(ours.contains_key(&format!("proxy-{name}")), "--proxy-{name}");
    }
    let mut compared = 0;
    for (name, (_, default)) in ours {
        let Some(theirs) = theirs.get(&*name).filter(|_| !OTHERS.contains(&&*name)) else { continue };
        let nothing = ["0", "false"].contains(&&**theirs) && default.is_empty();
        assert!(nothing || default == *theirs, "--{name}: {default:?}, {theirs:?}");
        compared += 1;
    }
    assert!(compared > 15, "{compared} flags of {page}");
}

#[test]
fn help_of_every_command_names_it_and_starts_nothing() {
    let program = programs::etcd_proxy();
    let root = help(&program, &[]);
    let commands = root.lines().skip_while(|line| *line != "Available Commands:").skip(1);
    let words: Vec<&str> =
        commands.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(words, ["check", "gateway", "grpc-proxy", "help", "http-proxy", "top", "version"]);
    for word in words.into_iter().filter(|word| *word != "help") {
        let page = help(&program, &[word]);
        assert!(page.contains(&format!("\nUsage:\n  etcd-proxy {word} [")), "{page}");
        assert!(page.contains("\n  -h, --help"), "{page}");
    }
    for tool in ["check", "top"] {
        let flags = flags(&help(&program, &[tool]));
        assert!(!flags.is_empty() && flags.keys().all(|name| !name.contains(' ')), "{tool}: {flags:?}");
    }
}
