//! From checked flags to one configuration per room. It stands above the rooms; none of them sees another's.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    admission::gate,
    app, audit,
    flags::{self, Flags, MetricsUrl, Refusal},
    gateway,
    http_proxy::{self, through::Through},
    resolver::{self, Proxy},
    server::{self, access::Access},
    services::{cache, leasing, ordering::Ordering, watch::hub},
    tls::{self, ClientTls, ServerTls, self_signed, versions},
    upstream::{
        Limits, channel,
        discovery::{self, dns},
        endpoint::{BadEndpoint, Endpoint},
        health,
    },
};

mod identities;
mod rulebook;
mod tenants;
mod users;

/// Why flags that fit together still do not make a configuration: a file or an address is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Endpoint(#[from] BadEndpoint),
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Says itself which flag or key is meant.
    #[error("{0}")]
    Tenants(String),
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error(transparent)]
    TlsVersion(#[from] versions::VersionError),
}

/// What etcd lets a gRPC message have beyond the request that it holds, in bytes. `--max-send-bytes` speaks of
/// requests, as etcd's `--max-request-bytes` does, so that with the same number in both it is etcd that refuses.
const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

/// Reads the files that the flags name.
pub fn configure(flags: &Flags) -> Result<app::Config, ConfigError> {
    let advertised = advertised(flags);
    let tenants::Configured { tenants, users, reread } = tenants::tenants(flags)?;
    let endpoints: Vec<Arc<Endpoint>> =
        configured_endpoints(flags).iter().map(|text| Endpoint::parse(text)).collect::<Result<_, _>>()?;
    Ok(app::Config {
        machine: host_name().unwrap_or_default(),
        listen_address: flags.listen_addr.clone(),
        server: server::Config {
            tls: server_tls(flags)?,
            shards: shards(flags.threads),
            max_concurrent_streams: flags.max_concurrent_streams,
            max_header_list: flags.max_header_list_bytes,
            max_connections: flags.max_connections as usize,
            handshake_timeout: flags.connection_timeout,
            keepalive_interval: flags.grpc_keepalive_interval,
            keepalive_timeout: flags.grpc_keepalive_timeout,
            keepalive_min_time: flags.grpc_keepalive_min_time,
        },
        serves_json: flags.json.enable_grpc_gateway,
        access: Access { origins: flags.json.cors.clone(), hosts: flags.json.host_whitelist.clone() },
        metrics_addresses: metrics_addresses(flags)?,
        profiles: flags.enable_pprof,
        logs_calls: flags.experimental_enable_grpc_logging,
        endpoints,
        discovery: discovery(flags),
        channel: channel::Config {
            tls: client_tls(flags)?,
            keepalive_time: flags.dial_keepalive_time,
            keepalive_timeout: flags.dial_keepalive_timeout,
            keepalive_without_stream: flags.permit_without_stream,
            is_judge: true,
        },
        limits: Limits {
            max_request: bounded(flags.max_send_bytes).saturating_add(GRPC_OVERHEAD_BYTES),
            max_answer: bounded(flags.max_recv_bytes),
        },
        health: health::Config { interval: flags.health_interval, timeout: flags.health_timeout },
        tenants,
        reread,
        users,
        audit: flags.audit.audit_log.clone().map(|path| audit::Config { path, sample: flags.audit.audit_sample }),
        gate: gate::Config {
            most: usize::try_from(flags.tenant_limits.max_upstream_requests).unwrap_or(usize::MAX),
            max_slowdown: flags.tenant_limits.max_upstream_slowdown,
        },
        max_answer_memory: usize::try_from(flags.tenant_limits.max_answer_memory).unwrap_or(usize::MAX),
        cache: cache::Config {
            max_bytes: usize::try_from(flags.cache_bytes).unwrap_or(usize::MAX),
            staleness: flags.cache_staleness,
            has_certificate: flags.cert.is_some(),
        },
        ordering: Ordering { is_strict: flags.experimental_serializable_ordering },
        watch: hub::Config {
            max_log_bytes: flags.watch_log_max_bytes as usize,
            coalesce_threshold: flags.watch_coalesce_threshold as usize,
            rights_interval: flags.watch_rights_interval,
            has_certificate: flags.cert.is_some(),
        },
        leasing: leasing(flags),
        registration: advertised.clone().and_then(|this| registration(flags, this)),
        advertised,
        drain_timeout: flags.drain_timeout,
    })
}

/// The endpoints that were named. With `--discovery-srv` the default of `--endpoints` is none of them: while DNS does not
/// answer, calls for the cluster must not go to whatever etcd this machine may run.
fn configured_endpoints(flags: &Flags) -> &[String] {
    let discovers = !flags.discovery_srv.is_empty();
    if discovers && flags.endpoints == Flags::default().endpoints { &[] } else { &flags.endpoints }
}

fn discovery(flags: &Flags) -> discovery::Config {
    let srv = (!flags.discovery_srv.is_empty()).then(|| dns::Config {
        domain: flags.discovery_srv.clone(),
        service_name: flags.discovery_srv_name.clone(),
        insecure: flags.insecure_discovery,
        name_server: None,
    });
    discovery::Config { srv, sync_interval: flags.endpoints_auto_sync_interval }
}

/// How this proxy is shown in member lists, if it is.
fn advertised(flags: &Flags) -> Option<Proxy> {
    let address = flags.advertised();
    (!address.is_empty()).then(|| Proxy { name: host_name().unwrap_or_else(|| address.clone()), address })
}

/// The name by which Linux knows this machine; in a container, the Pod's.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim_end().to_owned()).filter(|name| !name.is_empty())
}

fn registration(flags: &Flags, this: Proxy) -> Option<resolver::Config> {
    let prefix = flags.resolver_prefix.clone();
    (!prefix.is_empty()).then_some(resolver::Config { prefix, ttl_seconds: flags.resolver_ttl, this })
}

fn leasing(flags: &Flags) -> Option<leasing::Config> {
    let prefix = flags.experimental_leasing_prefix.clone();
    (!prefix.is_empty()).then_some(leasing::Config {
        prefix,
        ttl_seconds: i64::from(flags.leasing_ttl),
        max_bytes: flags.leasing_max_bytes as usize,
    })
}

fn metrics_addresses(flags: &Flags) -> Result<Vec<app::MetricsAddress>, ConfigError> {
    let urls = flags.metrics_urls()?.into_iter();
    Ok(urls.map(|MetricsUrl { tls, address }| app::MetricsAddress { address, tls }).collect())
}

/// gRPC's own length field ends at 4 GiB.
fn bounded(bytes: u64) -> usize {
    usize::try_from(bytes.min(u64::from(u32::MAX))).unwrap_or(usize::MAX)
}

fn shards(threads: u32) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads as usize,
    }
}

/// TLS towards clients, if any of its flags is given.
pub fn server_tls(flags: &Flags) -> Result<Option<ServerTls>, ConfigError> {
    if !flags.serves_tls() {
        return Ok(None);
    }
    let versions = versions::parse_range(&flags.tls_min_version, &flags.tls_max_version)?;
    // Who comes over a socket file calls the server localhost, if anything.
    let is_file = server::unix::path_of(&flags.listen_addr).is_some();
    let hosts = vec![if is_file { "localhost".to_owned() } else { flags.listen_addr.clone() }];
    let config = tls::server::Config {
        cert_file: flags.cert_file.clone().unwrap_or_default(),
        key_file: flags.key_file.clone().unwrap_or_default(),
        trusted_ca_file: flags.trusted_ca_file.clone(),
        client_crl_file: flags.client_crl_file.clone(),
        cipher_suites: flags.listen_cipher_suites.clone(),
        min_version: versions.min,
        max_version: versions.max,
        auto_tls: flags.auto_tls.then(|| self_signed::Config {
            dir: auto_tls_folder(&flags.data_dir),
            validity_years: u32::try_from(flags.self_signed_cert_validity).unwrap_or(u32::MAX),
            hosts,
        }),
    };
    let tls = ServerTls::load(&config)?;
    let crl = &flags.client_crl_file;
    let verifies = flags.trusted_ca_file.is_some();
    let info = tls_info(&flags.cert_file, &flags.key_file, &flags.trusted_ca_file, crl, verifies);
    tracing::info!("tls-info" = info, "gRPC proxy server TLS");
    Ok(Some(tls))
}

/// The files of one side, as Go prints a `TLSInfo`.
fn tls_info(
    cert: &Option<PathBuf>,
    key: &Option<PathBuf>,
    trusted_ca: &Option<PathBuf>,
    crl: &Option<PathBuf>,
    verifies: bool,
) -> String {
    let name = |file: &Option<PathBuf>| file.as_deref().map_or_else(String::new, |path| path.display().to_string());
    format!(
        "cert = {}, key = {}, client-cert=, client-key=, trusted-ca = {}, client-cert-auth = {verifies}, crl-file = {}",
        name(cert),
        name(key),
        name(trusted_ca),
        name(crl),
    )
}

/// The gateway's configuration.
pub fn configure_gateway(flags: &flags::gateway::Flags) -> Result<gateway::Config, ConfigError> {
    let discovers = !flags.discovery_srv.is_empty();
    let defaults = flags::gateway::Flags::default();
    let srv = match discovers {
        true => Some(gateway::discovery::Config {
            dns: dns::Config {
                domain: flags.discovery_srv.clone(),
                service_name: flags.discovery_srv_name.clone(),
                insecure: flags.insecure_discovery,
                name_server: None,
            },
            tls: ClientTls::load(&tls::client::Config { cacert: flags.trusted_ca_file.clone(), ..Default::default() })?,
            timeout: flags.dial_timeout,
        }),
        false => None,
    };
    let is_default = discovers && flags.endpoints == defaults.endpoints;
    Ok(gateway::Config {
        listen: flags.listen_addr.clone(),
        endpoints: if is_default { Vec::new() } else { flags.endpoints.clone() },
        srv,
        retry_delay: flags.retry_delay,
        dial_timeout: flags.dial_timeout,
        threads: shards(flags.process.threads),
        max_connections: flags.process.max_connections as usize,
        metrics_addresses: flags.process.metrics_urls()?.into_iter().map(|url| url.address).collect(),
        drain_timeout: flags.process.drain_timeout,
    })
}

/// The HTTP proxy's configuration.
pub fn configure_http_proxy(flags: &flags::http_proxy::Flags) -> Result<http_proxy::Config, ConfigError> {
    use flags::http_proxy::milliseconds;
    let pool = |tls| http_proxy::pool::Config {
        tls,
        dial_timeout: milliseconds(flags.proxy_dial_timeout),
        read_timeout: milliseconds(flags.proxy_read_timeout),
        write_timeout: milliseconds(flags.proxy_write_timeout),
        through: None,
    };
    let server_name =
        (!flags.discovery_srv.is_empty() && flags.peer_trusted_ca_file.is_none()).then(|| flags.discovery_srv.clone());
    let peer = tls::client::Config {
        cert: flags.peer_cert_file.clone(),
        key: flags.peer_key_file.clone(),
        cacert: flags.peer_trusted_ca_file.clone(),
        server_name,
        insecure_skip_verify: flags.peer_auto_tls,
        allow_non_empty_cn: true,
        cipher_suites: flags.cipher_suites.clone(),
    };
    let own = tls::client::Config {
        cert: flags.cert_file.clone(),
        key: flags.key_file.clone(),
        cacert: flags.trusted_ca_file.clone(),
        insecure_skip_verify: flags.auto_tls,
        allow_non_empty_cn: true,
        cipher_suites: flags.cipher_suites.clone(),
        server_name: None,
    };
    // As in etcd: who has one pair of files gives it to the peers' flags only.
    let has_own = flags.cert_file.is_some() || flags.trusted_ca_file.is_some() || flags.auto_tls;
    let client = if has_own {
        own
    } else {
        tls::client::Config { server_name: None, insecure_skip_verify: flags.auto_tls, ..peer.clone() }
    };
    let dns = || dns::Config {
        domain: flags.discovery_srv.clone(),
        service_name: flags.discovery_srv_name.clone(),
        insecure: true,
        name_server: None,
    };
    let through = (!flags.discovery_proxy.is_empty()).then(|| Through::parse(&flags.discovery_proxy));
    let through = through.transpose().map_err(|reason| ConfigError::Refused(Refusal::new(reason)))?;
    let versions = versions::parse_range(&flags.tls_min_version, &flags.tls_max_version)?;
    let peers = match (flags.discovery.as_str(), flags.discovery_srv.as_str()) {
        ("", "") => http_proxy::Peers::Named(flags.initial_cluster.clone()),
        ("", _) => http_proxy::Peers::Srv(dns()),
        (url, _) => http_proxy::Peers::Discovery(url.to_owned(), through),
    };
    let is_secure = |url: &String| flags::http_proxy::is_secure(url);
    let server_tls = match flags.listen_client_urls.iter().any(is_secure) {
        true => Some(ServerTls::load(&tls::server::Config {
            cert_file: flags.cert_file.clone().unwrap_or_default(),
            key_file: flags.key_file.clone().unwrap_or_default(),
            trusted_ca_file: flags.trusted_ca_file.clone(),
            client_crl_file: flags.client_crl_file.clone(),
            auto_tls: (flags.auto_tls && !flags.has_certificate()).then(|| self_signed::Config {
                dir: flags.folder().join("proxy").join("clientCerts"),
                validity_years: u32::try_from(flags.self_signed_cert_validity).unwrap_or(u32::MAX),
                hosts: flags.listen_client_urls.iter().chain(&flags.advertise_client_urls).cloned().collect(),
            }),
            cipher_suites: flags.cipher_suites.clone(),
            min_version: versions.min,
            max_version: versions.max,
        })?),
        false => None,
    };
    let listen = |url: &String| http_proxy::Listen { url: url.clone(), is_secure: is_secure(url) };
    Ok(http_proxy::Config {
        listen: flags.listen_client_urls.iter().map(listen).collect(),
        server_tls,
        is_readonly: flags.proxy == "readonly",
        cors: flags.cors.clone(),
        peers,
        data_dir: flags.folder(),
        to_clients_urls: pool(ClientTls::load(&client)?),
        to_peer_urls: pool(ClientTls::load(&peer)?),
        failure_wait: milliseconds(flags.proxy_failure_wait),
        refresh_interval: milliseconds(flags.proxy_refresh_interval),
        threads: shards(flags.process.threads),
        max_connections: flags.process.max_connections as usize,
        metrics_addresses: flags.process.metrics_urls()?.into_iter().map(|url| url.address).collect(),
        drain_timeout: flags.process.drain_timeout,
    })
}

/// Where etcd's proxy keeps the certificate that it makes for itself.
fn auto_tls_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("fixtures").join("proxy")
}

/// TLS towards etcd, if any of its flags is given.
pub fn client_tls(flags: &Flags) -> Result<Option<ClientTls>, ConfigError> {
    let has_files = flags.cert.is_some() || flags.key.is_some() || flags.cacert.is_some();
    if !has_files && !flags.insecure_skip_tls_verify && flags.tls_server_name.is_empty() {
        return Ok(None);
    }
    let config = tls::client::Config {
        cert: flags.cert.clone(),
        key: flags.key.clone(),
        cacert: flags.cacert.clone(),
        insecure_skip_verify: flags.insecure_skip_tls_verify,
        server_name: Some(flags.tls_server_name.clone()),
        allow_non_empty_cn: false,
        cipher_suites: Vec::new(),
    };
    let tls = ClientTls::load(&config)?;
    if flags.insecure_skip_tls_verify {
        tracing::warn!(
            "--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of etcd server TLS \
             certificates. This option should be enabled only for testing purposes."
        );
    }
    let info = tls_info(&flags.cert, &flags.key, &flags.cacert, &None, false);
    tracing::info!("tls-info" = info, "gRPC proxy client TLS");
    Ok(Some(tls))
}
