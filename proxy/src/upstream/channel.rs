//! HTTP/2 connections to one endpoint: dialling, sharing, keepalive, and knowing when one is gone.
//!
//! Only this file knows that there is a socket. Each shard has its own channels, so that a connection is driven on
//! the thread that uses it.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use h2::client::{Connection, SendRequest};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use super::{
    endpoint::{Address, Endpoint, Security, State},
    examine::Secured,
    last_words::LastWords,
};
use crate::{
    dial, go,
    tls::{self, ClientTls, Peer},
};

/// How connections to etcd are made and kept.
#[derive(Clone)]
pub struct Config {
    pub tls: Option<ClientTls>,
    /// How often a silent connection is pinged; zero never.
    pub keepalive_time: Duration,
    /// How long the answer to a ping may take.
    pub keepalive_timeout: Duration,
    /// Whether a connection without calls is pinged too.
    pub keepalive_without_stream: bool,
    /// Whether a dial that fails says that the endpoint is at fault. With a certificate of one user among many, it may
    /// be that user's.
    pub is_judge: bool,
}

/// How long name resolution, TCP and TLS together may take; etcd's own proxy gives its client 5 s.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls that share one connection. A reader that stalls holds at most its own window, and the connection's window
/// is the sum of them, so that no reader can stall another; more calls than this open another connection.
const CALLS_PER_CONNECTION: usize = 256;
/// What may be under way to one reader that does not read.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * CALLS_PER_CONNECTION as u32;
/// h2 closes a connection on which too many small unread frames pile up; watch events are such frames.
const DATA_FRAME_BUDGET: usize = CONNECTION_WINDOW as usize;
/// The largest header block that an answer of etcd may have.
const MAX_HEADER_LIST: u32 = 1 << 20;
/// The longest that a TCP peer may stay silent before the kernel asks.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// The connections of one shard, by endpoint.
#[derive(Clone)]
pub struct Channels {
    config: Arc<Config>,
    by_endpoint: Arc<Mutex<HashMap<u64, PerEndpoint>>>,
}

#[derive(Default)]
struct PerEndpoint {
    open: Vec<Link>,
    dialing: Option<Dial>,
}

type Dial = Shared<BoxFuture<'static, Result<Link, Arc<DialError>>>>;

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("dial {address}: {}{}", if source.raw_os_error().is_some() { "connect: " } else { "" }, go::io_error(source))]
    Connect { address: Address, source: io::Error },
    #[error("dial {address}: no connection within {DIAL_TIMEOUT:?}")]
    Timeout { address: Address },
    #[error("dial {address}: authentication handshake failed: {}", tls::explain(Peer::Etcd, source))]
    Tls { address: Address, source: io::Error },
    #[error("dial {address}: {source}")]
    Http2 { address: Address, source: h2::Error },
    #[error("dial {address}: the connection was closed before HTTP/2 began")]
    Closed { address: Address },
    #[error("dial {address}: nothing answers there")]
    Lost { address: Address },
}

/// A connection that can take calls.
#[derive(Clone)]
pub struct Link {
    send: SendRequest<Bytes>,
    shared: Arc<LinkState>,
}

struct LinkState {
    endpoint: Arc<Endpoint>,
    calls: AtomicUsize,
    closed: AtomicBool,
    /// Whether any answer has come since this was last taken back.
    heard: AtomicBool,
}

impl LinkState {
    fn of(endpoint: Arc<Endpoint>) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            calls: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            heard: AtomicBool::new(false),
        })
    }
}

/// Holds a call's place on a connection until the call ends.
pub struct Place(Arc<LinkState>);

impl Place {
    /// Notes that something of an answer has come: whoever is slow to answer a ping or a health check is not gone.
    pub fn note_heard(&self) {
        // It is nearly always noted already, and a store would take the line from all other cores.
        if !self.0.heard.load(Ordering::Relaxed) {
            self.0.heard.store(true, Ordering::Relaxed);
        }
        self.0.endpoint.note_heard();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    /// Waits until the peer allows one more stream.
    pub async fn ready(self) -> Result<SendRequest<Bytes>, h2::Error> {
        let shared = self.shared.clone();
        self.send.ready().await.inspect_err(|_| shared.closed.store(true, Ordering::Relaxed))
    }
}

impl Channels {
    pub fn new(config: Arc<Config>) -> Self {
        Self { config, by_endpoint: Arc::default() }
    }

    /// Others like these, that show the certificate of one user.
    pub fn of_user(&self, tls: ClientTls) -> Self {
        Self::new(Arc::new(Config { tls: Some(tls), is_judge: false, ..(*self.config).clone() }))
    }

    /// A connection to the endpoint with room for one more call, dialled if there is none. Those who ask while a
    /// dial is under way share its outcome.
    pub async fn get(&self, endpoint: &Arc<Endpoint>) -> Result<(Link, Place), Arc<DialError>> {
        let dial = match self.open_or_dial(endpoint) {
            Ok(found) => return Ok(found),
            Err(dial) => dial,
        };
        let link = dial.await?;
        link.shared.calls.fetch_add(1, Ordering::Relaxed);
        let place = Place(link.shared.clone());
        Ok((link, place))
    }

    /// A connection of its own to the endpoint, on which no protocol is agreed yet: for HTTP/1.1.
    pub async fn socket(&self, endpoint: &Endpoint) -> Result<Box<dyn Io>, DialError> {
        within_dial_timeout(endpoint, socket(&self.config, endpoint, Protocol::Http1)).await
    }

    fn open_or_dial(&self, endpoint: &Arc<Endpoint>) -> Result<(Link, Place), Dial> {
        let mut by_endpoint = self.by_endpoint.lock().expect("nothing panics while it holds this map");
        let per_endpoint = by_endpoint.entry(endpoint.id).or_default();
        per_endpoint.open.retain(|link| !link.shared.closed.load(Ordering::Relaxed));
        for link in &per_endpoint.open {
            if link.shared.calls.load(Ordering::Relaxed) < CALLS_PER_CONNECTION {
                link.shared.calls.fetch_add(1, Ordering::Relaxed);
                return Ok((link.clone(), Place(link.shared.clone())));
            }
        }
        if let Some(dial) = &per_endpoint.dialing {
            return Err(dial.clone());
        }
        let dial = dial_and_keep(self.clone(), endpoint.clone()).boxed().shared();
        per_endpoint.dialing = Some(dial.clone());
        // The dial goes on when the call that began it is given up, for the others who wait.
        tokio::spawn(dial.clone());
        Err(dial)
    }
}

async fn dial_and_keep(channels: Channels, endpoint: Arc<Endpoint>) -> Result<Link, Arc<DialError>> {
    let dialled = tokio::select! {
        dialled = dial(&channels.config, &endpoint) => dialled,
        () = turned_unreachable(&endpoint) => Err(DialError::Lost { address: endpoint.address.clone() }),
    };
    let mut by_endpoint = channels.by_endpoint.lock().expect("nothing panics while it holds this map");
    let per_endpoint = by_endpoint.entry(endpoint.id).or_default();
    per_endpoint.dialing = None;
    match dialled {
        Ok((send, connection, ping_pong)) => {
            let link = Link { send, shared: LinkState::of(endpoint) };
            per_endpoint.open.push(link.clone());
            drop(by_endpoint);
            tokio::spawn(drive(connection, ping_pong, link.shared.clone(), channels));
            Ok(link)
        }
        Err(error) => {
            drop(by_endpoint);
            if channels.config.is_judge {
                endpoint.note(State::Unreachable);
            }
            Err(Arc::new(error))
        }
    }
}

/// Runs a connection until it ends, its peer stops answering pings, or its endpoint is found unreachable.
async fn drive(mut connection: BoxedConnection, ping_pong: h2::PingPong, state: Arc<LinkState>, channels: Channels) {
    let endpoint = &state.endpoint;
    let outcome = tokio::select! {
        ended = &mut connection => ended.map_err(|error| error.to_string()),
        () = keepalive(ping_pong, &channels.config, &state) => {
            // Whoever dials next would wait for the same silence.
            endpoint.note(State::Unreachable);
            Err("keepalive ping was not answered".to_owned())
        }
        () = turned_unreachable(endpoint) => Err("endpoint is unreachable".to_owned()),
    };
    state.closed.store(true, Ordering::Relaxed);
    if let Err(reason) = outcome {
        tracing::debug!(endpoint = %endpoint.name, reason, "connection to etcd ended");
    }
    let mut by_endpoint = channels.by_endpoint.lock().expect("nothing panics while it holds this map");
    if let Some(per_endpoint) = by_endpoint.get_mut(&endpoint.id) {
        per_endpoint.open.retain(|link| !Arc::ptr_eq(&link.shared, &state));
        if per_endpoint.open.is_empty() && per_endpoint.dialing.is_none() {
            by_endpoint.remove(&endpoint.id);
        }
    }
}

/// Returns when someone finds that nothing answers at the endpoint. Only the turn counts: a connection dialled since
/// then may be the first sign of its end. An endpoint that left the list keeps what is under way.
async fn turned_unreachable(endpoint: &Endpoint) {
    let mut state = endpoint.watch_state();
    while state.changed().await.is_ok() {
        if *state.borrow_and_update() == State::Unreachable {
            return;
        }
    }
    std::future::pending().await
}

/// Returns when the peer leaves a ping unanswered and says nothing else meanwhile.
async fn keepalive(mut ping_pong: h2::PingPong, config: &Config, state: &LinkState) {
    if config.keepalive_time.is_zero() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(config.keepalive_time).await;
        if state.calls.load(Ordering::Relaxed) == 0 && !config.keepalive_without_stream {
            continue;
        }
        state.heard.store(false, Ordering::Relaxed);
        let pong = ping_pong.ping(h2::Ping::opaque());
        tokio::pin!(pong);
        loop {
            match tokio::time::timeout(config.keepalive_timeout, &mut pong).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return,
                // A pong comes behind what was on its way before it, and that may be much.
                Err(_) if state.heard.swap(false, Ordering::Relaxed) => (),
                Err(_) => return,
            }
        }
    }
}

type BoxedConnection = Connection<Box<dyn Io>, Bytes>;

/// A byte stream, plain or under TLS.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Whether a connection to the endpoint can be made at all, certificates and all.
pub async fn check(config: &Config, endpoint: &Endpoint) -> Result<(), DialError> {
    dial(config, endpoint).await.map(drop)
}

/// A connection whose peer has answered, and the handle for its pings.
type Dialled = (SendRequest<Bytes>, BoxedConnection, h2::PingPong);

async fn dial(config: &Config, endpoint: &Endpoint) -> Result<Dialled, DialError> {
    within_dial_timeout(endpoint, greet(config, endpoint)).await
}

pub(super) async fn within_dial_timeout<T>(
    endpoint: &Endpoint,
    work: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    tokio::time::timeout(DIAL_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(DialError::Timeout { address: endpoint.address.clone() }))
}

/// The kernel accepts connections for a process that hangs. Only an answer proves that there is someone, and until then
/// nothing has been sent that could not be sent elsewhere.
async fn greet(config: &Config, endpoint: &Endpoint) -> Result<Dialled, DialError> {
    let (send, mut connection) = connect(config, endpoint).await?;
    let mut ping_pong = connection.ping_pong().expect("the ping handle is taken once, here");
    let answered = tokio::select! {
        ended = &mut connection => Err(ended.err()),
        pong = ping_pong.ping(h2::Ping::opaque()) => pong.map(drop).map_err(Some),
    };
    match answered {
        Ok(()) => Ok((send, connection, ping_pong)),
        Err(Some(source)) => Err(DialError::Http2 { address: endpoint.address.clone(), source }),
        Err(None) => Err(DialError::Closed { address: endpoint.address.clone() }),
    }
}

async fn connect(config: &Config, endpoint: &Endpoint) -> Result<(SendRequest<Bytes>, BoxedConnection), DialError> {
    h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_header_list_size(MAX_HEADER_LIST)
        .enable_push(false)
        .handshake(socket(config, endpoint, Protocol::Http2).await?)
        .await
        .map_err(|source| DialError::Http2 { address: endpoint.address.clone(), source })
}

/// What will be spoken. Under TLS, HTTP/2 is agreed upon; whoever agrees upon nothing gets HTTP/1.1 from etcd.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

async fn socket(config: &Config, endpoint: &Endpoint, protocol: Protocol) -> Result<Box<dyn Io>, DialError> {
    let socket = plain(endpoint).await?;
    Ok(match handshake(config, endpoint, protocol)? {
        None => socket,
        Some(handshake) => Box::new(LastWords::new(handshake.make(socket).await?)),
    })
}

/// Whether and how the endpoint is spoken to over TLS, and what etcd showed.
pub(super) async fn secured(config: &Config, endpoint: &Endpoint) -> Result<Option<Secured>, DialError> {
    let socket = plain(endpoint).await?;
    let Some(handshake) = handshake(config, endpoint, Protocol::Http2)? else { return Ok(None) };
    let stream = handshake.make(socket).await?;
    let (_, session) = stream.get_ref();
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS1.2",
        _ => "TLS1.3",
    };
    let leaf = session.peer_certificates().and_then(|chain| Some(chain.first()?.clone().into_owned()));
    Ok(Some(Secured { version, leaf }))
}

async fn plain(endpoint: &Endpoint) -> Result<Box<dyn Io>, DialError> {
    let address = || endpoint.address.clone();
    let socket: Box<dyn Io> = match &endpoint.address {
        Address::Tcp(host_port) => {
            let socket = dial::connect(host_port).await;
            let socket = socket.map_err(|source| DialError::Connect { address: address(), source })?;
            set_tcp_options(&socket).map_err(|source| DialError::Connect { address: address(), source })?;
            Box::new(socket)
        }
        Address::Unix(path) => {
            let socket = UnixStream::connect(path).await;
            Box::new(socket.map_err(|source| DialError::Connect { address: address(), source })?)
        }
    };
    Ok(socket)
}

/// A TLS handshake that is still to be made.
struct Handshake {
    address: Address,
    tls: Arc<rustls::ClientConfig>,
    server_name: ServerName<'static>,
}

impl Handshake {
    async fn make(self, socket: Box<dyn Io>) -> Result<TlsStream<Box<dyn Io>>, DialError> {
        let Self { address, tls, server_name } = self;
        let made = tokio_rustls::TlsConnector::from(tls).connect(server_name, socket).await;
        made.map_err(|source| DialError::Tls { address, source })
    }
}

/// None where the endpoint is spoken to in plaintext.
fn handshake(config: &Config, endpoint: &Endpoint, protocol: Protocol) -> Result<Option<Handshake>, DialError> {
    let address = || endpoint.address.clone();
    let tls = match endpoint.security {
        Security::Never => None,
        Security::IfConfigured => config.tls.as_ref().map(ClientTls::config),
        Security::Always => Some(match &config.tls {
            Some(tls) => tls.config(),
            None => system_tls()
                .map_err(|error| DialError::Tls { address: address(), source: io::Error::other(error) })?
                .config(),
        }),
    };
    let Some(mut tls) = tls else { return Ok(None) };
    if protocol == Protocol::Http1 {
        Arc::make_mut(&mut tls).alpn_protocols.clear();
    }
    let name = config.tls.as_ref().map_or_else(
        || ServerName::try_from(endpoint.server_name.clone()).map_err(io::Error::other),
        |tls| tls.server_name(&endpoint.server_name).map_err(io::Error::other),
    );
    let server_name = name.map_err(|source| DialError::Tls { address: address(), source })?;
    Ok(Some(Handshake { address: address(), tls, server_name }))
}

/// For `https://` endpoints when nothing was said about TLS: the system's authorities, read once.
fn system_tls() -> Result<&'static ClientTls, tls::Error> {
    static SYSTEM: OnceLock<ClientTls> = OnceLock::new();
    if let Some(tls) = SYSTEM.get() {
        return Ok(tls);
    }
    let tls = ClientTls::load(&tls::client::Config::default())?;
    Ok(SYSTEM.get_or_init(|| tls))
}

fn set_tcp_options(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}
