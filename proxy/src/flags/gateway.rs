//! The flags of `gateway start`, as `etcd gateway start` spells them, and those that only this gateway has.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use serde::Serialize;

use super::{
    ENDPOINTS, OURS, Refusal, as_go_duration, command_line, duration, parse, path, process::Process, without_userinfo,
};
use crate::go;

/// Every flag with its value.
#[derive(Clone, Debug, PartialEq, Parser, Serialize)]
#[command(name = "start", no_binary_name = true, args_override_self = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[serde(rename_all = "kebab-case")]
pub struct Flags {
    /// addresses on which clients are served, as host:port or unix:///path
    ///
    /// A list here, one address in etcd, which takes no unix sockets. Without a host it listens on all addresses of the
    /// machine; etcd refuses that.
    #[arg(long, help_heading = ENDPOINTS, value_name = "strings", default_value = "127.0.0.1:23790", value_parser = go::read_csv)]
    pub listen_addr: std::vec::Vec<String>,

    /// comma separated etcd cluster endpoints
    ///
    /// A scheme is dropped, as etcd does; but with unix:// the endpoint is a socket file.
    #[arg(long, help_heading = ENDPOINTS, value_name = "strings", default_value = "127.0.0.1:2379", value_parser = go::read_csv)]
    pub endpoints: std::vec::Vec<String>,

    /// DNS domain used to bootstrap initial cluster
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "")]
    pub discovery_srv: String,

    /// service name to query when using DNS discovery
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "")]
    pub discovery_srv_name: String,

    /// accept insecure SRV records
    #[arg(long, help_heading = ENDPOINTS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub insecure_discovery: bool,

    /// path to the client server TLS CA file for verifying the discovered endpoints when discovery-srv is provided.
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "", value_parser = path())]
    pub trusted_ca_file: std::option::Option<PathBuf>,

    /// duration of delay before retrying failed endpoints
    ///
    /// 0 means five minutes, as in etcd. When all endpoints have failed, the next connection tries them at once.
    #[arg(long, help_heading = ENDPOINTS, value_name = "duration", default_value = "1m0s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub retry_delay: Duration,

    #[command(flatten)]
    #[serde(flatten)]
    pub process: Process,

    /// time that an endpoint has to accept a connection
    ///
    /// In 4s a connection is asked for three times, so that two lost packets do not make an endpoint fail. etcd waits
    /// for as long as the kernel does, two minutes.
    #[arg(long, help_heading = OURS, value_name = "duration", default_value = "4s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub dial_timeout: Duration,
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
        if self.dial_timeout.is_zero() {
            return Err(Refusal::new("invalid dial-timeout 0s: it should be greater than 0"));
        }
        if self.listen_addr.is_empty() {
            return Err(Refusal::new("failed to validate listen address: give --listen-addr, such as 127.0.0.1:23790"));
        }
        let without_srv = self.discovery_srv.is_empty();
        let cases = [
            (!self.discovery_srv_name.is_empty(), "discovery-srv-name has no effect without discovery-srv"),
            (self.insecure_discovery, "insecure-discovery has no effect without discovery-srv"),
            (self.trusted_ca_file.is_some(), "trusted-ca-file has no effect without discovery-srv"),
        ];
        let applying = cases.into_iter().filter(|(given, _)| *given && without_srv);
        Ok(applying.map(|(_, warning)| warning.to_owned()).collect())
    }

    /// All flags with their values, for the start-up log, with passwords in URLs masked.
    pub fn effective(&self) -> String {
        let mut shown = self.clone();
        for url in shown.endpoints.iter_mut().chain(&mut shown.process.metrics_addr) {
            *url = without_userinfo(url);
        }
        command_line(&shown)
    }
}

impl parse::Settings for Flags {
    fn lists(&mut self) -> Vec<(&'static str, &mut Vec<String>)> {
        vec![
            ("listen-addr", &mut self.listen_addr),
            ("endpoints", &mut self.endpoints),
            ("metrics-addr", &mut self.process.metrics_addr),
        ]
    }
}
