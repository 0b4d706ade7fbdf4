//! A plain HTTP/1.0 GET, for health and metrics: 1.0 because then the answer is never chunked and ends with the connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Health checks of etcd answer within a second or two; more means a dead peer.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    /// The value of a metric line that starts with `series`, as Prometheus' text format spells it.
    pub fn metric(&self, series: &str) -> Option<f64> {
        self.body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok())
    }
}

/// GET `http://address/path`.
pub fn get(address: &str, path: &str) -> std::io::Result<Answer> {
    send("GET", address, path, JSON, "")
}

/// POST a JSON text to `http://address/path`.
pub fn post(address: &str, path: &str, json: &str) -> std::io::Result<Answer> {
    send("POST", address, path, JSON, json)
}

/// DELETE `http://address/path`.
pub fn delete(address: &str, path: &str) -> std::io::Result<Answer> {
    send("DELETE", address, path, JSON, "")
}

const JSON: &str = "application/json";

/// Any method, with a body of this type.
pub fn send(method: &str, address: &str, path: &str, content_type: &str, body: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (headers, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = headers.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(Answer { status, headers: headers.to_owned(), body: body.to_owned() })
}
