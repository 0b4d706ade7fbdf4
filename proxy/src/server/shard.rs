//! One thread's connections: from the socket over TLS to the protocol that the client speaks.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::{mpsc, watch},
};

use super::{
    Accepted, Config, Front, Socket,
    http::Http,
    http2,
    prefaced::{Io, Prefaced, Protocol},
};
use crate::{
    admission::TURNED_AWAY_AFTER,
    drain::{self, Observer, Watcher},
    metrics::{Metrics, Reason, UNKNOWN},
    rules::{
        caller::Connection,
        tenant::{Tenant, identity::Tenants},
    },
    tls::{
        explain::{Peer, explain},
        identity::{PeerIdentity, peer_identity},
    },
};

/// How long a client's machine may be silent before the kernel asks whether it is there, and how often it asks. With
/// the kernel's own two hours a thousand clients that lost their power would stay for as long.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How long an HTTP/1.1 connection may be silent between two requests. etcd closes none, and a POST that meets one being
/// closed is lost, since clients do not send it again: so this is longer than any client keeps a connection that it does
/// not use (Go 90 seconds, browsers five minutes). Envoy waits as long.
const HTTP1_IDLE: Duration = Duration::from_secs(3600);
/// How long the calls of a client may take to end whose rule has changed. It has lost its right to them.
const CUT_OFF_AFTER: Duration = Duration::from_secs(1);
/// What one HTTP/1.1 connection may have buffered, its request's head among it.
const HTTP1_BUFFER: usize = 64 << 10;

pub struct Shard {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
}

/// Counts a connection for as long as it is open.
pub struct OpenConnection(Arc<AtomicUsize>, Arc<Metrics>);

impl OpenConnection {
    pub fn new(open: &Arc<AtomicUsize>, metrics: &Arc<Metrics>) -> Self {
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

/// How a connection ended before its client had said which protocol it speaks.
enum OpeningError {
    Tls(io::Error),
    Io(io::Error),
}

/// A connection that speaks, and who its client is as its certificate says.
type Opened = (Protocol, Prefaced<Box<dyn Io>>, Option<PeerIdentity>);

/// To whom a connection belongs. One that is nobody's is heard, so that its client is told why it is not served.
fn tenant_of(front: &Front, peer: Option<SocketAddr>, identity: Option<&PeerIdentity>) -> Arc<Tenant> {
    let Some(router) = &front.router else { return Tenant::whole() };
    router.tenants.borrow().of(identity).unwrap_or_else(|| {
        tracing::warn!(?peer, ?identity, "a client's certificate names nobody whom this proxy serves");
        Tenant::nobody()
    })
}

/// Returns when rules have changed so that a client is not who it was before.
async fn changed(
    tenants: &mut watch::Receiver<Tenants>,
    identity: Option<&PeerIdentity>,
    before: Option<&Arc<Tenant>>,
) {
    // It fails when the proxy ends, which others tell.
    if tenants.wait_for(|tenants| tenants.of(identity).as_ref() != before).await.is_err() {
        std::future::pending().await
    }
}

fn connection(
    front: &Front,
    peer: Option<SocketAddr>,
    number: u64,
    identity: Option<&PeerIdentity>,
) -> Arc<Connection> {
    let name = identity.and_then(PeerIdentity::name).map(Box::from);
    Connection::identified(peer, number, tenant_of(front, peer, identity), name)
}

fn set_options(socket: &TcpStream) -> io::Result<()> {
    // Without it answers wait for the client's delayed acknowledgements.
    socket.set_nodelay(true)?;
    let socket = socket2::SockRef::from(socket);
    let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    // WARNING: no TCP_USER_TIMEOUT, although grpc-go sets one. By it the kernel cuts off also a client that lives and
    // acknowledges but has not read for that time. etcd never does, since what wraps its sockets hides them from grpc-go.
    // A peer that is gone is found by these probes, and if it owes an acknowledgement by the kernel's retries, which end
    // after a quarter of an hour.
    Ok(())
}

impl Shard {
    /// Serves sockets until there are no more to come and nobody waits for those that are open.
    pub async fn run(self, mut sockets: mpsc::Receiver<Accepted>, front: Arc<Front>, drain: Watcher) {
        let shard = Arc::new(self);
        while let Some((socket, open)) = sockets.recv().await {
            let (shard, front, drain) = (shard.clone(), front.clone(), drain.clone());
            let taken = match socket {
                Socket::Tcp(socket) => TcpStream::from_std(socket).map(|socket| shard.take(socket, open, front, drain)),
                Socket::Unix(socket) => {
                    UnixStream::from_std(socket).map(|socket| shard.spawn(socket, None, open, front, drain))
                }
            };
            if let Err(error) = taken {
                tracing::warn!(%error, "failed to take over a connection");
            }
        }
        // The acceptors are gone. Each connection holds a watcher of its own; this one must not be waited for.
        let mut observer = drain.observer();
        drop((front, drain));
        observer.over().await;
    }

    pub fn take(self: Arc<Self>, socket: TcpStream, open: OpenConnection, front: Arc<Front>, drain: Watcher) {
        let peer = socket.peer_addr().ok();
        // It fails only for a socket whose client is gone.
        if set_options(&socket).is_ok() {
            self.spawn(socket, peer, open, front, drain);
        }
    }

    fn spawn(
        self: Arc<Self>,
        socket: impl Io + 'static,
        peer: Option<SocketAddr>,
        open: OpenConnection,
        front: Arc<Front>,
        drain: Watcher,
    ) {
        tokio::spawn(async move {
            let _open = open;
            self.serve(socket, peer, front, drain).await;
        });
    }

    async fn serve(&self, socket: impl Io + 'static, peer: Option<SocketAddr>, front: Arc<Front>, drain: Watcher) {
        let mut end = drain.observer();
        let opening = tokio::select! {
            opening = tokio::time::timeout(self.config.handshake_timeout, self.open(socket)) => opening,
            // A client that has asked for nothing loses nothing.
            () = end.signaled() => return,
        };
        match opening {
            Ok(Ok(opened)) if front.is_by_identity() => self.speak_while_known(opened, peer, front, end).await,
            Ok(Ok(opened)) => self.speak(opened, peer, front, end).await,
            Ok(Err(OpeningError::Tls(error))) => {
                self.metrics.handshake_failed();
                let reason = explain(Peer::Client, &error);
                self.metrics.refusals.note(UNKNOWN, Reason::Handshake, &reason);
                tracing::warn!(?peer, error = reason, "rejected connection on client endpoint");
            }
            Ok(Err(OpeningError::Io(error))) => {
                self.metrics.handshake_failed();
                tracing::debug!(?peer, %error, "connection ended before its first request");
            }
            Err(_) => {
                self.metrics.handshake_failed();
                tracing::debug!(?peer, "connection took too long over its handshake");
            }
        }
    }

    /// Serves a connection until it ends, or its client is somebody else by rules that have changed, or nobody.
    async fn speak_while_known(&self, opened: Opened, peer: Option<SocketAddr>, front: Arc<Front>, mut end: Observer) {
        let Some(router) = &front.router else { return };
        let (identity, mut tenants) = (opened.2.clone(), router.tenants.clone());
        let before = tenants.borrow_and_update().of(identity.as_ref());
        let (farewell, watcher) = drain::channel();
        let mut speaking = Box::pin(self.speak(opened, peer, front.clone(), watcher.observer()));
        tokio::select! {
            () = &mut speaking => return,
            () = end.signaled() => {
                farewell.begin();
                return speaking.await;
            }
            () = changed(&mut tenants, identity.as_ref(), before.as_ref()) => farewell.begin(),
        }
        let tenant = before.map_or_else(|| UNKNOWN.to_owned(), |tenant| tenant.name.clone());
        tracing::info!(?peer, tenant, "a client is somebody else by the new rules, its connection is closed");
        // Whoever has not ended by then is cut off.
        let _ = tokio::time::timeout(CUT_OFF_AFTER, speaking).await;
    }

    /// Serves a connection in the protocol that its client speaks.
    async fn speak(&self, opened: Opened, peer: Option<SocketAddr>, front: Arc<Front>, end: Observer) {
        let (protocol, socket, identity) = opened;
        match protocol {
            Protocol::Http2 => {
                let number = CONNECTION_NUMBER.fetch_add(1, Ordering::Relaxed);
                let connection = connection(&front, peer, number, identity.as_ref());
                let serving = http2::serve(&self.config, &self.metrics, socket, connection.clone(), front, end);
                let mut serving = Box::pin(serving);
                if !connection.has_place() {
                    tracing::warn!(?peer, tenant = connection.tenant.name, "a tenant has too many connections");
                    tokio::select! {
                        () = &mut serving => return,
                        () = tokio::time::sleep(TURNED_AWAY_AFTER) => (),
                    }
                }
                if connection.has_place() {
                    serving.await;
                }
            }
            Protocol::Http1 => {
                let is_secure = self.config.tls.is_some();
                let sees_everybody = match &front.router {
                    Some(router) => {
                        let tenant = router.tenants.borrow().of(identity.as_ref());
                        front.shows_everybody(&tenant.unwrap_or_else(Tenant::nobody))
                    }
                    None => true,
                };
                let http = Http::new(front.clone(), is_secure, sees_everybody, move || {
                    let number = CONNECTION_NUMBER.fetch_add(1, Ordering::Relaxed);
                    connection(&front, peer, number, identity.as_ref())
                });
                self.serve_http1(socket, http, end).await;
            }
        }
    }

    /// TLS where it is configured, and then what protocol the client speaks.
    async fn open(&self, socket: impl Io + 'static) -> Result<Opened, OpeningError> {
        let (socket, identity): (Box<dyn Io>, _) = match &self.config.tls {
            None => (Box::new(socket), None),
            Some(tls) => {
                let accepted = tokio_rustls::TlsAcceptor::from(tls.config()).accept(socket).await;
                let socket = accepted.map_err(|error| match error.kind() {
                    // Port scans and health checks of load balancers connect and leave.
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => OpeningError::Io(error),
                    _ => OpeningError::Tls(error),
                })?;
                let identity = socket.get_ref().1.peer_certificates().and_then(peer_identity);
                (Box::new(socket), identity)
            }
        };
        // A client without ALPN is heard out, as etcd does with its connection multiplexer.
        let (protocol, socket) = Prefaced::sniff(socket).await.map_err(OpeningError::Io)?;
        Ok((protocol, socket, identity))
    }

    async fn serve_http1(&self, socket: Prefaced<Box<dyn Io>>, http: Arc<Http>, mut drain: Observer) {
        let has_asked = AtomicBool::new(false);
        let service = hyper::service::service_fn(|request| {
            has_asked.store(true, Ordering::Relaxed);
            let http = http.clone();
            async move { Ok::<_, Infallible>(http.answer(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HTTP1_IDLE)
            .max_buf_size(HTTP1_BUFFER)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades();
        tokio::pin!(connection);
        // Who never asks for anything has no claim to stay as long as one who has.
        let silence = async {
            tokio::time::sleep(self.config.handshake_timeout).await;
            if has_asked.load(Ordering::Relaxed) {
                std::future::pending().await
            }
        };
        let ended = tokio::select! {
            biased;
            () = drain.signaled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            ended = &mut connection => ended,
            () = silence => return tracing::debug!("HTTP/1.1 connection took too long over its first request"),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "HTTP/1.1 connection broke");
        }
        if let Some(session) = http.take_handover() {
            session.run().await;
        }
    }
}
