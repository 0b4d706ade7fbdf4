//! The flags of `check` and `top`, which look at a proxy and serve nobody.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use serde::Serialize;

use super::{CLIENT_TLS, ENDPOINTS, Flags, OURS, Refusal, as_go_duration, duration, parse, path, tenancy::one_of};
use crate::go;

/// What `--output` may be.
const OUTPUTS: [&str; 2] = ["table", "json"];

/// `etcd-proxy check`: every flag of `grpc-proxy start`, and what to print.
#[derive(Clone, Debug, PartialEq, Parser, Serialize)]
#[command(name = "check", no_binary_name = true, args_override_self = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[serde(rename_all = "kebab-case")]
pub struct CheckFlags {
    #[command(flatten)]
    #[serde(flatten)]
    pub start: Flags,

    /// what is printed: table or json
    ///
    /// A table, for people.
    #[arg(long, help_heading = OURS, value_name = "string", default_value = "table", value_parser = output)]
    pub output: String,
}

impl CheckFlags {
    pub fn wants_json(&self) -> bool {
        self.output == "json"
    }
}

impl parse::Settings for CheckFlags {
    fn lists(&mut self) -> Vec<(&'static str, &mut Vec<String>)> {
        parse::Settings::lists(&mut self.start)
    }
}

fn output(text: &str) -> Result<String, String> {
    one_of(&OUTPUTS, text)
}

/// `etcd-proxy top`.
#[derive(Clone, Debug, PartialEq, Parser, Serialize)]
#[command(name = "top", no_binary_name = true, args_override_self = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[serde(rename_all = "kebab-case")]
pub struct TopFlags {
    /// metrics address of the proxy to look at, http or https, as its metrics-addr says
    #[arg(long, help_heading = ENDPOINTS, value_name = "string", default_value = "http://127.0.0.1:2381")]
    pub url: String,

    /// CA bundle file that verifies the certificate of the proxy
    #[arg(long, help_heading = CLIENT_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub cacert: std::option::Option<PathBuf>,

    /// certificate file to show to the proxy
    #[arg(long, help_heading = CLIENT_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub cert: std::option::Option<PathBuf>,

    /// key file of cert
    #[arg(long, help_heading = CLIENT_TLS, value_name = "string", default_value = "", value_parser = path())]
    pub key: std::option::Option<PathBuf>,

    /// do not verify the certificate of the proxy
    #[arg(long, help_heading = CLIENT_TLS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub insecure_skip_tls_verify: bool,

    /// how often the screen is made anew
    ///
    /// Rates are taken between two looks; in 2s even a quiet proxy does something.
    #[arg(long, help_heading = OURS, value_name = "duration", default_value = "2s", value_parser = duration)]
    #[serde(serialize_with = "as_go_duration")]
    pub interval: Duration,

    /// print one screen, without colours, and end; its exit code is 0 only if the proxy is ready
    ///
    /// Off: it goes on until it is interrupted.
    #[arg(long, help_heading = OURS, value_name = "bool", default_value = "false", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub once: bool,
}

impl TopFlags {
    /// Where to look.
    pub fn target(&self) -> Result<super::MetricsUrl, Refusal> {
        super::check::metrics_url(&self.url).map_err(|cause| Refusal::new(cause.replace("metrics-addr", "url")))
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), Refusal> {
        self.target()?;
        if self.interval.is_zero() {
            return Err(Refusal::new("invalid interval 0s: it should be greater than 0"));
        }
        super::check::check_pair("key", &self.key, "cert", &self.cert).map_err(Refusal::new)
    }
}

impl parse::Settings for TopFlags {
    fn lists(&mut self) -> Vec<(&'static str, &mut Vec<String>)> {
        Vec::new()
    }
}
