//! The flags of `http-proxy start`: those of etcd 3.5 that its `--proxy` mode reads, and those that only this proxy has.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use serde::Serialize;

use super::{
    ENDPOINTS, HTTP, PROXYING, Refusal, SERVER_TLS, command_line, parse, path, process::Process, uint64,
    without_userinfo,
};
use crate::go;

const PEER_TLS: &str = super::PEER_TLS;

/// Every flag with its value.
#[derive(Clone, Debug, PartialEq, Parser, Serialize)]
#[command(name = "start", no_binary_name = true, args_override_self = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[serde(rename_all = "kebab-case")]
pub struct Flags {
    /// URLs on which clients are served: http, https, unix or unixs
    #[arg(long, help_heading = ENDPOINTS, value_name = "strings", default_value = "http://localhost:2379", value_parser = go::read_csv)]
    pub listen_client_urls: std::vec::Vec<String>,

    /// URLs by which clients reach this proxy, for the certificate of auto-tls
    #[arg(long, help_heading = ENDPOINTS, value_name = "strings", default_value = "http://localhost:2379", value_parser = go::read_csv)]
    pub advertise_client_urls: std::vec::Vec<String>,

    /// members that are asked for the cluster's client URLs, each as name=peer-URL
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "default=http://localhost:2380")]
    pub initial_cluster: String,

    /// discovery URL that tells the cluster's peer URLs
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "")]
    pub discovery: String,

    /// HTTP proxy for the traffic to the discovery service
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "")]
    pub discovery_proxy: String,

    /// DNS domain whose SRV records for etcd-server tell the cluster's peer URLs
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "")]
    pub discovery_srv: String,

    /// suffix to the DNS SRV name queried when bootstrapping
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "")]
    pub discovery_srv_name: String,

    /// human-readable name, of which the default of data-dir is made
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "default")]
    pub name: String,

    /// directory under which the proxy keeps the cluster's peer URLs ("" for ${name}.etcd)
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "", value_parser = path())]
    pub data_dir: std::option::Option<PathBuf>,

    /// on, or readonly to answer 501 to whatever is no GET
    ///
    /// etcd's default is off, which makes it a member; here that is refused.
    #[arg(long, help_heading = PROXYING, value_name = "string", default_value = "on")]
    pub proxy: String,

    /// time (in milliseconds) an endpoint will be held in a failed state
    #[arg(long, help_heading = PROXYING, value_name = "uint", default_value = "5000", value_parser = uint64)]
    pub proxy_failure_wait: u64,

    /// time (in milliseconds) of the endpoints refresh interval
    #[arg(long, help_heading = PROXYING, value_name = "uint", default_value = "30000", value_parser = uint64)]
    pub proxy_refresh_interval: u64,

    /// time (in milliseconds) for a dial to timeout
    #[arg(long, help_heading = PROXYING, value_name = "uint", default_value = "1000", value_parser = uint64)]
    pub proxy_dial_timeout: u64,

    /// time (in milliseconds) for a write to timeout (0 for none)
    #[arg(long, help_heading = PROXYING, value_name = "uint", default_value = "5000", value_parser = uint64)]
    pub proxy_write_timeout: u64,

    /// time (in milliseconds) for a read to timeout (0 for none, as long polls want it)
    #[arg(long, help_heading = PROXYING, value_name = "uint", default_value = "0", value_parser = uint64)]
    pub proxy_read_timeout: u64,

    /// origins that browsers may ask from, or * for all
    ///
    /// A member's own headers of this kind are replaced, so that none stands twice, which browsers refuse.
    #[arg(long, help_heading = HTTP, value_name = "strings", default_value = "*", value_parser = go::read_csv)]
    pub cors: std::vec::Vec<String>,

    /// certificate file for clients, also shown to the members' client URLs
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub cert_file: std::option::Option<PathBuf>,

    /// key file of cert-file
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub key_file: std::option::Option<PathBuf>,

    /// CA file that verifies clients' certificates, and those of the members' client URLs
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub trusted_ca_file: std::option::Option<PathBuf>,

    /// whether clients must show a certificate; they must whenever trusted-ca-file is given
    #[arg(long, help_heading = SERVER_TLS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub client_cert_auth: bool,

    /// file with the revoked certificates of clients
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub client_crl_file: std::option::Option<PathBuf>,

    /// serve https with a generated certificate, and do not verify those of the members' client URLs
    #[arg(long, help_heading = SERVER_TLS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub auto_tls: bool,

    /// validity of the generated certificate, in years
    #[arg(long, help_heading = SERVER_TLS, value_name = "uint", default_value = "1", value_parser = uint64)]
    pub self_signed_cert_validity: u64,

    /// comma separated cipher suites for clients and members, by Go's names (empty for all safe ones)
    #[arg(long, help_heading = SERVER_TLS, value_name = "strings", default_value = "", value_parser = go::read_csv)]
    pub cipher_suites: std::vec::Vec<String>,

    /// minimum TLS version for clients: TLS1.2 or TLS1.3
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "TLS1.2")]
    pub tls_min_version: String,

    /// maximum TLS version for clients: TLS1.2 or TLS1.3 (empty for the newest)
    #[arg(long, help_heading = SERVER_TLS, value_name = "string", default_value = "")]
    pub tls_max_version: String,

    /// certificate file with which this proxy identifies itself to members
    #[arg(long, help_heading = PEER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub peer_cert_file: std::option::Option<PathBuf>,

    /// key file of peer-cert-file
    #[arg(long, help_heading = PEER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub peer_key_file: std::option::Option<PathBuf>,

    /// CA file that verifies the certificates of members' peer URLs
    #[arg(long, help_heading = PEER_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub peer_trusted_ca_file: std::option::Option<PathBuf>,

    /// accepted for compatibility: no peer ever connects to a proxy
    #[arg(long, help_heading = PEER_TLS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub peer_client_cert_auth: bool,

    /// do not verify the certificates of members' peer URLs, which the members have made for themselves
    #[arg(long, help_heading = PEER_TLS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub peer_auto_tls: bool,

    #[command(flatten)]
    #[serde(flatten)]
    pub process: Process,
}

impl Default for Flags {
    fn default() -> Self {
        Flags::try_parse_from(std::iter::empty::<std::ffi::OsString>())
            .expect("a test parses the defaults of all flags")
    }
}

impl Flags {
    /// Refuses what cannot work; answers with warnings about what has no effect.
    pub fn check(&self) -> Result<Vec<String>, Refusal> {
        self.process.check()?;
        self.check_further().map_err(Refusal::new)?;
        let unencrypted = !self.listen_client_urls.iter().any(|url| is_secure(url));
        let cases = [
            (
                self.discovery_srv.is_empty() && !self.discovery_srv_name.is_empty(),
                "discovery-srv-name has no effect without discovery-srv",
            ),
            (
                !self.discovery.is_empty() && !self.discovery_srv.is_empty(),
                "discovery-srv has no effect, since discovery is given",
            ),
            (
                self.discovery.is_empty() && !self.discovery_proxy.is_empty(),
                "discovery-proxy has no effect without discovery",
            ),
            (self.auto_tls && unencrypted, "auto-tls makes no certificate, since no listen-client-urls is https"),
            (self.auto_tls && self.has_certificate(), "auto-tls makes no certificate, since cert-file is given"),
        ];
        Ok(cases.into_iter().filter(|(applies, _)| *applies).map(|(_, warning)| warning.to_owned()).collect())
    }

    fn check_further(&self) -> Result<(), String> {
        match self.proxy.as_str() {
            "on" | "readonly" => (),
            "off" => {
                return Err("invalid proxy \"off\": this program is no member; want on or readonly, or run etcd".into());
            }
            other => return Err(format!("invalid proxy {}: want on or readonly", go::quote(other))),
        }
        if self.listen_client_urls.is_empty() {
            return Err("invalid listen-client-urls \"\": want URLs, such as http://localhost:2379".into());
        }
        for url in &self.listen_client_urls {
            let scheme = url.split_once("://").map(|(scheme, _)| scheme);
            if !matches!(scheme, Some("http" | "https" | "unix" | "unixs")) {
                return Err(format!("URL scheme must be http, https, unix, or unixs: {url}"));
            }
            if is_secure(url) && !self.auto_tls && !self.has_certificate() {
                return Err(format!(
                    "{url} wants a certificate: give --cert-file and --key-file, or --auto-tls, or write http"
                ));
            }
        }
        if self.client_cert_auth && self.trusted_ca_file.is_none() {
            return Err("client-cert-auth wants the CA that verifies clients: give --trusted-ca-file as well".into());
        }
        super::check::check_pair("key-file", &self.key_file, "cert-file", &self.cert_file)?;
        super::check::check_pair("peer-key-file", &self.peer_key_file, "peer-cert-file", &self.peer_cert_file)?;
        if self.auto_tls && self.self_signed_cert_validity == 0 {
            return Err("selfSignedCertValidity is invalid,it should be greater than 0".into());
        }
        for (flag, value) in
            [("proxy-dial-timeout", self.proxy_dial_timeout), ("proxy-refresh-interval", self.proxy_refresh_interval)]
        {
            if value == 0 {
                return Err(format!("invalid {flag} 0: it should be greater than 0"));
            }
        }
        Ok(())
    }

    /// Whether clients are served with a certificate from files.
    pub fn has_certificate(&self) -> bool {
        self.cert_file.is_some()
    }

    /// The folder for everything that the proxy keeps.
    pub fn folder(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.etcd", self.name)))
    }

    /// All flags with their values, for the start-up log, with passwords in URLs masked.
    pub fn effective(&self) -> String {
        let mut shown = self.clone();
        shown.discovery = without_userinfo(&shown.discovery);
        shown.discovery_proxy = without_userinfo(&shown.discovery_proxy);
        for url in shown.process.metrics_addr.iter_mut().chain(&mut shown.advertise_client_urls) {
            *url = without_userinfo(url);
        }
        command_line(&shown)
    }
}

/// Milliseconds as etcd counts them.
pub fn milliseconds(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// Whether a URL is served over TLS.
pub fn is_secure(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("unixs://")
}

impl parse::Settings for Flags {
    fn lists(&mut self) -> Vec<(&'static str, &mut Vec<String>)> {
        vec![
            ("listen-client-urls", &mut self.listen_client_urls),
            ("advertise-client-urls", &mut self.advertise_client_urls),
            ("cipher-suites", &mut self.cipher_suites),
            ("cors", &mut self.cors),
            ("metrics-addr", &mut self.process.metrics_addr),
        ]
    }
}
