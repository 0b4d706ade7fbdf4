//! The part of the config file that has keys below keys: `client-identity`, who clients are by their certificates.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;
use crate::rules::tenant::{identity::Identity, limits::Limits};

/// The file as far as this part goes; its other keys are flags, which the reader of flags has judged.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "client-identity")]
    rules: Option<Vec<Rule>>,
}

/// One tenant and by what it is known.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Rule {
    pub name: String,
    identities: Vec<Named>,
    #[serde(default)]
    pub namespace: String,
    #[serde(default = "tenant")]
    pub api_profile: String,
    #[serde(default = "deny")]
    pub api_compact: String,
    #[serde(default)]
    pub api_allow: Vec<String>,
    #[serde(default)]
    pub api_deny: Vec<String>,
    /// The user of etcd as whom the proxy asks for it: by name and password, or by a certificate with the name in it.
    #[serde(default)]
    pub user: String,
    pub password_file: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// What differs from the flags for all tenants.
    #[serde(default)]
    limits: LimitRules,
}

/// Limits by the names of their flags, without `tenant-`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct LimitRules {
    max_connections: Option<u64>,
    max_streams: Option<u64>,
    max_watches: Option<u64>,
    max_concurrent_requests: Option<u64>,
    max_requests_per_second: Option<u64>,
    request_burst: Option<u64>,
    max_received_bytes_per_second: Option<u64>,
    max_sent_bytes_per_second: Option<u64>,
    max_request_bytes: Option<u64>,
    max_answer_bytes: Option<u64>,
    max_keys: Option<u64>,
    max_stored_bytes: Option<u64>,
    connection_max_watches: Option<u64>,
    connection_max_requests_per_second: Option<u64>,
    connection_max_received_bytes_per_second: Option<u64>,
    connection_max_sent_bytes_per_second: Option<u64>,
}

/// One of these; a text that ends in `*` is the beginning of what a certificate must say.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Named {
    common_name: Option<String>,
    dns: Option<String>,
    uri: Option<String>,
}

/// Whoever is told apart is to be kept apart, unless the rule says otherwise.
fn tenant() -> String {
    "tenant".to_owned()
}

fn deny() -> String {
    "deny".to_owned()
}

/// The rules of a config file, in their order; none if it has no such part.
pub(super) fn read(path: &Path) -> Result<Vec<Rule>, ConfigError> {
    rules(&text(path)?).map_err(|cause| unusable(path, cause))
}

pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| unusable(path, error.to_string()))
}

pub(super) fn unusable(path: &Path, cause: String) -> ConfigError {
    ConfigError::Tenants(format!("cannot use config file {}: {cause}", path.display()))
}

pub(super) fn rules(text: &str) -> Result<Vec<Rule>, String> {
    let file: Option<File> = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    Ok(file.and_then(|file| file.rules).unwrap_or_default())
}

impl Rule {
    /// Whether another rule is about the same tenant and says the same of it, whoever it may be.
    pub fn describes_the_same(&self, other: &Self) -> bool {
        let nameless = |rule: &Self| Self { identities: Vec::new(), ..rule.clone() };
        nameless(self) == nameless(other)
    }

    /// The limits of this tenant, on top of everybody's.
    pub fn limits(&self, everybodys: &Limits) -> Limits {
        let (rule, mut limits) = (&self.limits, *everybodys);
        for (limit, own) in [
            (&mut limits.connections, rule.max_connections),
            (&mut limits.streams, rule.max_streams),
            (&mut limits.watches, rule.max_watches),
            (&mut limits.concurrent_requests, rule.max_concurrent_requests),
            (&mut limits.rates.requests, rule.max_requests_per_second),
            (&mut limits.rates.request_burst, rule.request_burst),
            (&mut limits.rates.received_bytes, rule.max_received_bytes_per_second),
            (&mut limits.rates.sent_bytes, rule.max_sent_bytes_per_second),
            (&mut limits.request_bytes, rule.max_request_bytes),
            (&mut limits.answer_bytes, rule.max_answer_bytes),
            (&mut limits.keys, rule.max_keys),
            (&mut limits.stored_bytes, rule.max_stored_bytes),
            (&mut limits.connection.watches, rule.connection_max_watches),
            (&mut limits.connection.rates.requests, rule.connection_max_requests_per_second),
            (&mut limits.connection.rates.received_bytes, rule.connection_max_received_bytes_per_second),
            (&mut limits.connection.rates.sent_bytes, rule.connection_max_sent_bytes_per_second),
        ] {
            *limit = own.unwrap_or(*limit);
        }
        limits
    }

    pub fn identities(&self) -> Result<Vec<Identity>, String> {
        if self.identities.is_empty() {
            return Err(format!("client-identity {:?} has no identities, so nobody could be it", self.name));
        }
        self.identities.iter().map(|named| named.identity(&self.name)).collect()
    }
}

impl Named {
    fn identity(&self, tenant: &str) -> Result<Identity, String> {
        let identity = match (&self.common_name, &self.dns, &self.uri) {
            (Some(name), None, None) => Identity::CommonName(name.clone()),
            (None, Some(dns), None) => Identity::Dns(dns.clone()),
            (None, None, Some(uri)) => Identity::Uri(uri.clone()),
            _ => return Err(format!("client-identity {tenant:?}: want one of common-name, dns or uri in each item")),
        };
        let (Identity::CommonName(text) | Identity::Dns(text) | Identity::Uri(text)) = &identity;
        if text.is_empty() {
            return Err(format!("client-identity {tenant:?} has an empty identity"));
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_with_all_that_they_may_say() {
        let rules = rules(
            "listen-addr: a:1\n\
             client-identity:\n\
             - name: a\n  \
               identities: [{common-name: team-a}, {dns: a.example}, {uri: 'spiffe://x/a/*'}]\n  \
               namespace: /a/\n  \
               api-allow: [KV/Compact]\n\
             - {name: admin, identities: [{common-name: admin}], api-profile: full}\n",
        )
        .expect("good rules");
        assert_eq!(rules.len(), 2);
        assert_eq!((rules[0].namespace.as_str(), rules[0].api_profile.as_str()), ("/a/", "tenant"));
        assert_eq!(
            rules[0].identities(),
            Ok(vec![
                Identity::CommonName("team-a".into()),
                Identity::Dns("a.example".into()),
                Identity::Uri("spiffe://x/a/*".into()),
            ])
        );
        assert_eq!(rules[1].api_profile, "full");
        for without in ["", "debug: true\n", "client-identity:\n", "client-identity: []\n"] {
            assert!(super::rules(without).expect(without).is_empty(), "{without}");
        }
    }

    #[test]
    fn what_a_rule_cannot_say_is_refused() {
        let rule = |more: &str| rules(&format!("client-identity:\n- {{name: a, {more}}}\n"));
        for (more, words) in [
            ("identities: [], prefix: /a/", "unknown field `prefix`"),
            ("namespace: /a/", "missing field `identities`"),
            ("identities: [{cn: x}]", "unknown field `cn`"),
            ("identities: x", "invalid type"),
        ] {
            let error = rule(more).map(|_| ()).expect_err(more);
            assert!(error.contains(words), "{error}");
        }
        for identities in ["[]", "[{}]", "[{dns: a, uri: b}]", "[{dns: ''}]"] {
            let rules = rule(&format!("identities: {identities}")).expect("it can be read");
            assert!(rules[0].identities().is_err(), "{identities}");
        }
    }
}
