//! Where the HTTP proxy finds its cluster, and what becomes of it when members fail.

use std::net::TcpListener;

use etcd_proxy_e2e::{Etcd, NameServer, Version, ports};

use super::{HttpProxy, Whose, curl, etcd, eventually};

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
    eventually("the broken member was asked to read and to write", || {
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
