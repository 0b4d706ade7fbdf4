//! TLS towards etcd: what `--cert`, `--key`, `--cacert` and `--insecure-skip-tls-verify` say.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::ServerName;

use super::authorities::Authorities;
use super::reload::{self, Material, ReloadOutcome, Reloading, Sources};
use super::verify::ServerVerifier;
use super::{Error, FileStatus, ciphers, files};

/// The flags of the connections to etcd. An empty path means that the flag was not given.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Without it the CAs of the system are trusted.
    pub cacert: Option<PathBuf>,
    pub insecure_skip_verify: bool,
    /// The name to expect in etcd's certificate, instead of the endpoint's host.
    pub server_name: Option<String>,
    /// etcd's grpc-proxy refuses a client certificate with a Common Name, because etcd would take all of the proxy's
    /// clients for that user. Who wants just that says so here.
    pub allow_non_empty_cn: bool,
    /// By Go's names; all safe ones if there are none.
    pub cipher_suites: Vec<String>,
}

/// The newest good settings of the connections to etcd; a clone is another handle on the same.
#[derive(Clone)]
pub struct ClientTls {
    reloading: Arc<Reloading<ClientConfig>>,
    server_name: Option<Arc<str>>,
}

impl ClientTls {
    pub fn load(config: &Config) -> Result<ClientTls, Error> {
        let given = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        let pair = match (given(&config.cert), given(&config.key)) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (cert, key) => {
                let text = |path: Option<PathBuf>| path.unwrap_or_default().display().to_string();
                return Err(Error::HalfPair { cert: text(cert), key: text(key) });
            }
        };
        let server_name = config.server_name.clone().filter(|name| !name.is_empty());
        if let Some(name) = &server_name {
            parse_server_name(name)?;
        }
        let sources = Sources {
            pair,
            authorities: given(&config.cacert),
            revoked: None,
            require_empty_common_name: !config.allow_non_empty_cn,
        };
        let needs_system = sources.authorities.is_none() && !config.insecure_skip_verify;
        let system = Arc::new(if needs_system { files::system_authorities() } else { Authorities::new(Vec::new()) });
        let skip_verify = config.insecure_skip_verify;
        let cipher_suites = ciphers::select(&config.cipher_suites, None, None)?;
        let provider = Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::aws_lc_rs::default_provider() });
        let reloading =
            Reloading::load("etcd", sources, move |material| assemble(material, &provider, &system, skip_verify))?;
        Ok(ClientTls { reloading: Arc::new(reloading), server_name: server_name.map(Arc::from) })
    }

    /// The settings for the next handshake. Looks at the files' time stamps, at most ten times a second.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.reloading.config()
    }

    /// The name to expect at an endpoint, given its host or `host:port`: the configured one, or the host itself. For
    /// an IP address the certificate must name that address, and no name is sent to the server.
    pub fn server_name(&self, host: &str) -> Result<ServerName<'static>, Error> {
        parse_server_name(self.server_name.as_deref().unwrap_or(host))
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

fn assemble(
    material: &Material,
    provider: &Arc<CryptoProvider>,
    system: &Arc<Authorities>,
    skip_verify: bool,
) -> Result<ClientConfig, Error> {
    let verifier = if skip_verify {
        ServerVerifier::accepting_anyone()
    } else {
        ServerVerifier::trusting(material.authorities.clone().unwrap_or_else(|| system.clone()))
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &material.pair {
        Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair.clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the check of etcd's certificate against a CA file that has changed since.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A host as endpoints write it: with a port or without, IPv6 in brackets or bare, with the dot of a full name.
fn parse_server_name(host: &str) -> Result<ServerName<'static>, Error> {
    let refuse = || Error::ServerName { name: host.to_string() };
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(refuse)?.0,
        None if host.parse::<IpAddr>().is_ok() => host,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    // Neither the zone of an address nor the last dot of a full name stands in certificates.
    let bare = bare.split('%').next().unwrap_or(bare).trim_end_matches('.');
    ServerName::try_from(bare.to_string()).map_err(|_| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, expected: Option<&str>) {
        let found = parse_server_name(host).ok().map(|name| name.to_str().into_owned());
        assert_eq!(found.as_deref(), expected, "{host:?}");
    }

    #[test]
    fn the_name_to_expect_is_the_host_of_the_endpoint() {
        check("etcd-0.etcd.default.svc:2379", Some("etcd-0.etcd.default.svc"));
        check("localhost", Some("localhost"));
        check("localhost.:2379", Some("localhost"));
        check("127.0.0.1:2379", Some("127.0.0.1"));
        check("[::1]:2379", Some("::1"));
        check("[::1]", Some("::1"));
        check("::1", Some("::1"));
        check("[fe80::1%eth0]:2379", Some("fe80::1"));
        check("", None);
        check("[::1", None);
        check("a b:1", None);
    }

    #[test]
    fn a_certificate_without_its_key_is_refused_in_the_words_of_etcd() {
        let config = Config { cert: Some("c.pem".into()), ..Config::default() };
        let refusal = ClientTls::load(&config).map(|_| ()).expect_err("half a pair");
        assert_eq!(refusal.to_string(), "KeyFile and CertFile must both be present[key: , cert: c.pem]");
    }
}
