//! The command line: every flag as `etcd grpc-proxy start` spells it, and those that only this proxy has.
//!
//! `Flags` is the one table. Its fields carry name, default, type and help; the parser, the config file, the help text,
//! `docs/flags.md` and the start-up log are all read off it, so a flag is added in one place.

mod advertise;
mod check;
mod command_line;
mod commands;
mod environment;
mod file;
#[cfg(test)]
mod foreign;
pub mod gateway;
mod help;
pub mod http_proxy;
mod json;
mod limits;
mod nearest;
mod parse;
pub mod process;
mod refusal;
mod scan;
mod table;
mod tenancy;
#[cfg(test)]
mod tests;
pub mod tools;
mod user;
mod values;

pub use check::{MetricsUrl, metrics_urls};
pub use environment::{env_name, process_env};
pub use help::{markdown, start_usage};
pub use json::JsonFlags;
pub use limits::LimitFlags;
pub use parse::{Invocation, parse};
pub use refusal::Refusal;
pub use tenancy::{AuditFlags, COMPACTIONS, PROFILES, TenancyFlags};
pub use user::UserFlags;
pub use values::LogFormat;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Parser};
use serde::Serialize;

use crate::go;
use command_line::{command_line, without_userinfo};
use values::{
    as_go_duration, as_level, as_text, duration, log_format, log_level, max_concurrent_streams, max_recv_bytes,
    max_send_bytes, path, ping_timeout, uint32, uint64,
};

const ENDPOINTS: &str = "Endpoints and discovery";
const REGISTRATION: &str = "Registration and namespace";
const CLIENT_TLS: &str = "TLS to etcd";
const SERVER_TLS: &str = "TLS to clients";
const PEER_TLS: &str = "TLS to members' peer URLs";
const PROXYING: &str = "Proxying";
const LIMITS: &str = "Limits and keepalive";
const HTTP: &str = "HTTP and metrics";
const LOGGING: &str = "Logging";
const EXPERIMENTAL: &str = "Experimental";
const LOGIN: &str = "Login to etcd";
const TENANTS: &str = "Tenants";
const TENANT_LIMITS: &str = "Limits of tenants";
const OURS: &str = "Only in etcd-proxy";

/// The groups in the order in which help and docs show them.
const GROUPS: [&str; 14] = [
    ENDPOINTS,
    REGISTRATION,
    PROXYING,
    CLIENT_TLS,
    LOGIN,
    SERVER_TLS,
    PEER_TLS,
    LIMITS,
    HTTP,
    LOGGING,
    EXPERIMENTAL,
    TENANTS,
    TENANT_LIMITS,
    OURS,
];

/// Every flag with its value.
///
/// Of each doc comment the first paragraph is the help text; what follows is what differs from etcd, or for a flag
/// that etcd does not have, the reason for its default.
#[derive(Clone, Debug, PartialEq, Parser, Serialize)]
#[command(name = "start", no_binary_name = true, args_override_self = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[serde(rename_all = "kebab-case")]
pub struct Flags {
    /// address on which clients are served, as host:port or unix:///path
    ///
    /// The port is a number; etcd also takes service names from /etc/services, and no unix socket.
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "127.0.0.1:23790")]
    pub listen_addr: String,

    /// comma separated etcd cluster endpoints
    ///
    /// Spaces around an endpoint and empty endpoints are dropped, with a warning.
    #[arg(long, help_heading = ENDPOINTS, value_name = "strings", default_value = "127.0.0.1:2379", value_parser = go::read_csv)]
    pub endpoints: std::vec::Vec<String>,

    /// how often the endpoints are replaced by the client URLs that the cluster's members advertise (0 to disable)
    #[arg(long, help_heading = ENDPOINTS, value_name = "duration", default_value = "0s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub endpoints_auto_sync_interval: Duration,

    /// domain name to query for SRV records describing cluster endpoints
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "")]
    pub discovery_srv: String,

    /// service name to query when using DNS discovery
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "")]
    pub discovery_srv_name: String,

    /// accept discovered endpoints without checking their TLS
    #[arg(long, help_heading = ENDPOINTS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub insecure_discovery: bool,

    /// address to register, and to show in member lists; must be reachable by clients ("" shows etcd's own members)
    #[arg(long, help_heading = REGISTRATION, value_name = "string", default_value = "127.0.0.1:23790")]
    pub advertise_client_url: String,

    /// DNS domain of a headless Service: the IP address in advertise-client-url is advertised as the pod's name below it
    ///
    /// A cluster's DNS knows the pod 10.1.2.3 of such a Service as 10-1-2-3.registry-pods.team-a.svc, which a certificate for
    /// *.registry-pods.team-a.svc covers, while nobody can name the address in a certificate beforehand.
    #[arg(long, help_heading = REGISTRATION, value_name = "string", default_value = "")]
    pub advertise_pod_domain: String,

    /// prefix of the keys under which this proxy registers itself (must be shared with the other proxies)
    #[arg(long, help_heading = REGISTRATION, value_name = "string", default_value = "")]
    pub resolver_prefix: String,

    /// TTL of the registration, in seconds; required with resolver-prefix
    #[arg(long, help_heading = REGISTRATION, value_name = "int", default_value = "0", value_parser = go::parse_int)]
    pub resolver_ttl: i64,

    /// string to prefix to all keys for namespacing requests; any bytes
    #[arg(long, help_heading = REGISTRATION, value_name = "string", default_value = "", value_parser = OsStringValueParser::new().map(OsString::into_vec))]
    #[serde(serialize_with = "as_text")]
    pub namespace: std::vec::Vec<u8>,

    /// certificate file with which this proxy identifies itself to etcd
    #[arg(long, help_heading = CLIENT_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub cert: std::option::Option<PathBuf>,

    /// key file of cert
    #[arg(long, help_heading = CLIENT_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub key: std::option::Option<PathBuf>,

    /// CA bundle file that verifies the certificates of the etcd servers
    #[arg(long, help_heading = CLIENT_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub cacert: std::option::Option<PathBuf>,

    /// do not verify the certificates of the etcd servers (CAUTION: for testing purposes only)
    #[arg(long, help_heading = CLIENT_TLS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub insecure_skip_tls_verify: bool,

    /// name that the certificates of the etcd servers must have, in place of each endpoint's host
    ///
    /// None: the host of each endpoint. etcd has no such flag; kubectl has it by this name.
    #[arg(long, help_heading = CLIENT_TLS, value_name = "string", default_value = "")]
    pub tls_server_name: String,

    #[command(flatten)]
    #[serde(flatten)]
    pub login: UserFlags,

    /// certificate file with which this proxy identifies itself to clients
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub cert_file: std::option::Option<PathBuf>,

    /// key file of cert-file
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub key_file: std::option::Option<PathBuf>,

    /// CA bundle file that verifies the certificates of clients
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub trusted_ca_file: std::option::Option<PathBuf>,

    /// file with the revoked certificates of clients
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub client_crl_file: std::option::Option<PathBuf>,

    /// comma separated cipher suites that clients may use, by Go's names (empty for all safe ones)
    #[arg(long, help_heading = SERVER_TLS, value_name = "strings", default_value = "", value_parser = go::read_csv)]
    pub listen_cipher_suites: std::vec::Vec<String>,

    /// minimum TLS version for clients: TLS1.2 or TLS1.3
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "TLS1.2")]
    pub tls_min_version: String,

    /// maximum TLS version for clients: TLS1.2 or TLS1.3 (empty for the highest)
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "")]
    pub tls_max_version: String,

    /// serve clients with a generated certificate; cert-file, key-file and trusted-ca-file take precedence
    #[arg(long, help_heading = SERVER_TLS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub auto_tls: bool,

    /// validity of the generated certificate, in years
    #[arg(long, help_heading = SERVER_TLS, value_name = "uint", default_value = "1", value_parser = uint64)]
    pub self_signed_cert_validity: u64,

    /// directory under which the generated certificate is kept
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "default.proxy", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub data_dir: PathBuf,

    /// largest message that is sent to etcd, in bytes (0 and less for 2 MiB)
    #[arg(long, help_heading = LIMITS, value_name = "int", default_value = "1572864", value_parser = max_send_bytes)]
    pub max_send_bytes: u64,

    /// largest message that is accepted from etcd, in bytes (0 and less for 2147483647)
    #[arg(long, help_heading = LIMITS, value_name = "int", default_value = "2147483647", value_parser = max_recv_bytes)]
    pub max_recv_bytes: u64,

    /// streams that one client connection may have open at a time (0 for no limit)
    ///
    /// etcd's proxy does not apply it to gRPC connections; this one does.
    #[arg(long, help_heading = LIMITS, value_name = "uint32", default_value = "4294967295", value_parser = max_concurrent_streams)]
    pub max_concurrent_streams: u32,

    /// time without traffic after which etcd is pinged (0 to disable)
    #[arg(long, help_heading = LIMITS, value_name = "duration", default_value = "0s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub dial_keepalive_time: Duration,

    /// time that etcd has to answer a ping before the connection is closed (0 for 20s)
    #[arg(long, help_heading = LIMITS, value_name = "duration", default_value = "20s", value_parser = ping_timeout)]
    #[serde(serialize_with = "as_go_duration")]
    pub dial_keepalive_timeout: Duration,

    /// ping etcd even with no active RPCs
    #[arg(long, help_heading = LIMITS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub permit_without_stream: bool,

    /// shortest time that a client should wait between pings (0 for gRPC's own limit)
    #[arg(long, help_heading = LIMITS, value_name = "duration", default_value = "5s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub grpc_keepalive_min_time: Duration,

    /// time without traffic after which a client is pinged (0 to disable)
    ///
    /// etcd says the same of 0, but then pings after 2h.
    #[arg(long, help_heading = LIMITS, value_name = "duration", default_value = "2h0m0s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub grpc_keepalive_interval: Duration,

    /// time that a client has to answer a ping before its connection is closed (0 for 20s)
    ///
    /// etcd says that 0 disables it, but then uses 20s too.
    #[arg(long, help_heading = LIMITS, value_name = "duration", default_value = "20s", value_parser = ping_timeout)]
    #[serde(serialize_with = "as_go_duration")]
    pub grpc_keepalive_timeout: Duration,

    /// URLs on which metrics and health are served besides the listen address, http or https
    ///
    /// May be repeated, and may hold several URLs with commas between; etcd takes one. Unix sockets are refused.
    #[arg(long, help_heading = HTTP, value_name = "strings", default_value = "", value_parser = go::read_csv)]
    pub metrics_addr: std::vec::Vec<String>,

    /// serve runtime profiles under /debug/pprof/
    #[arg(long, help_heading = HTTP, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub enable_pprof: bool,

    #[command(flatten)]
    #[serde(flatten)]
    pub json: JsonFlags,

    /// log at debug level, whatever log-level says
    #[arg(long, help_heading = LOGGING, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub debug: bool,

    /// least severe level that is logged: debug, info, warn or error
    ///
    /// etcd has no such flag; info is what it logs without --debug.
    #[arg(long, help_heading = LOGGING, value_name = "string", default_value = "info", value_parser = log_level)]
    #[serde(serialize_with = "as_level")]
    pub log_level: tracing::Level,

    /// shape of a log line: json or text
    ///
    /// etcd has no such flag; json is the shape in which it logs.
    #[arg(long, help_heading = LOGGING, value_name = "string", default_value = "json", value_parser = log_format)]
    pub log_format: LogFormat,

    /// ensure serializable reads have monotonically increasing store revisions across endpoints
    #[arg(long, help_heading = EXPERIMENTAL, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub experimental_serializable_ordering: bool,

    /// leasing metadata prefix for disconnected linearized reads
    ///
    /// No reads are served from leases without it.
    #[arg(long, help_heading = EXPERIMENTAL, value_name = "string", default_value = "")]
    pub experimental_leasing_prefix: String,

    /// log all gRPC requests and responses
    #[arg(long, help_heading = EXPERIMENTAL, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub experimental_enable_grpc_logging: bool,

    #[command(flatten)]
    #[serde(flatten)]
    pub tenancy: TenancyFlags,

    #[command(flatten)]
    #[serde(flatten)]
    pub audit: AuditFlags,

    #[command(flatten)]
    #[serde(flatten)]
    pub tenant_limits: LimitFlags,

    /// YAML file with flag names as keys; flags and environment variables take precedence
    ///
    /// None by default, as etcd's proxy has none.
    #[arg(long, help_heading = OURS, value_name = "string", default_value = "", value_parser = path())]
    pub config_file: std::option::Option<PathBuf>,

    /// time that running calls get to end after SIGTERM, before their connections are closed
    ///
    /// 30s is also what Kubernetes gives a Pod between SIGTERM and SIGKILL; to drain to the end, a Pod wants a little more
    /// of terminationGracePeriodSeconds.
    #[arg(long, help_heading = OURS, value_name = "duration", default_value = "30s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub drain_timeout: Duration,

    /// threads that serve clients (0 for one per core)
    ///
    /// One per core is fastest; a lower number keeps the proxy to a part of a shared machine.
    #[arg(long, help_heading = OURS, value_name = "uint32", default_value = "0", value_parser = uint32)]
    pub threads: u32,

    /// how often each etcd endpoint is asked for its status
    ///
    /// 5s finds a sick member well within etcd's usual client timeouts, for one small call per endpoint.
    #[arg(long, help_heading = OURS, value_name = "duration", default_value = "5s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub health_interval: Duration,

    /// time that an etcd endpoint has to answer with its status
    ///
    /// 2s is above etcd's default election timeout of 1s, so an election does not make every member sick.
    #[arg(long, help_heading = OURS, value_name = "duration", default_value = "2s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub health_timeout: Duration,

    /// events that one shared watch keeps for its slower clients, in bytes
    ///
    /// 4 MiB is some ten thousand events of usual size; a client that lags further catches up by a watch of its own.
    #[arg(long, help_heading = OURS, value_name = "uint32", default_value = "4194304", value_parser = uint32)]
    pub watch_log_max_bytes: u32,

    /// watches below one prefix that are served from one watch of the whole prefix, if there are more (0 for never)
    ///
    /// A prefix ends with a slash and never reaches out of the namespace. A watch of it is given up when more than half
    /// of its events are wanted by nobody. Fewer than 64 watches cost etcd little.
    #[arg(long, help_heading = OURS, value_name = "uint32", default_value = "64", value_parser = uint32)]
    pub watch_coalesce_threshold: u32,

    /// how soon a watch ends after etcd has withdrawn the right to it (0 for never, as at etcd)
    ///
    /// For users of rules and the proxy's own certificate etcd is asked about each shared watch in this time. etcd itself
    /// looks at rights only when a watch begins, and so it is for clients with tokens of their own.
    #[arg(long, help_heading = OURS, value_name = "duration", default_value = "1m0s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub watch_rights_interval: Duration,

    /// memory for cached reads, in bytes (0 to send every read to etcd by itself)
    ///
    /// 64 MiB hold some hundred thousand small keys. One range may take a quarter of it. What is answered from the cache is
    /// no older than etcd's own answer would be, so that it can be on unasked.
    #[arg(long, help_heading = OURS, value_name = "uint64", default_value = "67108864", value_parser = uint64)]
    pub cache_bytes: u64,

    /// how old the knowledge may be on which a serializable read is answered from the cache
    ///
    /// 0 asks etcd how far it is for each read, once for all who wait, so that nobody sees less than at etcd itself.
    #[arg(long, help_heading = OURS, value_name = "duration", default_value = "0s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub cache_staleness: Duration,

    /// life of the lease that leased keys hang on, in seconds
    ///
    /// 60 is what etcd's own leasing has. So long do writers wait for the keys of a proxy that crashed, and so long may
    /// reads be served while etcd cannot be reached.
    #[arg(long, help_heading = OURS, value_name = "uint32", default_value = "60", value_parser = uint32)]
    pub leasing_ttl: u32,

    /// memory for leased keys and their values, in bytes
    ///
    /// 64 MiB is some two hundred thousand keys of usual size, more than one proxy leases (32,768); large values fill it
    /// sooner. When it is full, keys that are not read are given up.
    #[arg(long, help_heading = OURS, value_name = "uint32", default_value = "67108864", value_parser = uint32)]
    pub leasing_max_bytes: u32,

    /// largest header list of a client's request, in bytes
    ///
    /// 64 KiB holds eight times the 8 KiB that gRPC recommends, and any usual token. grpc-go's 16 MiB would let one
    /// request without a body hold that much of the proxy's memory.
    #[arg(long, help_heading = OURS, value_name = "uint32", default_value = "65536", value_parser = uint32)]
    pub max_header_list_bytes: u32,

    /// client connections that may be open at a time (0 for no limit)
    ///
    /// No limit, as in etcd's proxy; the limit on open files still holds.
    #[arg(long, help_heading = OURS, value_name = "uint32", default_value = "0", value_parser = uint32)]
    pub max_connections: u32,

    /// time that a new connection has to finish its TLS and HTTP/2 handshakes
    ///
    /// 10s is many round trips on any network, and soon enough to shed connections that never speak.
    #[arg(long, help_heading = OURS, value_name = "duration", default_value = "10s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub connection_timeout: Duration,
}

impl Default for Flags {
    fn default() -> Self {
        Flags::try_parse_from(std::iter::empty::<OsString>()).expect("a test parses the defaults of all flags")
    }
}

impl Flags {
    /// The level to log at: `--debug` wins over `--log-level`.
    pub fn level(&self) -> tracing::Level {
        if self.debug { tracing::Level::DEBUG } else { self.log_level }
    }
}

impl parse::Settings for Flags {
    fn lists(&mut self) -> Vec<(&'static str, &mut Vec<String>)> {
        vec![("endpoints", &mut self.endpoints), ("metrics-addr", &mut self.metrics_addr)]
    }
}
