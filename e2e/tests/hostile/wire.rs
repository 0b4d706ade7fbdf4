//! HTTP/2 spoken by hand, byte by byte, to say what no library would say.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use etcd_proxy_e2e::grpc;

/// How long an answer may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const INITIAL_WINDOW_SIZE: u16 = 4;

pub const RANGE: &str = "/etcdserverpb.KV/Range";
pub const WATCH: &str = "/etcdserverpb.Watch/Watch";

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What came of waiting for a frame.
#[derive(Debug)]
pub enum Heard {
    Frame(Frame),
    Closed,
    Silence,
}

pub struct Client {
    pub socket: TcpStream,
    received: Vec<u8>,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// A header block without compression.
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.push(0);
        for text in [name, value] {
            put_hpack_len(&mut bytes, text.len());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

fn put_hpack_len(bytes: &mut Vec<u8>, len: usize) {
    if len < 127 {
        return bytes.push(u8::try_from(len).expect("it is below 127"));
    }
    bytes.push(127);
    let mut rest = len - 127;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).expect("a remainder") | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).expect("it is below 128"));
}

/// The head of a gRPC call.
pub fn call_block(path: &str) -> Vec<u8> {
    block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "hostile"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

pub fn headers(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call_block(path))
}

/// A gRPC message with its prefix.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    grpc::frame(bytes).into()
}

/// A whole unary call.
pub fn call(stream: u32, path: &str, request: &[u8]) -> Vec<u8> {
    [headers(stream, path), frame(DATA, END_STREAM, stream, &message(request))].concat()
}

impl Client {
    /// A connection on which nothing was said yet.
    pub fn connect(address: &str) -> Client {
        let socket = TcpStream::connect(address).expect("the proxy listens");
        socket.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Client { socket, received: Vec::new() }
    }

    /// The other end of a connection that was accepted.
    pub fn accepted(socket: TcpStream) -> Client {
        socket.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Client { socket, received: Vec::new() }
    }

    /// Reads what every HTTP/2 client says first. Says whether it came.
    pub fn expect_preface(&mut self) -> bool {
        let mut preface = [0; 24];
        self.socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        self.socket.read_exact(&mut preface).is_ok()
    }

    /// A connection that is ready for calls.
    pub fn start(address: &str, values: &[(u16, u32)]) -> Client {
        let mut client = Client::connect(address);
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("the proxy takes the preface");
        client.send(&settings(values)).expect("the proxy takes settings");
        client.send(&frame(SETTINGS, ACK, 0, &[])).expect("the proxy takes an acknowledgement");
        client
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Sends the same bytes again and again, until the proxy has had enough or all are sent.
    pub fn flood(&mut self, bytes: &[u8], times: usize) -> io::Result<()> {
        let chunk = bytes.repeat((64 * 1024 / bytes.len()).max(1));
        let mut left = times * bytes.len();
        while left > 0 {
            let part = &chunk[..chunk.len().min(left)];
            self.send(part)?;
            left -= part.len();
        }
        Ok(())
    }

    pub fn hear(&mut self, patience: Duration) -> Heard {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.take_frame() {
                if frame.kind == PING && frame.flags & ACK == 0 {
                    // A drain waits for this. An error means that the proxy has closed the connection already.
                    let _ = self.send(&self::frame(PING, ACK, 0, &frame.payload));
                }
                return Heard::Frame(frame);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return Heard::Silence;
            };
            self.socket.set_read_timeout(Some(left)).expect("a timeout can be set");
            let mut chunk = [0; 16 * 1024];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Heard::Closed,
                Ok(read) => self.received.extend_from_slice(&chunk[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Heard::Silence;
                }
                Err(_) => return Heard::Closed,
            }
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let [a, b, c, kind, flags, stream @ ..] = *self.received.first_chunk::<9>()?;
        let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = self.received.get(9..end)?.to_vec();
        self.received.drain(..end);
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// Waits for a frame of this kind; panics if the connection ends before it.
    pub fn expect(&mut self, kind: u8) -> Frame {
        loop {
            match self.hear(PATIENCE) {
                Heard::Frame(frame) if frame.kind == kind => return frame,
                Heard::Frame(_) => (),
                other => panic!("no frame of kind {kind}: {other:?}"),
            }
        }
    }

    /// Waits for the end of the connection, and returns the last GOAWAY before it: its code and its debug data.
    pub fn expect_end(&mut self) -> Option<(u32, String)> {
        let mut farewell = None;
        loop {
            match self.hear(PATIENCE) {
                Heard::Frame(Frame { kind: GOAWAY, payload, .. }) => {
                    let code = payload.get(4..8).and_then(|code| code.try_into().ok()).map_or(0, u32::from_be_bytes);
                    let text = String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into_owned();
                    farewell = Some((code, text));
                }
                Heard::Frame(_) => (),
                Heard::Closed => return farewell,
                Heard::Silence => panic!("the proxy does not end the connection"),
            }
        }
    }

    /// Waits until a stream has been ended, by trailers or a reset.
    pub fn expect_stream_end(&mut self, stream: u32) -> Frame {
        self.expect_stream_ends([stream])
    }

    /// Waits until each of these streams has been ended, in whatever order, and tells the frame that ended the last.
    pub fn expect_stream_ends(&mut self, streams: impl IntoIterator<Item = u32>) -> Frame {
        let mut open: BTreeSet<u32> = streams.into_iter().collect();
        loop {
            match self.hear(PATIENCE) {
                Heard::Frame(frame)
                    if frame.kind == RST_STREAM || (frame.kind <= HEADERS && frame.flags & END_STREAM != 0) =>
                {
                    open.remove(&frame.stream);
                    if open.is_empty() {
                        return frame;
                    }
                }
                // A farewell without a fault lets what is open go on.
                Heard::Frame(frame) if frame.kind == GOAWAY && frame.payload.get(4..8) != Some(&[0; 4]) => {
                    panic!("streams {open:?} do not end: {frame:?}")
                }
                Heard::Frame(_) => (),
                other => panic!("streams {open:?} do not end: {other:?}"),
            }
        }
    }
}
