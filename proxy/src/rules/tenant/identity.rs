//! Which tenant a connection belongs to: by what the client's certificate says, or one for all.

use std::sync::Arc;

use super::Tenant;
use crate::tls::identity::PeerIdentity;

/// All tenants of one proxy.
#[derive(Clone, Debug)]
pub struct Tenants {
    /// Under whose namespace the proxy does its own work: registration and health. It may do everything.
    own: Arc<Tenant>,
    assignment: Assignment,
}

#[derive(Clone, Debug)]
enum Assignment {
    /// Everyone is the same tenant.
    One(Arc<Tenant>),
    /// The first rule that fits decides; who fits none is nobody.
    ByIdentity(Vec<(Identity, Arc<Tenant>)>),
}

/// What a certificate must say. A text that ends in `*` is the beginning of what it must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    CommonName(String),
    Dns(String),
    Uri(String),
}

impl Tenants {
    /// One tenant for every connection.
    pub fn one(own: Arc<Tenant>, tenant: Arc<Tenant>) -> Self {
        Self { own, assignment: Assignment::One(tenant) }
    }

    /// A tenant for whoever a rule fits, in the order of the rules.
    pub fn by_identity(own: Arc<Tenant>, rules: Vec<(Identity, Arc<Tenant>)>) -> Self {
        Self { own, assignment: Assignment::ByIdentity(rules) }
    }

    /// Whether it depends on the certificate who someone is.
    pub fn are_by_identity(&self) -> bool {
        matches!(self.assignment, Assignment::ByIdentity(_))
    }

    pub fn own(&self) -> &Arc<Tenant> {
        &self.own
    }

    /// To whom a connection belongs whose client showed this certificate; none if nobody knows it.
    pub fn of(&self, peer: Option<&PeerIdentity>) -> Option<Arc<Tenant>> {
        match &self.assignment {
            Assignment::One(tenant) => Some(tenant.clone()),
            Assignment::ByIdentity(rules) => {
                let peer = peer?;
                rules.iter().find(|(identity, _)| identity.fits(peer)).map(|(_, tenant)| tenant.clone())
            }
        }
    }

    /// Every tenant that clients can be, each once.
    pub fn all(&self) -> Vec<Arc<Tenant>> {
        match &self.assignment {
            Assignment::One(tenant) => vec![tenant.clone()],
            Assignment::ByIdentity(rules) => {
                let mut all: Vec<Arc<Tenant>> = Vec::new();
                for (_, tenant) in rules {
                    if !all.contains(tenant) {
                        all.push(tenant.clone());
                    }
                }
                all
            }
        }
    }
}

impl Identity {
    fn fits(&self, peer: &PeerIdentity) -> bool {
        match self {
            Self::CommonName(wanted) => peer.common_name.as_deref().is_some_and(|name| is_like(name, wanted)),
            // Host names are the same in either case.
            Self::Dns(wanted) => {
                let wanted = wanted.to_ascii_lowercase();
                peer.dns_names.iter().any(|name| is_like(&name.to_ascii_lowercase(), &wanted))
            }
            Self::Uri(wanted) => peer.uris.iter().any(|uri| is_like(uri, wanted)),
        }
    }
}

fn is_like(text: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(beginning) => text.starts_with(beginning),
        None => text == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{namespace::Namespace, tenant::policy::Policy};

    fn tenant(name: &str) -> Arc<Tenant> {
        Arc::new(Tenant::new(name, Namespace::new(format!("/{name}/")), Policy::default()))
    }

    fn peer(common_name: &str, dns: &[&str], uris: &[&str]) -> PeerIdentity {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        PeerIdentity {
            common_name: (!common_name.is_empty()).then(|| common_name.to_owned()),
            dns_names: texts(dns),
            uris: texts(uris),
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules = vec![
            (Identity::CommonName("a".into()), tenant("by-name")),
            (Identity::Dns("*".into()), tenant("any-host")),
            (Identity::Uri("spiffe://cluster/ns/b/*".into()), tenant("by-uri")),
        ];
        let tenants = Tenants::by_identity(Tenant::whole(), rules);
        let check = |peer: Option<PeerIdentity>, expected: Option<&str>| {
            assert_eq!(tenants.of(peer.as_ref()).map(|tenant| tenant.name.clone()).as_deref(), expected, "{peer:?}");
        };
        check(Some(peer("a", &["h"], &[])), Some("by-name"));
        check(Some(peer("b", &["h"], &[])), Some("any-host"));
        check(Some(peer("", &[], &["spiffe://cluster/ns/b/sa/x"])), Some("by-uri"));
        check(Some(peer("", &[], &["spiffe://cluster/ns/bb/sa/x"])), None);
        check(Some(peer("A", &[], &[])), None);
        check(Some(peer("aa", &[], &[])), None);
        check(Some(peer("", &[], &[])), None);
        check(None, None);
    }

    #[test]
    fn with_one_tenant_nobody_is_asked_who_he_is() {
        let one = tenant("one");
        let tenants = Tenants::one(Tenant::whole(), one.clone());
        assert_eq!(tenants.of(None), Some(one.clone()));
        assert_eq!(tenants.all(), [one]);
        assert!(!tenants.are_by_identity());
    }

    #[test]
    fn a_tenant_with_two_identities_is_one() {
        let one = tenant("one");
        let rules =
            vec![(Identity::CommonName("a".into()), one.clone()), (Identity::Dns("A.example".into()), one.clone())];
        let tenants = Tenants::by_identity(Tenant::whole(), rules);
        assert_eq!(tenants.all(), std::slice::from_ref(&one));
        assert_eq!(tenants.of(Some(&peer("", &["a.EXAMPLE"], &[]))), Some(one));
    }
}
