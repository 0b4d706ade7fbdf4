//! TLS below the webhook's HTTP: handshakes run beside each other, so that one that hangs holds nobody up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// API servers keep their connections, so there are few; more at a time are not from them.
const MAX_HANDSHAKES: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The wait after an error such as too many open files, which a loop at full speed would not better.
const AGAIN: Duration = Duration::from_millis(200);

/// The newest settings with a certificate; none until there is one.
pub type Newest = watch::Receiver<Option<Arc<ServerConfig>>>;

pub struct Listener {
    socket: TcpListener,
    newest: Newest,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl Listener {
    pub fn new(socket: TcpListener, newest: Newest) -> Listener {
        Listener { socket, newest, handshakes: JoinSet::new() }
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next() => {
                    // One that panicked or failed is the client's loss.
                    if let Ok(Some(connection)) = done {
                        return connection;
                    }
                }
                accepted = self.socket.accept(), if self.handshakes.len() < MAX_HANDSHAKES => match accepted {
                    Ok((stream, address)) => {
                        let settings = self.newest.borrow().clone();
                        self.handshakes.spawn(shake_hands(stream, address, settings));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the webhook cannot accept a connection");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.socket.local_addr()
    }
}

async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    settings: Option<Arc<ServerConfig>>,
) -> Option<(TlsStream<TcpStream>, SocketAddr)> {
    let made = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(settings?).accept(stream)).await;
    match made {
        Ok(Ok(stream)) => Some((stream, address)),
        Ok(Err(error)) => {
            tracing::debug!(%error, %address, "a TLS handshake with the webhook failed");
            None
        }
        Err(_) => None,
    }
}
