//! The way to one endpoint, step by step, for who wants to know at which step it ends. What serves calls goes it in one.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use rustls_pki_types::CertificateDer;

use super::{
    channel::{self, Config, DialError},
    endpoint::{Address, Endpoint, Security},
};

/// What TLS came to.
#[derive(Clone, Debug)]
pub struct Secured {
    /// Such as `TLS1.3`.
    pub version: &'static str,
    /// The certificate that etcd showed.
    pub leaf: Option<CertificateDer<'static>>,
}

/// The addresses of the endpoint's name; none for a unix socket.
pub async fn resolve(endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    match &endpoint.address {
        Address::Tcp(host_port) => {
            let looked_up = tokio::net::lookup_host(host_port.as_str());
            let found = tokio::time::timeout(channel::DIAL_TIMEOUT, looked_up).await;
            Ok(found
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer from the name servers"))??
                .collect())
        }
        Address::Unix(_) => Ok(Vec::new()),
    }
}

/// Whether calls to the endpoint go over TLS.
pub fn is_secured(config: &Config, endpoint: &Endpoint) -> bool {
    match endpoint.security {
        Security::Always => true,
        Security::Never => false,
        Security::IfConfigured => config.tls.is_some(),
    }
}

/// Connects and, where it is to be, makes the TLS handshake. That etcd takes our own certificate shows only in
/// [`greet`]: in TLS 1.3 it has its say after the handshake.
pub async fn secure(config: &Config, endpoint: &Endpoint) -> Result<Option<Secured>, DialError> {
    channel::within_dial_timeout(endpoint, channel::secured(config, endpoint)).await
}

/// Connects until etcd has answered in HTTP/2, and how many seconds that took.
pub async fn greet(config: &Config, endpoint: &Arc<Endpoint>) -> Result<f64, DialError> {
    let started = Instant::now();
    channel::check(config, endpoint).await?;
    Ok(started.elapsed().as_secs_f64())
}
