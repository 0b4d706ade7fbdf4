//! Whether the values of flags fit together: etcd's `checkArgs` with its texts, and what etcd finds out only later.

use std::path::PathBuf;
use std::time::Duration;

use super::Flags;
use super::refusal::Refusal;
use crate::go;

/// etcd refuses leases that live longer (`lease.MaxLeaseTTL`), so a registration would never succeed.
const MAX_LEASE_TTL: i64 = 9_000_000_000;
/// More threads than any machine has cores; a larger number is a mistake that would exhaust memory.
pub(super) const MAX_THREADS: u32 = 1_024;
/// Less could not hold one event of the largest size that etcd accepts by default (1.5 MiB) with its previous value.
const MIN_WATCH_LOG_BYTES: u32 = 64 * 1_024;
/// With a shorter one a single renewal that is lost would end the session; beyond a day, writers would wait for ever for
/// a proxy that crashed.
const MIN_LEASING_TTL: u32 = 2;
const MAX_LEASING_TTL: u32 = 24 * 60 * 60;
/// Less could not hold a hundred keys.
const MIN_LEASING_BYTES: u32 = 64 * 1_024;
/// The least that holds the headers of a gRPC call with a token.
const MIN_HEADER_LIST_BYTES: u32 = 4 * 1_024;
/// What grpc-go accepts by default; beyond it the limit protects nothing.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1_024 * 1_024;

/// A listener for metrics, read from `--metrics-addr`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsUrl {
    /// Whether the scheme is https.
    pub tls: bool,
    /// host:port, as `--listen-addr` is written.
    pub address: String,
}

/// The listeners that these values of `--metrics-addr` ask for.
pub fn metrics_urls(urls: &[String]) -> Result<Vec<MetricsUrl>, Refusal> {
    urls.iter().map(|url| metrics_url(url)).collect::<Result<_, _>>().map_err(Refusal::new)
}

impl Flags {
    /// Refuses what cannot work, in etcd's words where etcd refuses it too; answers with warnings about what has no effect.
    pub fn check(&self) -> Result<Vec<String>, Refusal> {
        self.check_as_etcd().and_then(|()| self.check_further()).map_err(Refusal::new)?;
        Ok(self.without_effect())
    }

    /// The listeners that `--metrics-addr` asks for.
    pub fn metrics_urls(&self) -> Result<Vec<MetricsUrl>, Refusal> {
        metrics_urls(&self.metrics_addr)
    }

    /// Whether clients are served over TLS.
    pub fn serves_tls(&self) -> bool {
        self.auto_tls || self.cert_file.is_some() || self.key_file.is_some() || self.trusted_ca_file.is_some()
    }

    /// `checkArgs` of etcd's grpc_proxy.go, line by line.
    fn check_as_etcd(&self) -> Result<(), String> {
        if !self.resolver_prefix.is_empty() && self.resolver_ttl < 1 {
            return Err(format!("invalid resolver-ttl {}", self.resolver_ttl));
        }
        if self.resolver_prefix.is_empty() && self.resolver_ttl > 0 {
            return Err("invalid resolver-prefix \"\"".to_owned());
        }
        if !self.resolver_prefix.is_empty() && self.resolver_ttl > 0 && self.advertise_client_url.is_empty() {
            return Err("invalid advertise-client-url \"\"".to_owned());
        }
        if self.auto_tls && self.self_signed_cert_validity == 0 {
            return Err("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
        }
        let min = tls_version(&self.tls_min_version).map_err(|error| format!("tls-min-version is invalid: {error}"))?;
        let max = tls_version(&self.tls_max_version).map_err(|error| format!("tls-max-version is invalid: {error}"))?;
        if max.is_some() && min > max {
            let (min, max) = (&self.tls_min_version, &self.tls_max_version);
            return Err(format!("min version ({min}) is greater than max version ({max})"));
        }
        if min == Some(TLS13) && !self.listen_cipher_suites.is_empty() {
            return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
        }
        Ok(())
    }

    /// What etcd refuses after it has begun to start, or what could never work here.
    fn check_further(&self) -> Result<(), String> {
        match self.listen_addr.strip_prefix("unix:").map(|path| path.trim_start_matches('/')) {
            Some("") => {
                return Err(format!(
                    "invalid listen-addr {}: want a path, such as unix:///run/etcd-proxy.sock",
                    go::quote(&self.listen_addr)
                ));
            }
            Some(_) => (),
            None => check_listen_address("listen-addr", &self.listen_addr)?,
        }
        if self.endpoints.is_empty() && self.discovery_srv.is_empty() {
            return Err("etcdclient: no available endpoints: give --endpoints or --discovery-srv".to_owned());
        }
        self.check_advertised()?;
        self.json.check()?;
        self.login.check()?;
        check_pair("key", &self.key, "cert", &self.cert)?;
        if self.serves_tls() && !self.generates_certificate() {
            check_pair("key-file", &self.key_file, "cert-file", &self.cert_file)?;
            if self.cert_file.is_none() {
                return Err("trusted-ca-file is given, but clients can only be verified over TLS: \
                            give --cert-file and --key-file as well"
                    .to_owned());
            }
        }
        for url in &self.metrics_addr {
            if metrics_url(url)?.tls && !self.serves_tls() {
                return Err(format!(
                    "invalid metrics-addr {}: https wants a certificate: \
                     give --cert-file and --key-file, or --auto-tls, or write http",
                    go::quote(url)
                ));
            }
        }
        if self.resolver_ttl > MAX_LEASE_TTL {
            return Err(format!(
                "invalid resolver-ttl {}: etcd's leases last at most {MAX_LEASE_TTL} seconds",
                self.resolver_ttl
            ));
        }
        for (flag, value) in [
            ("health-interval", self.health_interval),
            ("health-timeout", self.health_timeout),
            ("connection-timeout", self.connection_timeout),
        ] {
            if value == Duration::ZERO {
                return Err(format!("invalid {flag} 0s: it should be greater than 0"));
            }
        }
        check_range("threads", self.threads, 0, MAX_THREADS)?;
        check_range("watch-log-max-bytes", self.watch_log_max_bytes, MIN_WATCH_LOG_BYTES, u32::MAX)?;
        check_range("leasing-ttl", self.leasing_ttl, MIN_LEASING_TTL, MAX_LEASING_TTL)?;
        check_range("leasing-max-bytes", self.leasing_max_bytes, MIN_LEASING_BYTES, u32::MAX)?;
        check_range("max-header-list-bytes", self.max_header_list_bytes, MIN_HEADER_LIST_BYTES, MAX_HEADER_LIST_BYTES)
    }

    /// What etcd takes without a word and then ignores. It must not stop a start, but the operator should know.
    fn without_effect(&self) -> Vec<String> {
        let tls_from_files = self.serves_tls() && !self.generates_certificate();
        let cases = [
            (self.auto_tls && tls_from_files, "auto-tls has no effect, since cert-file is given"),
            (
                self.client_crl_file.is_some() && !tls_from_files,
                "client-crl-file has no effect without cert-file, key-file and trusted-ca-file",
            ),
            (
                self.client_crl_file.is_some() && tls_from_files && self.trusted_ca_file.is_none(),
                "client-crl-file has no effect without trusted-ca-file: clients show no certificate",
            ),
            (
                !self.listen_cipher_suites.is_empty() && !self.serves_tls(),
                "listen-cipher-suites has no effect, since clients are served without TLS",
            ),
            (
                !self.discovery_srv_name.is_empty() && self.discovery_srv.is_empty(),
                "discovery-srv-name has no effect without discovery-srv",
            ),
            (
                self.insecure_discovery && self.discovery_srv.is_empty(),
                "insecure-discovery has no effect without discovery-srv",
            ),
            (
                self.cache_bytes == 0 && !self.cache_staleness.is_zero(),
                "cache-staleness has no effect, since cache-bytes is 0",
            ),
        ];
        cases.into_iter().filter(|(applies, _)| *applies).map(|(_, warning)| warning.to_owned()).collect()
    }

    /// etcd generates a certificate only if no file of the server's TLS is named.
    fn generates_certificate(&self) -> bool {
        self.auto_tls && self.cert_file.is_none() && self.key_file.is_none() && self.trusted_ca_file.is_none()
    }
}

const TLS12: u16 = 0x0303;
const TLS13: u16 = 0x0304;

pub(super) fn tls_version(text: &str) -> Result<Option<u16>, String> {
    match text {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(TLS12)),
        "TLS1.3" => Ok(Some(TLS13)),
        _ => Err(format!("unexpected TLS version {} (must be one of: TLS1.2, TLS1.3)", go::quote(text))),
    }
}

pub(super) fn check_pair(
    key_flag: &str,
    key: &Option<PathBuf>,
    cert_flag: &str,
    cert: &Option<PathBuf>,
) -> Result<(), String> {
    if key.is_some() == cert.is_some() {
        return Ok(());
    }
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let missing = if key.is_some() { cert_flag } else { key_flag };
    Err(format!(
        "KeyFile and CertFile must both be present[key: {}, cert: {}]: give --{missing} as well",
        shown(key),
        shown(cert)
    ))
}

pub(super) fn check_range(flag: &str, value: u32, least: u32, most: u32) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("invalid {flag} {value}: it should be {least} to {most}"))
}

/// As `net.SplitHostPort` does, with its words; a port is a number here, and may be left out after the colon for any.
pub(super) fn check_listen_address(flag: &str, address: &str) -> Result<(), String> {
    let refuse = |cause: &str| {
        Err(format!(
            "invalid {flag} {}: address {address}: {cause}; want host:port, such as 127.0.0.1:23790",
            go::quote(address)
        ))
    };
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let Some((host, after)) = rest.split_once(']') else {
            return refuse("missing ']' in address");
        };
        match after.strip_prefix(':') {
            Some(port) => (host, port),
            None => return refuse("missing port in address"),
        }
    } else {
        match address.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => return refuse("too many colons in address"),
            Some(parts) => parts,
            None => return refuse("missing port in address"),
        }
    };
    if host.contains(['[', ']']) {
        return refuse("unexpected bracket in address");
    }
    if host.contains(char::is_whitespace) || host.contains('/') {
        return refuse("invalid host");
    }
    if !port.is_empty() && (port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return refuse("invalid port");
    }
    Ok(())
}

pub(super) fn metrics_url(url: &str) -> Result<MetricsUrl, String> {
    let refuse = |cause: &str| {
        Err(format!("invalid metrics-addr {}: {cause}; want a URL, such as http://127.0.0.1:2381", go::quote(url)))
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        return refuse("the scheme is missing");
    };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return refuse("the scheme is neither http nor https"),
    };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let address = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    check_listen_address("metrics-addr", address)?;
    Ok(MetricsUrl { tls, address: address.to_owned() })
}
