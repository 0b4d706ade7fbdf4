//! A connection under h2 that counts frames both ways, and sends away a client that asks too much of us.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
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
    frames::{Head, Scanner, kind},
    pace::{Excess, Pace},
    prefaced::PREFACE_LEN,
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

pub struct Metered<S> {
    stream: S,
    shared: Arc<Shared>,
    pace: Pace,
    inbound: Scanner,
    outbound: Scanner,
    /// The newest stream that the client has opened.
    last_stream: u32,
    excess: Option<Excess>,
    leaving: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Metered<S> {
    pub fn new(stream: S, shared: Arc<Shared>, min_time: Duration) -> Self {
        Self {
            stream,
            shared,
            pace: Pace::new(min_time, Instant::now()),
            inbound: Scanner::new(PREFACE_LEN),
            outbound: Scanner::new(0),
            last_stream: 0,
            excess: None,
            leaving: None,
        }
    }

    fn note_received(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.excess.is_some() {
            return;
        }
        let Self { shared, pace, inbound, last_stream, excess, .. } = self;
        let now = Instant::now();
        inbound.scan(bytes, |head| {
            shared.heard.fetch_add(1, Ordering::Relaxed);
            if head.kind == kind::HEADERS {
                *last_stream = head.stream.max(*last_stream);
            }
            if excess.is_none() {
                *excess = pace.received(head, shared.calls.load(Ordering::Relaxed), now).err();
            }
        });
    }

    fn note_sent(&mut self, bytes: &[u8], now: Instant) {
        let Self { pace, outbound, excess, .. } = self;
        outbound.scan(bytes, |head: Head| {
            if let Err(error) = pace.sent(head, now) {
                excess.get_or_insert(error);
            }
        });
    }

    /// Says goodbye, once, and then waits for the client to close. Nothing else is read or written any more.
    fn poll_leave(&mut self, context: &mut Context<'_>, excess: Excess) -> Poll<io::Error> {
        if self.leaving.is_none() {
            // A frame that is cut in two means that the client does not read; then it cannot be told.
            if self.outbound.is_between_frames() {
                // A socket without room for this is one that the client does not read either.
                let _ = Pin::new(&mut self.stream).poll_write(context, &go_away(self.last_stream, excess));
            }
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
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(excess) = self.excess {
            return self.poll_leave(context, excess).map(Err);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.note_received(&buffer.filled()[before..]);
        match self.excess {
            // What came last is not worth being read.
            Some(excess) => {
                buffer.set_filled(before);
                self.poll_leave(context, excess).map(Err)
            }
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.leaving.is_some() {
            // The client has been told that nothing more comes.
            return Poll::Ready(Ok(data.len()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, data))?;
        self.note_sent(&data[..written.min(data.len())], Instant::now());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.leaving.is_some() {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        let (mut left, now) = (written, Instant::now());
        for slice in slices {
            let taken = left.min(slice.len());
            self.note_sent(&slice[..taken], now);
            left -= taken;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const PREFACE: &[u8; PREFACE_LEN] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const PING: [u8; 17] = [0, 0, 8, kind::PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const HEADERS: [u8; 10] = [0, 0, 1, kind::HEADERS, 5, 0, 0, 0, 7, 0x82];

    fn metered() -> (DuplexStream, Metered<DuplexStream>) {
        let (client, server) = tokio::io::duplex(64 * 1024);
        (client, Metered::new(server, Arc::default(), Duration::from_secs(5)))
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
        server.write_all(&[0, 0, 9, kind::SETTINGS, 0, 0]).await.expect("the pipe takes it");
        client.write_all(PREFACE).await.expect("the pipe takes it");
        for _ in 0..4 {
            client.write_all(&PING).await.expect("the pipe takes it");
        }
        server.read_to_end(&mut Vec::new()).await.expect_err("the client is sent away");
        drop(server);
        let mut sent = Vec::new();
        client.read_to_end(&mut sent).await.expect("the pipe gives it");
        assert_eq!(sent, [0, 0, 9, kind::SETTINGS, 0, 0]);
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
        let mut read = vec![0; written];
        client.read_exact(&mut read).await.expect("the pipe gives it");
        assert_eq!(read, [HEADERS.as_slice(), &PING].concat()[..written]);
    }
}
