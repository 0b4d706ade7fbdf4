//! Who is believed: clients by `--trusted-ca-file` and the revocation list, etcd's members by `--cacert`.
//!
//! The chain is built by webpki. On top comes what Go does besides: a certificate that itself stands in the CA file is
//! trusted as it is (etcd's `--auto-tls` makes such certificates, marked as a CA, which webpki refuses as a leaf).
//! Stricter than Go: other leaves that are marked as a CA, X.509 version 1 and RSA keys below 2048 bits are refused.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authorities::{Authorities, Usage};
use super::crl::Revoked;

/// What both sides of a handshake do with its signatures.
macro_rules! checks_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, certificate, signature, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// The listener's side: a client must show a certificate of a trusted CA that is not revoked.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    authorities: Arc<Authorities>,
    revoked: Option<Arc<Revoked>>,
}

impl ClientVerifier {
    pub(super) fn new(
        authorities: Arc<Authorities>,
        revoked: Option<Arc<Revoked>>,
    ) -> Result<ClientVerifier, rustls::Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(authorities.roots.clone(), super::provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let algorithms = super::provider().signature_verification_algorithms;
        Ok(ClientVerifier { chain, algorithms, authorities, revoked })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if let Err(error) = self.chain.verify_client_cert(leaf, intermediates, now)
            && !self.authorities.trusts_itself(leaf, now, Usage::Client)?
        {
            return Err(error);
        }
        if let Some(revoked) = &self.revoked {
            for certificate in std::iter::once(leaf).chain(intermediates) {
                if let Some(serial) = revoked.find(certificate)? {
                    tracing::debug!(serial, "transport: certificate serial revoked");
                    return Err(CertificateError::Revoked.into());
                }
            }
        }
        Ok(ClientCertVerified::assertion())
    }

    checks_signatures!();
}

/// The side towards etcd. Without authorities nothing but the signature of the handshake is checked, which is what
/// `--insecure-skip-tls-verify` means in Go, too.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    authorities: Option<Arc<Authorities>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(super) fn trusting(authorities: Arc<Authorities>) -> ServerVerifier {
        ServerVerifier { authorities: Some(authorities), ..ServerVerifier::accepting_anyone() }
    }

    pub(super) fn accepting_anyone() -> ServerVerifier {
        ServerVerifier { authorities: None, algorithms: super::provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(leaf)?;
        let chain = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &authorities.roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        if let Err(error) = chain
            && !authorities.trusts_itself(leaf, now, Usage::Server)?
        {
            return Err(error);
        }
        match verify_server_name(&parsed, server_name) {
            Err(error) if has_no_subject_alternative_name(leaf) => Err(OnlyCommonName::refusal(error)),
            verified => verified.map(|_| ServerCertVerified::assertion()),
        }
    }

    checks_signatures!();
}

/// A server certificate that names its host in the Common Name only, which Go refuses as well.
#[derive(Debug, thiserror::Error)]
#[error("certificate relies on legacy Common Name field, use SANs instead ({0})")]
struct OnlyCommonName(rustls::Error);

impl OnlyCommonName {
    fn refusal(error: rustls::Error) -> rustls::Error {
        // Not as a `CertificateError`, which would print this as debug text.
        rustls::Error::Other(OtherError(Arc::new(OnlyCommonName(error))))
    }
}

fn has_no_subject_alternative_name(leaf: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(leaf).is_ok_and(|(_, parsed)| matches!(parsed.subject_alternative_name(), Ok(None)))
}
