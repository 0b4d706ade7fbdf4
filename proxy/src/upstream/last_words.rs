//! A TLS stream to etcd that tells why it ended.
//!
//! Under TLS 1.3 a client has sent its first requests before the server has looked at its certificate. A server that
//! wants another one sends an alert and closes, so that the next write fails with a broken pipe, which explains
//! nothing, while the explanation waits to be read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls::{self, Peer};

/// More than an alert and the session tickets before it need; what follows is of no interest.
const SCRATCH: usize = 4096;

pub struct LastWords<S> {
    stream: S,
    /// How a write failed, while what the peer said before it closed is still on its way to be read.
    failed: Option<io::Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> LastWords<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, failed: None }
    }

    /// The outcome of a write; a failed one waits until there is nothing left to read, which on a closed socket comes
    /// at once.
    fn write<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.failed.is_none() {
            match write(Pin::new(&mut self.stream), context) {
                Poll::Ready(Err(failed)) if !is_of_tls(&failed) => self.failed = Some(failed),
                outcome => return outcome.map_err(explained),
            }
        }
        let mut scratch = [0; SCRATCH];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => (),
                Poll::Ready(Err(said)) if is_of_tls(&said) => return Poll::Ready(Err(explained(said))),
                Poll::Ready(_) => {
                    let failed = self.failed.take();
                    return Poll::Ready(Err(failed.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())));
                }
            }
        }
    }
}

fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

fn explained(error: io::Error) -> io::Error {
    if is_of_tls(&error) { io::Error::new(error.kind(), tls::explain(Peer::Etcd, &error)) } else { error }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for LastWords<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer).map_err(explained)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LastWords<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| stream.poll_write(context, data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| stream.poll_write_vectored(context, data))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A stream whose peer has sent an alert and closed.
    #[derive(Default)]
    struct Refused {
        readable: bool,
    }

    impl AsyncRead for Refused {
        fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !std::mem::replace(&mut self.readable, true) {
                // As a runtime that has not heard of it yet.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
            Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, alert)))
        }
    }

    impl AsyncWrite for Refused {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_broken_pipe_is_explained_by_the_alert_before_it() {
        let error = LastWords::new(Refused::default()).write_all(b"request").await.expect_err("the peer has closed");
        assert!(error.to_string().contains("etcd wants a certificate and was shown none"), "{error}");
    }
}
