//! `gateway start`: etcd's own gateway and ours side by side, real clients through it, members that die and come back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use etcd_proxy_e2e::proxy::Program;
use etcd_proxy_e2e::wait::until;
use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Outcome, Process, Proxy, Tls, Version, http, ports};
use serde_json::Value;

mod discovery;
mod docs;
mod names;

fn gateway(endpoints: &str) -> Proxy {
    Proxy::builder().gateway().flag(format!("--endpoints={endpoints}")).start()
}

// === beside etcd's own ===

/// What etcd's gateway does with these arguments, and what ours does.
fn both(arguments: &[&str]) -> [Outcome; 2] {
    [Program::Etcd(Version::V3_7), Program::Ours]
        .map(|program| Proxy::builder().gateway().program(program).flags(arguments.iter().copied()).run())
}

/// The last line for people: the reason. etcd's gateway prints some of them on stdout.
fn reason(outcome: &Outcome) -> String {
    let mut lines = outcome.stdout.lines().chain(outcome.stderr.lines()).rev();
    lines.find(|line| !line.is_empty() && !line.starts_with('{')).unwrap_or_default().to_owned()
}

#[test]
fn what_etcds_gateway_refuses_is_refused_in_its_words_with_its_exit_code() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("a bound listener has an address").to_string();
    let free = ports::free_address();
    let listen = |address: &str| format!("--listen-addr={address}");
    let endpoints = |list: &str| format!("--endpoints={list}");
    let cases = [
        vec![listen("nonsense")],
        vec![listen(&free), endpoints("nonsense")],
        vec![listen(&free), endpoints("http://127.0.0.1")],
        vec![listen(&free), endpoints(&format!("127.0.0.1:1,{free}"))],
        vec![listen(&free), endpoints(&format!("http://{free}/path"))],
        vec![listen(&format!("localhost:{}", &free[10..])), endpoints(&free)],
        vec![listen(&taken), endpoints("127.0.0.1:1")],
        vec!["--retry-delay=soon".to_owned()],
        vec!["--no-such-flag".to_owned()],
        vec!["--namespace=a".to_owned()],
    ];
    for arguments in cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let [theirs, ours] = both(&arguments);
        // etcd ends this one without a line's end, so that the same text stands alone in both.
        assert_eq!((ours.code, reason(&ours)), (theirs.code, reason(&theirs)), "{arguments:?}");
        assert_eq!((ours.code, ours.stdout.as_str()), (1, ""), "{arguments:?}: {ours:?}");
    }
}

#[test]
fn a_gateway_on_all_addresses_does_not_forward_to_itself_either() {
    let port = ports::free();
    for listen in [format!("0.0.0.0:{port}"), format!(":{port}")] {
        let ours = Proxy::builder()
            .gateway()
            .flag(format!("--listen-addr={listen}"))
            .flag(format!("--endpoints=127.0.0.1:{port}"));
        let outcome = ours.run();
        assert_eq!(outcome.code, 1);
        assert!(reason(&outcome).contains("should not resolve to the gateway listen addr"), "{outcome:?}");
    }
}

#[test]
fn the_lines_that_people_grep_have_the_same_message_level_and_fields() {
    let dead = ports::free_address();
    let mut shapes = Vec::new();
    for program in [Program::Etcd(Version::V3_7), Program::Ours] {
        let proxy = Proxy::builder()
            .gateway()
            .program(program)
            .flags([format!("--endpoints={dead}").as_str(), "--retry-delay=1s"])
            .start();
        drop(TcpStream::connect(proxy.address()).expect("the gateway accepts"));
        let deactivated = proxy.expect_log("deactivated endpoint");
        let failed = proxy.expect_log("failed to activate endpoint");
        let listener = TcpListener::bind(&dead).expect("the port is still free");
        let activated = proxy.expect_log("\"activated\"");
        drop(listener);
        let log = proxy.log();
        let ready = log.iter().find(|line| line["msg"] == "ready to proxy client requests").expect("it was waited for");
        let shape = |line: &Value| {
            ["level", "msg", "address", "interval", "error", "endpoints"].map(|field| line[field].clone())
        };
        shapes.push([ready, &deactivated, &failed, &activated].map(shape));
    }
    assert_eq!(shapes[0], shapes[1]);
}

// === what it is for ===

#[test]
fn clients_are_served_by_three_members_over_their_own_tls() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let (server, client) = (authority.server("server"), authority.client("client", "root"));
    let tls = Tls { server, ca: authority.ca(), client_cert_auth: true };
    let etcd = Etcd::builder().members(3).tls(tls).start();
    let gateway = gateway(&etcd.endpoints());
    let etcdctl =
        Etcdctl::new(Version::default(), format!("https://{}", gateway.address())).tls(&authority.ca(), Some(&client));
    for number in 0..6 {
        etcdctl.ok(&["put", "key", &number.to_string()]);
    }
    let watch = etcdctl.spawn(&["watch", "key", "--rev=1"]);
    watch.expect_stdout("5");
    let large = "x".repeat(1 << 20);
    assert_eq!(etcdctl.run_with(&["put", "large"], &large).code, 0);
    assert_eq!(etcdctl.ok(&["get", "large", "--print-value-only"]), large);
}

#[test]
fn an_endpoint_that_comes_back_serves_at_once_when_all_were_down() {
    let mut etcd = Etcd::start();
    let metrics = ports::free_address();
    let gateway = Proxy::builder()
        .gateway()
        .flags([format!("--endpoints={}", etcd.endpoints()).as_str(), "--retry-delay=1h"])
        .flag(format!("--metrics-addr=http://{metrics}"))
        .start();
    gateway.etcdctl().ok(&["put", "key", "value"]);
    etcd.member(0).kill();
    let mut socket = TcpStream::connect(gateway.address()).expect("the gateway accepts");
    assert_eq!(socket.read(&mut [0]).expect("it is closed in order"), 0);
    gateway.expect_log("deactivated endpoint");
    let page = |path: &str| http::get(&metrics, path).expect("the metrics address answers");
    assert_eq!((page("/health").status, page("/readyz").status, page("/livez").status), (503, 503, 200));

    etcd.member(0).restart();
    assert_eq!(gateway.etcdctl().ok(&["get", "key", "--print-value-only"]), "value");
    gateway.expect_log("\"activated\"");
    assert_eq!((page("/health").status, page("/readyz").status), (200, 200));
    let endpoint = etcd.address();
    let metric = |name: &str| page("/metrics").metric(&format!("{name}{{endpoint=\"{endpoint}\"}}"));
    assert_eq!(metric("etcd_proxy_gateway_endpoint_active"), Some(1.0));
    assert!(metric("etcd_proxy_gateway_endpoint_failures_total").is_some_and(|failures| failures >= 1.0));
    assert!(page("/metrics").metric("etcd_proxy_gateway_bytes_total{to=\"clients\"}").is_some_and(|bytes| bytes > 0.0));
}

#[test]
fn an_endpoint_that_does_not_answer_is_given_up_after_the_dial_timeout() {
    let etcd = Etcd::start();
    // A listener whose queue is full leaves the next one without an answer, as a machine without power does.
    let deaf = listener_that_never_answers("127.0.0.1:0");
    let address = deaf.0.local_addr().expect("a bound listener has an address");
    let gateway = Proxy::builder()
        .gateway()
        .flag(format!("--endpoints={address},{}", etcd.address()))
        .flag("--dial-timeout=300ms")
        .start();
    for _ in 0..2 {
        gateway.etcdctl().ok(&["put", "key", "value"]);
    }
    let line = gateway.expect_log("deactivated endpoint");
    assert_eq!(line["error"], format!("dial tcp {address}: i/o timeout"));
}

/// A listener that takes no connection any more, and the connections that fill its queue.
fn listener_that_never_answers(address: &str) -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind(address).expect("a free port");
    // SAFETY: listen takes two integers and touches no memory; called again, it makes the queue shorter.
    assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) }, 0);
    let address = listener.local_addr().expect("a bound listener has an address");
    let mut waiting = Vec::new();
    while let Ok(socket) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        waiting.push(socket);
    }
    (listener, waiting)
}

// === sockets ===

/// A server that answers once its client has said that there is no more.
fn answers_at_the_end(listener: TcpListener) {
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a client comes");
            let mut question = String::new();
            socket.read_to_string(&mut question).expect("the question ends");
            write!(socket, "answer to {question}").expect("the client still listens");
        }
    });
}

fn ask(mut socket: impl Read + Write, shutdown: impl FnOnce()) -> String {
    socket.write_all(b"question").expect("the gateway takes it");
    shutdown();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the answer ends");
    answer
}

#[test]
fn several_listeners_serve_tcp_and_unix_sockets_and_pass_half_closes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("gateway.sock");
    let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = server.local_addr().expect("a bound listener has an address");
    answers_at_the_end(server);
    let address = ports::free_address();
    let mut gateway = Proxy::builder()
        .gateway()
        .flag(format!("--endpoints={endpoint}"))
        .flag(format!("--listen-addr={address},unix://{}", path.display()))
        .start();
    let tcp = TcpStream::connect(&address).expect("the gateway listens");
    assert_eq!(ask(&tcp, || tcp.shutdown(Shutdown::Write).expect("it is open")), "answer to question");
    let unix = UnixStream::connect(&path).expect("the gateway listens");
    assert_eq!(ask(&unix, || unix.shutdown(Shutdown::Write).expect("it is open")), "answer to question");

    // And a second gateway whose endpoint is that socket.
    let behind = self::gateway(&format!("unix://{}", path.display()));
    let tcp = TcpStream::connect(behind.address()).expect("the gateway listens");
    assert_eq!(ask(&tcp, || tcp.shutdown(Shutdown::Write).expect("it is open")), "answer to question");
    drop(tcp);
    assert_eq!(gateway.terminate(), 0);
    assert!(!path.exists(), "the socket's file is left behind");
}

#[test]
fn sigterm_lets_open_connections_end_and_takes_no_new_ones() {
    let etcd = Etcd::start();
    let mut gateway = gateway(&etcd.endpoints());
    let watch = gateway.etcdctl().spawn(&["watch", "key", "--rev=1"]);
    etcd.etcdctl().ok(&["put", "key", "before"]);
    watch.expect_stdout("before");
    gateway.process.signal(libc::SIGTERM);
    until("the listener closes", || TcpStream::connect(gateway.address()).is_err());
    etcd.etcdctl().ok(&["put", "key", "during"]);
    watch.expect_stdout("during");
    drop(watch);
    assert_eq!(gateway.process.wait(), 0);
    assert!(gateway.process.stderr.text().contains("drained, every connection has ended"));
}

#[test]
fn connections_that_do_not_end_hold_the_drain_up_no_longer_than_its_timeout() {
    let etcd = Etcd::start();
    let mut gateway = Proxy::builder()
        .gateway()
        .flag(format!("--endpoints={}", etcd.address()))
        .flag("--drain-timeout=100ms")
        .start();
    let watch: Process = gateway.etcdctl().spawn(&["watch", "key", "--rev=1"]);
    etcd.etcdctl().ok(&["put", "key", "value"]);
    watch.expect_stdout("value");
    assert_eq!(gateway.terminate(), 0);
    gateway.process.stderr.wait_for_end();
    assert!(gateway.process.stderr.text().contains("ending with connections open"));
}
