//! TLS for both sides of the proxy: files with hot reload, the settings of a listener and of a connection to etcd.
//!
//! What it matches is etcd's `client/pkg/transport`: which files are asked for, which peers are refused, which texts
//! are printed. Where it differs, it is because files are kept when their replacement is broken (etcd refuses every
//! handshake until the file is right again), and the module at hand says so.
//!
//! The crypto provider is always named; the process-wide default of rustls is never asked, so that no dependency that
//! installs another one can change what this proxy accepts.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;

mod authorities;
pub mod certificate;
pub mod ciphers;
pub mod client;
mod crl;
mod error;
pub mod explain;
mod files;
#[cfg(test)]
mod foreign;
pub mod identity;
mod reload;
pub mod self_signed;
pub mod server;
mod verify;
pub mod versions;

pub use client::ClientTls;
pub use error::Error;
pub use explain::{Peer, explain};
pub use identity::{PeerIdentity, peer_identity};
pub use reload::ReloadOutcome;
pub use server::ServerTls;
pub use versions::Version;

/// What a file is for. The set is closed, so that it can be a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Certificate,
    Key,
    TrustedCa,
    RevocationList,
}

impl Role {
    pub fn label(self) -> &'static str {
        match self {
            Role::Certificate => "cert",
            Role::Key => "key",
            Role::TrustedCa => "ca",
            Role::RevocationList => "crl",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Role::Certificate => "certificate file",
            Role::Key => "key file",
            Role::TrustedCa => "CA file",
            Role::RevocationList => "revocation list",
        })
    }
}

/// How one file stands: what is in use, and why its newer content is not, if it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStatus {
    pub path: PathBuf,
    pub role: Role,
    /// The subject of the certificate in use, the issuer of a revocation list, nothing for a key.
    pub subject: String,
    /// When what is in use runs out. A key has no such date, nor has a revocation list without a next update.
    pub not_after: Option<SystemTime>,
    /// Why the newest content of the file is not in use; the last good content is.
    pub last_error: Option<String>,
}

/// The one crypto provider of this program, with all cipher suites that it has.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
