//! What a certificate says of itself, for who explains it to people. It decides nothing about trust.

use std::time::SystemTime;

use rustls::{client::verify_server_name, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::files;

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    /// The host names and addresses that it is for.
    pub hosts: Vec<String>,
    pub not_before: Option<SystemTime>,
    pub not_after: Option<SystemTime>,
}

impl Certificate {
    /// None if it is no X.509 certificate.
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        Some(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            hosts: names.filter_map(host).collect(),
            not_before: files::system_time(certificate.validity().not_before),
            not_after: files::system_time(certificate.validity().not_after),
        })
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    }
}

/// Whether clients that ask for this host would find it in the certificate.
pub fn is_for(der: &CertificateDer<'_>, host: &str) -> bool {
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(der), ServerName::try_from(host)) else { return false };
    verify_server_name(&parsed, &name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_tells_whom_it_is_for() {
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let made = rcgen::generate_simple_self_signed(hosts.clone()).expect("a certificate");
        let der = made.cert.der();
        assert_eq!(Certificate::read(der).expect("a certificate").hosts, hosts);
        for (host, expected) in [("localhost", true), ("127.0.0.1", true), ("127.0.0.2", false), ("a b", false)] {
            assert_eq!(is_for(der, host), expected, "{host}");
        }
        assert_eq!(Certificate::read(&CertificateDer::from(vec![1, 2])), None);
    }
}
