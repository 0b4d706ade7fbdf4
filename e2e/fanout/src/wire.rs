//! What this program says: HTTP/2 frames and etcd's requests, written by hand, so that it costs next to nothing beside
//! the proxy that it measures.

pub const HEAD_LEN: usize = 9;
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The setting that says how large the windows of streams are.
pub const INITIAL_WINDOW_SIZE: u8 = 4;
/// What a frame may hold unless the peer allows more.
pub const LARGEST_FRAME: usize = 16 << 10;
/// The window that a connection begins with whatever its SETTINGS say.
pub const FIRST_WINDOW: u32 = 65_535;

/// Types of frames.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

/// The error code of a stream that is reset though nothing went wrong.
pub const NO_ERROR: u32 = 0;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub len: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    pub fn read(bytes: &[u8; HEAD_LEN]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        Self { len, kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) }
    }
}

pub fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("frames of this program are short");
    out.extend_from_slice(&len.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The preface, SETTINGS with this window for each stream, and as much for the connection.
pub fn put_greeting(out: &mut Vec<u8>, window: u32) {
    out.extend_from_slice(PREFACE);
    let mut settings = vec![0, INITIAL_WINDOW_SIZE];
    settings.extend_from_slice(&window.to_be_bytes());
    put_frame(out, kind::SETTINGS, 0, 0, &settings);
    if window > FIRST_WINDOW {
        put_credit(out, 0, window - FIRST_WINDOW);
    }
}

pub fn put_credit(out: &mut Vec<u8>, stream: u32, credit: u32) {
    put_frame(out, kind::WINDOW_UPDATE, 0, stream, &credit.to_be_bytes());
}

/// The head of a call. Nothing is compressed, so there is no table to keep.
pub fn put_call(out: &mut Vec<u8>, stream: u32, authority: &str, path: &str) {
    // :method POST and :scheme http stand in HPACK's own table; so do the names of the next three.
    let mut block = vec![0x83, 0x86];
    let mut literal = |name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).expect("headers of this program are short"));
        block.extend_from_slice(value.as_bytes());
    };
    literal(&[0x04], path);
    literal(&[0x01], authority);
    literal(&[0x0f, 0x10], "application/grpc");
    literal(b"\x00\x02te", "trailers");
    put_frame(out, kind::HEADERS, END_HEADERS, stream, &block);
}

/// A message with its prefix, as it stands in DATA frames.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).expect("messages of this program are short");
    [&[0], &len.to_be_bytes()[..], message].concat()
}

/// A short message of a call that goes on.
pub fn put_message(out: &mut Vec<u8>, stream: u32, message: &[u8]) {
    put_frame(out, kind::DATA, 0, stream, &framed(message));
}

/// A `WatchRequest` that creates a watch on a range.
pub fn watch(key: &[u8], range_end: &[u8]) -> Vec<u8> {
    let mut create = Vec::new();
    put_bytes(&mut create, 1, key);
    put_bytes(&mut create, 2, range_end);
    let mut request = Vec::new();
    put_bytes(&mut request, 1, &create);
    request
}

pub fn put_request(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut put = Vec::new();
    put_bytes(&mut put, 1, key);
    put_bytes(&mut put, 2, value);
    put
}

/// A `TxnRequest` that does all these puts.
pub fn txn_request(puts: &[Vec<u8>]) -> Vec<u8> {
    let mut request = Vec::new();
    for put in puts {
        let mut operation = Vec::new();
        put_bytes(&mut operation, 2, put);
        put_bytes(&mut request, 2, &operation);
    }
    request
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
}
