//! `http-proxy start`: `etcd --proxy` of 3.5 and ours side by side, curl and etcdctl with the v2 API through it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use etcd_proxy_e2e::wait::until;
use etcd_proxy_e2e::{Etcd, Outcome, Process, Version, ports, programs};
use serde_json::Value;
use tempfile::TempDir;

mod cluster;
mod docs;

/// Whose proxy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Etcds,
    Ours,
}

/// A proxy in a data directory of its own.
struct HttpProxy {
    process: Process,
    address: String,
    folder: TempDir,
}

impl HttpProxy {
    /// Ours, with the default folder of a fresh working directory.
    fn start(flags: &[String]) -> HttpProxy {
        HttpProxy::start_in(tempfile::tempdir().expect("a temporary folder can be made"), Whose::Ours, flags)
    }

    fn start_in(folder: TempDir, whose: Whose, flags: &[String]) -> HttpProxy {
        let address = ports::free_address();
        let mut all = vec![format!("--listen-client-urls=http://{address}")];
        all.extend(flags.iter().cloned());
        let process = spawn(folder.path(), whose, &all);
        process.expect_stderr("v2 proxy started listening on client requests");
        HttpProxy { process, address, folder }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn spawn(folder: &Path, whose: Whose, flags: &[String]) -> Process {
    let mut command = match whose {
        Whose::Etcds => Command::new(Version::V3_5.etcd()),
        Whose::Ours => Command::new(programs::etcd_proxy()),
    };
    if whose == Whose::Ours {
        command.args(["http-proxy", "start"]);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD") {
            command.env_remove(name);
        }
    }
    command.current_dir(folder).args(flags);
    Process::spawn(format!("HTTP proxy ({whose:?})"), &mut command, b"")
}

/// One etcd 3.5 with the v2 API.
fn etcd() -> Etcd {
    Etcd::builder().version(Version::V3_5).flag("--enable-v2").start()
}

/// `--initial-cluster` for all members.
fn initial_cluster(etcd: &Etcd) -> String {
    let members = etcd.members().iter().enumerate();
    let named: Vec<String> = members.map(|(index, member)| format!("m{index}={}", member.peer_url())).collect();
    format!("--initial-cluster={}", named.join(","))
}

fn run(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied());
    let mut process = Process::spawn(format!("{} {}", program.display(), arguments.join(" ")), &mut command, b"");
    let code = process.wait();
    process.stdout.wait_for_end();
    process.stderr.wait_for_end();
    Outcome { stdout: process.stdout.text(), stderr: process.stderr.text(), code }
}

/// curl's exit code is 0 for whatever answer there is.
fn curl(arguments: &[&str]) -> String {
    let outcome = run(Path::new("curl"), &[&["-sS", "--max-time", "30"], arguments].concat(), &[]);
    assert_eq!(outcome.code, 0, "{arguments:?}: {outcome:?}");
    outcome.stdout
}

/// Status, the headers that a client acts upon, and the body, without what counts up with every write.
fn answer(url: &str, arguments: &[&str]) -> (String, Vec<String>, String) {
    let whole = curl(&[&["-i"], arguments, &[url]].concat());
    let (head, body) = whole.split_once("\n\n").unwrap_or((&whole, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().trim().to_owned();
    let kept = ["content-type:", "allow:", "x-etcd-cluster-id:", "x-error-type:", "access-control-allow-origin:"];
    let is_kept = |line: &String| kept.iter().any(|name| line.starts_with(name));
    let mut headers: Vec<String> = lines.map(|line| line.trim().to_ascii_lowercase()).filter(is_kept).collect();
    headers.sort();
    // A member and etcd's proxy say this each for itself, which browsers refuse.
    headers.dedup();
    let mut body = body.trim().to_owned();
    if let Ok(mut json) = serde_json::from_str::<Value>(&body) {
        without_counts(&mut json);
        body = json.to_string();
    }
    (status, headers, body)
}

fn without_counts(value: &mut Value) {
    const COUNTS: [&str; 6] = ["modifiedIndex", "createdIndex", "index", "revision", "raft_term", "mod_revision"];
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !COUNTS.contains(&name.as_str()));
            fields.values_mut().for_each(without_counts);
        }
        Value::Array(items) => items.iter_mut().for_each(without_counts),
        _ => (),
    }
}

// === beside etcd's own ===

#[test]
fn etcds_proxy_and_ours_give_the_same_answers_in_both_modes() {
    let etcd = etcd();
    let direct = format!("http://{}", etcd.address());
    curl(&["-XPUT", "-d", "value=there", &format!("{direct}/v2/keys/old")]);
    etcd.etcdctl().ok(&["put", "foo", "bar"]);
    let requests: [&[&str]; 22] = [
        &["/v2/keys/old"],
        &["/v2/keys/missing"],
        &["/v2/keys/?recursive=true&sorted=true"],
        &["/v2/keys/new", "-XPUT", "-d", "value=hello"],
        &["/v2/keys/new", "-XPUT", "-d", "value=again", "-d", "prevValue=hello"],
        &["/v2/keys/new", "-XPUT", "-d", "value=no", "-d", "prevValue=wrong"],
        &["/v2/keys/new"],
        &["/v2/keys/new", "-XDELETE"],
        &["/v2/keys/dir?dir=true", "-XPUT"],
        &["/v2/keys/dir?dir=true", "-XDELETE"],
        &["/v2/members"],
        &["/v2/config/local/proxy"],
        &["/v2/config/local/proxy", "-XPOST"],
        &["/version"],
        &["/v2/keys/old", "-I"],
        &["/v2/keys/old", "-XOPTIONS"],
        &["/v2/keys/old", "-XPATCH"],
        &["/v3/kv/range", "-d", r#"{"key":"Zm9v"}"#],
        &["/nonsense"],
        // As the health checks of load balancers ask.
        &["/version", "--http1.0", "-H", "Host:"],
        &["/v2/keys/old", "-H", "Expect: something"],
        &["/", "-XCONNECT", "--request-target", "somewhere:1"],
    ];
    for mode in ["on", "readonly"] {
        let flags = [initial_cluster(&etcd), format!("--proxy={mode}")];
        let folder = || tempfile::tempdir().expect("a temporary folder can be made");
        let theirs = HttpProxy::start_in(folder(), Whose::Etcds, &flags);
        let ours = HttpProxy::start_in(folder(), Whose::Ours, &flags);
        // One after the other, as each leaves the keys as it has found them.
        let [theirs_said, ours_said] =
            [&theirs, &ours].map(|proxy| requests.map(|request| answer(&proxy.url(request[0]), &request[1..])));
        for (request, (theirs, ours)) in requests.iter().zip(theirs_said.iter().zip(&ours_said)) {
            assert_eq!(ours, theirs, "{mode}: {request:?}");
        }
        let [theirs, ours] = [&theirs, &ours].map(|proxy| {
            let file = proxy.folder.path().join("default.etcd/proxy/cluster");
            std::fs::read_to_string(file).expect("the cluster is remembered")
        });
        assert_eq!(ours, theirs);
    }
}

#[test]
fn without_any_member_both_answer_503_with_the_same_words() {
    let nobody = format!("--initial-cluster=m0=http://{}", ports::free_address());
    let answers = [Whose::Etcds, Whose::Ours].map(|whose| {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let proxy = HttpProxy::start_in(folder, whose, &[nobody.clone(), "--proxy=on".to_owned()]);
        answer(&proxy.url("/v2/keys/a"), &[])
    });
    assert_eq!(answers[0], answers[1]);
    assert!(answers[1].0.contains("503"), "{answers:?}");
}

#[test]
fn a_member_that_speaks_an_older_http_does_not_end_the_clients_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    // Both the peer that tells of itself and the member.
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = BufReader::new(socket.expect("the proxy comes"));
            let lines: Vec<String> =
                socket.by_ref().lines().map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
            let is_peer = lines.first().is_some_and(|line| line.contains("/members"));
            let member =
                format!(r#"[{{"id":1,"name":"a","peerURLs":["http://{address}"],"clientURLs":["http://{address}"]}}]"#);
            let body = if is_peer { member.as_str() } else { "old" };
            let head = format!("HTTP/1.0 200 OK\r\nX-Etcd-Cluster-ID: 1\r\nContent-Length: {}\r\n\r\n", body.len());
            // A reader that is gone needs no answer.
            let _ = socket.into_inner().write_all((head + body).as_bytes());
        }
    });
    let proxy = HttpProxy::start(&[format!("--initial-cluster=m0=http://{address}")]);
    let url = proxy.url("/");
    until("the member is known", || curl(&[&url]) == "old");
    let said = curl(&["-w", " %{http_version} %{num_connects};", &url, &url]);
    assert_eq!(said, "old 1.1 1;old 1.1 0;");
}

#[test]
fn what_cannot_work_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    std::fs::create_dir_all(folder.path().join("taken/member")).expect("the folder can be written to");
    for (flag, words) in [
        ("--proxy=off", "this program is no member"),
        ("--proxy=maybe", "want on or readonly"),
        ("--initial-cluster=a=b:1", "URL scheme must be http, https, unix, or unixs: b:1"),
        ("--listen-client-urls=https://127.0.0.1:0", "wants a certificate"),
        ("--data-dir=taken", "it holds the data of a member"),
        ("--peer-cert-file=x", "give --peer-key-file as well"),
        ("--discovery-proxy=http://", "invalid discovery-proxy: no host is given"),
        ("--client-cert-auth", "give --trusted-ca-file as well"),
        ("--cipher-suites=FOO", "unexpected TLS cipher suite \"FOO\""),
        ("--endpoints=a:1", "unknown flag: --endpoints"),
    ] {
        let mut process =
            spawn(folder.path(), Whose::Ours, &["--listen-client-urls=http://127.0.0.1:0".into(), flag.into()]);
        assert_eq!(process.wait(), 1, "{flag}");
        process.stderr.wait_for_end();
        assert!(process.stderr.text().contains(words), "{flag}: {}", process.stderr.text());
    }
}

// === what it is for ===

#[test]
fn etcdctl_with_the_v2_api_works_through_it() {
    let etcd = etcd();
    let proxy = HttpProxy::start(&[initial_cluster(&etcd)]);
    let endpoint = proxy.url("");
    let etcdctl = |words: &[&str]| {
        let words = [&["--no-sync", "--endpoints", endpoint.as_str()], words].concat();
        let outcome = run(&Version::V3_5.etcdctl(), &words, &[("ETCDCTL_API", "2")]);
        assert_eq!(outcome.code, 0, "{words:?}: {outcome:?}");
        outcome.stdout.trim().to_owned()
    };
    assert_eq!(etcdctl(&["set", "/greeting", "hello"]), "hello");
    assert_eq!(etcdctl(&["get", "/greeting"]), "hello");
    etcdctl(&["mk", "--in-order", "/queue", "first"]);
    assert!(etcdctl(&["ls", "--recursive", "/"]).contains("/queue/"));
    assert!(etcdctl(&["cluster-health"]).contains("cluster is healthy"));
}

#[test]
fn long_polls_and_streams_come_through_as_they_happen() {
    let etcd = etcd();
    let mut proxy = HttpProxy::start(&[initial_cluster(&etcd)]);
    let start_curl = |arguments: &[&str]| {
        Process::spawn("curl", Command::new("curl").args(["-sSN", "--max-time", "60"]).args(arguments), b"")
    };
    let stream = start_curl(&["-d", r#"{"create_request":{"key":"Zm9v"}}"#, &proxy.url("/v3/watch")]);
    stream.expect_stdout("\"created\":true");
    for value in ["one", "two"] {
        etcd.etcdctl().ok(&["put", "foo", value]);
        stream.expect_stdout(if value == "one" { "b25l" } else { "dHdv" });
    }
    drop(stream);
    let before = curl(&["-XPUT", "-d", "value=before", &proxy.url("/v2/keys/polled")]);
    let before: Value = serde_json::from_str(&before).expect("etcd answers with JSON");
    let next = before["node"]["modifiedIndex"].as_u64().expect("a key has an index") + 1;
    let poll = proxy.url(&format!("/v2/keys/polled?wait=true&waitIndex={next}"));
    let polls: Vec<Process> = (0..20).map(|_| start_curl(&[&poll])).collect();
    let count = || {
        let metrics = curl(&[&proxy.url("/metrics")]);
        let series = "etcd_proxy_requests_total{method=\"GET\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(series)?.parse::<f64>().ok())
    };
    until("all polls are under way", || count() == Some(20.0));
    // A poll that waits does not keep the proxy from ending, and is answered before it does.
    proxy.process.signal(libc::SIGTERM);
    until("no new connection is taken", || std::net::TcpStream::connect(&proxy.address).is_err());
    curl(&["-XPUT", "-d", "value=after", &format!("http://{}/v2/keys/polled", etcd.address())]);
    for poll in &polls {
        poll.expect_stdout("\"value\":\"after\"");
    }
    assert_eq!(proxy.process.wait(), 0);
}

#[test]
fn https_with_a_generated_certificate_and_unix_sockets_are_served() {
    let etcd = etcd();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (address, socket) = (ports::free_address(), folder.path().join("proxy.sock"));
    let listen = format!("--listen-client-urls=https://{address},unix://{}", socket.display());
    let proxy = spawn(folder.path(), Whose::Ours, &[listen, initial_cluster(&etcd), "--auto-tls".into()]);
    proxy.expect_stderr("v2 proxy started listening on client requests");
    proxy.expect_stderr("v2 proxy started listening on client requests");
    let certificate = folder.path().join("default.etcd/proxy/clientCerts/cert.pem");
    let url = format!("https://{address}/v2/keys/a");
    let trusting = ["--cacert", certificate.to_str().expect("a plain path")];
    assert!(curl(&[&trusting[..], &["-XPUT", "-d", "value=1", &url]].concat()).contains("\"action\":\"set\""));
    let path = socket.to_str().expect("a plain path");
    assert!(curl(&["--unix-socket", path, "http://localhost/v2/keys/a"]).contains("\"value\":\"1\""));
}
