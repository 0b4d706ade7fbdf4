//! HTTP/1.1 as it stands on the wire, so that what a server sends is seen as it was sent.

use std::io::{Read, Write};
use std::net::TcpStream;

use etcd_proxy_e2e::process::PATIENCE;

/// One connection to a server.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What came after the last body.
    trailers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    /// Names in lower case, sorted, without what differs from one answer to the next.
    pub headers: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub head: Head,
    pub body: String,
    /// Lines in lower case.
    pub trailers: Vec<String>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// A whole request.
pub fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut lines = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|line| line.to_ascii_lowercase().starts_with("host:")) {
        lines.push_str("Host: localhost\r\n");
    }
    for line in headers {
        lines.push_str(line);
        lines.push_str("\r\n");
    }
    lines.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    [lines.as_bytes(), body].concat()
}

/// One POST on a connection of its own.
pub fn post(address: &str, path: &str, body: &str) -> Answer {
    ask(address, &request("POST", path, &[], body.as_bytes()))
}

/// One request on a connection of its own.
pub fn ask(address: &str, request: &[u8]) -> Answer {
    let mut wire = Wire::connect(address);
    wire.send(request);
    wire.answer(request.starts_with(b"HEAD"))
}

impl Wire {
    pub fn connect(address: &str) -> Wire {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a time can be set");
        stream.set_nodelay(true).expect("it is a socket");
        Wire { stream, buffer: Vec::new(), trailers: Vec::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes it");
    }

    pub fn answer(&mut self, is_head: bool) -> Answer {
        let mut head = self.head();
        let has_none = is_head || matches!(head.status, 204 | 304);
        let body = if has_none { Vec::new() } else { self.body(&head) };
        head.headers.retain(|(name, _)| name != "content-length");
        let trailers = std::mem::take(&mut self.trailers);
        Answer { head, body: String::from_utf8_lossy(&body).into_owned(), trailers }
    }

    /// The head of an answer; informational ones are passed over.
    pub fn head(&mut self) -> Head {
        loop {
            let end = self.until(b"\r\n\r\n");
            let text = String::from_utf8_lossy(&self.take(end)).into_owned();
            let mut lines = text.trim_end().split("\r\n");
            let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
            let status: u16 = status.unwrap_or_else(|| panic!("no status in {text:?}"));
            if status == 100 {
                continue;
            }
            let pair = |line: &str| {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                (name.to_ascii_lowercase(), value.trim().to_owned())
            };
            let mut headers: Vec<(String, String)> = lines.map(pair).filter(|(name, _)| name != "date").collect();
            headers.sort();
            return Head { status, headers };
        }
    }

    fn body(&mut self, head: &Head) -> Vec<u8> {
        if let Some(length) = head.header("content-length") {
            let length: usize = length.parse().expect("a number");
            return self.exactly(length);
        }
        let mut body = Vec::new();
        if head.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else {
            body.append(&mut self.buffer);
            self.stream.read_to_end(&mut body).expect("the server ends it");
        }
        body
    }

    /// The next chunk of a body; none at its end, after which trailers may have come.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let end = self.until(b"\r\n");
        let size = String::from_utf8_lossy(&self.take(end)).trim().to_owned();
        let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("{size:?} is no size"));
        let chunk = self.exactly(size);
        if size > 0 {
            let end = self.until(b"\r\n");
            self.take(end);
            return Some(chunk);
        }
        loop {
            let end = self.until(b"\r\n");
            let line = String::from_utf8_lossy(&self.take(end)).trim_end().to_owned();
            if line.is_empty() {
                return None;
            }
            self.trailers.push(line.to_ascii_lowercase());
        }
    }

    /// The next line of a stream, which must have been sent as one chunk.
    pub fn line(&mut self) -> Option<String> {
        let line = String::from_utf8(self.chunk()?).expect("it is text");
        let text = line.strip_suffix('\n').unwrap_or_else(|| panic!("{line:?} is cut"));
        assert!(!text.contains('\n'), "{line:?} is more than one");
        Some(text.to_owned())
    }

    /// Whether the server has closed the connection and nothing is left to read.
    pub fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && self.stream.read(&mut [0]).expect("the server closes it") == 0
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            self.fill();
        }
        self.take(length)
    }

    /// Reads until the bytes have come, and says where they end.
    fn until(&mut self, end: &[u8]) -> usize {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return at + end.len();
            }
            self.fill();
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    fn fill(&mut self) {
        let mut bytes = [0; 16 << 10];
        let count = self.stream.read(&mut bytes).unwrap_or_else(|error| panic!("{error} after {:?}", self.shown()));
        assert!(count > 0, "the server has closed after {:?}", self.shown());
        self.buffer.extend_from_slice(&bytes[..count]);
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(500)]).into_owned()
    }
}
