//! The watchers: a thread that holds all their connections, answers what HTTP/2 demands, and counts.

use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use crate::{
    counter::{Counter, Seen},
    line::{self, Line},
    wire::{self, END_STREAM, HEAD_LEN, Head, kind},
};

/// How many watchers there are, and on what.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: usize,
    /// Of each connection.
    pub streams: usize,
    /// Of each stream.
    pub watchers: usize,
}

impl Shape {
    pub fn watches(self) -> u64 {
        (self.connections * self.streams * self.watchers) as u64
    }
}

/// What all watchers have seen so far.
#[derive(Debug, Default)]
pub struct Totals {
    pub messages: AtomicU64,
    pub events: AtomicU64,
    pub created: AtomicU64,
    /// Watches and streams that have ended, of which there should be none.
    pub ended: AtomicU64,
    pub bytes: AtomicU64,
}

/// What is read at a time.
const BUFFER: usize = 256 << 10;
const EVENTS: usize = 256;

struct Connection {
    line: Line,
    head: [u8; HEAD_LEN],
    held: usize,
    /// The frame whose payload is passing, and what is left of that.
    frame: Option<(Head, usize)>,
    /// The payload of a short frame that must be answered.
    payload: Vec<u8>,
    streams: Vec<Stream>,
    unread: u32,
    window: u32,
    out: Vec<u8>,
}

#[derive(Clone, Copy, Default)]
struct Stream {
    counter: Counter,
    unread: u32,
}

/// Opens all connections, streams and watches, and starts the thread that reads them.
pub fn start(
    address: &str,
    is_secure: bool,
    shape: Shape,
    window: u32,
    key: &[u8],
    range_end: &[u8],
) -> io::Result<Arc<Totals>> {
    let mut connections = Vec::with_capacity(shape.connections);
    let tls = if is_secure { Some(line::tls()?) } else { None };
    for _ in 0..shape.connections {
        let line = Line::open(address, tls.as_ref())?;
        connections.push(Connection::open(line, address, shape, window, key, range_end)?);
    }
    let totals = Arc::new(Totals::default());
    let shared = totals.clone();
    thread::Builder::new().name("sink".to_owned()).spawn(move || {
        if let Err(error) = read_all(connections, &shared) {
            eprintln!("fanout: the watchers broke: {error}");
            shared.ended.fetch_add(1, Relaxed);
        }
    })?;
    Ok(totals)
}

fn read_all(mut connections: Vec<Connection>, totals: &Totals) -> io::Result<()> {
    // SAFETY: it takes no pointer.
    let poll = unsafe { libc::epoll_create1(0) };
    for (number, connection) in connections.iter().enumerate() {
        let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number as u64 };
        // SAFETY: both descriptors are open, and the pointer is to a whole event.
        if unsafe { libc::epoll_ctl(poll, libc::EPOLL_CTL_ADD, connection.line.descriptor(), &mut interest) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let mut buffer = vec![0; BUFFER];
    let mut ready = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    loop {
        // SAFETY: the pointer is to as many events as are said to be there.
        let count = unsafe { libc::epoll_wait(poll, ready.as_mut_ptr(), EVENTS as i32, -1) };
        for event in &ready[..usize::try_from(count).unwrap_or(0)] {
            let connection = &mut connections[event.u64 as usize];
            loop {
                let read = match connection.line.read(&mut buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                connection.take(&buffer[..read], totals)?;
                // What came is held by the socket, which says so, unless TLS has taken it already.
                if connection.line.is_plain() {
                    break;
                }
            }
        }
    }
}

impl Connection {
    fn open(
        mut line: Line,
        address: &str,
        shape: Shape,
        window: u32,
        key: &[u8],
        range_end: &[u8],
    ) -> io::Result<Self> {
        let mut out = Vec::new();
        wire::put_greeting(&mut out, window);
        let create = wire::watch(key, range_end);
        for number in 0..shape.streams {
            let stream = stream_id(number);
            wire::put_call(&mut out, stream, address, "/etcdserverpb.Watch/Watch");
            (0..shape.watchers).for_each(|_| wire::put_message(&mut out, stream, &create));
        }
        line.write_all(&out)?;
        line.never_wait()?;
        out.clear();
        let streams = vec![Stream::default(); shape.streams];
        let (head, payload) = ([0; HEAD_LEN], Vec::new());
        Ok(Self { line, head, held: 0, frame: None, payload, streams, unread: 0, window, out })
    }

    fn take(&mut self, mut bytes: &[u8], totals: &Totals) -> io::Result<()> {
        totals.bytes.fetch_add(bytes.len() as u64, Relaxed);
        let mut seen = Seen::default();
        while !bytes.is_empty() {
            let Some((head, left)) = self.frame else {
                let taken = (HEAD_LEN - self.held).min(bytes.len());
                self.head[self.held..self.held + taken].copy_from_slice(&bytes[..taken]);
                self.held += taken;
                bytes = &bytes[taken..];
                if self.held == HEAD_LEN {
                    self.held = 0;
                    let head = Head::read(&self.head);
                    self.begin(head, totals);
                    self.frame = (head.len > 0).then_some((head, head.len));
                }
                continue;
            };
            let taken = left.min(bytes.len());
            let (piece, rest) = bytes.split_at(taken);
            bytes = rest;
            self.frame = (left > taken).then_some((head, left - taken));
            match head.kind {
                kind::DATA => self.streams[stream_number(head.stream)].counter.pass(piece, &mut seen),
                kind::PING | kind::GOAWAY => self.payload.extend_from_slice(piece),
                _ => (),
            }
            if self.frame.is_none() {
                self.end(head)?;
            }
        }
        totals.messages.fetch_add(seen.messages, Relaxed);
        totals.events.fetch_add(seen.events, Relaxed);
        totals.created.fetch_add(seen.created, Relaxed);
        totals.ended.fetch_add(seen.canceled, Relaxed);
        if !self.out.is_empty() {
            // What is said is so little that a socket without room for it means that nobody reads.
            self.line.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }

    fn begin(&mut self, head: Head, totals: &Totals) {
        match head.kind {
            kind::DATA | kind::HEADERS if head.flags & END_STREAM != 0 => drop(totals.ended.fetch_add(1, Relaxed)),
            kind::RST_STREAM => drop(totals.ended.fetch_add(1, Relaxed)),
            kind::SETTINGS if head.flags & wire::ACK == 0 => {
                wire::put_frame(&mut self.out, kind::SETTINGS, wire::ACK, 0, &[]);
            }
            _ => (),
        }
        if head.kind == kind::DATA {
            let len = head.len as u32;
            let stream = &mut self.streams[stream_number(head.stream)];
            stream.unread += len;
            if stream.unread > self.window / 2 {
                wire::put_credit(&mut self.out, head.stream, std::mem::take(&mut stream.unread));
            }
            self.unread += len;
            if self.unread > self.window / 2 {
                wire::put_credit(&mut self.out, 0, std::mem::take(&mut self.unread));
            }
        }
    }

    fn end(&mut self, head: Head) -> io::Result<()> {
        let payload = std::mem::take(&mut self.payload);
        match head.kind {
            kind::PING if head.flags & wire::ACK == 0 => {
                wire::put_frame(&mut self.out, kind::PING, wire::ACK, 0, &payload);
            }
            kind::GOAWAY => return Err(io::Error::other(format!("GOAWAY {}", String::from_utf8_lossy(&payload[8..])))),
            _ => (),
        }
        Ok(())
    }
}

fn stream_id(number: usize) -> u32 {
    u32::try_from(2 * number + 1).expect("there are far fewer streams")
}

fn stream_number(id: u32) -> usize {
    (id as usize - 1) / 2
}
