//! Clients that no one here wrote, each in its own language, through the proxy: TLS with a client certificate on both
//! sides, a namespace, and three members behind it. Each program looks into etcd past the proxy too.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Outcome, Pair, Process, Proxy, Tls, Version};

/// What the proxy puts before every key. It ends as no range may be cut short or reach beyond it.
const NAMESPACE: &str = "tenant/";

/// How long one client's program may take in all; each of its checks has a bound of its own.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(180);

/// How often a program is looked at for its end, as the kernel offers no event to a thread.
const POLL: Duration = Duration::from_millis(20);

/// Three members behind a proxy, and what a client needs to reach them.
struct Parts {
    proxy: Proxy,
    etcd: Etcd,
    authority: Authority,
    client: Pair,
    // Dropped last: the others read certificates from it until they end.
    _folder: tempfile::TempDir,
}

impl Parts {
    fn start() -> Parts {
        Parts::with(&[])
    }

    fn with(etcd_flags: &[&str]) -> Parts {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let authority = Authority::new(folder.path());
        let server = authority.server("server");
        let client = authority.nameless_client("client");
        let tls = Tls { server: server.clone(), ca: authority.ca(), client_cert_auth: true };
        let etcd = etcd_flags.iter().fold(Etcd::builder().members(3).tls(tls), |etcd, &flag| etcd.flag(flag)).start();
        let proxy = Proxy::builder()
            .flag(format!("--endpoints={}", etcd.endpoints()))
            .flag(format!("--namespace={NAMESPACE}"))
            .flag(format!("--cacert={}", authority.ca().display()))
            .flag(format!("--cert={}", client.cert.display()))
            .flag(format!("--key={}", client.key.display()))
            .flag(format!("--trusted-ca-file={}", authority.ca().display()))
            .flag(format!("--cert-file={}", server.cert.display()))
            .flag(format!("--key-file={}", server.key.display()))
            .start();
        Parts { proxy, etcd, authority, client, _folder: folder }
    }

    /// An etcdctl of this version through the proxy.
    fn through(&self, version: Version) -> Etcdctl {
        let endpoint = format!("https://{}", self.proxy.address());
        Etcdctl::new(version, endpoint).tls(&self.authority.ca(), Some(&self.client))
    }

    /// An etcdctl past the proxy.
    fn past(&self) -> Etcdctl {
        self.etcd.etcdctl().tls(&self.authority.ca(), Some(&self.client))
    }

    /// Starts a client's program, told where everything is as `e2e/clients/*` expect it.
    fn spawn(&self, name: &str, command: &mut Command) -> Process {
        let members: Vec<&str> = self.etcd.members().iter().map(|member| member.address()).collect();
        command
            .env("PROXY", self.proxy.address())
            .env("ETCD", members.join(","))
            .env("CA", self.authority.ca())
            .env("CERT", &self.client.cert)
            .env("KEY", &self.client.key)
            .env("NAMESPACE", NAMESPACE);
        Process::spawn(name, command, b"")
    }

    /// Runs a client's program to its end, which must be a good one after at least one check.
    fn run(&self, name: &str, command: &mut Command) {
        let outcome = finish(self.spawn(name, command));
        assert!(outcome.code == 0, "{name} ended with {}:\n{}\n{}", outcome.code, outcome.stdout, outcome.stderr);
        assert!(outcome.stdout.lines().any(|line| line.starts_with("ok ")), "{name} checked nothing: {outcome:?}");
    }
}

fn finish(mut process: Process) -> Outcome {
    let deadline = Instant::now() + PROGRAM_PATIENCE;
    while process.exit().is_none() && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
    let code = process.wait();
    process.stdout.wait_for_end();
    process.stderr.wait_for_end();
    Outcome { stdout: process.stdout.text(), stderr: process.stderr.text(), code }
}

/// What `e2e/clients/setup.sh` made of a client: a program, or the folder of its libraries.
fn prepared(client: &str) -> PathBuf {
    let script = clients().join("setup.sh");
    let output = Command::new(&script)
        .arg(client)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", script.display()));
    assert!(output.status.success(), "{} {client} failed; it said why above", script.display());
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

// === etcdctl ===

#[test]
fn etcdctl_3_5_works_through_the_proxy() {
    etcdctl_works(Version::V3_5);
}

#[test]
fn etcdctl_3_6_works_through_the_proxy() {
    etcdctl_works(Version::V3_6);
}

#[test]
fn etcdctl_3_7_works_through_the_proxy() {
    etcdctl_works(Version::V3_7);
}

fn etcdctl_works(version: Version) {
    let parts = Parts::start();
    let (through, past) = (parts.through(version), parts.past());
    let in_etcd = |key: &str| past.ok(&["get", &format!("{NAMESPACE}{key}"), "--print-value-only"]);

    // Keys.
    through.ok(&["put", "kv/a", "1"]);
    through.ok(&["put", "kv/b", "2"]);
    past.ok(&["put", "kv/c", "outside"]);
    assert_eq!(in_etcd("kv/a"), "1");
    assert_eq!(through.ok(&["get", "kv/", "--prefix"]), "kv/a\n1\nkv/b\n2");
    assert_eq!(
        through.ok(&["get", "", "--from-key", "--order=DESCEND", "--sort-by=KEY", "--keys-only"]).trim(),
        "kv/b\n\nkv/a"
    );
    assert_eq!(through.ok(&["del", "kv/b", "--prev-kv"]), "1\nkv/b\n2");
    assert_eq!(through.ok(&["get", "kv/", "--prefix", "--print-value-only"]), "1");

    // A transaction of both branches.
    let compare = "value(\"kv/a\") = \"1\"\n\nput kv/won 1\nget kv/a\n\nput kv/lost 1\n\n";
    let outcome = through.run_with(&["txn"], compare);
    assert!(outcome.code == 0 && outcome.stdout.starts_with("SUCCESS\n\nOK\n\nkv/a\n1"), "{outcome:?}");
    assert_eq!((in_etcd("kv/won"), in_etcd("kv/lost")), ("1".to_owned(), String::new()));

    // A watch from the past and into the future, which shows neither prefix nor strangers.
    let watch = through.spawn(&["watch", "watched/", "--prefix", "--prev-kv", "--rev=1"]);
    past.ok(&["put", "watched/a", "outside"]);
    past.ok(&["put", &format!("{NAMESPACE}watched/a"), "one"]);
    through.ok(&["put", "watched/a", "two"]);
    through.ok(&["del", "watched/a"]);
    watch.expect_stdout("DELETE");
    watch.expect_stdout("two");
    let lines = watch.stdout.all();
    let lines: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    let put = ["PUT", "watched/a", "one", "PUT", "watched/a", "one", "watched/a", "two"];
    assert_eq!(lines[..put.len()], put);
    assert_eq!(lines[put.len()..][..3], ["DELETE", "watched/a", "two"]);

    // A lease that is kept, shows its keys, and takes them with it.
    let granted = through.ok(&["lease", "grant", "2"]);
    let lease = granted.split(' ').nth(1).unwrap_or_else(|| panic!("no lease in {granted:?}"));
    through.ok(&["put", "leased", "1", &format!("--lease={lease}")]);
    let keeper = through.spawn(&["lease", "keep-alive", lease]);
    for _ in 0..5 {
        keeper.expect_stdout("keepalived with TTL(2)");
    }
    assert_eq!(in_etcd("leased"), "1");
    let left = through.ok(&["lease", "timetolive", lease, "--keys"]);
    assert!(left.contains("granted with TTL(2s)") && left.contains("attached keys([leased])"), "{left}");
    assert!(through.ok(&["lease", "list"]).contains(lease));
    let gone = through.spawn(&["watch", "leased"]);
    drop(keeper);
    gone.expect_stdout("DELETE");
    gone.expect_stdout("leased");
    assert_eq!(in_etcd("leased"), "");

    // A lock that keeps the next one waiting, and is freed by the end of its holder.
    let first = through.spawn(&["lock", "locked", "--ttl=60"]);
    let first_key = first.expect_stdout("locked/");
    let second = through.spawn(&["lock", "locked", "--ttl=60"]);
    let waiting = past.spawn(&["watch", &format!("{NAMESPACE}locked/"), "--prefix", "--rev=1"]);
    waiting.expect_stdout(&first_key);
    let second_key = waiting.expect_stdout(&format!("{NAMESPACE}locked/"));
    assert_eq!(second.stdout.all(), Vec::<String>::new(), "two hold the lock");
    first.signal(libc::SIGTERM);
    assert_eq!(format!("{NAMESPACE}{}", second.expect_stdout("locked/")), second_key);

    // An election and its listener.
    let candidate = through.spawn(&["elect", "elected", "me"]);
    let leader_key = candidate.expect_stdout("elected/");
    candidate.expect_stdout("me");
    assert_eq!(in_etcd(&leader_key), "me");
    let listener = through.spawn(&["elect", "--listen", "elected"]);
    listener.expect_stdout(&leader_key);

    // The cluster and its health.
    let health = through.run(&["endpoint", "health"]);
    assert!(health.code == 0 && (health.stdout + &health.stderr).contains("is healthy"));
    assert!(through.ok(&["endpoint", "status"]).contains(parts.proxy.address()));
    assert!(through.ok(&["member", "list"]).contains("started"));

    // What was compacted.
    through.ok(&["put", "kv/a", "3"]);
    let fields = through.ok(&["get", "kv/a", "--write-out=json"]);
    let answer: serde_json::Value = serde_json::from_str(&fields).expect("etcdctl writes JSON");
    let revision = answer["header"]["revision"].as_i64().expect("the header has a revision");
    through.ok(&["compact", &revision.to_string()]);
    let refused = through.run(&["get", "kv/a", "--rev=2"]);
    assert!(refused.code != 0 && refused.stderr.contains("required revision has been compacted"), "{refused:?}");
    let cancelled = through.run(&["watch", "kv/a", "--rev=2"]);
    assert!(cancelled.code != 0 && cancelled.stderr.contains("required revision has been compacted"), "{cancelled:?}");

    assert_eq!(
        past.ok(&["get", "", "--from-key", "--keys-only"])
            .lines()
            .filter(|key| !key.is_empty() && !key.starts_with(NAMESPACE))
            .collect::<Vec<_>>(),
        ["kv/c", "watched/a"]
    );
}

// === Go ===

#[test]
fn the_go_client_works_through_the_proxy() {
    Parts::start().run("Go", &mut Command::new(prepared("go")));
}

#[test]
fn the_go_client_keeps_users_apart_and_outlives_its_tokens() {
    Parts::with(&["--auth-token-ttl=2"]).run("Go", Command::new(prepared("go")).arg("auth"));
}

#[test]
fn the_go_client_is_told_when_there_is_no_leader() {
    let mut parts = Parts::start();
    let program = parts.spawn("Go", Command::new(prepared("go")).arg("leader"));
    program.expect_stdout("majority, please go");
    for member in 0..2 {
        parts.etcd.member(member).kill();
    }
    let outcome = finish(program);
    assert!(outcome.code == 0, "{outcome:?}");
}

// === Rust, Java, Node, Python ===

#[test]
fn the_rust_client_works_through_the_proxy() {
    Parts::start().run("Rust", &mut Command::new(prepared("rust")));
}

#[test]
fn jetcd_works_through_the_proxy() {
    let jars = prepared("jetcd").join("*");
    // Java compiles a single source file when it is told to run it.
    let source = clients().join("jetcd/JetcdClient.java");
    Parts::start().run("jetcd", Command::new("java").arg("-cp").arg(jars).arg(source));
}

#[test]
fn the_node_client_works_through_the_proxy() {
    let modules = prepared("node");
    Parts::start().run("Node", Command::new("node").arg(clients().join("node/main.js")).env("NODE_PATH", modules));
}

#[test]
fn the_python_client_works_through_the_proxy() {
    Parts::start().run("Python", Command::new(prepared("python")).arg(clients().join("python/main.py")));
}
