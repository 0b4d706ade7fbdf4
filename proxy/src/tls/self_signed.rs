//! `--auto-tls`: a certificate that the proxy makes for itself, as etcd's `SelfCert` does.
//!
//! Files, folder, organisation, life time and log lines are etcd's, and a pair made by either is used by the other.
//! What differs: the key is on P-256, not P-521, since P-521 signs ten times slower and many TLS libraries cannot
//! verify it; the certificate is not a CA, since it has to sign nothing and libraries refuse a CA as a server; it names
//! the host that is listened on (etcd's parse of `https://host:port` fails and leaves an empty name); and one that has
//! run out is replaced.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rcgen::{PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::files::system_time;

/// What goes into the certificate, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// etcd's place is `<data-dir>/fixtures/proxy`.
    pub dir: PathBuf,
    pub validity_years: u32,
    /// Hosts or `host:port`, a scheme before it is ignored. An address like 0.0.0.0 stands for the loopback ones.
    pub hosts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelfSignedError {
    /// etcd's words.
    #[error("selfSignedCertValidity is invalid,it should be greater than 0")]
    NoValidity,
    #[error("cannot {doing} {}: {reason}; --auto-tls needs a data-dir that can be written", .path.display())]
    File { doing: &'static str, path: PathBuf, reason: String },
    #[error("cannot generate the certificate for --auto-tls: {0}")]
    Generate(String),
}

/// A year as etcd counts it for `--self-signed-cert-validity`.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// The largest life time: an X.509 date ends with the year 9999, and nobody needs more than this.
const MAX_YEARS: u32 = 1000;

/// The paths of certificate and key, made now unless they are there.
pub fn make(config: &Config) -> Result<(PathBuf, PathBuf), SelfSignedError> {
    if config.validity_years == 0 {
        tracing::warn!(error = %SelfSignedError::NoValidity, "cannot generate cert");
        return Err(SelfSignedError::NoValidity);
    }
    let failed = |doing, path: &Path| {
        let path = path.to_path_buf();
        move |error: std::io::Error| SelfSignedError::File { doing, path, reason: error.to_string() }
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.dir)
        .map_err(failed("create the folder", &config.dir))?;
    let dir = std::path::absolute(&config.dir).map_err(failed("find the folder", &config.dir))?;
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    if cert.exists() && key.exists() && !has_run_out(&cert) {
        return Ok((cert, key));
    }
    let not_after = SystemTime::now() + YEAR * config.validity_years.min(MAX_YEARS);
    tracing::warn!("certificate-validity-bound-not-after" = %time::OffsetDateTime::from(not_after), "automatically generate certificates");
    let (cert_pem, key_pem) =
        generate(&config.hosts, not_after).map_err(|error| SelfSignedError::Generate(error.to_string()))?;
    // The certificate comes last: a start that was cut off between the two finds no certificate and makes both anew.
    let _ = std::fs::remove_file(&cert);
    write_whole(&key, &key_pem).map_err(failed("write", &key))?;
    tracing::info!(path = %key.display(), "created key file");
    write_whole(&cert, &cert_pem).map_err(failed("write", &cert))?;
    tracing::info!(path = %cert.display(), "created cert file");
    Ok((cert, key))
}

fn generate(hosts: &[String], not_after: SystemTime) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    // An hour back, for clients whose clock is a little behind.
    params.not_before = (SystemTime::now().min(not_after) - Duration::from_secs(3600)).into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = subject_alt_names(hosts)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn subject_alt_names(hosts: &[String]) -> Result<Vec<SanType>, rcgen::Error> {
    const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
    let mut names: Vec<SanType> = Vec::new();
    let mut add = |name: &str| -> Result<(), rcgen::Error> {
        let name = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into()?),
        };
        if !names.contains(&name) {
            names.push(name);
        }
        Ok(())
    };
    for host in hosts {
        let bare = bare_host(host);
        let is_any = bare.is_empty() || bare.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        if is_any {
            LOOPBACK.into_iter().try_for_each(&mut add)?;
        } else {
            add(bare)?;
        }
    }
    if names.is_empty() {
        return subject_alt_names(&[String::new()]);
    }
    Ok(names)
}

fn bare_host(host: &str) -> &str {
    let host = host.split_once("://").map_or(host, |(_, rest)| rest);
    if host.parse::<IpAddr>().is_ok() {
        return host;
    }
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whether a certificate that was made here, or by etcd, is past its end. Any other file is left for the loader to judge:
/// whoever put it here may still want it.
fn has_run_out(cert: &Path) -> bool {
    let Ok(der) = CertificateDer::from_pem_file(cert) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return false };
    let is_ours = parsed.subject() == parsed.issuer() && parsed.subject().to_string() == "O=etcd";
    let has_run_out = is_ours && system_time(parsed.validity().not_after).is_some_and(|end| end <= SystemTime::now());
    if has_run_out {
        tracing::warn!(path = %cert.display(), "the automatically generated certificate has expired, making a new one");
    }
    has_run_out
}

/// Writes a new file beside and moves it into place, so that nobody reads half of it; readable by its owner only.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("pem.new");
    let _ = std::fs::remove_file(&beside);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(dir: &Path, hosts: &[&str]) -> Config {
        Config {
            dir: dir.join("fixtures/proxy"),
            validity_years: 2,
            hosts: hosts.iter().map(|host| host.to_string()).collect(),
        }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("the file was made").permissions().mode() & 0o777
    }

    #[test]
    fn the_pair_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = config(dir.path(), &["https://127.0.0.1:23790"]);
        let (cert, key) = make(&config).expect("the folder can be written");
        assert_eq!((mode(&config.dir), mode(&cert), mode(&key)), (0o700, 0o600, 0o600));
        let first = std::fs::read(&cert).expect("the certificate is there");
        make(&config).expect("the pair is used again");
        assert_eq!(std::fs::read(&cert).expect("the certificate is there"), first);
        let der = CertificateDer::from_pem_slice(&first).expect("PEM");
        let (_, parsed) = X509Certificate::from_der(&der).expect("X.509");
        assert_eq!(parsed.subject().to_string(), "O=etcd");
        let days = (parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp()) / 86400;
        assert_eq!(days, 2 * 365);
    }

    #[test]
    fn no_validity_is_refused_in_the_words_of_etcd() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let refusal = make(&Config { validity_years: 0, ..config(dir.path(), &[]) }).expect_err("no life time");
        assert_eq!(refusal.to_string(), "selfSignedCertValidity is invalid,it should be greater than 0");
    }

    #[test]
    fn the_certificate_names_the_host_that_is_listened_on() {
        let names = |host: &str| format!("{:?}", subject_alt_names(&[host.to_string()]).expect("names"));
        assert!(names("https://10.0.0.3:23790").contains("10.0.0.3"));
        assert!(names("[fd00::1]:23790").contains("fd00::1"));
        assert!(names("proxy.local:23790").contains("proxy.local"));
        for any in ["0.0.0.0:23790", ":23790", "[::]:23790", ""] {
            assert!(names(any).contains("localhost") && names(any).contains("127.0.0.1"), "{any}");
        }
    }

    #[test]
    fn only_a_generated_certificate_that_has_expired_is_replaced() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = config(dir.path(), &[]);
        let (cert, key) = make(&config).expect("the folder can be written");
        let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
        let (expired, _) = generate(&config.hosts, yesterday).expect("a certificate");
        for (content, is_kept) in [(expired.as_str(), false), ("not a certificate", true)] {
            std::fs::write(&cert, content).expect("the file can be written");
            assert_eq!(make(&config), Ok((cert.clone(), key.clone())));
            let found = std::fs::read_to_string(&cert).expect("the certificate is there");
            assert_eq!(found == content, is_kept, "{content}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_in_the_refusal() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("fixtures");
        std::fs::write(&file, "in the way").expect("a file can be written");
        let refusal = make(&config(dir.path(), &[])).expect_err("a file is in the way").to_string();
        assert!(refusal.contains("fixtures/proxy") && refusal.contains("data-dir"), "{refusal}");
    }
}
