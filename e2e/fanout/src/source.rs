//! The writer: puts or transactions of many puts, sent straight to etcd and many at a time.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::wire::{self, END_STREAM, HEAD_LEN, Head, NO_ERROR, kind};

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Puts of each transaction; one is a plain put.
    pub puts: usize,
    /// Writes that may be under way at a time.
    pub depth: u64,
    /// Writes in a second; `None` is as many as are taken.
    pub rate: Option<f64>,
    /// Keys that are written in turn.
    pub keys: u64,
    pub value_size: usize,
}

/// How long nothing may come from etcd before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the writer looks whether the watchers have caught up with it.
const LOOK: Duration = Duration::from_micros(200);
/// The window for etcd's answers, far above what comes in them.
const WINDOW: u32 = 1 << 30;

pub struct Source {
    socket: TcpStream,
    address: String,
    load: Load,
    next_stream: u32,
    next_key: u64,
    begun: Instant,
    /// Writes that were sent, and those that etcd has answered.
    pub sent: u64,
    pub done: u64,
    /// The error code of a stream that etcd reset.
    reset: Option<u32>,
    unread: u32,
    /// Frames that have not come whole yet.
    held: Vec<u8>,
    /// Messages that etcd's windows have not taken yet, with the streams' own windows.
    waiting: VecDeque<Waiting>,
    window: i64,
    stream_window: i64,
}

/// What is left of a message.
struct Waiting {
    stream: u32,
    window: i64,
    bytes: Vec<u8>,
    sent: usize,
}

impl Source {
    pub fn connect(address: &str, load: Load) -> io::Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut out = Vec::new();
        wire::put_greeting(&mut out, WINDOW);
        socket.write_all(&out)?;
        Ok(Self {
            socket,
            address: address.to_owned(),
            load,
            next_stream: 1,
            next_key: 0,
            begun: Instant::now(),
            sent: 0,
            done: 0,
            reset: None,
            unread: 0,
            held: Vec::new(),
            waiting: VecDeque::new(),
            window: wire::FIRST_WINDOW.into(),
            stream_window: wire::FIRST_WINDOW.into(),
        })
    }

    /// Events that each watcher must see of what was sent.
    pub fn events(&self) -> u64 {
        self.sent * self.load.puts as u64
    }

    /// Writes until `end`, no further ahead of the watchers than `depth` writes. `seen` says how many events the
    /// watchers have seen on average.
    pub fn write_until(&mut self, end: Instant, seen: impl Fn() -> u64) -> io::Result<()> {
        while Instant::now() < end {
            let now = Instant::now();
            let level = (seen() / self.load.puts as u64).min(self.done);
            let due = self.load.rate.map_or(u64::MAX, |rate| ((now - self.begun).as_secs_f64() * rate) as u64);
            let wanted = due.min(level + self.load.depth).saturating_sub(self.sent);
            if wanted > 0 {
                let mut out = Vec::new();
                (0..wanted).for_each(|_| self.put_write(&mut out));
                self.put_waiting(&mut out);
                self.socket.write_all(&out)?;
            }
            self.read(LOOK)?;
        }
        Ok(())
    }

    /// Waits until etcd has answered everything.
    pub fn finish(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.done < self.sent {
            self.read(LOOK)?;
            if Instant::now() > deadline {
                return Err(io::Error::other("etcd has stopped to answer"));
            }
        }
        match self.reset {
            Some(code) => Err(io::Error::other(format!("etcd reset a write with the HTTP/2 error code {code}"))),
            None => Ok(()),
        }
    }

    fn put_write(&mut self, out: &mut Vec<u8>) {
        let value = vec![b'v'; self.load.value_size];
        let puts: Vec<Vec<u8>> = (0..self.load.puts)
            .map(|_| {
                self.next_key += 1;
                wire::put_request(format!("fan/{:016}", self.next_key % self.load.keys).as_bytes(), &value)
            })
            .collect();
        let (path, message) = match puts.as_slice() {
            [put] => ("/etcdserverpb.KV/Put", put.clone()),
            puts => ("/etcdserverpb.KV/Txn", wire::txn_request(puts)),
        };
        wire::put_call(out, self.next_stream, &self.address, path);
        let (stream, window) = (self.next_stream, self.stream_window);
        self.waiting.push_back(Waiting { stream, window, bytes: wire::framed(&message), sent: 0 });
        self.next_stream += 2;
        self.sent += 1;
    }

    /// Sends of the messages, one after the other, what etcd's windows take.
    fn put_waiting(&mut self, out: &mut Vec<u8>) {
        while let Some(message) = self.waiting.front_mut() {
            let left = message.bytes.len() - message.sent;
            let room = usize::try_from(self.window.min(message.window)).unwrap_or(0);
            let taken = left.min(room).min(wire::LARGEST_FRAME);
            if taken == 0 {
                return;
            }
            let flags = if taken == left { END_STREAM } else { 0 };
            wire::put_frame(out, kind::DATA, flags, message.stream, &message.bytes[message.sent..message.sent + taken]);
            message.sent += taken;
            message.window -= taken as i64;
            self.window -= taken as i64;
            if taken == left {
                self.waiting.pop_front();
            }
        }
    }

    /// etcd takes more, on a stream or on all.
    fn credit(&mut self, stream: u32, payload: &[u8]) {
        let more = payload.first_chunk().map_or(0, |more| i64::from(u32::from_be_bytes(*more) & (u32::MAX >> 1)));
        if stream == 0 {
            self.window += more;
        } else if let Some(message) = self.waiting.iter_mut().find(|message| message.stream == stream) {
            message.window += more;
        }
    }

    /// How large the windows of streams shall be from now on.
    fn settings(&mut self, payload: &[u8]) {
        for setting in payload.chunks_exact(6) {
            if let [0, wire::INITIAL_WINDOW_SIZE, size @ ..] = setting {
                let size = size.first_chunk().map_or(0, |size| i64::from(u32::from_be_bytes(*size)));
                let change = size - std::mem::replace(&mut self.stream_window, size);
                self.waiting.iter_mut().for_each(|message| message.window += change);
            }
        }
    }

    fn read(&mut self, patience: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))?;
        let mut buffer = [0; 64 << 10];
        match self.socket.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.held.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut out = Vec::new();
        let mut at = 0;
        let held = std::mem::take(&mut self.held);
        while let Some(head) = held[at..].first_chunk::<HEAD_LEN>().map(Head::read) {
            let Some(payload) = held.get(at + HEAD_LEN..at + HEAD_LEN + head.len) else { break };
            match head.kind {
                kind::WINDOW_UPDATE => self.credit(head.stream, payload),
                kind::SETTINGS if head.flags & wire::ACK == 0 => {
                    self.settings(payload);
                    wire::put_frame(&mut out, kind::SETTINGS, wire::ACK, 0, &[]);
                }
                kind::PING if head.flags & wire::ACK == 0 => {
                    wire::put_frame(&mut out, kind::PING, wire::ACK, 0, payload);
                }
                kind::GOAWAY => return Err(io::Error::other("etcd closes the connection")),
                // A refusal ends so too; its events do not come then, which the watchers tell.
                kind::HEADERS if head.flags & END_STREAM != 0 => self.done += 1,
                // Where grpc-go answers before it has noted that the request has ended, it resets the stream after the
                // answer, with NO_ERROR.
                kind::RST_STREAM => self.reset = self.reset.or(error_code(payload).filter(|&code| code != NO_ERROR)),
                kind::DATA => self.unread += head.len as u32,
                _ => (),
            }
            at += HEAD_LEN + head.len;
        }
        self.held = held[at..].to_vec();
        self.put_waiting(&mut out);
        if self.unread > WINDOW / 2 {
            wire::put_credit(&mut out, 0, std::mem::take(&mut self.unread));
        }
        self.socket.write_all(&out)
    }
}

fn error_code(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|code| u32::from_be_bytes(*code))
}
