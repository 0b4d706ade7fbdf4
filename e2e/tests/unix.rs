//! etcd on unix sockets, as `unix://`, relative, and under TLS as `unixs://`; and clients on one of the proxy's own.

use std::path::Path;
use std::process::Command;

use etcd_proxy_e2e::{Authority, Etcd, Process, Proxy, Version, ports, process::PATIENCE};

/// One etcd whose clients come over a socket file in `folder`.
fn etcd_on_socket(folder: &Path, url: &str, tls: &[String]) -> Process {
    let peer = ports::free_address();
    let mut command = Command::new(Version::default().etcd());
    command.current_dir(folder).args([
        "--name=m0",
        "--data-dir=data",
        &format!("--listen-client-urls={url}"),
        &format!("--advertise-client-urls={url}"),
        &format!("--listen-peer-urls=http://{peer}"),
        &format!("--initial-advertise-peer-urls=http://{peer}"),
        &format!("--initial-cluster=m0=http://{peer}"),
        "--unsafe-no-fsync",
    ]);
    command.args(tls);
    let etcd = Process::spawn("etcd on a socket", &mut command, b"");
    etcd.expect_stderr("ready to serve client requests");
    etcd
}

/// Writes and reads through the proxy, and sees a watch deliver.
fn assert_serves(proxy: &Proxy) {
    let etcdctl = proxy.etcdctl();
    etcdctl.ok(&["put", "key", "one"]);
    assert_eq!(etcdctl.ok(&["get", "key", "--print-value-only"]), "one");
    let watch = etcdctl.spawn(&["watch", "key", "--rev=1"]);
    watch.expect_stdout("one");
}

#[test]
fn etcd_on_an_absolute_socket_is_served() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    // etcd wants host:port after the scheme and takes all of it as the file's name, from its own folder on.
    let _etcd = etcd_on_socket(folder.path(), "unix://localhost:2379", &[]);
    let socket = folder.path().join("localhost:2379");
    assert!(socket.exists(), "etcd made no {}", socket.display());
    let proxy = Proxy::start(&format!("unix://{}", socket.display()));
    assert_serves(&proxy);
}

#[test]
fn a_relative_socket_is_looked_for_from_the_folder_that_the_proxy_runs_in() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let _etcd = etcd_on_socket(folder.path(), "unix://localhost:2379", &[]);
    for endpoint in ["unix://localhost:2379", "unix:localhost:2379"] {
        let proxy = ProxyIn::start(folder.path(), endpoint);
        assert_eq!(etcdctl(&proxy.address).ok(&["endpoint", "status", "-w", "fields"]).matches("Leader").count(), 1);
        drop(proxy);
    }
}

#[test]
fn a_socket_under_tls_is_served() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(&folder.path().join("tls"));
    let server = authority.server("server");
    let tls = [format!("--cert-file={}", server.cert.display()), format!("--key-file={}", server.key.display())];
    let _etcd = etcd_on_socket(folder.path(), "unixs://localhost:2379", &tls);
    let endpoint = format!("--endpoints=unixs://{}", folder.path().join("localhost:2379").display());
    let cacert = format!("--cacert={}", authority.ca().display());
    assert_serves(&Proxy::builder().flags([endpoint.as_str(), &cacert]).start());
    // Without the authority it is refused, and the refusal says so and names the socket.
    let distrustful = Proxy::builder().flag(&endpoint).start();
    let outcome = distrustful.etcdctl().flag("--command-timeout=2s").run(&["put", "a", "b"]);
    assert_ne!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn a_socket_that_is_not_there_is_named() {
    let proxy = Proxy::start("unix:///nowhere/etcd.sock");
    let outcome = proxy.etcdctl().flag("--command-timeout=2s").run(&["lease", "grant", "10"]);
    assert_ne!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("/nowhere/etcd.sock"), "{outcome:?}");
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "30"]).args(arguments).output();
    let output = output.expect("curl is installed, as CONTRIBUTING.md asks");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn clients_come_over_a_socket_of_the_proxys_own_which_is_taken_away_in_the_end() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let etcd = Etcd::start();
    let socket = folder.path().join("proxy.sock");
    let path = socket.to_str().expect("a plain path");
    let address = format!("unix://{path}");
    // One that was left behind by a process that was killed is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a fresh path"));
    let mut proxy = ProxyIn::listen(folder.path(), &address, &etcd.endpoints(), &[]);
    let through = etcdctl(&address);
    through.ok(&["put", "key", "one"]);
    assert_eq!(through.ok(&["get", "key", "--print-value-only"]), "one");
    through.spawn(&["watch", "key", "--rev=1"]).expect_stdout("one");
    assert!(curl(&["--unix-socket", path, "http://localhost/health"]).contains("true"));
    let range = r#"{"key":"a2V5"}"#;
    assert!(curl(&["--unix-socket", path, "-d", range, "http://localhost/v3/kv/range"]).contains("b25l"));
    // Somebody listens there.
    let second = Proxy::builder().flags([format!("--listen-addr={address}").as_str()]).run();
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains(&format!("listen unix {path}: bind: address already in use")), "{second:?}");
    proxy.process.signal(libc::SIGTERM);
    assert_eq!(proxy.process.wait(), 0);
    assert!(!socket.exists());
}

#[test]
fn a_certificate_made_by_auto_tls_serves_on_a_socket_and_is_kept_in_the_data_dir() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let etcd = Etcd::start();
    let socket = folder.path().join("proxy.sock");
    let address = format!("unix:{}", socket.display());
    let flags = ["--auto-tls", "--data-dir=kept"];
    let _proxy = ProxyIn::listen(folder.path(), &address, &etcd.endpoints(), &flags);
    let certificate = folder.path().join("kept/fixtures/proxy/cert.pem");
    let tls = ["--cacert", certificate.to_str().expect("a plain path"), "--unix-socket"];
    let path = socket.to_str().expect("a plain path");
    assert!(curl(&[&tls[..], &[path, "https://localhost/health"]].concat()).contains("true"));
}

/// A proxy that runs in a folder of its own choice.
struct ProxyIn {
    process: Process,
    address: String,
}

impl ProxyIn {
    fn start(folder: &Path, endpoint: &str) -> Self {
        Self::listen(folder, &ports::free_address(), endpoint, &[])
    }

    fn listen(folder: &Path, address: &str, endpoint: &str, flags: &[&str]) -> Self {
        let address = address.to_owned();
        let mut command = Command::new(etcd_proxy_e2e::programs::etcd_proxy());
        command.current_dir(folder).args(["grpc-proxy", "start"]).args(flags);
        command.arg(format!("--listen-addr={address}")).arg(format!("--endpoints={endpoint}"));
        let process = Process::spawn("proxy in a folder", &mut command, b"");
        let started = process.stderr.wait_until(std::time::Instant::now() + PATIENCE, |line| line.contains("started"));
        assert!(started.is_some(), "the proxy does not start");
        Self { process, address }
    }
}

fn etcdctl(address: &str) -> etcd_proxy_e2e::Etcdctl {
    etcd_proxy_e2e::Etcdctl::new(Version::default(), address)
}
