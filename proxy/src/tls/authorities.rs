//! The certificates of a CA file, and what it means to stand in it.

use std::sync::Arc;

use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The certificates of a CA file.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Authorities {
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Authorities {
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(certificates.iter().cloned());
        if ignored > 0 {
            tracing::debug!(ignored, "left out CA certificates that cannot be an issuer");
        }
        Authorities { roots: Arc::new(roots), certificates }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The subjects as they stand in the certificates, tag and length included.
    pub(super) fn subjects(&self) -> Vec<Vec<u8>> {
        let parsed = self.certificates.iter().filter_map(|der| X509Certificate::from_der(der).ok());
        parsed.map(|(_, certificate)| certificate.subject().as_raw().to_vec()).collect()
    }

    /// Whether the leaf itself is one of the trusted certificates, is in its time and may be used so. Nothing has to
    /// be said about its signature: the very bytes are trusted.
    pub(super) fn trusts_itself(
        &self,
        leaf: &CertificateDer<'_>,
        now: UnixTime,
        usage: Usage,
    ) -> Result<bool, CertificateError> {
        if !self.certificates.iter().any(|trusted| trusted == leaf) {
            return Ok(false);
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet);
        }
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired);
        }
        let allowed = match parsed.extended_key_usage().map_err(|_| CertificateError::BadEncoding)? {
            None => true,
            Some(usages) => {
                let named = match usage {
                    Usage::Client => usages.value.client_auth,
                    Usage::Server => usages.value.server_auth,
                };
                usages.value.any || named
            }
        };
        if allowed { Ok(true) } else { Err(CertificateError::InvalidPurpose) }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Usage {
    Client,
    Server,
}
