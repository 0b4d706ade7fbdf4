//! The main listener: accept, TLS, HTTP/1.1 and HTTP/2 on one port, limits, and a drain that says goodbye.
//!
//! One acceptor per listener deals sockets to the shards in turn; a shard is a thread with a runtime of its own, so
//! that a connection, its calls and their way to etcd stay on one core and share no lock with the others.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    sync::mpsc::{self, error::TrySendError},
};

use crate::{
    admin::Admin,
    drain::Watcher,
    json::Api,
    metrics::{Metrics, Reason, UNKNOWN},
    router::Router,
    rules::tenant::Tenant,
    tls::ServerTls,
};

pub mod access;
pub mod descriptors;
mod http;
mod http2;
mod metered;
mod pace;
mod prefaced;
mod received;
mod shard;
pub mod unix;

use access::Access;
use shard::{OpenConnection, Shard};
use unix::UnixBound;

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
    /// How long the answer to a ping may take, and how long bytes may wait for the client to take them.
    pub keepalive_timeout: Duration,
    /// The shortest time between two pings of a client; zero is gRPC's own limit.
    pub keepalive_min_time: Duration,
}

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

/// Where clients are let in.
pub enum Entrance {
    Tcp(Bound),
    Unix(UnixBound),
}

/// The threads that serve connections.
pub struct Shards {
    doors: Vec<mpsc::Sender<Accepted>>,
    next: AtomicUsize,
    open: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    max_connections: usize,
    /// Connections that there are file descriptors for, with what the rest of the proxy needs left over.
    affordable: usize,
}

/// Where the requests of a listener's connections go.
pub struct Front {
    /// Who serves gRPC; on a metrics address nobody.
    pub router: Option<Arc<Router>>,
    /// Who serves everything else.
    pub admin: Admin,
    /// The API in JSON; none where it is turned off.
    pub json: Option<Arc<Api>>,
    /// Who may ask by HTTP; on a metrics address everybody.
    pub access: Option<Arc<Access>>,
}

impl Front {
    /// Whether it depends on rules, which may change, who a client is.
    fn is_by_identity(&self) -> bool {
        self.router.as_ref().is_some_and(|router| router.tenants.borrow().are_by_identity())
    }

    /// Whether a client of this tenant may see what is told of all.
    fn shows_everybody(&self, tenant: &Tenant) -> bool {
        !self.is_by_identity() || tenant.policy.is_full()
    }
}

/// A socket on its way to the shard that serves it; it counts as open from here. It belongs to no runtime: registered
/// with the acceptor's, every byte that comes would wake that one's thread first.
type Accepted = (Socket, OpenConnection);

enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
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
        let mut doors = Vec::with_capacity(config.shards);
        for number in 0..config.shards {
            let (door, sockets) = mpsc::channel(DEAL_QUEUE);
            doors.push(door);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let shard = Shard { config: config.clone(), metrics: metrics.clone() };
            let (make_front, drain) = (make_front.clone(), drain.clone());
            thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
                runtime.block_on(async move {
                    let front = Arc::new(make_front());
                    // What it holds of the drain must not outlive the front that it made.
                    drop(make_front);
                    shard.run(sockets, front, drain).await;
                });
            })?;
        }
        Ok(Self {
            doors,
            next: AtomicUsize::new(0),
            open: Arc::default(),
            metrics: metrics.clone(),
            max_connections: config.max_connections,
            affordable: descriptors::affordable_connections(),
        })
    }

    /// Accepts until the drain begins, dealing sockets to the shards in turn.
    pub async fn accept(&self, entrance: Entrance, mut drain: Watcher) {
        loop {
            if self.open.load(Ordering::Relaxed) >= self.affordable {
                // They wait in the kernel's queue. The proxy needs its last descriptors to reach etcd.
                tracing::warn!(open = self.affordable, "no file descriptors left for clients (ulimit -n)");
                tokio::select! {
                    () = drain.signaled() => return,
                    () = tokio::time::sleep(ACCEPT_BACKOFF) => continue,
                }
            }
            let Some((socket, peer)) = entrance.next(&mut drain).await else { return };
            if self.max_connections > 0 && self.open.load(Ordering::Relaxed) >= self.max_connections {
                tracing::warn!(?peer, limit = self.max_connections, "refused a connection over --max-connections");
                self.metrics.refusals.note(UNKNOWN, Reason::Connections, "more than --max-connections");
                continue;
            }
            // It fails only for a socket that the runtime has lost, and then the client has lost it too.
            let Ok(socket) = socket else { continue };
            self.deal((socket, OpenConnection::new(&self.open, &self.metrics))).await;
        }
    }

    /// Gives a socket to the next shard that can take it. One that is stuck holds up none of the others.
    async fn deal(&self, mut accepted: Accepted) {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        for offset in 0..self.doors.len() {
            let door = &self.doors[first.wrapping_add(offset) % self.doors.len()];
            accepted = match door.try_send(accepted) {
                Ok(()) => return,
                Err(TrySendError::Full(accepted) | TrySendError::Closed(accepted)) => accepted,
            };
        }
        // All queues are full. An error means that the shard's thread has ended, and the client is turned away.
        let _ = self.doors[first % self.doors.len()].send(accepted).await;
    }
}

impl Entrance {
    /// A unix socket is written as `unix:path`, everything else is `host:port`.
    pub async fn bind(address: &str) -> io::Result<Self> {
        match unix::path_of(address) {
            Some(path) => UnixBound::bind(path).map(Self::Unix),
            None => bind(address).await.map(Self::Tcp),
        }
    }

    /// The next connection, of no runtime any more; none once the drain has begun.
    async fn next(&self, drain: &mut Watcher) -> Option<(io::Result<Socket>, Option<SocketAddr>)> {
        match self {
            Self::Tcp(bound) => {
                let (socket, peer) = bound.next(drain).await?;
                Some((socket.into_std().map(Socket::Tcp), Some(peer)))
            }
            Self::Unix(bound) => {
                let socket: UnixStream = next(drain, || bound.accept()).await?;
                Some((socket.into_std().map(Socket::Unix), None))
            }
        }
    }
}

impl Bound {
    /// For who accepts by other means.
    pub fn into_parts(self) -> (TcpListener, SocketAddr) {
        (self.listener, self.address)
    }

    /// The next connection; none once the drain has begun.
    async fn next(&self, drain: &mut Watcher) -> Option<(TcpStream, SocketAddr)> {
        next(drain, || self.listener.accept()).await
    }
}

async fn next<T, F: Future<Output = io::Result<T>>>(drain: &mut Watcher, accept: impl Fn() -> F) -> Option<T> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.signaled() => return None,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            // The client gave up before it was accepted, which says nothing about the next.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection; are there file descriptors left (ulimit -n)?");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Serves a listener on the thread that calls it, until the drain begins: for a metrics address, where there is little
/// to do and a busy shard should not be waited for.
pub async fn serve_here(config: Arc<Config>, metrics: Arc<Metrics>, bound: Bound, front: Front, mut drain: Watcher) {
    let limit = config.max_connections;
    let shard = Arc::new(Shard { config, metrics: metrics.clone() });
    let (front, count) = (Arc::new(front), Arc::default());
    while let Some((socket, peer)) = bound.next(&mut drain).await {
        let open = OpenConnection::new(&count, &metrics);
        if limit > 0 && count.load(Ordering::Relaxed) > limit {
            tracing::warn!(%peer, limit, "refused a connection to a metrics address, too many are open");
            continue;
        }
        shard.clone().take(socket, open, front.clone(), drain.clone());
    }
}
