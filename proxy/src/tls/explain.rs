//! Why a handshake failed, in words for the person who has to mend it: what was refused by whom, and which flag to see.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use rustls_pki_types::UnixTime;

/// Who was at the other end of the failed handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Client,
    Etcd,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Client => "the client",
            Peer::Etcd => "etcd",
        }
    }

    /// The flag that says whom we trust at this end.
    fn authorities_flag(self) -> &'static str {
        match self {
            Peer::Client => "--trusted-ca-file",
            Peer::Etcd => "--cacert (or of the system, without that flag)",
        }
    }

    /// The flag with the certificate that we show to this end.
    fn certificate_flag(self) -> &'static str {
        match self {
            Peer::Client => "--cert-file",
            Peer::Etcd => "--cert",
        }
    }
}

/// One sentence without a full stop. What is not known better is said in the words of the TLS library.
pub fn explain(peer: Peer, error: &io::Error) -> String {
    let library = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match library {
        Some(error) => explain_library(peer, error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!("{} closed the connection during the TLS handshake", peer.name())
        }
        None => format!("the connection to {} broke during the TLS handshake: {error}", peer.name()),
    }
}

fn explain_library(peer: Peer, error: &Error) -> String {
    let (name, own) = (peer.name(), peer.certificate_flag());
    match error {
        Error::InvalidCertificate(error) => explain_certificate(peer, error),
        Error::NoCertificatesPresented => {
            format!("{name} sent no certificate, and {} asks for one", peer.authorities_flag())
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("{name} wants a certificate and was shown none, see {own}")
        }
        Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => format!("{name} refuses the certificate of this proxy ({alert:?}), see {own}"),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            format!("{name} does not speak TLS, is it http where https is meant?")
        }
        Error::NoApplicationProtocol => format!("{name} speaks neither h2 nor http/1.1"),
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
            format!("{name} has no cipher suite in common with this proxy, see --listen-cipher-suites")
        }
        error => format!("the TLS handshake with {name} failed: {error}"),
    }
}

fn explain_certificate(peer: Peer, error: &CertificateError) -> String {
    let name = peer.name();
    match error {
        CertificateError::UnknownIssuer => {
            format!("the certificate of {name} is not of a CA in {}", peer.authorities_flag())
        }
        // What a CA that was made anew under its old name leads to.
        CertificateError::BadSignature => format!(
            "the certificate of {name} is signed by another CA of the same name as the one in {}",
            peer.authorities_flag()
        ),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate of {name} expired on {}", date(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate of {name} is not valid before {}, is a clock wrong?", date(*not_before))
        }
        CertificateError::Expired => format!("the certificate of {name} has expired"),
        CertificateError::Revoked => format!("the certificate of {name} is revoked by --client-crl-file"),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "the certificate of {name} is not for {}, but for {}",
            expected.to_str(),
            if presented.is_empty() { "no name".to_string() } else { presented.join(", ") }
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("the extended key usage of the certificate of {name} does not allow this use")
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
            Some(webpki::Error::CaUsedAsEndEntity) => format!(
                "the certificate of {name} is marked as a CA; such a one is taken only if it stands itself in {}",
                peer.authorities_flag()
            ),
            Some(webpki::Error::UnsupportedCertVersion) => {
                format!("the certificate of {name} is X.509 version 1, version 3 is needed")
            }
            _ => format!("the certificate of {name} is refused: {other}"),
        },
        error => format!("the certificate of {name} is refused: {error}"),
    }
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(time) => time.date().to_string(),
        Err(_) => format!("second {seconds} since 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(peer: Peer, error: Error, expected: &str) {
        assert_eq!(explain(peer, &io::Error::new(io::ErrorKind::InvalidData, error)), expected);
    }

    #[test]
    fn a_failed_handshake_is_told_with_the_flag_to_look_at() {
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let expired = CertificateError::ExpiredContext { time: at(1_800_000_000), not_after: at(1_793_577_600) };
        check(Peer::Etcd, expired.into(), "the certificate of etcd expired on 2026-11-02");
        check(
            Peer::Client,
            Error::NoCertificatesPresented,
            "the client sent no certificate, and --trusted-ca-file asks for one",
        );
        check(
            Peer::Etcd,
            Error::AlertReceived(AlertDescription::CertificateRequired),
            "etcd wants a certificate and was shown none, see --cert",
        );
        check(
            Peer::Client,
            Error::AlertReceived(AlertDescription::UnknownCA),
            "the client refuses the certificate of this proxy (UnknownCA), see --cert-file",
        );
        check(
            Peer::Client,
            Error::InvalidMessage(InvalidMessage::InvalidContentType),
            "the client does not speak TLS, is it http where https is meant?",
        );
        let marked = CertificateError::Other(rustls::OtherError(std::sync::Arc::new(webpki::Error::CaUsedAsEndEntity)));
        check(
            Peer::Client,
            marked.into(),
            "the certificate of the client is marked as a CA; such a one is taken only if it stands itself in --trusted-ca-file",
        );
    }

    #[test]
    fn a_connection_that_just_ends_is_no_riddle() {
        let gone = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(explain(Peer::Etcd, &gone), "etcd closed the connection during the TLS handshake");
    }
}
