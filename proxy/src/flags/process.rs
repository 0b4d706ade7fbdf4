//! What every command but `grpc-proxy start` says about its process: log, threads, metrics, end. `grpc-proxy start` has
//! the same flags among its own, in etcd's order.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use serde::Serialize;

use super::{
    HTTP, LOGGING, LogFormat, MetricsUrl, OURS, Refusal, as_go_duration, as_level,
    check::{MAX_THREADS, check_range},
    duration, log_format, log_level, metrics_urls, path, uint32,
};
use crate::go;

/// The flags that are the same in each command.
#[derive(Clone, Debug, PartialEq, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Process {
    /// URLs on which metrics, health and readiness are served, http only
    ///
    /// May be repeated, and may hold several URLs with commas between.
    #[arg(long, help_heading = HTTP, value_name = "strings", default_value = "", value_parser = go::read_csv)]
    pub metrics_addr: std::vec::Vec<String>,

    /// log at debug level, whatever log-level says
    #[arg(long, help_heading = LOGGING, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub debug: bool,

    /// least severe level that is logged: debug, info, warn or error
    #[arg(long, help_heading = LOGGING, value_name = "string", default_value = "info", value_parser = log_level)]
    #[serde(serialize_with = "as_level")]
    pub log_level: tracing::Level,

    /// shape of a log line: json or text
    ///
    /// etcd has no such flag; json is the shape in which it logs.
    #[arg(long, help_heading = LOGGING, value_name = "string", default_value = "json", value_parser = log_format)]
    pub log_format: LogFormat,

    /// YAML file with flag names as keys; flags and environment variables take precedence
    ///
    /// None by default, as etcd has none.
    #[arg(long, help_heading = OURS, value_name = "string", default_value = "", value_parser = path())]
    pub config_file: std::option::Option<PathBuf>,

    /// time that open connections get to end after SIGTERM, before they are closed
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

    /// client connections that may be open at a time (0 for no limit)
    ///
    /// No limit, as in etcd; the limit on open files still holds.
    #[arg(long, help_heading = OURS, value_name = "uint32", default_value = "0", value_parser = uint32)]
    pub max_connections: u32,
}

impl Process {
    /// The level to log at: `--debug` wins over `--log-level`.
    pub fn level(&self) -> tracing::Level {
        if self.debug { tracing::Level::DEBUG } else { self.log_level }
    }

    /// Refuses what cannot work.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        check_range("threads", self.threads, 0, MAX_THREADS).map_err(Refusal::new)?;
        if let Some(url) = self.metrics_urls()?.into_iter().find(|url| url.tls) {
            return Err(Refusal::new(format!(
                "invalid metrics-addr {}: this command has no certificate for it; write http",
                go::quote(&format!("https://{}", url.address))
            )));
        }
        Ok(())
    }

    /// The listeners that `--metrics-addr` asks for.
    pub fn metrics_urls(&self) -> Result<Vec<MetricsUrl>, Refusal> {
        metrics_urls(&self.metrics_addr)
    }
}
