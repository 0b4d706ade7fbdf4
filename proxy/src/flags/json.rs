//! The flags of what is served as HTTP/JSON, and of who may ask by HTTP; named as etcd's own.

use clap::{ArgAction, Args};
use http::Uri;
use serde::Serialize;

use crate::go;

const HTTP: &str = super::HTTP;
/// Allows all, in either list.
const ANY: &str = "*";

/// See [`super::Flags`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JsonFlags {
    /// serve the API as HTTP/JSON too, under /v3/
    ///
    /// As in etcd; etcd's proxy has no such API.
    #[arg(long, help_heading = HTTP, value_name = "bool", default_value = "true", action = ArgAction::Set, value_parser = go::parse_bool)]
    pub enable_grpc_gateway: bool,

    /// comma separated origins whose web pages may read answers over HTTP, as scheme://host:port ("*" or empty for all)
    ///
    /// As in etcd, which wants a port in each; one without is what browsers send for the scheme's own port.
    #[arg(long, help_heading = HTTP, value_name = "strings", default_value = "*", value_parser = go::read_csv)]
    pub cors: std::vec::Vec<String>,

    /// comma separated host names that are answered to over HTTP, if it is without TLS ("*" or empty for all)
    ///
    /// As in etcd: a web page that makes its own name lead here is refused.
    #[arg(long, help_heading = HTTP, value_name = "strings", default_value = "*", value_parser = go::read_csv)]
    pub host_whitelist: std::vec::Vec<String>,
}

impl JsonFlags {
    pub(super) fn check(&self) -> Result<(), String> {
        match self.cors.iter().find(|origin| *origin != ANY && !is_origin(origin)) {
            Some(origin) => Err(format!(
                "invalid cors {}: an origin is written as scheme://host:port, http or https, without a path",
                go::quote(origin)
            )),
            None => Ok(()),
        }
    }
}

fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let is_bare = rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', '?', '#', '@']));
    is_bare && text.parse::<Uri>().is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}
