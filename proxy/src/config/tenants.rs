//! Who may do what: the tenants that flags and config file describe.

use std::{fs, path::PathBuf, sync::Arc};

use super::{
    ConfigError,
    identities::{self, Rule},
    rulebook::RuleBook,
    users,
};
use crate::{
    app::identities::{Changed, Reread},
    flags::{Flags, LimitFlags, TenancyFlags},
    go,
    rules::{
        methods::Method,
        namespace::Namespace,
        tenant::{
            Tenant, UserNumber,
            identity::Tenants,
            leases::{self, LeaseBlock},
            limits::{ConnectionLimits, Limits, Rates},
            policy::{Compaction, Policy, Profile, method_named},
        },
    },
    upstream,
};

/// The name of the tenant that everyone is when nothing tells clients apart.
const EVERYONE: &str = "default";

/// A key of fewer bytes can be guessed.
const MIN_LEASE_KEY: usize = 16;

/// The tenants, and the users of etcd as whom the proxy asks for them and for itself.
pub(super) struct Configured {
    pub tenants: Tenants,
    pub users: Vec<upstream::users::Config>,
    /// Reads the rules again, where there are any.
    pub reread: Option<Reread>,
}

pub(super) fn tenants(flags: &Flags) -> Result<Configured, ConfigError> {
    let namespace = Namespace::new(flags.namespace.clone());
    let own = Tenant::new("proxy", namespace.clone(), Policy::default());
    let own = Arc::new(own.acting_as(UserNumber::PROXY));
    let users: Vec<_> = users::own(flags)?.into_iter().collect();
    let profile = profile(&flags.tenancy.api_profile);
    if profile == Profile::Tenant && namespace.is_empty() {
        return Err(refuse("api-profile tenant wants a prefix to keep the tenant in: give --namespace"));
    }
    if profile == Profile::Full && !namespace.is_empty() {
        tracing::warn!(
            "--namespace without --api-profile keeps keys apart and nothing else: clients can take snapshots with \
             everyone's keys, revoke and list everyone's leases, change users and members, compact and defragment; \
             --api-profile=tenant closes that"
        );
    }
    let rules = match &flags.config_file {
        Some(path) => identities::read(path)?,
        None => Vec::new(),
    };
    if let (Some(path), false) = (&flags.config_file, rules.is_empty()) {
        return by_identity(flags, path.clone(), own, users, rules);
    }
    let allowed = methods("api-allow", &flags.tenancy.api_allow)?;
    let denied = methods("api-deny", &flags.tenancy.api_deny)?;
    let key = lease_key(flags)?;
    let namespace = kept_apart(namespace, profile, &key);
    let policy = Policy::new(profile, compaction(&flags.tenancy.api_compact), &allowed, &denied);
    let everyone = Tenant::new(EVERYONE, namespace, policy).limited(limits(&flags.tenant_limits));
    Ok(Configured { tenants: Tenants::one(own, Arc::new(everyone)), users, reread: None })
}

/// A tenant for each rule.
fn by_identity(
    flags: &Flags,
    path: PathBuf,
    own: Arc<Tenant>,
    own_users: Vec<upstream::users::Config>,
    rules: Vec<Rule>,
) -> Result<Configured, ConfigError> {
    if flags.trusted_ca_file.is_none() {
        return Err(refuse("client-identity tells clients apart by their certificates: give --trusted-ca-file"));
    }
    let everyones = TenancyFlags { lease_key_file: flags.tenancy.lease_key_file.clone(), ..Flags::default().tenancy };
    if !flags.namespace.is_empty() || flags.tenancy != everyones {
        return Err(refuse(
            "with client-identity each tenant has its own namespace and profile: give no --namespace, --api-profile, \
             --api-compact, --api-allow or --api-deny",
        ));
    }
    let mut book = RuleBook::new(flags, path, own, own_users)?;
    let Changed { tenants, users } = book.take(rules)?;
    Ok(Configured { tenants, users, reread: Some(book.reread()) })
}

pub(super) fn tenant(rule: &Rule, key: &[u8]) -> Result<Tenant, ConfigError> {
    let wrong = |cause: &str| refuse(&format!("client-identity {:?}: {cause}", rule.name));
    let profile = Profile::ALL.into_iter().find(|profile| profile.name() == rule.api_profile);
    let profile = profile.ok_or_else(|| wrong("api-profile must be one of: full, tenant, read-only"))?;
    let compaction = Compaction::ALL.into_iter().find(|compaction| compaction.name() == rule.api_compact);
    let compaction = compaction.ok_or_else(|| wrong("api-compact must be one of: deny, ignore, allow"))?;
    if rule.name.is_empty() {
        return Err(wrong("it has no name"));
    }
    if profile == Profile::Tenant && rule.namespace.is_empty() {
        return Err(wrong("api-profile tenant, which is the default, wants a namespace to keep the tenant in"));
    }
    let allowed = methods("api-allow", &rule.api_allow)?;
    let denied = methods("api-deny", &rule.api_deny)?;
    let namespace = kept_apart(Namespace::new(rule.namespace.clone()), profile, key);
    Ok(Tenant::new(rule.name.clone(), namespace, Policy::new(profile, compaction, &allowed, &denied)))
}

/// The limits of each tenant, as far as its rule does not say otherwise.
pub(super) fn limits(flags: &LimitFlags) -> Limits {
    Limits {
        connections: flags.tenant_max_connections,
        streams: flags.tenant_max_streams,
        watches: flags.tenant_max_watches,
        concurrent_requests: flags.tenant_max_concurrent_requests,
        rates: Rates {
            requests: flags.tenant_max_requests_per_second,
            request_burst: flags.tenant_request_burst,
            received_bytes: flags.tenant_max_received_bytes_per_second,
            sent_bytes: flags.tenant_max_sent_bytes_per_second,
        },
        request_bytes: flags.tenant_max_request_bytes,
        answer_bytes: flags.tenant_max_answer_bytes,
        keys: flags.tenant_max_keys,
        stored_bytes: flags.tenant_max_stored_bytes,
        connection: ConnectionLimits {
            watches: flags.connection_max_watches,
            rates: Rates {
                requests: flags.connection_max_requests_per_second,
                request_burst: 0,
                received_bytes: flags.connection_max_received_bytes_per_second,
                sent_bytes: flags.connection_max_sent_bytes_per_second,
            },
        },
    }
}

/// Two tenants that share a prefix, as a reader and a writer may, share it knowingly. One whose prefix begins another's
/// would hold the other without knowing.
pub(super) fn check_apart(one: &Tenant, other: &Tenant) -> Result<(), ConfigError> {
    if one.name == other.name {
        return Err(refuse(&format!("client-identity has two tenants of the name {:?}", one.name)));
    }
    if [one, other].iter().any(|tenant| tenant.policy.profile() == Profile::Full) {
        return Ok(());
    }
    let (prefix, others) = (one.namespace.prefix(), other.namespace.prefix());
    if prefix == others {
        return Ok(());
    }
    // Whoever reads everything has no prefix.
    let nested = !prefix.is_empty() && !others.is_empty() && (prefix.starts_with(others) || others.starts_with(prefix));
    if nested {
        let (one, other) = (&one.name, &other.name);
        return Err(refuse(&format!(
            "client-identity: of the namespaces of {one:?} and {other:?} one holds the other"
        )));
    }
    if one.namespace.leases().is_some() && one.namespace.leases() == other.namespace.leases() {
        let (one, other) = (&one.name, &other.name);
        return Err(refuse(&format!(
            "client-identity: the leases of {one:?} and {other:?} would have the same ids; give another --lease-key-file"
        )));
    }
    Ok(())
}

/// The keyspace of a profile: only the full one shares leases with everyone.
fn kept_apart(namespace: Namespace, profile: Profile, key: &[u8]) -> Namespace {
    if profile == Profile::Full || namespace.is_empty() {
        return namespace;
    }
    let block = LeaseBlock::of(key, namespace.prefix());
    namespace.with_leases(block)
}

/// The content of `--lease-key-file` without blanks around it, or the key that everyone knows.
pub(super) fn lease_key(flags: &Flags) -> Result<Vec<u8>, ConfigError> {
    let Some(path) = &flags.tenancy.lease_key_file else { return Ok(leases::DEFAULT_KEY.to_vec()) };
    let key =
        fs::read(path).map_err(|error| refuse(&format!("cannot read lease-key-file {}: {error}", path.display())))?;
    let key = key.trim_ascii().to_vec();
    if key.len() < MIN_LEASE_KEY {
        return Err(refuse(&format!("lease-key-file {} has less than {MIN_LEASE_KEY} bytes", path.display())));
    }
    Ok(key)
}

fn profile(name: &str) -> Profile {
    Profile::ALL.into_iter().find(|profile| profile.name() == name).expect("the flag takes these names only")
}

fn compaction(name: &str) -> Compaction {
    Compaction::ALL.into_iter().find(|compaction| compaction.name() == name).expect("the flag takes these names only")
}

fn methods(flag: &str, names: &[String]) -> Result<Vec<&'static Method>, ConfigError> {
    let find = |name: &String| {
        let name = name.trim();
        method_named(name).ok_or_else(|| {
            refuse(&format!(
                "invalid {flag} {}: no method of etcd's; want its service too, as in KV/Range",
                go::quote(name)
            ))
        })
    };
    names.iter().map(find).collect()
}

fn refuse(message: &str) -> ConfigError {
    ConfigError::Tenants(message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tenant::policy::Verdict;

    fn flags(namespace: &str, change: impl FnOnce(&mut TenancyFlags)) -> Flags {
        let mut flags = Flags { namespace: namespace.into(), ..Flags::default() };
        change(&mut flags.tenancy);
        flags
    }

    fn check_refused(flags: &Flags, words: &str) {
        let error = tenants(flags).map(|_| ()).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn every_profile_and_compaction_that_a_flag_takes_is_known() {
        for name in crate::flags::PROFILES {
            assert_eq!(profile(name).name(), name);
        }
        for name in crate::flags::COMPACTIONS {
            assert_eq!(compaction(name).name(), name);
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        check_refused(&flags("", |f| f.api_profile = "tenant".into()), "give --namespace");
        check_refused(&flags("a/", |f| f.api_deny = vec!["Range".into()]), "invalid api-deny \"Range\"");
        check_refused(&flags("a/", |f| f.api_allow = vec!["KV/Rnage".into()]), "want its service too");
    }

    #[test]
    fn rules_that_keep_nobody_apart_are_refused() {
        let check = |rules: &str, namespace: &str, words: &str| {
            let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
            std::fs::write(file.path(), format!("client-identity:\n{rules}")).expect("it can be written");
            let flags = Flags {
                config_file: Some(file.path().into()),
                trusted_ca_file: Some("ca".into()),
                namespace: namespace.into(),
                ..Flags::default()
            };
            match tenants(&flags) {
                Ok(configured) => {
                    assert!(words.is_empty() && configured.tenants.are_by_identity(), "{rules} want {words}");
                }
                Err(error) => assert!(!words.is_empty() && error.to_string().contains(words), "{error}"),
            }
        };
        let rule = |name: &str, namespace: &str, more: &str| {
            format!("- {{name: {name}, namespace: {namespace}, identities: [{{common-name: {name}}}]{more}}}\n")
        };
        let a = rule("a", "/a/", "");
        check(&format!("{a}{}", rule("b", "/b/", "")), "", "");
        check(&format!("{a}{}", rule("b", "/a/", ", api-profile: read-only")), "", "");
        check(&format!("{a}{}", rule("b", "/", ", api-profile: full")), "", "");
        check(&format!("{a}{}", rule("b", "/a/b/", "")), "", "one holds the other");
        check(&format!("{}{a}", rule("b", "/a", "")), "", "one holds the other");
        check(&format!("{a}{a}"), "", "two tenants of the name");
        check(&rule("a", "''", ""), "", "wants a namespace");
        check(&rule("a", "/a/", ", api-profile: some"), "", "api-profile must be one of");
        check(&rule("a", "/a/", ", api-compact: some"), "", "api-compact must be one of");
        check(&rule("a", "/a/", ", api-deny: [Range]"), "", "invalid api-deny");
        check(&a, "/x/", "give no --namespace");
    }

    #[test]
    fn a_rule_has_limits_of_its_own_on_top_of_everybodys() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let rules = "client-identity:\n\
                     - {name: a, namespace: /a/, identities: [{common-name: a}], limits: {max-watches: 7}}\n\
                     - {name: b, namespace: /b/, identities: [{common-name: b}], limits: {max-streams: 0}}\n";
        std::fs::write(file.path(), rules).expect("it can be written");
        let mut flags =
            Flags { config_file: Some(file.path().into()), trusted_ca_file: Some("ca".into()), ..Flags::default() };
        flags.tenant_limits.tenant_max_watches = 5;
        flags.tenant_limits.tenant_max_streams = 3;
        let all = tenants(&flags).expect("good rules").tenants.all();
        let found: Vec<_> =
            all.iter().map(|tenant| (tenant.usage.limits.watches, tenant.usage.limits.streams)).collect();
        assert_eq!(found, [(7, 3), (5, 0)]);
    }

    #[test]
    fn whoever_has_the_same_key_file_has_the_same_leases() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let leases = |key: &str| {
            std::fs::write(file.path(), key).expect("it can be written");
            let flags = flags("a/", |f| {
                f.api_profile = "tenant".into();
                f.lease_key_file = Some(file.path().into());
            });
            tenants(&flags)
                .map(|configured| configured.tenants.of(None).expect("one tenant for all").namespace.leases())
        };
        let one = leases("sixteen bytes...\n").expect("a good key");
        assert!(one.is_some());
        assert_eq!(one, leases("sixteen bytes...").expect("the same key"));
        assert_ne!(one, leases("sixteen bytes..!").expect("another key"));
        let known = tenants(&flags("a/", |f| f.api_profile = "tenant".into())).expect("without a file").tenants;
        assert_ne!(one, known.of(None).expect("one tenant for all").namespace.leases());
        assert!(leases("fifteen bytes..").expect_err("it can be guessed").to_string().contains("less than 16 bytes"));
    }

    #[test]
    fn without_flags_everyone_may_do_everything() {
        let Configured { tenants, users, reread } = tenants(&Flags::default()).expect("the defaults");
        assert!(users.is_empty() && reread.is_none());
        let everyone = tenants.of(None).expect("one tenant for all");
        assert!(everyone.lets_unknown_calls_pass() && tenants.own().lets_unknown_calls_pass());
    }

    #[test]
    fn methods_are_allowed_and_denied_by_name() {
        let flags = flags("a/", |f| {
            f.api_profile = "tenant".into();
            f.api_allow = vec![" Maintenance/Hash".into()];
            f.api_deny = vec!["etcdserverpb.KV/Put".into()];
        });
        let everyone = tenants(&flags).expect("good flags").tenants.of(None).expect("one tenant for all");
        let verdict = |name| everyone.policy.verdict(method_named(name).expect("a method"));
        assert_eq!(verdict("Maintenance/Hash"), Verdict::Allowed);
        assert!(matches!(verdict("KV/Put"), Verdict::Refused(_)));
        assert!(matches!(verdict("Maintenance/HashKV"), Verdict::Refused(_)));
    }
}
