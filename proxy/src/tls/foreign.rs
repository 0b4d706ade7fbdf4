//! Certificates, keys and revocation lists that are damaged, in files and from peers.

use std::{path::Path, time::SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{
    Role,
    authorities::Usage,
    ciphers, crl,
    files::{self, Content},
    identity, versions,
};
use crate::foreign::damaged;

struct Pki {
    cert: CertifiedIssuer<'static, KeyPair>,
    /// In PEM.
    key: String,
    list: rcgen::CertificateRevocationList,
}

fn pki() -> Pki {
    let pair = KeyPair::generate().expect("there is randomness");
    let key = pair.serialize_pem();
    let mut params = CertificateParams::new(vec!["a.example".to_owned(), "127.0.0.1".to_owned()]).expect("good names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::KeyCertSign];
    let cert = CertifiedIssuer::self_signed(params, pair).expect("it signs itself");
    let now = SystemTime::now();
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(42),
        revocation_time: now.into(),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + std::time::Duration::from_secs(60)).into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&cert).expect("it may sign lists");
    Pki { cert, key, list }
}

fn content(role: Role, bytes: &[u8]) -> Content<'_> {
    Content { role, path: Path::new("file"), bytes }
}

#[test]
fn damaged_files_are_read_or_refused() {
    let Pki { cert, key, list } = pki();
    let (cert, key, list) = (cert.pem(), key, list.pem().expect("a list has a PEM form"));
    damaged(&[cert.as_bytes(), list.as_bytes()], |bytes| {
        let _ = files::authorities(&[content(Role::TrustedCa, bytes)]).map(drop);
        let _ = crl::parse(&[content(Role::RevocationList, bytes)]).map(drop);
        files::pair(&[content(Role::Certificate, bytes), content(Role::Key, key.as_bytes())], true).map(drop)
    });
    damaged(&[key.as_bytes()], |bytes| {
        files::pair(&[content(Role::Certificate, cert.as_bytes()), content(Role::Key, bytes)], true).map(drop)
    });
}

#[test]
fn damaged_certificates_of_peers_name_somebody_or_nobody() {
    let Pki { cert, list, .. } = pki();
    let (authorities, _) = files::authorities(&[content(Role::TrustedCa, cert.pem().as_bytes())]).expect("a good CA");
    damaged(&[cert.der(), list.der()], |bytes| {
        let certificate = CertificateDer::from(bytes);
        let _ = identity::peer_identity(std::slice::from_ref(&certificate));
        let _ = crl::parse(&[content(Role::RevocationList, bytes)]).map(|(revoked, _)| revoked.find(&certificate));
        authorities.trusts_itself(&certificate, UnixTime::now(), Usage::Client)
    });
}

#[test]
fn damaged_lists_of_ciphers_and_versions_are_read_or_refused() {
    let names: [&[u8]; 2] = [b"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256", b"TLS1.2"];
    damaged(&names, |bytes| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let suites: Vec<String> = text.split(',').map(str::to_owned).collect();
        let _ = (ciphers::select(&suites, None, None).map(drop), versions::parse_range(&text, "").map(drop));
    });
}
