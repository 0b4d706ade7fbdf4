//! The listener's TLS: what `--cert-file`, `--key-file`, `--trusted-ca-file`, `--client-crl-file` and their kin say.
//!
//! With a trusted CA every client must show a certificate of it; without one none is asked for. etcd offers only `h2`
//! in ALPN, which sends a client that speaks both into gRPC; we offer `http/1.1` besides, as it is served as well.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;

use super::reload::{self, Material, ReloadOutcome, Reloading, Sources};
use super::verify::ClientVerifier;
use super::{Error, FileStatus, Version, ciphers, self_signed, versions};

/// How long a client may take for its handshake. It is etcd's number; who takes longer is gone, or holds sockets open.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The flags of the listener. An empty path means that the flag was not given.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub trusted_ca_file: Option<PathBuf>,
    pub client_crl_file: Option<PathBuf>,
    /// Go's names; empty for all that there are.
    pub cipher_suites: Vec<String>,
    pub min_version: Option<Version>,
    pub max_version: Option<Version>,
    /// Used when neither certificate nor key nor CA is given, as in etcd.
    pub auto_tls: Option<self_signed::Config>,
}

/// The newest good settings of the listener; a clone is another handle on the same.
#[derive(Clone)]
pub struct ServerTls {
    reloading: Arc<Reloading<ServerConfig>>,
}

impl ServerTls {
    /// Reads all files. With `auto_tls` this makes a certificate first, if there is none yet.
    pub fn load(config: &Config) -> Result<ServerTls, Error> {
        versions::check_order(config.min_version, config.max_version)?;
        let versions = versions::supported(config.min_version, config.max_version);
        let cipher_suites = ciphers::select(&config.cipher_suites, config.min_version, config.max_version)?;
        let sources = sources(config)?;
        let provider = Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::aws_lc_rs::default_provider() });
        let assemble = move |material: &Material| assemble(material, &provider, &versions);
        Ok(ServerTls { reloading: Arc::new(Reloading::load("listener", sources, assemble)?) })
    }

    /// The settings for the next handshake. Looks at the files' time stamps, at most ten times a second, so that a
    /// replaced certificate is in use at once.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.reloading.config()
    }

    /// Looks at the files now; what has changed, if anything. It reads from disk.
    pub fn reload(&self) -> Option<ReloadOutcome> {
        self.reloading.check()
    }

    pub fn status(&self) -> Vec<FileStatus> {
        self.reloading.status()
    }

    /// Looks at the files each second until it is dropped, and tells of every change. To be run once.
    pub async fn run_reload(self, on_change: impl Fn(ReloadOutcome)) {
        reload::run(self.reloading, on_change).await
    }
}

fn sources(config: &Config) -> Result<Sources, Error> {
    let has_cert = !config.cert_file.as_os_str().is_empty();
    let has_key = !config.key_file.as_os_str().is_empty();
    let authorities = config.trusted_ca_file.clone().filter(|path| !path.as_os_str().is_empty());
    let revoked = config.client_crl_file.clone().filter(|path| !path.as_os_str().is_empty());
    let pair = match (has_cert, has_key, &config.auto_tls) {
        (true, true, _) => (config.cert_file.clone(), config.key_file.clone()),
        (false, false, Some(auto_tls)) if authorities.is_none() => self_signed::make(auto_tls)?,
        (false, false, _) => return Err(Error::NoPair),
        _ => {
            let (cert, key) = (config.cert_file.display().to_string(), config.key_file.display().to_string());
            return Err(Error::HalfPair { cert, key });
        }
    };
    // Without a CA no client is asked for a certificate, so that there is nothing to look up; etcd never reads it then.
    let is_unused = authorities.is_none() && revoked.is_some();
    if is_unused {
        tracing::warn!(
            "--client-crl-file has no effect without --trusted-ca-file, since no client is asked for a certificate"
        );
    }
    Ok(Sources {
        pair: Some(pair),
        authorities,
        revoked: revoked.filter(|_| !is_unused),
        require_empty_common_name: false,
    })
}

fn assemble(
    material: &Material,
    provider: &Arc<CryptoProvider>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<ServerConfig, Error> {
    let pair = material.pair.clone().ok_or(Error::NoPair)?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = match &material.authorities {
        Some(authorities) => {
            let verifier = ClientVerifier::new(authorities.clone(), material.revoked.clone())?;
            builder.with_client_cert_verifier(Arc::new(verifier))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would skip the check of the client's certificate, so that a revoked one could come back on its
    // ticket. Nothing is lost: etcd's clients keep no sessions, Go has no cache for them unless one is given.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
