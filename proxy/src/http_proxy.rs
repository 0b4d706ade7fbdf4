//! The HTTP front door: what `etcd --proxy on` and `--proxy readonly` were until etcd 3.5, a reverse proxy before the
//! members' client URLs that learns these from the members themselves.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Request, StatusCode, header::CONTENT_TYPE};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    doors::{self, Address, Bound, Itself, Serve, Socket},
    drain::{self, Observer, Trigger},
    go, logging,
    metrics::http_proxy::Metrics,
    pages,
    tls::{self, Peer, ServerTls, explain},
    upstream::discovery::dns,
};

mod cluster;
mod director;
mod discovery;
#[cfg(test)]
mod foreign;
mod forward;
mod origin;
pub mod pool;
pub mod through;

use cluster::State;
use director::{Director, Refresher};
use forward::Forward;
use pool::Pool;
use through::Through;

/// Everything that the proxy needs to know, checked.
#[derive(Clone)]
pub struct Config {
    pub listen: Vec<Listen>,
    pub server_tls: Option<ServerTls>,
    /// Whether whatever is no GET is refused.
    pub is_readonly: bool,
    /// Origins that browsers may ask from, or `*`.
    pub cors: Vec<String>,
    pub peers: Peers,
    pub data_dir: PathBuf,
    /// How members are reached for clients, and how they are asked who they are.
    pub to_clients_urls: pool::Config,
    pub to_peer_urls: pool::Config,
    /// How long an endpoint that failed is held back.
    pub failure_wait: Duration,
    pub refresh_interval: Duration,
    pub threads: usize,
    /// Connections that may be open; zero is without a limit.
    pub max_connections: usize,
    /// Where metrics, health and readiness are served besides, each `host:port`.
    pub metrics_addresses: Vec<String>,
    /// How long requests under way may go on after SIGTERM.
    pub drain_timeout: Duration,
}

/// A listener, as the user wrote its URL.
#[derive(Clone, Debug)]
pub struct Listen {
    pub url: String,
    pub is_secure: bool,
}

/// How the first peer URLs are found, unless the data directory has them.
#[derive(Clone, Debug)]
pub enum Peers {
    /// `name=url,name=url`.
    Named(String),
    Srv(dns::Config),
    /// A URL of the v2 discovery protocol, and the HTTP proxy on the way to it.
    Discovery(String, Option<Through>),
}

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    State(String),
    #[error("error setting up initial cluster: {0}")]
    Peers(String),
    #[error(transparent)]
    Listen(#[from] doors::ListenError),
    #[error("listen tcp {address}: {}{}", if source.raw_os_error().is_some() { "bind: " } else { "" }, go::io_error(source))]
    Metrics { address: String, source: io::Error },
    #[error("failed to start a thread: {0}")]
    Thread(io::Error),
}

/// A client's connection, and one to a member for it.
const DESCRIPTORS_EACH: usize = 2;
/// How long a client may take over the head of a request, and how long it may be silent between two. etcd closes no
/// connection for that; this is longer than any client keeps one that it does not use, so that no request meets one that
/// is being closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// What one connection may have buffered, a request's head among it.
const CONNECTION_BUFFER: usize = 64 << 10;
/// When the last request has ended, an answer about health or metrics still gets this long.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A proxy that serves.
pub struct Running {
    /// Where clients are served, with the ports that the system chose if it was asked to.
    pub addresses: Vec<Address>,
    pub metrics_addresses: Vec<SocketAddr>,
    listeners: Vec<Bound>,
    drain_timeout: Duration,
    trigger: Trigger,
    metrics_trigger: Trigger,
    tasks: Vec<JoinHandle<()>>,
}

/// Finds the cluster, binds, and serves. A discovery URL is waited for until all members have registered.
pub async fn start(config: Config) -> Result<Running, StartError> {
    tracing::info!("v2 API proxy starting");
    let state = State::open(&config.data_dir).map_err(StartError::State)?;
    let pool = Pool::new(config.to_peer_urls.clone());
    let peer_urls = peer_urls(&state, &config.peers, &pool).await?;

    let mut listeners = Vec::new();
    for listen in &config.listen {
        listeners.push(Bound::bind(&Address::parse(&listen.url.replacen("unixs:", "unix:", 1))).await?);
    }
    let mut pages = Vec::new();
    for address in &config.metrics_addresses {
        let bound = pages::bind(address).await;
        pages.push(bound.map_err(|source| StartError::Metrics { address: address.clone(), source })?);
    }
    let listening = listeners.iter().filter_map(|bound| match &bound.address {
        Address::Tcp(address) => Some((address.parse().ok()?, bound.address.clone())),
        Address::Unix(_) => None,
    });
    let director = Arc::new(Director::new(config.failure_wait, Itself::new(listening.collect())));
    let interval = config.refresh_interval;
    let mut refresher = Refresher { director: director.clone(), pool, state, peer_urls, interval };
    refresher.refresh().await;

    let metrics = Arc::<Metrics>::default();
    let (trigger, watcher) = drain::channel();
    let (metrics_trigger, metrics_watcher) = drain::channel();
    let watched = Arc::new(Watched { director: director.clone(), metrics: metrics.clone(), drain: watcher.observer() });
    let metrics_addresses = pages.iter().map(|listener| listener.address).collect();
    let serving = pages.into_iter().map(|listener| {
        let drain = metrics_watcher.clone();
        tokio::spawn(pages::serve(listener, watched.clone(), watcher.observer(), drain))
    });
    let mut tasks: Vec<JoinHandle<()>> = serving.collect();
    tasks.push(tokio::spawn(refresher.run()));

    let secure: Arc<[Option<ServerTls>]> =
        config.listen.iter().map(|listen| config.server_tls.clone().filter(|_| listen.is_secure)).collect();
    let (to_members, cors) = (config.to_clients_urls.clone(), Arc::new(config.cors.clone()));
    let is_readonly = config.is_readonly;
    let make = move || {
        let pool = Pool::new(to_members.clone());
        let (director, metrics, cors) = (director.clone(), metrics.clone(), cors.clone());
        Thread {
            forward: Forward { director, pool, metrics, is_readonly, cors },
            secure: secure.clone(),
            watched: watched.clone(),
        }
    };
    let doors = doors::Config {
        threads: config.threads,
        max_connections: config.max_connections,
        descriptors_each: DESCRIPTORS_EACH,
    };
    doors::open(doors, &listeners, &watcher, make).map_err(StartError::Thread)?;
    for listen in &config.listen {
        tracing::info!(host = listen.url, "v2 proxy started listening on client requests");
    }
    let addresses = listeners.iter().map(|bound| bound.address.clone()).collect();
    let drain_timeout = config.drain_timeout;
    Ok(Running { addresses, metrics_addresses, listeners, drain_timeout, trigger, metrics_trigger, tasks })
}

impl Running {
    /// Stops accepting, lets requests end, and says whether all did in time.
    pub async fn drain(self) -> bool {
        drop(self.listeners);
        let finished = self.trigger.drain(self.drain_timeout).await;
        self.metrics_trigger.drain(LAST_ANSWERS).await;
        for task in &self.tasks {
            task.abort();
        }
        finished
    }
}

/// The file's, else what the flags say.
async fn peer_urls(state: &State, peers: &Peers, pool: &Pool) -> Result<Vec<String>, StartError> {
    let file = state.path().display().to_string();
    if let Some(urls) = state.read().map_err(StartError::State)? {
        match peers {
            Peers::Discovery(..) => tracing::warn!(
                "cluster-file" = file,
                "discovery token ignored since the proxy has already been initialized; valid cluster file found"
            ),
            Peers::Srv(_) => tracing::warn!(
                "cluster-file" = file,
                "DNS SRV discovery ignored since the proxy has already been initialized; valid cluster file found"
            ),
            Peers::Named(_) => (),
        }
        tracing::info!("peer-urls" = ?urls, "cluster-file" = file, "proxy using peer URLS from cluster file");
        return Ok(urls);
    }
    let urls = match peers {
        Peers::Named(cluster) => origin::of_cluster(cluster),
        Peers::Srv(dns) => dns::look_up_peers(dns).await.map(|found| found.endpoints()),
        Peers::Discovery(url, None) => discovery::look_up(pool, url).await,
        Peers::Discovery(url, Some(through)) => {
            tracing::info!("proxy-url" = through.origin.url, "running proxy with discovery");
            discovery::look_up(&pool.through(through.clone()), url).await
        }
    };
    let urls = urls.map_err(StartError::Peers)?;
    tracing::info!("peer-urls" = ?urls, "proxy using peer URLS");
    Ok(urls)
}

/// The proxy as one thread has it.
#[derive(Clone)]
struct Thread {
    forward: Forward,
    /// For each listener, how it speaks TLS if it does.
    secure: Arc<[Option<ServerTls>]>,
    watched: Arc<Watched>,
}

impl Serve for Thread {
    fn serve(&self, listener: usize, socket: Socket, drain: Observer) -> impl Future<Output = ()> + Send + 'static {
        let this = self.clone();
        async move {
            let peer = match &socket {
                Socket::Tcp(socket) => socket.peer_addr().ok().map(|address| address.ip()),
                Socket::Unix(_) => None,
            };
            let Some(tls) = this.secure.get(listener).cloned().flatten() else {
                return this.speak(socket, peer, drain).await;
            };
            let mut config = (*tls.config()).clone();
            // What is answered here is HTTP/1.1, and a client that could speak HTTP/2 must know.
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            let accepting = TlsAcceptor::from(Arc::new(config)).accept(socket);
            match tokio::time::timeout(tls::server::HANDSHAKE_TIMEOUT, accepting).await {
                Ok(Ok(socket)) => this.speak(socket, peer, drain).await,
                Ok(Err(error)) => {
                    let error = explain(Peer::Client, &error);
                    tracing::warn!(?peer, error, "rejected connection on client endpoint");
                }
                Err(_) => tracing::debug!(?peer, "connection took too long over its handshake"),
            }
        }
    }
}

impl Thread {
    async fn speak(
        &self,
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Option<IpAddr>,
        mut drain: Observer,
    ) {
        let service = service_fn(|request: Request<Incoming>| async move {
            // As in etcd, the proxy's own metrics stand before everything else.
            if request.uri().path() == "/metrics" {
                let text = pages::Watched::metrics(self.watched.as_ref());
                let mut page = forward::plain(StatusCode::OK, text);
                page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
                return Ok::<_, Infallible>(page);
            }
            Ok(self.forward.answer(request, peer).await)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(CONNECTION_BUFFER)
            .serve_connection(TokioIo::new(socket), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = drain.signaled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(?peer, %error, "a client's connection ended");
        }
    }
}

/// What the pages tell of.
struct Watched {
    director: Arc<Director>,
    metrics: Arc<Metrics>,
    drain: Observer,
}

impl pages::Watched for Watched {
    fn metrics(&self) -> String {
        self.metrics.text(self.drain.is_signaled(), logging::dropped(), logging::sampled())
    }

    fn failure(&self) -> Option<String> {
        self.director.available().is_empty().then(|| "zero endpoints currently available".to_owned())
    }
}
