//! Where the HTTP proxy finds its cluster, and what becomes of it when members fail.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_proxy_e2e::{Etcd, NameServer, Process, Version, ports, wait::until};

use super::{HttpProxy, Whose, curl, etcd};

#[test]
fn a_member_that_dies_is_passed_over_and_the_cluster_is_found_again_after_a_restart() {
    let mut etcd = Etcd::builder().version(Version::V3_5).members(3).flag("--enable-v2").start();
    // The first one alone is named; the others are told by it.
    let named = format!("--initial-cluster=m0={}", etcd.members()[0].peer_url());
    let flags = [named, "--proxy-failure-wait=200".to_owned(), "--proxy-refresh-interval=500".to_owned()];
    let mut proxy = HttpProxy::start(&flags);
    let config = curl(&[&proxy.url("/v2/config/local/proxy")]);
    for member in etcd.members() {
        assert!(config.contains(member.address()), "{config}");
    }
    etcd.member(0).kill();
    etcd.leader();
    for _ in 0..6 {
        let set = curl(&["-XPUT", "-d", "value=1", &proxy.url("/v2/keys/a")]);
        assert!(set.contains("\"action\":\"set\""), "{set}");
    }
    proxy.process.signal(libc::SIGTERM);
    assert_eq!(proxy.process.wait(), 0);

    // The flag leads nowhere now, but the file knows the other two.
    let HttpProxy { folder, .. } = proxy;
    let proxy = HttpProxy::start_in(folder, Whose::Ours, &flags);
    assert!(proxy.process.stderr.text().contains("proxy using peer URLS from cluster file"));
    assert!(curl(&[&proxy.url("/v2/keys/a")]).contains("\"value\":\"1\""));
}

#[test]
fn a_write_that_may_have_arrived_is_not_sent_again_and_a_read_is() {
    let etcd = etcd();
    // A member that reads a request and breaks off, beside the real one.
    let breaker = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let broken = breaker.local_addr().expect("a bound listener has an address");
    let (told, hits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for socket in breaker.incoming() {
            let mut request = [0; 1024];
            let read = std::io::Read::read(&mut socket.expect("somebody came"), &mut request).unwrap_or(0);
            let _ = told.send(String::from_utf8_lossy(&request[..read]).into_owned());
        }
    });
    // Its member list is served by hand, since no member would advertise it.
    let members = serde_json::json!([
        { "peerURLs": ["http://127.0.0.1:1"], "clientURLs": [format!("http://{broken}"), etcd.endpoint(0)] }
    ]);
    let peer = served(&members.to_string());
    let wait = "--proxy-failure-wait=60000".to_owned();
    let start = || HttpProxy::start(&[format!("--initial-cluster=m0={peer}"), wait.clone()]);
    // Whom a proxy asks first is left to chance.
    let (mut written, mut read) = (false, false);
    until("the broken member was asked to read and to write", || {
        let proxy = start();
        let answer = curl(&["-i", &proxy.url("/v2/keys/missing")]);
        assert!(answer.contains("404") && answer.contains("Key not found"), "{answer}");
        read |= hits.try_iter().any(|request| request.starts_with("GET"));
        let proxy = start();
        let answer = curl(&["-i", "-XPOST", "-d", "value=1", &proxy.url("/v2/keys/queue")]);
        let was_hit = hits.try_iter().any(|request| request.starts_with("POST"));
        let expected = if was_hit { "unable to get response from 2 endpoint(s)" } else { "\"action\":\"create\"" };
        assert!(answer.contains(expected), "{was_hit}: {answer}");
        written |= was_hit;
        read && written
    });
}

/// The URL of a server that answers whatever it is asked with a member list.
fn served(members: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    let answer = format!(
        "HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: 1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{members}",
        members.len()
    );
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("somebody came");
            let _ = std::io::Read::read(&mut socket, &mut [0; 1024]);
            let _ = std::io::Write::write_all(&mut socket, answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn a_member_that_advertises_the_proxy_itself_is_left_out_with_a_warning() {
    let address = ports::free_address();
    let etcd = Etcd::builder().version(Version::V3_5).flag("--enable-v2");
    let etcd = etcd.flag(format!("--advertise-client-urls=http://{address}")).start();
    let members = serde_json::json!([
        { "peerURLs": [etcd.members()[0].peer_url()], "clientURLs": [format!("http://{address}"), etcd.endpoint(0)] }
    ]);
    let flags = [
        format!("--listen-client-urls=http://{address}"),
        format!("--initial-cluster=m0={}", served(&members.to_string())),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let proxy = super::spawn(folder.path(), Whose::Ours, &flags);
    let warning = proxy.expect_stderr("a member advertises the address of this proxy");
    assert!(warning.contains(&address) && warning.contains("\"level\":\"warn\""), "{warning}");
    proxy.expect_stderr("v2 proxy started listening on client requests");
    assert!(curl(&[&format!("http://{address}/v2/keys/missing")]).contains("Key not found"));
}

#[test]
fn a_discovery_url_is_waited_for_until_all_members_have_registered() {
    let etcd = etcd();
    let service = format!("http://{}/v2/keys/discovery/token", etcd.address());
    curl(&["-XPUT", "-d", "value=2", &format!("{service}/_config/size")]);
    let peer = etcd.members()[0].peer_url().to_owned();
    curl(&["-XPUT", "--data-urlencode", &format!("value=m0={peer}"), &format!("{service}/1")]);
    let address = ports::free_address();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let flags = [format!("--listen-client-urls=http://{address}"), format!("--discovery={service}")];
    let proxy = super::spawn(folder.path(), Whose::Ours, &flags);
    proxy.expect_stderr("found peers from discovery server; waiting for more");
    curl(&["-XPUT", "--data-urlencode", &format!("value=m1={peer}"), &format!("{service}/2")]);
    proxy.expect_stderr("v2 proxy started listening on client requests");
    assert!(curl(&[&format!("http://{address}/v2/keys/discovery/token/1")]).contains(&peer));
}

/// An HTTP proxy for plain requests that wants to know who asks; it counts those that it lets through.
fn http_proxy(authorization: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound listener has an address").to_string();
    let passed = Arc::<AtomicUsize>::default();
    let counted = passed.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = BufReader::new(socket.expect("somebody came"));
            let mut lines = Vec::new();
            while lines.last().is_none_or(|line: &String| !line.trim().is_empty()) {
                let mut line = String::new();
                if socket.read_line(&mut line).unwrap_or(0) == 0 {
                    break;
                }
                lines.push(line);
            }
            let knows = lines.iter().any(|line| line.trim().eq_ignore_ascii_case(authorization));
            let first = lines.first().cloned().unwrap_or_default();
            let Some((host, rest)) = first.strip_prefix("GET http://").and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            let (Some(path), true) = (rest.split(' ').next(), knows) else { continue };
            counted.fetch_add(1, Ordering::Relaxed);
            let mut answer = TcpStream::connect(host).expect("the service is there");
            let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            answer.write_all(request.as_bytes()).expect("it takes the request");
            let _ = std::io::copy(&mut answer, socket.get_mut());
        }
    });
    (address, passed)
}

#[test]
fn a_discovery_service_is_asked_by_way_of_the_proxy_that_is_named() {
    let etcd = etcd();
    let service = format!("http://{}/v2/keys/discovery/token", etcd.address());
    curl(&["-XPUT", "-d", "value=1", &format!("{service}/_config/size")]);
    let peer = etcd.members()[0].peer_url().to_owned();
    curl(&["-XPUT", "--data-urlencode", &format!("value=m0={peer}"), &format!("{service}/1")]);
    let (address, passed) = http_proxy("proxy-authorization: Basic dXNlcjpwdw==");
    let flags = [format!("--discovery={service}"), format!("--discovery-proxy=http://user:pw@{address}")];
    let proxy = HttpProxy::start(&flags);
    assert!(curl(&[&proxy.url("/v2/keys/discovery/token/1")]).contains(&peer));
    // The size, and the members.
    assert_eq!(passed.load(Ordering::Relaxed), 2);
    assert!(!proxy.process.stderr.text().contains("user:pw"), "it tells no password");
}

#[test]
fn members_with_certificates_of_their_own_making_are_asked_with_peer_auto_tls() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (clients, peers) = (ports::free_address(), ports::free_address());
    let mut command = Command::new(Version::V3_5.etcd());
    command.current_dir(folder.path()).args([
        "--enable-v2",
        "--peer-auto-tls",
        "--data-dir=data",
        "--name=m0",
        &format!("--listen-client-urls=http://{clients}"),
        &format!("--advertise-client-urls=http://{clients}"),
        &format!("--listen-peer-urls=https://{peers}"),
        &format!("--initial-advertise-peer-urls=https://{peers}"),
        &format!("--initial-cluster=m0=https://{peers}"),
    ]);
    let etcd = Process::spawn("etcd with certificates of its own", &mut command, b"");
    etcd.expect_stderr("ready to serve client requests");
    let named = format!("--initial-cluster=m0=https://{peers}");
    let distrustful = HttpProxy::start(std::slice::from_ref(&named));
    assert!(curl(&["-i", &distrustful.url("/v2/keys/missing")]).contains("503"));
    let suites = "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
    let proxy = HttpProxy::start(&[named, "--peer-auto-tls".to_owned(), suites.to_owned()]);
    assert!(curl(&[&proxy.url("/v2/keys/missing")]).contains("Key not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn srv_records_of_etcd_server_name_the_peers() {
    let etcd = etcd();
    let port: u16 = etcd.members()[0].peer_url().rsplit_once(':').expect("a port").1.parse().expect("a number");
    let name_server = NameServer::start();
    name_server.set("_etcd-server._tcp.example.com", &[port]);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let data = format!("--data-dir={}", folder.path().display());
    let words =
        ["http-proxy", "start", "--listen-client-urls=http://127.0.0.1:0", "--discovery-srv=example.com", &data];
    let flags = match etcd_proxy::flags::parse(words.iter().map(Into::into), &Default::default()) {
        Ok(etcd_proxy::flags::Invocation::StartHttpProxy { flags, .. }) => flags,
        other => panic!("{other:?}"),
    };
    let mut config = etcd_proxy::config::configure_http_proxy(&flags).expect("the flags are good");
    let etcd_proxy::http_proxy::Peers::Srv(dns) = &mut config.peers else { panic!("a domain was given") };
    dns.name_server = Some(name_server.address());
    let running = etcd_proxy::http_proxy::start(config).await.expect("the records name a peer");
    let url = format!("http://{}/v2/keys/missing", running.addresses[0]);
    assert!(curl(&[&url]).contains("Key not found"));
    assert!(running.drain().await);
}
