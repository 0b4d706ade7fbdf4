//! HTTP/1.1 connections to members: dialled in time, spoken to over TLS where the URL says so, and used again.
//!
//! Each thread has its own, so that a connection is driven on the thread that uses it.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Instant, Sleep},
};
use tokio_rustls::TlsConnector;

use super::{origin::Origin, through::Through};
use crate::{
    dial,
    doors::{Address, set_options},
    go,
    tls::{ClientTls, Peer, explain},
};

/// What a request carries to a member.
pub type Body = BoxBody<Bytes, hyper::Error>;

/// How members are reached; zero is no limit.
#[derive(Clone)]
pub struct Config {
    pub tls: ClientTls,
    pub dial_timeout: Duration,
    pub read_timeout: Duration,
    pub write_timeout: Duration,
    /// The HTTP proxy on the way, if there is one.
    pub through: Option<Through>,
}

/// Connections to one member that are kept for the next request, as in etcd.
const MAX_IDLE: usize = 128;

/// The connections of one thread.
#[derive(Clone)]
pub struct Pool {
    config: Arc<Config>,
    kept: Arc<Mutex<HashMap<Origin, Vec<SendRequest<Body>>>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing of the request was sent; it comes back.
    #[error("{reason}")]
    Unsent { request: Box<Request<Body>>, reason: String },
    /// The member may have acted upon it.
    #[error("{0}")]
    Broken(hyper::Error),
}

impl Pool {
    pub fn new(config: Config) -> Self {
        Self { config: Arc::new(config), kept: Arc::default() }
    }

    /// The same by way of an HTTP proxy, with connections of its own.
    pub fn through(&self, through: Through) -> Self {
        Self::new(Config { through: Some(through), ..(*self.config).clone() })
    }

    /// The proxy to which requests for an origin must name the origin.
    pub fn relay(&self, origin: &Origin) -> Option<&Through> {
        self.config.through.as_ref().filter(|_| !origin.is_secure)
    }

    /// Sends a request to a member, and returns the head of its answer.
    pub async fn send(&self, origin: &Origin, mut request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        // A connection that was kept may be closed by its member in the same moment; then the request comes back.
        while let Some(mut kept) = self.take(origin) {
            match kept.try_send_request(request).await {
                Ok(response) => return Ok(self.keep(origin, kept, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::Broken(error.into_error())),
                },
            }
        }
        let mut fresh = match self.dial(origin).await {
            Ok(fresh) => fresh,
            Err(reason) => return Err(Failure::Unsent { request: Box::new(request), reason }),
        };
        match fresh.try_send_request(request).await {
            Ok(response) => Ok(self.keep(origin, fresh, response)),
            Err(mut error) => match error.take_message() {
                Some(unsent) => {
                    Err(Failure::Unsent { request: Box::new(unsent), reason: error.into_error().to_string() })
                }
                None => Err(Failure::Broken(error.into_error())),
            },
        }
    }

    /// One that waits for a request. Those that still bring an answer stay; those that were closed go.
    fn take(&self, origin: &Origin) -> Option<SendRequest<Body>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = kept.get_mut(origin)?;
        connections.retain(|connection| !connection.is_closed());
        let idle = connections.iter().position(SendRequest::is_ready)?;
        Some(connections.swap_remove(idle))
    }

    /// It is busy until its answer has been read, and can be used again after that.
    fn keep(&self, origin: &Origin, connection: SendRequest<Body>, response: Response<Incoming>) -> Response<Incoming> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Members that are gone have no connection that is open, and need no place here.
        kept.retain(|_, connections| connections.iter().any(|connection| !connection.is_closed()));
        let connections = kept.entry(origin.clone()).or_default();
        if connections.len() < MAX_IDLE {
            connections.push(connection);
        }
        response
    }

    async fn dial(&self, origin: &Origin) -> Result<SendRequest<Body>, String> {
        let dialled = tokio::time::timeout(self.config.dial_timeout, self.connect(origin)).await;
        let stream = dialled.unwrap_or_else(|_| Err("i/o timeout".to_owned()));
        let stream = stream.map_err(|reason| format!("dial {}: {reason}", origin.address))?;
        let (read, write) = (Limit::new(self.config.read_timeout), Limit::new(self.config.write_timeout));
        let timed = Timed { stream, read, write };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(timed)).await;
        let (send, connection) = handshake.map_err(|error| format!("dial {}: {error}", origin.address))?;
        // It ends with the last request on it; a failure is told to whoever waits for an answer.
        tokio::spawn(connection);
        Ok(send)
    }

    async fn connect(&self, origin: &Origin) -> Result<Box<dyn Stream>, String> {
        let failed = |error: io::Error| format!("connect: {}", go::io_error(&error));
        let first = self.config.through.as_ref().map_or(origin, |through| &through.origin);
        let mut stream: Box<dyn Stream> = match &first.address {
            Address::Tcp(host_port) => {
                let socket = dial::connect(host_port).await.map_err(failed)?;
                set_options(&socket).map_err(failed)?;
                Box::new(socket)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
        };
        if let Some(through) = &self.config.through {
            if through.origin.is_secure {
                stream = self.encrypt(&through.origin, stream).await?;
            }
            if origin.is_secure {
                through.tunnel(&mut stream, &origin.authority()).await?;
            }
        }
        if origin.is_secure { self.encrypt(origin, stream).await } else { Ok(stream) }
    }

    async fn encrypt(&self, origin: &Origin, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, String> {
        let name = self.config.tls.server_name(&origin.host).map_err(|error| error.to_string())?;
        let mut config = (*self.config.tls.config()).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        connected.map(|stream| Box::new(stream) as Box<dyn Stream>).map_err(|error| explain(Peer::Etcd, &error))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection on which no read and no write may wait longer than its limit.
struct Timed {
    stream: Box<dyn Stream>,
    read: Limit,
    write: Limit,
}

/// One limit, with the time at which it is reached while something waits.
struct Limit {
    length: Duration,
    ends: Option<Pin<Box<Sleep>>>,
}

impl Limit {
    fn new(length: Duration) -> Self {
        Self { length, ends: None }
    }

    /// What came of an attempt, or an error if it has waited for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() || self.length.is_zero() {
            self.ends = None;
            return outcome;
        }
        let length = self.length;
        let ends = self.ends.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + length)));
        ready!(ends.as_mut().poll(context));
        self.ends = None;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout")))
    }
}

impl AsyncRead for Timed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(context, into);
        self.read.watch(context, outcome)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.write.watch(context, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.write.watch(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
