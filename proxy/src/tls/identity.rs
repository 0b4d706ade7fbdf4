//! Who is at the other end, as its certificate says.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What a verified certificate says about its owner. etcd takes the Common Name for a user's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The last Common Name of the subject, which is the one that Go takes; none when it is empty or not text.
    pub common_name: Option<String>,
    pub dns_names: Vec<String>,
    pub uris: Vec<String>,
}

impl PeerIdentity {
    /// A name for logs: the first of what it says that it has.
    pub fn name(&self) -> Option<&str> {
        let mut names = self.common_name.iter().chain(&self.uris).chain(&self.dns_names);
        names.next().map(String::as_str)
    }
}

/// The identity in the leaf of a chain; none without a certificate or with one that cannot be read.
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Option<PeerIdentity> {
    let (_, leaf) = X509Certificate::from_der(certificates.first()?).ok()?;
    let mut identity =
        PeerIdentity { common_name: last_common_name(&leaf).and_then(Result::ok), ..PeerIdentity::default() };
    if let Ok(Some(names)) = leaf.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => identity.dns_names.push(name.to_string()),
                GeneralName::URI(uri) => identity.uris.push(uri.to_string()),
                _ => {}
            }
        }
    }
    Some(identity)
}

/// The Common Name for which a certificate is refused where none is allowed. One that is not text counts: it is not
/// empty, and what etcd would read in it is not known here.
pub(super) fn common_name_for_refusal(certificate: &X509Certificate<'_>) -> Option<String> {
    last_common_name(certificate).map(|name| name.unwrap_or_else(|lossy| lossy))
}

/// The last Common Name that is not empty; as an error, in a readable form, when it is not text.
fn last_common_name(certificate: &X509Certificate<'_>) -> Option<Result<String, String>> {
    let name = certificate.subject().iter_common_name().last()?;
    match name.as_str() {
        Ok("") => None,
        Ok(text) => Some(Ok(text.to_string())),
        Err(_) if name.as_slice().is_empty() => None,
        Err(_) => Some(Err(String::from_utf8_lossy(name.as_slice()).into_owned())),
    }
}
