//! One listener: a TCP address or a unix socket, bound and not yet served.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::{TcpStream, UnixStream};

use super::Socket;
use crate::{go, server::unix};

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: i32 = 4096;
/// How long a peer's machine may be silent before the kernel asks whether it is there, and how often it asks. With the
/// kernel's own two hours a thousand clients that lost their power would stay for as long.
pub(super) const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
pub(super) const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Where to listen, or whom to dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`, the host a name, an IP address, or nothing for all addresses of the machine.
    Tcp(String),
    Unix(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Unix,
}

/// A listener that accepts into the kernel's queue already. Dropping it takes the file of a unix socket away.
#[derive(Debug)]
pub struct Bound {
    pub(super) kind: Kind,
    descriptor: OwnedFd,
    /// Where it listens, with the port that the system chose if it was asked to.
    pub address: Address,
}

/// In Go's words, which scripts look for.
#[derive(Debug, thiserror::Error)]
#[error("listen {} {address}: {}{}", address.network(), if source.raw_os_error().is_some() { "bind: " } else { "" }, go::io_error(source))]
pub struct ListenError {
    address: Address,
    source: io::Error,
}

impl Address {
    /// `unix://path`, `unix:path`, or `host:port` with or without a scheme.
    pub fn parse(text: &str) -> Address {
        if let Some(path) = unix::path_of(text) {
            return Address::Unix(path.to_owned());
        }
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        Address::Tcp(authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned())
    }

    fn network(&self) -> &'static str {
        match self {
            Address::Tcp(_) => "tcp",
            Address::Unix(_) => "unix",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Kind {
    /// An accepted connection, in the runtime that this is called in.
    pub(super) fn socket(self, descriptor: OwnedFd) -> io::Result<Socket> {
        Ok(match self {
            Kind::Tcp => Socket::Tcp(TcpStream::from_std(descriptor.into())?),
            Kind::Unix => Socket::Unix(UnixStream::from_std(descriptor.into())?),
        })
    }
}

impl Bound {
    /// Binds before anything else starts, so that a bad address is a start-up error.
    pub async fn bind(address: &Address) -> Result<Bound, ListenError> {
        let bound = match address {
            Address::Tcp(host_port) => listen_tcp(host_port).await,
            Address::Unix(path) => listen_unix(path),
        };
        bound.map_err(|source| ListenError { address: address.clone(), source })
    }

    /// Another handle on the same listener.
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // One that is gone already is as it should be.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn listen_tcp(host_port: &str) -> io::Result<Bound> {
    // Go listens on all addresses when the host is empty.
    let any = host_port.strip_prefix(':').map(|port| format!("[::]:{}", if port.is_empty() { "0" } else { port }));
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
    for candidate in tokio::net::lookup_host(any.as_deref().unwrap_or(host_port)).await? {
        match listen_tcp_at(candidate) {
            Ok(listener) => {
                let address =
                    listener.local_addr()?.as_socket().map_or_else(|| host_port.to_owned(), |a| a.to_string());
                return Ok(Bound { kind: Kind::Tcp, descriptor: listener.into(), address: Address::Tcp(address) });
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listen_tcp_at(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // Linux hands these down to the connections that are accepted, which saves as many calls for each of them.
    set_options(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// What every TCP connection has: no wait for more to send, and a question now and then to a peer that is silent.
pub fn set_options<'a>(socket: impl Into<socket2::SockRef<'a>>) -> io::Result<()> {
    let socket = socket.into();
    socket.set_tcp_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)
}

fn listen_unix(path: &Path) -> io::Result<Bound> {
    let listener = unix::listen(path)?;
    Ok(Bound { kind: Kind::Unix, descriptor: listener.into(), address: Address::Unix(path.to_owned()) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net;

    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_a_scheme() {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        for (text, expected) in [
            ("127.0.0.1:1", tcp("127.0.0.1:1")),
            ("http://a:1", tcp("a:1")),
            ("https://user:word@a:1/path", tcp("a:1")),
            (":1", tcp(":1")),
            ("[::1]:2", tcp("[::1]:2")),
            ("unix:///run/a.sock", Address::Unix("/run/a.sock".into())),
            ("unix:a.sock", Address::Unix("a.sock".into())),
        ] {
            assert_eq!(Address::parse(text), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_file_that_nobody_listens_on_is_replaced_and_any_other_file_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.sock");
        let address = Address::Unix(path.clone());
        drop(net::UnixListener::bind(&path).expect("a fresh path"));
        assert!(path.exists(), "the standard library leaves the file behind");
        let bound = Bound::bind(&address).await.expect("nobody listens");
        let second = Bound::bind(&address).await.expect_err("somebody listens");
        assert_eq!(second.to_string(), format!("listen unix {}: bind: address already in use", path.display()));
        drop(bound);
        assert!(!path.exists(), "it is taken away");
        std::fs::write(&path, "precious").expect("the folder can be written to");
        Bound::bind(&address).await.expect_err("it is no socket");
        assert!(path.exists());
    }
}
