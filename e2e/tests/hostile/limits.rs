//! What has a limit is refused in words when the limit is reached, and served again when there is room.

use std::io::Read;
use std::net::TcpStream;
use std::time::Instant;

use ::http::{HeaderMap, Method, Request};
use etcd_proxy_e2e::{Etcd, Proxy, http, ports};

use crate::{POLL, check_unharmed, proxied, wire::PATIENCE};

/// Of a process that is to run out of file descriptors soon.
const FEW_DESCRIPTORS: u64 = 200;

/// The head of the answer to a request without a body.
async fn ask(address: &str, method: Method, extra: &[(&str, &str)]) -> (u16, HeaderMap) {
    let socket = tokio::net::TcpStream::connect(address).await.expect("the server listens");
    let (send, connection) = h2::client::handshake(socket).await.expect("both sides speak HTTP/2");
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri("http://limits.test/etcdserverpb.KV/Range")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in extra {
        request = request.header(*name, *value);
    }
    let mut send = send.ready().await.expect("the connection takes a request");
    let request = request.body(()).expect("a whole request");
    let (response, _) = send.send_request(request, true).expect("the request is sent");
    let (head, _) = response.await.expect("an answer").into_parts();
    (head.status.as_u16(), head.headers)
}

#[tokio::test]
async fn a_call_that_is_not_a_post_is_refused_as_by_etcd() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let (etcd, proxy) = (etcd.endpoints().replace("http://", ""), proxy.address().to_owned());
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let told = async |address: &str| {
            let (status, headers) = ask(address, method.clone(), &[]).await;
            let value = |name| headers.get(name).map(|value| value.to_str().expect("it is text").to_owned());
            (status, value("grpc-status"), value("grpc-message"), value("content-type"))
        };
        let expected = told(&etcd).await;
        assert_eq!(expected.0, 405, "{method}: {expected:?}");
        assert_eq!(told(&proxy).await, expected, "{method}");
    }
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_refused_and_one_below_it_is_not() {
    let (_etcd, mut proxy) = proxied(&["--max-header-list-bytes=16384"]);
    let large = "x".repeat(20_000);
    let (status, _) = ask(proxy.address(), Method::POST, &[("large", &large)]).await;
    assert_eq!(status, 431);
    let (status, _) = ask(proxy.address(), Method::POST, &[("large", &large[..8_000])]).await;
    assert_eq!(status, 200);
    check_unharmed(&mut proxy, "large heads");
}

/// Whether the proxy has turned this connection away, without waiting for it.
fn is_refused(connection: &mut TcpStream) -> bool {
    connection.set_nonblocking(true).expect("a socket takes options");
    match connection.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => panic!("the proxy speaks before it is spoken to"),
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(POLL);
    }
}

#[test]
fn connections_over_the_limit_are_turned_away_until_there_is_room() {
    let metrics = ports::free_address();
    let page = format!("--metrics-addr=http://{metrics}");
    // However long this machine takes, those that were let in are not shown out again for being silent.
    let (_etcd, mut proxy) = proxied(&["--max-connections=8", "--connection-timeout=1h", &page]);
    // The client of the set-up may still be leaving. Whoever reads this page is counted, and has no place among the
    // eight.
    let open = || http::get(&metrics, "/proxy/metrics").expect("it is served").metric("etcd_proxy_client_connections");
    wait_until("the first client never left", || open() == Some(1.0));
    let mut connections: Vec<_> =
        (0..20).map(|_| TcpStream::connect(proxy.address()).expect("the kernel takes it")).collect();
    wait_until("twelve were never turned away", || {
        connections.retain_mut(|connection| !is_refused(connection));
        connections.len() <= 8
    });
    assert_eq!(connections.len(), 8);
    proxy.expect_log("refused a connection over --max-connections");
    drop(connections);
    wait_until("there was never room again", || proxy.etcdctl().run(&["get", "key"]).code == 0);
    check_unharmed(&mut proxy, "too many connections");
}

#[test]
fn without_file_descriptors_new_clients_wait_and_those_that_are_served_are_served_on() {
    let etcd = Etcd::start();
    let mut proxy =
        Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).descriptors(FEW_DESCRIPTORS).start();
    proxy.etcdctl().ok(&["put", "key", "value"]);
    let connections: Vec<_> = (0..2 * FEW_DESCRIPTORS)
        .map(|_| TcpStream::connect(proxy.address()).expect("they wait in the kernel's queue"))
        .collect();
    proxy.expect_log("no file descriptors left for clients");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", proxy.process.id())).expect("it runs").count();
    assert!(descriptors < usize::try_from(FEW_DESCRIPTORS).expect("it is small"), "{descriptors} are open");
    drop(connections);
    wait_until("there was never room again", || proxy.etcdctl().run(&["get", "key"]).code == 0);
    check_unharmed(&mut proxy, "descriptors that ran out");
}
