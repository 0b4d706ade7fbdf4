//! The environment variables that stand for flags.

use std::{collections::BTreeMap, ffi::OsString};

pub(super) const ENV_PREFIX: &str = "ETCD_PROXY_";

/// The variables of this process that could be meant for the proxy.
pub fn process_env() -> BTreeMap<String, OsString> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(ENV_PREFIX))
        .collect()
}

/// The environment variable that stands for a flag.
pub fn env_name(flag: &str) -> String {
    format!("{ENV_PREFIX}{}", flag.to_ascii_uppercase().replace('-', "_"))
}
