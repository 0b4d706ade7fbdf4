//! The flags that say who may do what: profiles, and what belongs to them.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::go;

const TENANTS: &str = super::TENANTS;

/// What `--api-profile` may be.
pub const PROFILES: [&str; 3] = ["full", "tenant", "read-only"];
/// What `--api-compact` may be.
pub const COMPACTIONS: [&str; 3] = ["deny", "ignore", "allow"];

/// See [`super::Flags`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TenancyFlags {
    /// calls that clients may make: full, tenant or read-only
    ///
    /// full is what etcd's proxy has, with a namespace too. Behind a namespace, tenant leaves what stays inside it: KV,
    /// Watch, Lock, Election and the tenant's own leases.
    #[arg(long, help_heading = TENANTS, value_name = "string", default_value = "full", value_parser = profile)]
    pub api_profile: String,

    /// what becomes of a Compact under the tenant profile: deny, ignore (it is answered as if done) or allow
    ///
    /// deny, since a compaction takes history from every tenant. kube-apiserver wants ignore: it compacts every five
    /// minutes.
    #[arg(long, help_heading = TENANTS, value_name = "string", default_value = "deny", value_parser = compaction)]
    pub api_compact: String,

    /// file with the key from which the ids of each tenant's leases are made (must be shared with the other proxies)
    ///
    /// None: a key that everyone knows, which is enough where operators choose the prefixes. Leases do not outlive a
    /// change of it.
    #[arg(long, help_heading = TENANTS, value_name = "string", default_value = "", value_parser = super::path())]
    pub lease_key_file: std::option::Option<PathBuf>,

    /// comma separated methods that are allowed on top of the profile, such as KV/Compact
    ///
    /// None, since each reaches beyond what its profile promises.
    #[arg(long, help_heading = TENANTS, value_name = "strings", default_value = "", value_parser = go::read_csv)]
    pub api_allow: std::vec::Vec<String>,

    /// comma separated methods that are denied whatever else allows them, such as Lock/Lock
    ///
    /// None: the profile decides.
    #[arg(long, help_heading = TENANTS, value_name = "strings", default_value = "", value_parser = go::read_csv)]
    pub api_deny: std::vec::Vec<String>,
}

/// See [`super::Flags`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuditFlags {
    /// file to which a line of JSON is appended for each call: who asked what of which keys, and what came of it
    ///
    /// None, since it tells of everybody's keys. Values are never told. SIGHUP opens the file anew.
    #[arg(long, help_heading = TENANTS, value_name = "string", default_value = "", value_parser = super::path())]
    pub audit_log: std::option::Option<PathBuf>,

    /// one in so many calls that went well is written to audit-log; those that did not always are
    ///
    /// 1 writes all.
    #[arg(long, help_heading = TENANTS, value_name = "uint64", default_value = "1", value_parser = super::uint64)]
    pub audit_sample: u64,
}

fn profile(text: &str) -> Result<String, String> {
    one_of(&PROFILES, text)
}

fn compaction(text: &str) -> Result<String, String> {
    one_of(&COMPACTIONS, text)
}

pub(super) fn one_of(known: &[&str], text: &str) -> Result<String, String> {
    if known.contains(&text) { Ok(text.to_owned()) } else { Err(format!("must be one of: {}", known.join(", "))) }
}
