//! Managed certificates: per EtcdProxy one authority for the proxies and one for their clients, a serving certificate and
//! a client certificate. Pure: what is stored and the time of day in, what shall be stored out.
//!
//! A new authority is trusted for a while before it signs, and an old one for as long as its certificates live, so that
//! at no time does a peer meet a certificate whose authority it has not yet been told of. Kubernetes takes up to two
//! minutes to show a changed Secret to a pod.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::plan::{Managed, Object, certificate_facts};

/// Far longer than a certificate, so that authorities hardly ever change.
const AUTHORITY_LIFETIME: Duration = Duration::days(3650);
/// Short enough that a lost key is not lost for long, long enough that a stopped operator does no harm for a month.
const LIFETIME: Duration = Duration::days(90);
/// A certificate is renewed when a third of its life is left, an authority likewise.
const RENEW_AT: i32 = 3;
/// How long a new authority is only trusted before it signs.
const TRUSTED_FIRST: Duration = Duration::days(1);
/// Against clocks that disagree.
const BACKDATED: Duration = Duration::hours(1);

pub type Data = BTreeMap<String, Vec<u8>>;

/// The contents of the three Secrets, as far as they exist.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    pub ca: Data,
    pub serving: Data,
    pub client: Data,
}

/// What they shall be.
#[derive(Clone, Debug)]
pub struct Issued {
    pub stored: Stored,
    pub serving_not_after: i64,
    pub client_not_after: i64,
    /// What was issued now, for events: `serving` and the like.
    pub renewed: Vec<&'static str>,
}

/// Keeps what is good and issues what is missing, about to expire, or for other names.
pub fn keep(object: &Object, managed: &Managed, stored: &Stored, now: OffsetDateTime) -> Result<Issued, rcgen::Error> {
    let mut renewed = Vec::new();
    let mut ca = Data::new();
    let serving_authority = Authority::keep("serving", object, &stored.ca, now, &mut ca, &mut renewed)?;
    let client_authority = Authority::keep("clients", object, &stored.ca, now, &mut ca, &mut renewed)?;

    let wanted = Wanted { names: &managed.names, usage: ExtendedKeyUsagePurpose::ServerAuth };
    let serving = wanted.keep("serving", &serving_authority, &stored.serving, now, &mut renewed)?;
    // Without a common name, since a sidecar shows it to a proxy, which refuses to carry somebody's name to etcd.
    let client_names = [format!("{}.{}.client", object.name, object.namespace)];
    let wanted = Wanted { names: &client_names, usage: ExtendedKeyUsagePurpose::ClientAuth };
    let client = wanted.keep("client", &client_authority, &stored.client, now, &mut renewed)?;

    let further = managed.further_clients.as_deref().unwrap_or_default();
    let clients = format!("{}{further}", client_authority.bundle);
    let mut serving_files = files(&serving, &serving_authority);
    serving_files.insert("client-ca.crt".to_owned(), clients.into_bytes());
    Ok(Issued {
        stored: Stored { ca, serving: serving_files, client: files(&client, &serving_authority) },
        serving_not_after: serving.not_after,
        client_not_after: client.not_after,
        renewed,
    })
}

/// The same for a server alone, which keeps its authority beside its certificate in one Secret.
pub fn keep_server(
    object: &Object,
    names: &[String],
    stored: &Data,
    now: OffsetDateTime,
) -> Result<Data, rcgen::Error> {
    let (mut data, mut renewed) = (Data::new(), Vec::new());
    let authority = Authority::keep("serving", object, stored, now, &mut data, &mut renewed)?;
    let wanted = Wanted { names, usage: ExtendedKeyUsagePurpose::ServerAuth };
    let leaf = wanted.keep("serving", &authority, stored, now, &mut renewed)?;
    data.extend(files(&leaf, &authority));
    Ok(data)
}

/// A certificate, its key, and what verifies the servers.
fn files(leaf: &Leaf, authority: &Authority) -> Data {
    Data::from([
        ("tls.crt".to_owned(), leaf.certificate.clone().into_bytes()),
        ("tls.key".to_owned(), leaf.key.clone().into_bytes()),
        ("ca.crt".to_owned(), authority.bundle.clone().into_bytes()),
    ])
}

struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    /// All certificates to be trusted.
    bundle: String,
}

impl Authority {
    fn keep(
        name: &'static str,
        object: &Object,
        stored: &Data,
        now: OffsetDateTime,
        kept: &mut Data,
        renewed: &mut Vec<&'static str>,
    ) -> Result<Authority, rcgen::Error> {
        let mut current = pair(stored, name).filter(|pair| time_left(&pair.0, now) > Duration::ZERO);
        let mut next = pair(stored, &format!("{name}-next"));
        let mut previous = text(stored, &format!("{name}-previous.crt"));
        if current.is_none() {
            renewed.push(if name == "serving" { "serving CA" } else { "client CA" });
        }
        let mut pair = match current.take() {
            Some(pair) => pair,
            None => authority(name, object, now)?,
        };
        if next.is_none() && time_left(&pair.0, now) < AUTHORITY_LIFETIME / RENEW_AT {
            next = Some(authority(name, object, now)?);
            renewed.push(if name == "serving" { "next serving CA" } else { "next client CA" });
        }
        if let Some(ready) = next.take_if(|next| age(&next.0, now) > TRUSTED_FIRST) {
            previous = Some(std::mem::replace(&mut pair, ready).0);
        }
        let previous = previous.filter(|certificate| time_left(certificate, now) > Duration::ZERO);

        let (certificate, key) = pair;
        let mut keep = |suffix: &str, text: &String| kept.insert(format!("{name}{suffix}"), text.clone().into_bytes());
        keep(".crt", &certificate);
        keep(".key", &key);
        let mut bundle = certificate.clone();
        if let Some((certificate, key)) = &next {
            keep("-next.crt", certificate);
            keep("-next.key", key);
            bundle += certificate;
        }
        if let Some(certificate) = &previous {
            keep("-previous.crt", certificate);
            bundle += certificate;
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key)?)?;
        Ok(Authority { certificate, issuer, bundle })
    }
}

/// A certificate and its key, in PEM, if both can be read.
fn pair(data: &Data, name: &str) -> Option<(String, String)> {
    let (certificate, key) = (text(data, &format!("{name}.crt"))?, text(data, &format!("{name}.key"))?);
    certificate_facts(certificate.as_bytes()).ok()?;
    KeyPair::from_pem(&key).ok()?;
    Some((certificate, key))
}

fn text(data: &Data, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.clone()).ok()
}

fn authority(name: &str, object: &Object, now: OffsetDateTime) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut parameters = parameters(now, AUTHORITY_LIFETIME);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // The hash of the key makes the name unique, so that a certificate tells which authority issued it.
    let unique = crate::plan::short_hash(&key.public_key_pem());
    let common_name = format!("{} {name} {unique}", object.name);
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

struct Wanted<'a> {
    names: &'a [String],
    usage: ExtendedKeyUsagePurpose,
}

struct Leaf {
    certificate: String,
    key: String,
    not_after: i64,
}

impl Wanted<'_> {
    fn keep(
        &self,
        name: &'static str,
        authority: &Authority,
        stored: &Data,
        now: OffsetDateTime,
        renewed: &mut Vec<&'static str>,
    ) -> Result<Leaf, rcgen::Error> {
        if let Some((certificate, key)) = pair(stored, "tls")
            && self.is_met_by(&certificate, authority, now)
        {
            let not_after = certificate_facts(certificate.as_bytes()).map_or(0, |facts| facts.not_after);
            return Ok(Leaf { certificate, key, not_after });
        }
        renewed.push(name);
        let key = KeyPair::generate()?;
        let mut parameters = parameters(now, LIFETIME);
        parameters.subject_alt_names = CertificateParams::new(self.names.to_vec())?.subject_alt_names;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![self.usage.clone()];
        parameters.use_authority_key_identifier_extension = true;
        let not_after = parameters.not_after.unix_timestamp();
        let certificate = parameters.signed_by(&key, &authority.issuer)?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem(), not_after })
    }

    fn is_met_by(&self, certificate: &str, authority: &Authority, now: OffsetDateTime) -> bool {
        let facts = certificate_facts(certificate.as_bytes());
        let issuer = certificate_facts(authority.certificate.as_bytes());
        let (Ok(mut facts), Ok(issuer)) = (facts, issuer) else { return false };
        let mut names = self.names.to_vec();
        names.sort();
        facts.names.sort();
        facts.issuer == issuer.subject && facts.names == names && time_left(certificate, now) > LIFETIME / RENEW_AT
    }
}

fn parameters(now: OffsetDateTime, lifetime: Duration) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::OrganizationName, crate::api::GROUP);
    parameters.not_before = now - BACKDATED;
    parameters.not_after = now + lifetime;
    parameters
}

fn time_left(certificate: &str, now: OffsetDateTime) -> Duration {
    let not_after = certificate_facts(certificate.as_bytes()).map_or(0, |facts| facts.not_after);
    Duration::seconds(not_after - now.unix_timestamp())
}

fn age(certificate: &str, now: OffsetDateTime) -> Duration {
    let not_before = certificate_facts(certificate.as_bytes()).map_or(i64::MAX, |facts| facts.not_before);
    Duration::seconds(now.unix_timestamp().saturating_sub(not_before)) - BACKDATED
}
