//! A connection under h2 that counts frames both ways, sends away a client that asks too much of us, gathers what goes
//! out into few large writes, and lets the frames of events in beside h2's own.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::{
    pace::{Excess, Pace},
    prefaced::PREFACE_LEN,
};
use crate::exchange::{
    books::{Below, Books},
    frames::{HEAD_LEN, Head, Part, Scanner, kind},
};

/// How long a client that was sent away may take to close its end. Closing ours first, with its bytes unread, would
/// make the kernel discard the farewell; grpc-go waits as long.
const LINGER: Duration = Duration::from_secs(1);
/// HTTP/2's ENHANCE_YOUR_CALM.
const ENHANCE_YOUR_CALM: u32 = 11;

/// What the owner of a connection and the bytes under it both know.
#[derive(Debug, Default)]
pub struct Shared {
    /// Calls that are open.
    pub calls: AtomicUsize,
    /// Frames received, by which one sees that the peer lives.
    pub heard: AtomicU32,
}

/// Bytes that are made ready before the socket is asked to take them. A write costs some microseconds whatever it
/// carries, and h2 by itself writes 16 KiB at a time, or each larger message for itself.
const OUT_HIGH_WATER: usize = 64 << 10;
/// What an idle connection keeps of its buffer; most turns of most connections fit into it.
const OUT_KEPT: usize = 4 << 10;

/// The end that h2 holds. What it flushes goes out when the connection's owner says so, once per turn.
pub struct Metered<S> {
    wire: Arc<Mutex<Wire<S>>>,
}

/// The end that the connection's owner holds.
pub struct Outlet<S> {
    wire: Arc<Mutex<Wire<S>>>,
}

/// The connection itself. Both ends are held by one task, so the lock is never waited for.
pub struct Wire<S> {
    stream: S,
    /// What is on its way to the client, from `written` on.
    out: Vec<u8>,
    written: usize,
    /// Whether a flush may wait for the end of the turn.
    is_lazy: bool,
    shared: Arc<Shared>,
    pace: Pace,
    inbound: Scanner,
    outbound: Scanner,
    /// Whether the frame that h2 writes is one of nothing.
    swallows: bool,
    books: Arc<Mutex<Books>>,
    /// The newest stream that the client has opened.
    last_stream: u32,
    excess: Option<Excess>,
    leaving: Option<Pin<Box<Sleep>>>,
}

/// Puts the meter around a connection.
pub fn metered<S>(
    stream: S,
    shared: Arc<Shared>,
    books: Arc<Mutex<Books>>,
    min_time: Duration,
) -> (Metered<S>, Outlet<S>) {
    let wire = Arc::new(Mutex::new(Wire {
        stream,
        out: Vec::new(),
        written: 0,
        is_lazy: false,
        shared,
        pace: Pace::new(min_time, Instant::now()),
        inbound: Scanner::new(PREFACE_LEN),
        outbound: Scanner::new(0),
        swallows: false,
        books,
        last_stream: 0,
        excess: None,
        leaving: None,
    }));
    (Metered { wire: wire.clone() }, Outlet { wire })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outlet<S> {
    /// From now on the owner calls [`Outlet::poll_write_out`] at the end of each turn.
    pub fn take_over(&self) {
        lock(&self.wire).is_lazy = true;
    }

    /// Lets `write` put frames beside h2's.
    pub fn write_below<T>(&self, write: impl FnOnce(&mut Wire<S>) -> T) -> T {
        write(&mut lock(&self.wire))
    }

    /// Writes what has gathered; `Pending` as long as the socket does not take all of it.
    pub fn poll_write_out(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.wire).poll_write_out(context)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under h2 ends its call, and what was half written then ends the connection; the lock itself is sound.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn note_received(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.excess.is_some() {
            return;
        }
        let Self { shared, pace, inbound, last_stream, excess, books, .. } = self;
        let (now, mut books) = (Instant::now(), lock(books));
        inbound.scan(bytes, |part| {
            books.received(part);
            let Part::Head(head) = part else { return };
            shared.heard.fetch_add(1, Ordering::Relaxed);
            if head.kind == kind::HEADERS {
                *last_stream = head.stream.max(*last_stream);
            }
            if excess.is_none() {
                *excess = pace.received(head, shared.calls.load(Ordering::Relaxed), now).err();
            }
        });
    }

    /// Takes bytes for the client, as long as there is room, and says how many. A head is passed on when it is whole, so
    /// that it is known then what to do with the frame.
    fn put(&mut self, bytes: &[u8], now: Instant) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.outbound.is_in_payload() {
                let room = if self.swallows { usize::MAX } else { self.room() };
                let payload = self.outbound.payload(&mut rest, room);
                if payload.is_empty() {
                    break;
                }
                if !self.swallows {
                    self.append(payload);
                }
            } else {
                if self.room() < HEAD_LEN {
                    break;
                }
                if let Some(head) = self.outbound.next_head(&mut rest) {
                    self.swallows = lock(&self.books).sent(head);
                    if !self.swallows {
                        self.append(&head.write());
                        self.note_sent(head, now);
                    }
                }
            }
        }
        bytes.len() - rest.len()
    }

    fn room(&self) -> usize {
        OUT_HIGH_WATER.saturating_sub(self.out.len())
    }

    fn append(&mut self, bytes: &[u8]) {
        let len = self.out.len() + bytes.len();
        if len > self.out.capacity() && len > OUT_KEPT {
            self.out.reserve_exact(OUT_HIGH_WATER - self.out.len());
        }
        self.out.extend_from_slice(bytes);
    }

    fn note_sent(&mut self, head: Head, now: Instant) {
        if let Err(error) = self.pace.sent(head, now) {
            self.excess.get_or_insert(error);
        }
    }

    /// Whether a frame may be put here that is not h2's. What it holds back of a head does not count.
    fn is_between_frames(&self) -> bool {
        self.swallows || !self.outbound.is_in_payload()
    }

    /// Makes room for more; `Pending` while the socket takes nothing of a full buffer.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.room() >= HEAD_LEN { Poll::Ready(Ok(())) } else { self.poll_write_out(context) }
    }

    fn poll_write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.out.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.out[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => self.written += more,
            }
        }
        self.written = 0;
        self.out.clear();
        if self.out.capacity() > OUT_KEPT {
            self.out = Vec::new();
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Says goodbye, once, and then waits for the client to close. Nothing else is read or written any more.
    fn poll_leave(&mut self, context: &mut Context<'_>, excess: Excess) -> Poll<io::Error> {
        if self.leaving.is_none() {
            // A frame that is cut in two means that the client does not read; then it cannot be told.
            if self.is_between_frames() {
                self.out.extend_from_slice(&go_away(self.last_stream, excess));
            }
            // A socket without room for this is one that the client does not read either.
            let _ = self.poll_write_out(context);
            let _ = Pin::new(&mut self.stream).poll_shutdown(context);
            self.leaving = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        let over = || Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, excess.debug_data()));
        let mut discarded = [0; 4096];
        loop {
            if let Some(linger) = &mut self.leaving
                && linger.as_mut().poll(context).is_ready()
            {
                return over();
            }
            let mut buffer = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => (),
                _ => return over(),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Below for Wire<S> {
    fn poll_room(&mut self, context: &mut Context<'_>, payload: usize) -> Poll<io::Result<()>> {
        if self.leaving.is_some() || !self.is_between_frames() {
            // h2 goes on with its frame, or the connection ends, and then there is another turn.
            return Poll::Pending;
        }
        if self.room() >= HEAD_LEN + payload { Poll::Ready(Ok(())) } else { self.poll_write_out(context) }
    }

    fn put(&mut self, stream: u32, payload: &[u8], now: Instant) {
        let len = u32::try_from(payload.len()).expect("a frame is no longer than the room that there is for it");
        let head = Head { len, kind: kind::DATA, flags: 0, stream };
        self.append(&head.write());
        self.append(payload);
        self.note_sent(head, now);
    }
}

fn go_away(last_stream: u32, excess: Excess) -> Vec<u8> {
    let debug_data = excess.debug_data().as_bytes();
    let len = u8::try_from(8 + debug_data.len()).expect("the texts are short");
    let mut frame = vec![0, 0, len, kind::GOAWAY, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
    frame.extend_from_slice(debug_data);
    frame
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.wire);
        if let Some(excess) = wire.excess {
            return wire.poll_leave(context, excess).map(Err);
        }
        if wire.inbound.is_between_frames() && lock(&wire.books).for_http2() > 0 {
            lock(&wire.books).read_for_http2(buffer.remaining(), |bytes| buffer.put_slice(bytes));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut wire.stream).poll_read(context, buffer))?;
        wire.note_received(&buffer.filled()[before..]);
        match wire.excess {
            // What came last is not worth being read.
            Some(excess) => {
                buffer.set_filled(before);
                wire.poll_leave(context, excess).map(Err)
            }
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(data)])
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.wire);
        if wire.is_lazy { Poll::Ready(Ok(())) } else { wire.poll_write_out(context) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.wire);
        ready!(wire.poll_write_out(context))?;
        Pin::new(&mut wire.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut wire = lock(&self.wire);
        if wire.leaving.is_some() {
            // The client has been told that nothing more comes.
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        ready!(wire.poll_room(context))?;
        let (mut written, now) = (0, Instant::now());
        for slice in slices {
            let taken = wire.put(slice, now);
            written += taken;
            if taken < slice.len() {
                break;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const PREFACE: &[u8; PREFACE_LEN] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const PING: [u8; 17] = [0, 0, 8, kind::PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const HEADERS: [u8; 10] = [0, 0, 1, kind::HEADERS, 5, 0, 0, 0, 7, 0x82];

    fn metered() -> (DuplexStream, Metered<DuplexStream>) {
        let (client, server) = tokio::io::duplex(64 * 1024);
        (client, super::metered(server, Arc::default(), Arc::default(), Duration::from_secs(5)).0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_pings_too_often_is_told_so_and_its_connection_ends() {
        let (mut client, mut server) = metered();
        client.write_all(PREFACE).await.expect("the pipe takes it");
        client.write_all(&HEADERS).await.expect("the pipe takes it");
        for _ in 0..4 {
            client.write_all(&PING).await.expect("the pipe takes it");
        }
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            let error = server.read_to_end(&mut bytes).await.expect_err("the client is sent away");
            assert_eq!(error.to_string(), "too_many_pings");
        });
        let mut farewell = Vec::new();
        client.read_to_end(&mut farewell).await.expect("the pipe gives it");
        assert_eq!(farewell[..9], [0, 0, 22, kind::GOAWAY, 0, 0, 0, 0, 0]);
        assert_eq!(farewell[9..17], [0, 0, 0, 7, 0, 0, 0, 11]);
        assert_eq!(&farewell[17..], b"too_many_pings");
        reader.await.expect("the check holds although the client keeps its end open");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_is_under_way_is_not_cut_by_the_farewell() {
        let (mut client, mut server) = metered();
        let begun = [0, 0, 9, kind::SETTINGS, 0, 0, 0, 0, 0, 1, 2];
        server.write_all(&begun).await.expect("the pipe takes it");
        client.write_all(PREFACE).await.expect("the pipe takes it");
        for _ in 0..4 {
            client.write_all(&PING).await.expect("the pipe takes it");
        }
        server.read_to_end(&mut Vec::new()).await.expect_err("the client is sent away");
        drop(server);
        let mut sent = Vec::new();
        client.read_to_end(&mut sent).await.expect("the pipe gives it");
        assert_eq!(sent, begun);
    }

    #[tokio::test]
    async fn what_a_turn_writes_goes_out_at_its_end_and_no_more_is_held_than_the_bound() {
        let (mut client, server) = tokio::io::duplex(16 << 10);
        let (mut server, outlet) = super::metered(server, Arc::default(), Arc::default(), Duration::from_secs(5));
        outlet.take_over();
        let frame = [[0, 0, 1, kind::DATA, 0, 0, 0, 0, 1].as_slice(), b"x"].concat();
        let mut sent = Vec::new();
        for _ in 0..100 {
            server.write_all(&frame).await.expect("there is room");
            server.flush().await.expect("it waits for the end of the turn");
            sent.extend_from_slice(&frame);
        }
        let mut byte = [0];
        let early = poll_fn(|context| {
            let mut buffer = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut client).poll_read(context, &mut buffer).is_ready())
        });
        assert!(!early.await, "something was written before the end of the turn");
        // Nobody reads: the pipe takes a part, the buffer what it may, and then the writer has to wait.
        let flooded = poll_fn(|context| {
            while let Poll::Ready(written) = Pin::new(&mut server).poll_write(context, &frame) {
                sent.extend_from_slice(&frame[..written.expect("the pipe is open")]);
            }
            assert!(outlet.poll_write_out(context).is_pending());
            Poll::Ready(sent.len())
        });
        assert!(flooded.await <= OUT_HIGH_WATER + (16 << 10));
        let writing = tokio::spawn(async move {
            poll_fn(|context| outlet.poll_write_out(context)).await.expect("the pipe takes it");
            server.shutdown().await.expect("the pipe closes");
        });
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.expect("the pipe gives it");
        writing.await.expect("the writer ends");
        assert!(read == sent, "{} bytes were read and {} sent", read.len(), sent.len());
    }

    #[tokio::test]
    async fn bytes_pass_unchanged_both_ways() {
        let (mut client, mut server) = metered();
        let sent = [PREFACE.as_slice(), &HEADERS, &PING].concat();
        client.write_all(&sent).await.expect("the pipe takes it");
        let mut read = vec![0; sent.len()];
        server.read_exact(&mut read).await.expect("the pipe gives it");
        assert_eq!(read, sent);
        let slices = [IoSlice::new(&HEADERS), IoSlice::new(&PING)];
        let written = server.write_vectored(&slices).await.expect("the pipe takes it");
        server.flush().await.expect("the pipe takes it");
        let mut read = vec![0; written];
        client.read_exact(&mut read).await.expect("the pipe gives it");
        assert_eq!(read, [HEADERS.as_slice(), &PING].concat()[..written]);
    }
}
