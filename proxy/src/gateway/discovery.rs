//! The gateway's endpoints by SRV records, and whether those who answer there are whom the CA vouches for.

use std::{sync::Arc, time::Instant};

use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::backends::Backend;
use crate::{
    dial,
    doors::Address,
    tls::{ClientTls, Peer, explain},
    upstream::discovery::dns::{self, Target},
};

/// Where the records are, and what is asked of those that they name.
#[derive(Clone)]
pub struct Config {
    pub dns: dns::Config,
    /// Trusts `--trusted-ca-file`, or the CAs of the system.
    pub tls: ClientTls,
    /// How long an endpoint may take to show its certificate.
    pub timeout: std::time::Duration,
}

/// Far more members than a cluster can have. It keeps a wrong record from making hundreds of connections.
const MAX_ENDPOINTS: usize = 100;

impl Config {
    /// Looks the records up, and leaves out who cannot be trusted. `known` are the endpoints so far.
    pub async fn look_up(&self, known: &[Arc<Backend>]) -> Result<(Vec<Arc<Backend>>, Instant), String> {
        let mut found = dns::look_up(&self.dns, &[]).await?;
        found.targets.truncate(MAX_ENDPOINTS);
        let mut good = Vec::new();
        let mut bad = Vec::new();
        for target in &found.targets {
            // One that was good stays so: whether it serves right now shows when it is dialled.
            let is_good = self.dns.insecure || known.iter().any(|known| is_same(known, target));
            match if is_good { Ok(()) } else { self.validate(target).await } {
                Ok(()) => good.push(target),
                Err(reason) => bad.push(format!("{:?} {reason}", target.url)),
            }
        }
        let is_news =
            good.len() != known.len() || good.iter().zip(known).any(|(target, known)| !is_same(known, target));
        if is_news || known.is_empty() {
            let urls: Vec<&str> = good.iter().map(|target| target.url.as_str()).collect();
            self.tell(&found.endpoints(), &urls, &bad);
        }
        Ok((good.into_iter().map(|target| backend(target, known)).collect(), found.valid_until))
    }

    /// In the lines of etcd's gateway.
    fn tell(&self, found: &[String], good: &[&str], bad: &[String]) {
        let server = &self.dns.domain;
        tracing::info!("srv-server" = server, endpoints = ?found, "discovered cluster from SRV");
        if self.dns.insecure {
            return;
        }
        tracing::info!("srv-server" = server, endpoints = ?found, "validating discovered SRV endpoints");
        if !bad.is_empty() {
            let error = bad.join(",");
            tracing::warn!("srv-server" = server, endpoints = ?good, error, "failed to validate discovered endpoints");
        }
        if !good.is_empty() {
            tracing::info!("srv-server" = server, endpoints = ?good, "using validated discovered SRV endpoints");
        }
    }

    async fn validate(&self, target: &Target) -> Result<(), String> {
        let Some(authority) = target.url.strip_prefix("https://") else { return Err("is insecure".to_owned()) };
        let shown = tokio::time::timeout(self.timeout, self.handshake(authority)).await;
        shown.unwrap_or_else(|_| Err(format!("failed to dial (no handshake within {:?})", self.timeout)))
    }

    /// A member that wants to see a certificate of ours has shown its own before; the gateway has none.
    async fn handshake(&self, authority: &str) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("failed to dial ({error})");
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
        let socket = dial::connect(authority).await.map_err(|error| failed(&error))?;
        match TlsConnector::from(self.tls.config()).connect(name, socket).await {
            Ok(_) => Ok(()),
            Err(error) => match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::AlertReceived(_)) => Ok(()),
                _ => Err(failed(&explain(Peer::Etcd, &error))),
            },
        }
    }
}

/// The endpoint of a record: the same one as before if the record is the same, so that what is known of it stays.
fn backend(target: &Target, known: &[Arc<Backend>]) -> Arc<Backend> {
    match known.iter().find(|known| is_same(known, target)) {
        Some(known) => known.clone(),
        None => Arc::new(Backend::new(Address::parse(&target.url), target.priority, target.weight)),
    }
}

fn is_same(known: &Backend, target: &Target) -> bool {
    (&known.address, known.priority, known.weight) == (&Address::parse(&target.url), target.priority, target.weight)
}
