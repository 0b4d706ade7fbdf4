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

/// Frames that open a call or bring it something, after which a turn takes no more of them. h2 keeps a place of half a
/// KiB for each that nobody has taken yet, and keeps the places for as long as the connection lasts.
const MAX_FRAMES_A_TURN: usize = 256;
/// The same where they are short: those do not come with work that would make a turn worth its while.
const MAX_SHORT_FRAMES_A_TURN: usize = 64;
/// What is read at once where frames are short, as they are when watches are created, so that few are beyond that.
const SHORT_READ: usize = 2 << 10;
/// Frames that are shorter than this, all in all, are short.
const SHORT_FRAME: usize = 64;

/// What the owner of a connection and the bytes under it both know.
#[derive(Debug, Default)]
pub struct Shared {
    /// Calls that are open.
    pub calls: AtomicUsize,
    /// Frames received, by which one sees that the peer lives.
    pub heard: AtomicU32,
    /// What is sent below HTTP/2.
    pub books: Arc<Mutex<Books>>,
}

impl Shared {
    pub fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }
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
    /// Frames of calls that were read in this turn.
    frames: usize,
    reads_little: bool,
    shared: Arc<Shared>,
    pace: Pace,
    inbound: Scanner,
    outbound: Scanner,
    /// Whether the frame that h2 writes is one of nothing.
    swallows: bool,
    /// The newest stream that the client has opened.
    last_stream: u32,
    excess: Option<Excess>,
    leaving: Option<Pin<Box<Sleep>>>,
}

/// Puts the meter around a connection.
pub fn metered<S>(stream: S, shared: Arc<Shared>, min_time: Duration) -> (Metered<S>, Outlet<S>) {
    let wire = Arc::new(Mutex::new(Wire {
        stream,
        out: Vec::new(),
        written: 0,
        is_lazy: false,
        frames: 0,
        reads_little: true,
        shared,
        pace: Pace::new(min_time, Instant::now()),
        inbound: Scanner::new(PREFACE_LEN),
        outbound: Scanner::new(0),
        swallows: false,
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
        let mut wire = lock(&self.wire);
        wire.frames = 0;
        wire.poll_write_out(context)
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
        let Self { shared, pace, inbound, last_stream, excess, frames, .. } = self;
        let before = *frames;
        let (now, mut books) = (Instant::now(), shared.books());
        inbound.scan(bytes, |part| {
            books.received(part);
            let Part::Head(head) = part else { return };
            shared.heard.fetch_add(1, Ordering::Relaxed);
            *frames += usize::from(matches!(head.kind, kind::HEADERS | kind::DATA));
            if head.kind == kind::HEADERS {
                *last_stream = head.stream.max(*last_stream);
            }
            if excess.is_none() {
                *excess = pace.received(head, shared.calls.load(Ordering::Relaxed), now).err();
            }
        });
        drop(books);
        self.reads_little = (self.frames - before) * SHORT_FRAME > bytes.len();
    }

    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.reads_little || buffer.remaining() <= SHORT_READ {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let mut little = ReadBuf::new(buffer.initialize_unfilled_to(SHORT_READ));
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut little))?;
        let read = little.filled().len();
        buffer.advance(read);
        Poll::Ready(Ok(()))
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
                    self.swallows = self.shared.books().sent(head);
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
        self.swallows || self.outbound.is_before_a_head()
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
        if wire.inbound.is_between_frames() && wire.shared.books().for_http2() > 0 {
            wire.shared.books().read_for_http2(buffer.remaining(), |bytes| buffer.put_slice(bytes));
            return Poll::Ready(Ok(()));
        }
        let max_frames = if wire.reads_little { MAX_SHORT_FRAMES_A_TURN } else { MAX_FRAMES_A_TURN };
        if wire.is_lazy && wire.frames >= max_frames {
            // Those who were called take what is theirs first.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(wire.poll_read(context, buffer))?;
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
mod tests;
