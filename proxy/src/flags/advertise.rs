//! The address that a proxy advertises: as it was given, or as the name that a cluster's DNS has for a pod. It stands alone
//! since registration, member lists and `check` must all mean the same.

use std::net::SocketAddr;

use super::Flags;
use crate::go;

impl Flags {
    /// What is registered and shown in member lists.
    pub fn advertised(&self) -> String {
        self.pod_url().unwrap_or_else(|| self.advertise_client_url.clone())
    }

    fn pod_url(&self) -> Option<String> {
        let domain = &self.advertise_pod_domain;
        if domain.is_empty() { None } else { pod_url(&self.advertise_client_url, domain) }
    }

    pub(super) fn check_advertised(&self) -> Result<(), String> {
        let domain = &self.advertise_pod_domain;
        if domain.is_empty() {
            return Ok(());
        }
        let is_label =
            |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !domain.split('.').all(is_label) {
            return Err(format!(
                "invalid advertise-pod-domain {}: want a name such as registry-pods.team-a.svc",
                go::quote(domain)
            ));
        }
        match self.pod_url() {
            Some(_) => Ok(()),
            None => Err(format!(
                "invalid advertise-pod-domain {}: it wants an advertise-client-url of an IP address and a port, and not {}",
                go::quote(domain),
                go::quote(&self.advertise_client_url)
            )),
        }
    }
}

/// The URL with the name that its IP address has below `domain`, as a cluster's DNS spells it; nothing without an address.
fn pod_url(url: &str, domain: &str) -> Option<String> {
    let after_scheme = url.find("://").map_or(0, |at| at + "://".len());
    let (scheme, rest) = url.split_at(after_scheme);
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let address: SocketAddr = authority.parse().ok()?;
    let host = address.ip().to_string().replace(['.', ':'], "-");
    Some(format!("{scheme}{host}.{domain}:{}{path}", address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_address_becomes_its_name_in_the_clusters_dns() {
        for (url, name) in [
            ("https://10.1.2.3:2379", Some("https://10-1-2-3.x-pods.team.svc:2379")),
            ("10.1.2.3:2379", Some("10-1-2-3.x-pods.team.svc:2379")),
            ("https://[fd00::1]:2379/", Some("https://fd00--1.x-pods.team.svc:2379/")),
            ("https://10.1.2.3", None),
            ("https://proxy.example:2379", None),
            ("", None),
        ] {
            assert_eq!(pod_url(url, "x-pods.team.svc").as_deref(), name, "{url}");
        }
    }

    #[test]
    fn without_a_domain_the_address_is_advertised_as_it_is() {
        let flags = |url: &str, domain: &str| Flags {
            advertise_client_url: url.to_owned(),
            advertise_pod_domain: domain.to_owned(),
            ..Flags::default()
        };
        assert_eq!(flags("10.1.2.3:1", "").advertised(), "10.1.2.3:1");
        assert_eq!(flags("10.1.2.3:1", "a.b").advertised(), "10-1-2-3.a.b:1");
        flags("x", "").check_advertised().expect("nothing is asked for");
        flags("10.1.2.3:1", "a.b").check_advertised().expect("it is an address");
        for (url, domain) in [("x:1", "a.b"), ("10.1.2.3:1", "a..b"), ("10.1.2.3:1", "a b"), ("10.1.2.3:1", ".")] {
            flags(url, domain).check_advertised().expect_err(domain);
        }
    }
}
