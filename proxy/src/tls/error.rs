//! What can be wrong with TLS settings and files, each with the file, what was found and what would be right.

use std::path::PathBuf;

use super::Role;

/// One refusal. The texts that etcd's own tests and people's scripts match on are etcd's, word for word.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("open {}: {found}: the {role} cannot be read; {wanted}", .path.display())]
    Read { role: Role, path: PathBuf, found: String, wanted: String },
    #[error("the {role} {} {found}; {wanted}", .path.display())]
    Content { role: Role, path: PathBuf, found: String, wanted: String },
    #[error("tls: private key does not match public key: the key {} is not the key of {}{hint}", .key.display(), .cert.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf, hint: String },
    /// etcd's words, from `TLSInfo.ClientConfig` with `EmptyCN`.
    #[error("cert has non empty Common Name ({common_name}): {}", .path.display())]
    NonEmptyCommonName { common_name: String, path: PathBuf },
    /// etcd's words, from `TLSInfo.baseConfig`.
    #[error("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")]
    HalfPair { cert: String, key: String },
    /// etcd's words, from `newTLSListener`.
    #[error("cannot listen on TLS: KeyFile and CertFile are not presented")]
    NoPair,
    #[error(transparent)]
    Version(#[from] super::versions::VersionError),
    #[error(transparent)]
    Cipher(#[from] super::ciphers::CipherError),
    #[error(transparent)]
    SelfSigned(#[from] super::self_signed::SelfSignedError),
    #[error("{name:?} is not a host name or IP address that a certificate could be checked against")]
    ServerName { name: String },
    #[error("the TLS library refuses these settings: {0}")]
    Library(#[from] rustls::Error),
}

impl Error {
    /// The file at fault, when one is. A mismatched pair counts against the key.
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Error::Read { path, .. } | Error::Content { path, .. } | Error::NonEmptyCommonName { path, .. } => {
                Some(path)
            }
            Error::KeyMismatch { key, .. } => Some(key),
            _ => None,
        }
    }
}
