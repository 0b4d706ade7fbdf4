//! Tells HTTP/2 from HTTP/1.1 by a connection's first bytes, and gives those bytes back to whoever reads on.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

pub const PREFACE_LEN: usize = 24;
/// What every HTTP/2 client says first.
const PREFACE: &[u8; PREFACE_LEN] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// A byte stream, plain or under TLS.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream whose first bytes were read ahead.
pub struct Prefaced<S> {
    first: [u8; PREFACE_LEN],
    read: usize,
    given: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> Prefaced<S> {
    /// Reads until the bytes differ from HTTP/2's preface or are all of it.
    pub async fn sniff(mut stream: S) -> io::Result<(Protocol, Self)> {
        let mut first = [0; PREFACE_LEN];
        let mut read = 0;
        let protocol = loop {
            match stream.read(&mut first[read..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => read += more,
            }
            if !PREFACE.starts_with(&first[..read]) {
                break Protocol::Http1;
            }
            if read == PREFACE.len() {
                break Protocol::Http2;
            }
        };
        Ok((protocol, Self { first, read, given: 0, stream }))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given < self.read {
            let count = buffer.remaining().min(self.read - self.given);
            buffer.put_slice(&self.first[self.given..self.given + count]);
            self.given += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefaced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
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
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn check(sent: &[u8], expected: Protocol) {
        for step in 1..=sent.len() {
            let (mut client, server) = tokio::io::duplex(1024);
            let chunks: Vec<Vec<u8>> = sent.chunks(step).map(<[u8]>::to_vec).collect();
            let writer = tokio::spawn(async move {
                for chunk in chunks {
                    client.write_all(&chunk).await.expect("the pipe takes it");
                }
            });
            let (protocol, mut stream) = Prefaced::sniff(server).await.expect("enough bytes");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("the pipe gives it");
            writer.await.expect("the writer ends");
            assert_eq!((protocol, all.as_slice()), (expected, sent), "in steps of {step}");
        }
    }

    #[tokio::test]
    async fn protocols_are_told_apart_and_no_byte_is_lost() {
        check(b"GET /health HTTP/1.1\r\n\r\n", Protocol::Http1).await;
        check(b"POST /v3/kv/put HTTP/1.1\r\n\r\n", Protocol::Http1).await;
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more", Protocol::Http2).await;
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
        #[test]
        fn any_bytes_are_given_back_whole(
            same in 0..=PREFACE_LEN,
            rest in proptest::collection::vec(proptest::num::u8::ANY, 1..200),
        ) {
            let sent = [&PREFACE[..same], &rest].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let read = runtime.block_on(async {
                let (mut client, server) = tokio::io::duplex(64);
                let bytes = sent.clone();
                tokio::spawn(async move { client.write_all(&bytes).await });
                let mut read = Vec::new();
                match Prefaced::sniff(server).await {
                    Ok((_, mut stream)) => stream.read_to_end(&mut read).await.map(|_| Some(read)),
                    // Too few bytes to tell.
                    Err(_) if PREFACE.starts_with(&sent) => Ok(None),
                    Err(error) => Err(error),
                }
            });
            if let Some(read) = read.expect("the pipe does not break") {
                proptest::prop_assert_eq!(read, sent);
            }
        }
    }
}
