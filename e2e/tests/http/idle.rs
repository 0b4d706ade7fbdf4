//! HTTP/1.1 connections between two requests, and those on which none ever comes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use etcd_proxy_e2e::{Etcd, Proxy};

fn get(connection: &mut BufReader<TcpStream>) -> String {
    connection.get_mut().write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").expect("the connection is open");
    let mut status = String::new();
    connection.read_line(&mut status).expect("an answer comes");
    let mut length = 0;
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).expect("the head goes on");
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length is a number");
        }
    }
    std::io::copy(&mut connection.take(length), &mut std::io::sink()).expect("the body comes");
    status
}

#[test]
fn a_connection_that_has_asked_may_be_silent_for_longer_than_one_that_has_not() {
    let etcd = Etcd::start();
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let proxy = Proxy::builder().flags([endpoints.as_str(), "--connection-timeout=500ms"]).start();
    let connect = || TcpStream::connect(proxy.address()).expect("the proxy accepts");
    let mut asked = BufReader::new(connect());
    assert!(get(&mut asked).contains("200"));
    // These come after it, and what their silence ends in is awaited: so it has been silent for as long.
    for beginning in ["", "G", "GET / HTTP/1.1\r\nHost: a\r\n"] {
        let mut silent = connect();
        silent.write_all(beginning.as_bytes()).expect("the connection is open");
        let mut said = Vec::new();
        // Closed or reset, it is over.
        let _ = silent.read_to_end(&mut said);
        assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
    assert!(get(&mut asked).contains("200"), "the connection was kept");
}
