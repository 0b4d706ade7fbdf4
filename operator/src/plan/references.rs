//! The Secrets and ConfigMaps that an object names: which they are, and whether what they hold can serve.

use std::collections::BTreeMap;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, Pem, X509Certificate};

use super::{Ca, Expiring, Fetched, Object, Refusal, Stage, UpstreamTls};
use crate::api::{ClientTls, EtcdBackend, EtcdProxy, KeyRef, RefKind, TlsSource, UserRef};

/// One Secret or ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: RefKind,
    pub namespace: String,
    pub name: String,
}

/// What was found under such a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Data(BTreeMap<String, Vec<u8>>),
    Missing,
    /// The operator has no right to read it; the proxy may still use it.
    NotReadable,
}

/// What the references come to.
pub struct Contents {
    pub upstream_tls: Option<UpstreamTls>,
    pub upstream_user: Option<String>,
    pub further_clients: Option<String>,
    pub expiring: Option<Expiring>,
}

/// How long before its end a certificate that was brought is complained about: whoever renews certificates at two thirds
/// of ninety days has done it by then.
const EXPIRES_SOON_SECONDS: i64 = 14 * 24 * 3600;

/// All that must be fetched before [`super::check`].
pub fn references(proxy: &EtcdProxy, backend: Option<&EtcdBackend>) -> Vec<ObjectKey> {
    let own = Object::of(proxy).namespace;
    let Upstream { tls, user, namespace } = upstream(proxy, backend);
    let mut keys = upstream_references(tls, user, &namespace);
    let serving = &proxy.spec.tls;
    if let Some(secret) = &serving.secret_ref {
        keys.push(ObjectKey { kind: RefKind::Secret, namespace: own.clone(), name: secret.name.clone() });
    }
    if let Some(ca) = &serving.client_ca_ref {
        keys.push(ObjectKey { kind: ca.kind, namespace: own, name: ca.name.clone() });
    }
    keys
}

/// Those of the way to etcd alone.
pub fn upstream_references(tls: Option<&ClientTls>, user: Option<&UserRef>, namespace: &str) -> Vec<ObjectKey> {
    let secret = tls.and_then(|tls| tls.secret_ref.as_ref()).map(|secret| (RefKind::Secret, secret.name.clone()));
    let ca = tls.and_then(|tls| tls.ca_ref.as_ref()).map(|ca| (ca.kind, ca.name.clone()));
    let user = user.map(|user| (RefKind::Secret, user.secret_ref.name.clone()));
    let all = secret.into_iter().chain(ca).chain(user);
    all.map(|(kind, name)| ObjectKey { kind, namespace: namespace.to_owned(), name }).collect()
}

/// What a spec says about the way to etcd, and the namespace whose Secrets it names.
struct Upstream<'a> {
    tls: Option<&'a ClientTls>,
    user: Option<&'a UserRef>,
    namespace: String,
}

fn upstream<'a>(proxy: &'a EtcdProxy, backend: Option<&'a EtcdBackend>) -> Upstream<'a> {
    match (&proxy.spec.backend_ref, backend) {
        (Some(_), Some(backend)) => Upstream {
            tls: backend.spec.tls.as_ref(),
            user: backend.spec.auth.as_ref(),
            namespace: backend.spec.namespace.clone(),
        },
        (Some(_), None) => Upstream { tls: None, user: None, namespace: String::new() },
        (None, _) => {
            let own = proxy.spec.upstream.as_ref();
            let (tls, user) = (own.and_then(|own| own.tls.as_ref()), own.and_then(|own| own.auth.as_ref()));
            Upstream { tls, user, namespace: Object::of(proxy).namespace }
        }
    }
}

pub fn check(proxy: &EtcdProxy, fetched: &Fetched) -> Result<Contents, Refusal> {
    let Upstream { tls, user, namespace } = upstream(proxy, fetched.backend.as_ref());
    let field = if proxy.spec.backend_ref.is_some() { "EtcdBackend spec" } else { "spec.upstream" };
    let tls_field = format!("{field}.tls");
    let upstream_tls = match tls {
        None => None,
        Some(tls) => Some(check_client(fetched, &tls_field, tls, &namespace)?),
    };
    if let Some(user) = user {
        check_user(fetched, &format!("{field}.auth"), user, &namespace)?;
    }
    let own = Object::of(proxy).namespace;
    let serving = &proxy.spec.tls;
    if let Some(secret) = serving.secret_ref.as_ref().filter(|_| serving.source == TlsSource::Secret) {
        check_pair(fetched, "spec.tls.secretRef", &own, &secret.name, false)?;
    }
    let mut further_clients = None;
    if let Some(ca) = &serving.client_ca_ref {
        further_clients = check_bundle(fetched, "spec.tls.clientCARef", &own, ca)?;
        if serving.source == TlsSource::Managed && further_clients.is_none() {
            let message = format!("spec.tls.clientCARef: the operator may not read {:?} {}", ca.kind, ca.name);
            return Err(refuse("NotReadable", message));
        }
    }
    let upstream_pair = tls.and_then(|tls| tls.secret_ref.as_ref()).map(|secret| (&secret.name, &namespace));
    let serving_pair = serving.secret_ref.as_ref().filter(|_| serving.source == TlsSource::Secret);
    let pairs = upstream_pair.map(|(name, namespace)| ("UpstreamCertificate", tls_field.as_str(), name, namespace));
    let pairs = pairs.into_iter();
    let pairs = pairs.chain(serving_pair.map(|pair| ("ServingCertificate", "spec.tls", &pair.name, &own)));
    let expiring =
        pairs.filter_map(|(reason, field, name, namespace)| expiring(fetched, reason, field, name, namespace));
    Ok(Contents {
        upstream_tls,
        upstream_user: user.map(|user| user.secret_ref.name.clone()),
        further_clients,
        expiring: expiring.min_by_key(|(not_after, _)| *not_after).map(|(_, one)| one),
    })
}

/// The keys of a Secret of type kubernetes.io/basic-auth.
pub const USERNAME: &str = "username";
pub const PASSWORD: &str = "password";

/// The proxy's own user, by itself.
pub fn check_user(fetched: &Fetched, field: &str, user: &UserRef, namespace: &str) -> Result<(), Refusal> {
    let (field, name) = (format!("{field}.secretRef"), &user.secret_ref.name);
    let Some(data) = find(fetched, &field, RefKind::Secret, namespace, name)? else { return Ok(()) };
    let missing = [USERNAME, PASSWORD].into_iter().find(|key| data.get(*key).is_none_or(Vec::is_empty));
    missing.map_or(Ok(()), |key| {
        let message = format!("{field}: Secret {name} has no key {key}; want one of type kubernetes.io/basic-auth");
        Err(refuse("KeyMissing", message))
    })
}

/// What is to be said of a certificate that somebody must renew soon, and when it ends.
fn expiring(
    fetched: &Fetched,
    reason: &'static str,
    field: &str,
    name: &str,
    namespace: &str,
) -> Option<(i64, Expiring)> {
    let key = ObjectKey { kind: RefKind::Secret, namespace: namespace.to_owned(), name: name.to_owned() };
    let Some(Found::Data(data)) = fetched.objects.get(&key) else { return None };
    let not_after = certificate_facts(data.get("tls.crt")?).ok()?.not_after;
    let left = not_after - fetched.now;
    (left < EXPIRES_SOON_SECONDS).then(|| {
        let days = left / (24 * 3600);
        let message =
            format!("{field}.secretRef: the certificate in Secret {name} ends in {days} days; put a newer one there");
        (not_after, Expiring { reason, message })
    })
}

/// The way to etcd of a backend, by itself.
pub fn check_client(fetched: &Fetched, field: &str, tls: &ClientTls, namespace: &str) -> Result<UpstreamTls, Refusal> {
    let mut ca = None;
    if let Some(reference) = &tls.ca_ref {
        check_bundle(fetched, &format!("{field}.caRef"), namespace, reference)?;
        ca = Some(Ca::Apart(reference.clone()));
    }
    let mut pair = None;
    if let Some(secret) = &tls.secret_ref {
        let data = check_pair(fetched, &format!("{field}.secretRef"), namespace, &secret.name, true)?;
        // A Secret that cannot be read is taken to be as cert-manager writes it.
        if ca.is_none() {
            data.map_or(Ok(()), |data| check_authority(field, &secret.name, data))?;
            ca = Some(Ca::WithPair("ca.crt"));
        }
        pair = Some(secret.name.clone());
    }
    Ok(UpstreamTls { pair, ca, server_name: tls.server_name.clone() })
}

/// What verifies etcd's servers and stands beside the pair. Issuers that are known everywhere, such as those of ACME, leave
/// it out or empty, and the image has no authorities of its own.
fn check_authority(field: &str, name: &str, data: &Data) -> Result<(), Refusal> {
    let bundle = data.get("ca.crt").map(|bundle| bundle.trim_ascii()).unwrap_or_default();
    if bundle.is_empty() {
        let message = format!(
            "{field}.secretRef: Secret {name} has no ca.crt, or an empty one, so nothing verifies etcd's servers: set \
             {field}.caRef to what does"
        );
        return Err(refuse("KeyMissing", message));
    }
    certificate_facts(bundle)
        .map(|_| ())
        .map_err(|error| refuse("CertificateInvalid", format!("{field}.secretRef: Secret {name}: ca.crt {error}")))
}

type Data = BTreeMap<String, Vec<u8>>;

fn find<'a>(
    fetched: &'a Fetched,
    field: &str,
    kind: RefKind,
    namespace: &str,
    name: &str,
) -> Result<Option<&'a Data>, Refusal> {
    let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
    match fetched.objects.get(&key) {
        Some(Found::Data(data)) => Ok(Some(data)),
        Some(Found::NotReadable) => Ok(None),
        Some(Found::Missing) | None => {
            let reason = if kind == RefKind::Secret { "SecretNotFound" } else { "ConfigMapNotFound" };
            Err(refuse(reason, format!("{field} names {kind:?} {name}, which does not exist in namespace {namespace}")))
        }
    }
}

fn check_pair<'a>(
    fetched: &'a Fetched,
    field: &str,
    namespace: &str,
    name: &str,
    nameless: bool,
) -> Result<Option<&'a Data>, Refusal> {
    let Some(data) = find(fetched, field, RefKind::Secret, namespace, name)? else { return Ok(None) };
    for key in ["tls.crt", "tls.key"] {
        if !data.contains_key(key) {
            let message = format!("{field}: Secret {name} has no key {key}; want one of type kubernetes.io/tls");
            return Err(refuse("KeyMissing", message));
        }
    }
    let refuse_certificate =
        |reason, cause: String| Err(refuse(reason, format!("{field}: Secret {name}: tls.crt {cause}")));
    let facts = match certificate_facts(&data["tls.crt"]) {
        Ok(facts) => facts,
        Err(error) => return refuse_certificate("CertificateInvalid", error),
    };
    if facts.not_after <= fetched.now {
        return refuse_certificate("CertificateExpired", "has expired; put a current one into the Secret".to_owned());
    }
    if let Some(common_name) = facts.common_name.filter(|name| nameless && !name.is_empty()) {
        let cause = format!(
            "has the common name {common_name:?}; etcd would take every client for that user, so the proxy refuses it: \
             issue one without a common name"
        );
        return refuse_certificate("CertificateInvalid", cause);
    }
    match public_key(&data["tls.key"]) {
        Ok(public) if public.as_ref().is_some_and(|public| *public != facts.public_key) => {
            let cause =
                "and tls.key do not belong together; the certificate of the key comes first, its issuers after it";
            refuse_certificate("KeyMismatch", cause.to_owned())
        }
        Ok(_) => Ok(Some(data)),
        Err(error) => Err(refuse("CertificateInvalid", format!("{field}: Secret {name}: tls.key {error}"))),
    }
}

/// The public half of a private key, with its algorithm, in DER; nothing if it does not tell. Read as the proxy reads it.
fn public_key(pem: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        "holds no private key that can be read; want PEM, as PKCS#8, PKCS#1 or SEC1, and not encrypted".to_owned()
    })?;
    let key = any_supported_type(&key).map_err(|error| format!("cannot be used for TLS: {error}"))?;
    Ok(key.public_key().map(|public| public.as_ref().to_vec()))
}

fn check_bundle(fetched: &Fetched, field: &str, namespace: &str, ca: &KeyRef) -> Result<Option<String>, Refusal> {
    let Some(data) = find(fetched, field, ca.kind, namespace, &ca.name)? else { return Ok(None) };
    let (kind, name, key) = (ca.kind, &ca.name, &ca.key);
    let Some(bundle) = data.get(key) else {
        return Err(refuse("KeyMissing", format!("{field}: {kind:?} {name} has no key {key}")));
    };
    match certificate_facts(bundle) {
        Ok(_) => Ok(Some(String::from_utf8_lossy(bundle).into_owned())),
        Err(error) => Err(refuse("CertificateInvalid", format!("{field}: {kind:?} {name}: {key} {error}"))),
    }
}

/// What the first certificate of a PEM file says.
pub struct CertificateFacts {
    pub common_name: Option<String>,
    pub not_before: i64,
    pub not_after: i64,
    /// The key with its algorithm, in DER.
    pub public_key: Vec<u8>,
    pub names: Vec<String>,
    /// Whose it is and who issued it, in DER.
    pub subject: Vec<u8>,
    pub issuer: Vec<u8>,
}

pub fn certificate_facts(pem: &[u8]) -> Result<CertificateFacts, String> {
    let first = Pem::iter_from_buffer(pem).next().and_then(Result::ok).ok_or("holds no PEM certificate")?;
    let (_, certificate) =
        X509Certificate::from_der(&first.contents).map_err(|error| format!("cannot be read: {error}"))?;
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
        x509_parser::extensions::GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    });
    Ok(CertificateFacts {
        common_name: certificate
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .map(str::to_owned),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        public_key: certificate.public_key().raw.to_vec(),
        names: names.collect(),
        subject: certificate.subject().as_raw().to_vec(),
        issuer: certificate.issuer().as_raw().to_vec(),
    })
}

fn refuse(reason: &'static str, message: String) -> Refusal {
    Refusal { stage: Stage::ResolvedRefs, reason, message }
}
