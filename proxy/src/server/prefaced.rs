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

/// How far a first line is looked for, which is as far as etcd's multiplexer looks. A longer one is left to HTTP/1.1.
const MAX_LINE: usize = 4096;

/// A stream whose first bytes were read ahead.
pub struct Prefaced<S> {
    first: Vec<u8>,
    given: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> Prefaced<S> {
    /// Reads until the bytes are HTTP/2's preface or a first line. What is no line of HTTP/1 is an error: as with etcd,
    /// whoever speaks something else is not answered in a language that it does not speak.
    pub async fn sniff(mut stream: S) -> io::Result<(Protocol, Self)> {
        let mut first = Vec::with_capacity(PREFACE_LEN);
        let protocol = loop {
            if stream.read_buf(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if first.starts_with(PREFACE) {
                break Protocol::Http2;
            }
            if PREFACE.starts_with(&first) {
                continue;
            }
            let end = first.iter().position(|byte| *byte == b'\n');
            match end.map_or_else(|| may_become_request(&first), |end| is_request(&first[..end])) {
                false => return Err(io::ErrorKind::InvalidData.into()),
                true if end.is_some() || first.len() >= MAX_LINE => break Protocol::Http1,
                true => (),
            }
        };
        Ok((protocol, Self { first, given: 0, stream }))
    }
}

/// Whether a line may begin a request of HTTP/1. Empty ones may stand before it.
fn is_request(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.splitn(3, |byte| *byte == b' ').nth(2);
    line.is_empty() || (may_become_request(line) && version.is_some_and(|version| version.starts_with(b"HTTP/1.")))
}

/// Whether it begins with a method, as far as it goes. So a client that speaks TLS is let go of at once.
fn may_become_request(start: &[u8]) -> bool {
    let method = start.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_of_method = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    start == b"\r" || method.iter().all(is_of_method)
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given < self.first.len() {
            let count = buffer.remaining().min(self.first.len() - self.given);
            buffer.put_slice(&self.first[self.given..self.given + count]);
            self.given += count;
            if self.given == self.first.len() {
                // Connections are many and live long.
                (self.first, self.given) = (Vec::new(), 0);
            }
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

    #[tokio::test]
    async fn what_is_no_http_is_let_go_of_and_not_answered() {
        let long = [&b"GET /"[..], &[b'a'; MAX_LINE]].concat();
        let (mut client, server) = tokio::io::duplex(long.len());
        client.write_all(&long).await.expect("the pipe takes it");
        assert_eq!(Prefaced::sniff(server).await.map(|(protocol, _)| protocol).ok(), Some(Protocol::Http1));
        check(b"\r\nGET / HTTP/1.1\r\n\r\n", Protocol::Http1).await;
        for foreign in [
            &b"INVALID CONNECTION PREFACE\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            b"GET /health\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
        ] {
            let (mut client, server) = tokio::io::duplex(1024);
            client.write_all(foreign).await.expect("the pipe takes it");
            // The client stays, so that nothing but what it said can have ended this.
            let error = Prefaced::sniff(server).await.err().map(|error| error.kind());
            assert_eq!(error, Some(io::ErrorKind::InvalidData), "{:?}", String::from_utf8_lossy(foreign));
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
        #[test]
        fn any_bytes_are_given_back_whole(
            is_http2: bool,
            rest in proptest::collection::vec(proptest::num::u8::ANY, 1..200),
        ) {
            let begins = if is_http2 { &PREFACE[..] } else { b"GET / HTTP/1.1\r\n" };
            let sent = [begins, &rest].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let read = runtime.block_on(async {
                let (mut client, server) = tokio::io::duplex(64);
                let bytes = sent.clone();
                tokio::spawn(async move { client.write_all(&bytes).await });
                let (_, mut stream) = Prefaced::sniff(server).await?;
                let mut read = Vec::new();
                stream.read_to_end(&mut read).await.map(|_| read)
            });
            proptest::prop_assert_eq!(read.expect("it is HTTP"), sent);
        }
    }
}
