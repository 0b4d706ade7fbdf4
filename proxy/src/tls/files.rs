//! Certificates, keys and CA bundles out of files, with refusals that say what was found and what would be right.
//!
//! Go's `tls.X509KeyPair` and etcd's `NewCertPool` set what is accepted: a certificate file may hold other sections, a
//! key file may start with EC parameters, a CA file may hold many certificates.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::authorities::Authorities;
use super::{Error, Role, identity};
use crate::go;

/// The system's bundle of all public CAs has half a megabyte; more than this is some other file.
const MAX_PEM_BYTES: u64 = 8 << 20;
/// Revocation lists of public CAs reach tens of megabytes; one list is held in memory as serials only.
const MAX_CRL_BYTES: u64 = 64 << 20;

/// One file as it was read.
pub(super) struct Content<'a> {
    pub role: Role,
    pub path: &'a Path,
    pub bytes: &'a [u8],
}

/// What a person wants to know about a file that is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fact {
    pub subject: String,
    pub not_after: Option<SystemTime>,
}

pub(super) fn read(role: Role, path: &Path) -> Result<Vec<u8>, Error> {
    let limit = if role == Role::RevocationList { MAX_CRL_BYTES } else { MAX_PEM_BYTES };
    let refuse = |found: String| Error::Read {
        role,
        path: path.to_path_buf(),
        found,
        wanted: format!("a readable file with {} is needed", wanted(role)),
    };
    let metadata = std::fs::metadata(path).map_err(|error| refuse(go::io_error(&error)))?;
    if metadata.is_dir() {
        return Err(refuse("it is a directory".to_string()));
    }
    // Opening a named pipe would wait for a writer, and it could be read only once.
    if !metadata.is_file() {
        return Err(refuse("it is not a regular file".to_string()));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| refuse(go::io_error(&error)))?;
    if bytes.len() as u64 > limit {
        return Err(refuse(format!("it is larger than {} MiB", limit >> 20)));
    }
    Ok(bytes)
}

/// A certificate chain and its key. With `require_empty_common_name` a certificate that names a user is refused: etcd
/// would take every call of the proxy's clients for a call of that user.
pub(super) fn pair(
    [cert, key]: &[Content<'_>; 2],
    require_empty_common_name: bool,
) -> Result<(CertifiedKey, [Fact; 2]), Error> {
    let chain = certificates(cert)?;
    let leaf = parse_certificate(cert, &chain[0], 1, chain.len())?;
    if require_empty_common_name && let Some(common_name) = identity::common_name_for_refusal(&leaf) {
        return Err(Error::NonEmptyCommonName { common_name, path: cert.path.to_path_buf() });
    }
    let facts = [fact(&leaf), Fact::default()];
    let signing_key = super::provider().key_provider.load_private_key(private_key(key)?).map_err(|error| {
        refuse(
            key,
            format!("holds a private key that cannot be used ({error})"),
            "an RSA key of 2048 to 8192 bits, an ECDSA key on P-256, P-384 or P-521, or an Ed25519 key is needed",
        )
    })?;
    if let Some(public) = signing_key.public_key() {
        let matches = |der: &CertificateDer<'_>| {
            X509Certificate::from_der(der).is_ok_and(|(_, parsed)| parsed.public_key().raw == public.as_ref())
        };
        if !matches(&chain[0]) {
            let hint = match chain.iter().position(matches) {
                Some(index) => {
                    format!(", but of certificate {} in it; the leaf must come first, then its issuers", index + 1)
                }
                None => "; both must be of the same issue, look whether only one of them was replaced".to_string(),
            };
            return Err(Error::KeyMismatch { cert: cert.path.to_path_buf(), key: key.path.to_path_buf(), hint });
        }
    }
    Ok((CertifiedKey::new(chain, signing_key), facts))
}

/// The certificates of a CA file. One that is no certificate at all makes the file wrong, as in etcd.
pub(super) fn authorities([file]: &[Content<'_>; 1]) -> Result<(Authorities, [Fact; 1]), Error> {
    let certificates = certificates(file)?;
    let mut dated = Vec::with_capacity(certificates.len());
    for (index, der) in certificates.iter().enumerate() {
        dated.push(fact(&parse_certificate(file, der, index + 1, certificates.len())?));
    }
    let authorities = Authorities::new(certificates);
    if authorities.is_empty() {
        return Err(refuse(
            file,
            "holds no certificate that could be trusted as an issuer".to_string(),
            "a CA certificate is needed",
        ));
    }
    Ok((authorities, [next_to_expire(dated)]))
}

/// The roots of the system, for a connection to etcd without `--cacert`: the first of the usual bundles and all of the
/// usual folders, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name instead, as in Go. They are read once.
///
/// What cannot be read or parsed is left out: the bundle is not ours, and a handshake says which issuer is unknown.
pub(super) fn system_authorities() -> Authorities {
    const BUNDLES: &[&str] = &[
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/tls/cacert.pem",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    const FOLDERS: &[&str] = &["/etc/ssl/certs", "/etc/pki/tls/certs"];
    let paths = |variable: &str, usual: &[&str]| -> Vec<PathBuf> {
        match std::env::var_os(variable) {
            Some(list) if !list.is_empty() => std::env::split_paths(&list).collect(),
            _ => usual.iter().map(PathBuf::from).collect(),
        }
    };
    let certificates_in = |path: &Path| -> Vec<CertificateDer<'static>> {
        let bytes = read(Role::TrustedCa, path).unwrap_or_default();
        CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok).collect()
    };
    let bundles = paths("SSL_CERT_FILE", BUNDLES);
    let bundle = bundles.iter().map(|path| certificates_in(path)).find(|found| !found.is_empty());
    let folders = paths("SSL_CERT_DIR", FOLDERS);
    let in_folders =
        folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().filter_map(Result::ok);
    // The folders mostly hold the same certificates once more, twice even, by links from their hashes.
    let mut seen = HashSet::new();
    let all = bundle.unwrap_or_default().into_iter().chain(in_folders.flat_map(|entry| certificates_in(&entry.path())));
    let distinct: Vec<_> = all.filter(|certificate| seen.insert(certificate.to_vec())).collect();
    if distinct.is_empty() {
        tracing::warn!(
            "found no CA certificates on this system, so that no https endpoint of etcd can be trusted; give --cacert"
        );
    }
    Authorities::new(distinct)
}

pub(super) fn system_time(time: ASN1Time) -> Option<SystemTime> {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

pub(super) fn refuse(file: &Content<'_>, found: String, wanted: &str) -> Error {
    Error::Content { role: file.role, path: file.path.to_path_buf(), found, wanted: wanted.to_string() }
}

/// What a file is, in words that follow its name, when it is not what it should be.
pub(super) fn describe(bytes: &[u8]) -> String {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return "is empty".to_string();
    }
    let labels = labels(bytes);
    if labels.is_empty() {
        // Every certificate, key and list in DER is one long SEQUENCE with a length of one, two or three bytes.
        return match bytes {
            [0x30, 0x81..=0x84, ..] => "is DER, not PEM".to_string(),
            _ => "holds no PEM section".to_string(),
        };
    }
    format!("holds {}", labels.join(", "))
}

fn certificates(file: &Content<'_>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut certificates = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(file.bytes) {
        match section {
            Ok((SectionKind::Certificate, der)) => certificates.push(CertificateDer::from(der)),
            Ok(_) => {}
            Err(error) => return Err(refuse(file, format!("is broken PEM ({error})"), "it may be half written")),
        }
    }
    if certificates.is_empty() {
        let found = describe(file.bytes);
        let wanted = if found.contains("PRIVATE KEY") {
            "a PEM section CERTIFICATE is needed; are the certificate and the key swapped?"
        } else if found.contains("DER") {
            "PEM is needed; `openssl x509 -inform der` converts it"
        } else {
            "a PEM section CERTIFICATE is needed"
        };
        return Err(refuse(file, found, wanted));
    }
    Ok(certificates)
}

fn private_key(file: &Content<'_>) -> Result<PrivateKeyDer<'static>, Error> {
    let labels = labels(file.bytes);
    let is_encrypted = labels.iter().any(|label| label == "ENCRYPTED PRIVATE KEY")
        || file.bytes.windows(ENCRYPTED_HEADER.len()).any(|window| window == ENCRYPTED_HEADER);
    if is_encrypted {
        return Err(refuse(
            file,
            "holds an encrypted private key".to_string(),
            "a key without a passphrase is needed; `openssl pkey` takes it off",
        ));
    }
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(file.bytes) {
        match section {
            Ok((SectionKind::PrivateKey, der)) => return Ok(PrivateKeyDer::Pkcs8(der.into())),
            Ok((SectionKind::RsaPrivateKey, der)) => return Ok(PrivateKeyDer::Pkcs1(der.into())),
            Ok((SectionKind::EcPrivateKey, der)) => return Ok(PrivateKeyDer::Sec1(der.into())),
            Ok(_) => {}
            Err(error) => return Err(refuse(file, format!("is broken PEM ({error})"), "it may be half written")),
        }
    }
    let found = describe(file.bytes);
    let wanted = if found.contains("CERTIFICATE") {
        "a PEM section PRIVATE KEY is needed; are the certificate and the key swapped?"
    } else if found.contains("DER") {
        "PEM is needed; `openssl pkey -inform der` converts it"
    } else {
        "a PEM section PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY is needed"
    };
    Err(refuse(file, found, wanted))
}

/// The line by which the old format says that the section is encrypted.
const ENCRYPTED_HEADER: &[u8] = b"Proc-Type: 4,ENCRYPTED";

/// How many sections a refusal names at most.
const MAX_LABELS: usize = 5;

fn labels(bytes: &[u8]) -> Vec<String> {
    bytes
        .split(|byte| *byte == b'\n' || *byte == b'\r')
        .filter_map(|line| line.strip_prefix(b"-----BEGIN "))
        .map(|label| String::from_utf8_lossy(label).trim_end_matches([' ', '-']).chars().take(40).collect())
        .take(MAX_LABELS)
        .collect()
}

fn parse_certificate<'a>(
    file: &Content<'_>,
    der: &'a CertificateDer<'_>,
    number: usize,
    count: usize,
) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(refuse(
            file,
            format!("holds as certificate {number} of {count} what is not an X.509 certificate ({error})"),
            "it may be half written",
        )),
    }
}

fn wanted(role: Role) -> &'static str {
    match role {
        Role::Certificate => "a certificate in PEM",
        Role::Key => "a private key in PEM",
        Role::TrustedCa => "CA certificates in PEM",
        Role::RevocationList => "a certificate revocation list",
    }
}

fn fact(certificate: &X509Certificate<'_>) -> Fact {
    Fact { subject: certificate.subject().to_string(), not_after: system_time(certificate.validity().not_after) }
}

/// Of several CAs the one that runs out next; one that ran out long ago and was left in the bundle says nothing.
fn next_to_expire(mut facts: Vec<Fact>) -> Fact {
    facts.sort_by_key(|fact| fact.not_after);
    let now = SystemTime::now();
    let next = facts.iter().position(|fact| fact.not_after.is_some_and(|end| end > now));
    next.map(|index| facts.swap_remove(index)).or_else(|| facts.pop()).unwrap_or_default()
}
