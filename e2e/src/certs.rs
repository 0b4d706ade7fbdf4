//! Certificates of all the kinds that etcd and the proxy take or must refuse: one authority per folder, issuing server
//! and client certificates with and without a name, expired ones, and revocation lists.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// Long enough for any test, and back-dated against clocks that disagree.
const VALID_FOR: Duration = Duration::days(30);
const BACKDATED_BY: Duration = Duration::days(1);

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
    serial: u64,
}

/// A certificate authority that writes what it issues into one folder.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    next_serial: AtomicU64,
}

impl Authority {
    /// A new authority; its own certificate becomes `ca.crt` in `folder`.
    pub fn new(folder: &Path) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = named("etcd-proxy test authority");
        let key = KeyPair::generate().expect("a key can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority can sign itself");
        std::fs::create_dir_all(folder).expect("the folder can be made");
        std::fs::write(folder.join("ca.crt"), issuer.pem()).expect("ca.crt can be written");
        Authority { issuer, folder: folder.to_owned(), next_serial: AtomicU64::new(1) }
    }

    /// The path of `ca.crt`.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// A server certificate for 127.0.0.1 and localhost. Etcd uses its own as a client certificate too, so it may be
    /// used for both, and has no name, so that it stands for no user.
    pub fn server(&self, file: &str) -> Pair {
        self.issue(file, None, usable_now(), &["127.0.0.1", "localhost"])
    }

    /// The same, expired yesterday.
    pub fn expired_server(&self, file: &str) -> Pair {
        self.issue(file, None, expired(), &["127.0.0.1", "localhost"])
    }

    /// A server certificate for these host names and addresses only.
    pub fn server_for(&self, file: &str, hosts: &[&str]) -> Pair {
        self.issue(file, None, usable_now(), hosts)
    }

    /// A client certificate whose common name is `user`.
    pub fn client(&self, file: &str, user: &str) -> Pair {
        self.issue(file, Some(user), usable_now(), &[])
    }

    /// A client certificate without a common name, as etcd's proxy wants it for itself.
    pub fn nameless_client(&self, file: &str) -> Pair {
        self.issue(file, None, usable_now(), &[])
    }

    /// A client certificate without a common name whose owner is this URI, as SPIFFE has it.
    pub fn client_for_uri(&self, file: &str, uri: &str) -> Pair {
        let uri = SanType::URI(uri.try_into().expect("a URI is ASCII"));
        self.issue_with(file, None, usable_now(), &[], &[uri])
    }

    /// A client certificate that expired yesterday.
    pub fn expired_client(&self, file: &str, user: &str) -> Pair {
        self.issue(file, Some(user), expired(), &[])
    }

    /// A revocation list of these certificates, in DER, as etcd reads it.
    pub fn revocation_list(&self, file: &str, revoked: &[&Pair]) -> PathBuf {
        let now = OffsetDateTime::now_utc();
        let list = CertificateRevocationListParams {
            this_update: now - BACKDATED_BY,
            next_update: now + VALID_FOR,
            crl_number: SerialNumber::from(self.next_serial.fetch_add(1, Ordering::Relaxed)),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|pair| RevokedCertParams {
                    serial_number: SerialNumber::from(pair.serial),
                    revocation_time: now - BACKDATED_BY,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.folder.join(file);
        let signed = list.signed_by(&self.issuer).expect("an authority can sign a list");
        std::fs::write(&path, signed.der()).expect("the list can be written");
        path
    }

    fn issue(
        &self,
        file: &str,
        name: Option<&str>,
        validity: (OffsetDateTime, OffsetDateTime),
        hosts: &[&str],
    ) -> Pair {
        self.issue_with(file, name, validity, hosts, &[])
    }

    fn issue_with(
        &self,
        file: &str,
        name: Option<&str>,
        validity: (OffsetDateTime, OffsetDateTime),
        hosts: &[&str],
        more: &[SanType],
    ) -> Pair {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("hosts are valid names or addresses");
        params.subject_alt_names.extend_from_slice(more);
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name = name.map(named).unwrap_or_else(nameless);
        (params.not_before, params.not_after) = validity;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("an authority can sign");
        let pair = Pair {
            cert: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
            serial,
        };
        std::fs::write(&pair.cert, certificate.pem()).expect("the certificate can be written");
        std::fs::write(&pair.key, key.serialize_pem()).expect("the key can be written");
        pair
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// A subject that is there, since some verifiers refuse an empty one, but carries no common name.
fn nameless() -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "etcd-proxy tests");
    name
}

fn usable_now() -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATED_BY, now + VALID_FOR)
}

fn expired() -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - VALID_FOR, now - BACKDATED_BY)
}
