//! The main listener: accept, TLS, HTTP/1.1 and HTTP/2 on one port, limits, and a drain that says goodbye.
//!
//! One acceptor per listener deals sockets to the shards in turn; a shard is a thread with a runtime of its own, so
//! that a connection, its calls and their way to etcd stay on one core and share no lock with the others.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    admin::Admin,
    drain::Watcher,
    metrics::Metrics,
    router::{self, Router},
    rules::caller::Connection,
    tls::ServerTls,
};

mod prefaced;

use prefaced::{Prefaced, Protocol};

#[derive(Clone)]
pub struct Config {
    pub tls: Option<ServerTls>,
    /// Threads that serve connections.
    pub shards: usize,
    /// Streams that one HTTP/2 connection may have open.
    pub max_concurrent_streams: u32,
    /// The largest header block of a request, in bytes.
    pub max_header_list: u32,
    /// Connections that may be open; zero is without a limit.
    pub max_connections: usize,
    /// How long a new connection may take over TLS and its first bytes.
    pub handshake_timeout: Duration,
    /// How long a connection may be silent before it is pinged.
    pub keepalive_interval: Duration,
    /// How long the answer to a ping may take.
    pub keepalive_timeout: Duration,
}

/// What one message may have under way towards us on a stream; four connections' worth of it on the connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Lease keep-alives are frames of 15 bytes; this many unread bytes' worth of them is taken before it is abuse.
const DATA_FRAME_BUDGET: usize = CONNECTION_WINDOW as usize;
/// Go clients cancel streams in bursts when a context ends; h2's own limit of 20 would end their connections.
const MAX_PENDING_ACCEPT_RESETS: usize = 1000;
/// Streams that a peer may make us reset for its own errors before the connection is closed.
const MAX_LOCAL_ERROR_RESETS: usize = 1024;
/// What one HTTP/1.1 connection may have buffered, its request's head among it.
const HTTP1_BUFFER: usize = 64 << 10;
/// Sockets dealt to a shard and not yet taken.
const DEAL_QUEUE: usize = 1024;
/// The wait after `accept` fails for want of file descriptors, so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u32 = 4096;

/// A bound listener that does not serve yet.
pub struct Bound {
    listener: TcpListener,
    pub address: SocketAddr,
}

/// The threads that serve connections.
pub struct Shards {
    doors: Vec<mpsc::Sender<TcpStream>>,
    next: AtomicUsize,
    open: Arc<AtomicUsize>,
    max_connections: usize,
}

/// Where the requests of a listener's connections go.
pub struct Front {
    /// Who serves gRPC; on a metrics address nobody.
    pub router: Option<Arc<Router>>,
    /// Who serves everything else.
    pub admin: Admin,
}

/// Binds before anything else starts, so that a bad address is a start-up error.
pub async fn bind(address: &str) -> io::Result<Bound> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
    for candidate in tokio::net::lookup_host(address).await? {
        match listen(candidate) {
            Ok(listener) => return Ok(Bound { address: listener.local_addr()?, listener }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Shards {
    /// Starts the threads. `make_front` runs on each, inside its runtime.
    pub fn start(
        config: &Arc<Config>,
        metrics: &Arc<Metrics>,
        drain: &Watcher,
        make_front: impl Fn() -> Front + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let make_front = Arc::new(make_front);
        let open = Arc::new(AtomicUsize::new(0));
        let mut doors = Vec::with_capacity(config.shards);
        for number in 0..config.shards {
            let (door, sockets) = mpsc::channel(DEAL_QUEUE);
            doors.push(door);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let shard =
                Shard { config: config.clone(), metrics: metrics.clone(), drain: drain.clone(), open: open.clone() };
            let make_front = make_front.clone();
            thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
                runtime.block_on(async move {
                    let front = Arc::new(make_front());
                    // What it holds of the drain must not outlive the front that it made.
                    drop(make_front);
                    shard.run(sockets, front).await;
                });
            })?;
        }
        Ok(Self { doors, next: AtomicUsize::new(0), open, max_connections: config.max_connections })
    }

    /// Accepts until the drain begins, dealing sockets to the shards in turn.
    pub async fn accept(&self, bound: Bound, mut drain: Watcher) {
        while let Some((socket, peer)) = bound.next(&mut drain).await {
            if self.max_connections > 0 && self.open.load(Ordering::Relaxed) >= self.max_connections {
                tracing::warn!(%peer, limit = self.max_connections, "refused a connection over --max-connections");
                continue;
            }
            let shard = self.next.fetch_add(1, Ordering::Relaxed) % self.doors.len();
            if self.doors[shard].send(socket).await.is_err() {
                return;
            }
        }
    }
}

impl Bound {
    /// The next connection; none once the drain has begun.
    async fn next(&self, drain: &mut Watcher) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.signaled() => return None,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection; are there file descriptors left (ulimit -n)?");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

/// Serves a listener on the thread that calls it, until the drain begins: for a metrics address, where there is little
/// to do and a busy shard should not be waited for.
pub async fn serve_here(config: Arc<Config>, metrics: Arc<Metrics>, bound: Bound, front: Front, mut drain: Watcher) {
    let shard = Arc::new(Shard { config, metrics, drain: drain.clone(), open: Arc::default() });
    let front = Arc::new(front);
    while let Some((socket, peer)) = bound.next(&mut drain).await {
        let limit = shard.config.max_connections;
        if limit > 0 && shard.open.load(Ordering::Relaxed) >= limit {
            tracing::warn!(%peer, limit, "refused a connection to a metrics address, too many are open");
            continue;
        }
        shard.clone().spawn(socket, front.clone());
    }
}

struct Shard {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    drain: Watcher,
    open: Arc<AtomicUsize>,
}

/// Counts a connection for as long as it is open.
struct OpenConnection(Arc<AtomicUsize>, Arc<Metrics>);

impl OpenConnection {
    fn new(open: &Arc<AtomicUsize>, metrics: &Arc<Metrics>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        metrics.connections.inc();
        Self(open.clone(), metrics.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        self.1.connections.dec();
    }
}

static CONNECTION_NUMBER: AtomicU64 = AtomicU64::new(1);

impl Shard {
    async fn run(self, mut sockets: mpsc::Receiver<TcpStream>, front: Arc<Front>) {
        let shard = Arc::new(self);
        while let Some(socket) = sockets.recv().await {
            shard.clone().spawn(socket, front.clone());
        }
        // The acceptors are gone: stay for the connections that finish, and hold up the end no longer than they do.
        drop((shard, front));
        std::future::pending::<()>().await;
    }

    fn spawn(self: Arc<Self>, socket: TcpStream, front: Arc<Front>) {
        // Counted before the task runs, so that a burst of connections cannot pass the limit.
        let open = OpenConnection::new(&self.open, &self.metrics);
        tokio::spawn(async move {
            let _open = open;
            self.serve(socket, front).await;
        });
    }

    async fn serve(&self, socket: TcpStream, front: Arc<Front>) {
        let connection = Arc::new(Connection {
            peer: socket.peer_addr().ok(),
            number: CONNECTION_NUMBER.fetch_add(1, Ordering::Relaxed),
        });
        // Without it answers wait for the client's delayed acknowledgements.
        if socket.set_nodelay(true).is_err() {
            return;
        }
        let opening = tokio::time::timeout(self.config.handshake_timeout, self.open(socket));
        match opening.await {
            Ok(Ok((Protocol::Http2, socket))) => self.serve_http2(socket, connection, front).await,
            Ok(Ok((Protocol::Http1, socket))) => self.serve_http1(socket, front).await,
            Ok(Err(error)) => {
                self.metrics.handshake_failed();
                tracing::debug!(peer = ?connection.peer, %error, "connection ended before its first request");
            }
            Err(_) => {
                self.metrics.handshake_failed();
                tracing::debug!(peer = ?connection.peer, "connection took too long over its handshake");
            }
        }
    }

    /// TLS where it is configured, and then what protocol the client speaks.
    async fn open(&self, socket: TcpStream) -> io::Result<(Protocol, Prefaced<Box<dyn Io>>)> {
        let Some(tls) = &self.config.tls else {
            return Prefaced::sniff(Box::new(socket) as Box<dyn Io>).await;
        };
        let socket = tokio_rustls::TlsAcceptor::from(tls.config()).accept(socket).await?;
        // A client without ALPN is heard out, as etcd does with its connection multiplexer.
        Prefaced::sniff(Box::new(socket) as Box<dyn Io>).await
    }

    async fn serve_http2(&self, socket: Prefaced<Box<dyn Io>>, connection: Arc<Connection>, front: Arc<Front>) {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(self.config.max_header_list)
            .max_concurrent_streams(self.config.max_concurrent_streams)
            .max_pending_accept_reset_streams(MAX_PENDING_ACCEPT_RESETS)
            .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
            .data_frame_budget(DATA_FRAME_BUDGET);
        let handshake = tokio::time::timeout(self.config.handshake_timeout, builder.handshake::<_, Bytes>(socket));
        let Ok(Ok(mut http2)) = handshake.await else {
            self.metrics.handshake_failed();
            return;
        };
        let ping_pong = http2.ping_pong().expect("the ping handle is taken once, here");
        let mut drain = self.drain.clone();
        let mut draining = false;
        let lost = keepalive(ping_pong, self.config.keepalive_interval, self.config.keepalive_timeout);
        tokio::pin!(lost);
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.signaled(), if !draining => {
                    draining = true;
                    http2.graceful_shutdown();
                    continue;
                }
                () = &mut lost => {
                    tracing::debug!(peer = ?connection.peer, "client did not answer a keepalive ping");
                    return;
                }
                accepted = http2.accept() => accepted,
            };
            match accepted {
                Some(Ok((request, respond))) => {
                    let (front, connection) = (front.clone(), connection.clone());
                    tokio::spawn(async move {
                        match &front.router {
                            Some(router) if router::is_grpc(request.headers()) => {
                                router.serve(connection, request, respond).await;
                            }
                            _ => front.admin.serve_http2(request, respond).await,
                        }
                    });
                }
                Some(Err(error)) => {
                    tracing::debug!(peer = ?connection.peer, %error, "connection broke");
                    return;
                }
                None => return,
            }
        }
    }

    async fn serve_http1(&self, socket: Prefaced<Box<dyn Io>>, front: Arc<Front>) {
        let service = hyper::service::service_fn(move |request| {
            let front = front.clone();
            async move { front.admin.serve_http1(request).await }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.handshake_timeout)
            .max_buf_size(HTTP1_BUFFER)
            .serve_connection(TokioIo::new(socket), service);
        tokio::pin!(connection);
        let mut drain = self.drain.clone();
        let ended = tokio::select! {
            biased;
            () = drain.signaled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            ended = &mut connection => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "HTTP/1.1 connection broke");
        }
    }
}

/// Returns when the peer leaves a ping unanswered. The interval is hours by default, as in grpc-go.
async fn keepalive(mut ping_pong: h2::PingPong, interval: Duration, timeout: Duration) {
    if interval.is_zero() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(interval).await;
        if !matches!(tokio::time::timeout(timeout, ping_pong.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// A byte stream, plain or under TLS.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
