//! The revocation list of clients, `--client-crl-file`.
//!
//! etcd compares serial numbers only: not the issuer, not the signature of the list, not its dates, and every
//! certificate that the client presents counts. We refuse all that etcd refuses by the same rule, so that a list which
//! revokes in etcd never admits here. The signature adds nothing, since the file stands beside the CA file and whoever
//! can write the one can write the other; a list that is out of date or of another issuer works as in etcd, and is
//! warned of. Beyond etcd, PEM is accepted, and every list in the file counts: Go reads the first and ignores the rest.

use std::collections::HashSet;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::Error;
use super::files::{Content, Fact, describe, refuse, system_time};

/// The serials that a file revokes, big-endian and without leading zeros, as Go compares them.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    serials: HashSet<Vec<u8>>,
    issuers: Vec<(Vec<u8>, String)>,
    /// The earliest next update among the lists.
    next_update: Option<SystemTime>,
}

pub(super) fn parse([file]: &[Content<'_>; 1]) -> Result<(Revoked, [Fact; 1]), Error> {
    let mut revoked = Revoked::default();
    if file.bytes.starts_with(&[0x30]) {
        revoked.add_all(file, file.bytes)?;
    } else {
        for list in CertificateRevocationListDer::pem_slice_iter(file.bytes) {
            let list =
                list.map_err(|error| refuse(file, format!("is broken PEM ({error})"), "it may be half written"))?;
            revoked.add_all(file, &list)?;
        }
    }
    if revoked.issuers.is_empty() {
        return Err(refuse(
            file,
            describe(file.bytes),
            "a certificate revocation list in DER, or in PEM sections X509 CRL, is needed",
        ));
    }
    let issuers: Vec<&str> = revoked.issuers.iter().map(|(_, name)| name.as_str()).collect();
    let fact = Fact { subject: issuers.join("; "), not_after: revoked.next_update };
    Ok((revoked, [fact]))
}

impl Revoked {
    /// Whether the certificate is revoked; its serial in hexadecimal if so. One that cannot be read is an error, since
    /// nobody can say that it is not revoked.
    pub(super) fn find(&self, certificate: &CertificateDer<'_>) -> Result<Option<String>, rustls::CertificateError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| rustls::CertificateError::BadEncoding)?;
        let serial = significant(parsed.raw_serial());
        Ok(self.serials.contains(serial).then(|| serial.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// What a person should know about the list that does not keep it from being used.
    pub(super) fn warnings(&self, trusted_subjects: &[Vec<u8>]) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.next_update.is_some_and(|end| end <= SystemTime::now()) {
            warnings.push(
                "it should have been replaced by a newer one, certificates revoked since are not known".to_string(),
            );
        }
        for (raw, name) in &self.issuers {
            if !trusted_subjects.contains(raw) {
                warnings
                    .push(format!("its issuer {name:?} is none of the trusted CAs, serials are compared all the same"));
            }
        }
        warnings
    }

    /// All lists in a row. After the first good one, what is no list is ignored, as Go ignores it.
    fn add_all(&mut self, file: &Content<'_>, mut der: &[u8]) -> Result<(), Error> {
        let mut count = 0;
        while !der.is_empty() {
            let (rest, list) = match CertificateRevocationList::from_der(der) {
                Ok(parsed) => parsed,
                Err(_) if count > 0 => break,
                Err(error) => {
                    return Err(refuse(
                        file,
                        format!("is not a revocation list ({error})"),
                        "one in DER or PEM is needed; it may be half written",
                    ));
                }
            };
            for entry in list.iter_revoked_certificates() {
                self.serials.insert(significant(entry.raw_serial()).to_vec());
            }
            self.issuers.push((list.issuer().as_raw().to_vec(), list.issuer().to_string()));
            if let Some(end) = list.next_update().and_then(system_time) {
                self.next_update = Some(self.next_update.map_or(end, |known| known.min(end)));
            }
            count += 1;
            der = rest;
        }
        Ok(())
    }
}

fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}
