//! Who may do what: the tenants that flags and config file describe.

use std::{fs, sync::Arc};

use super::ConfigError;
use crate::{
    flags::Flags,
    go,
    rules::{
        methods::Method,
        namespace::Namespace,
        tenant::{
            Tenant,
            identity::Tenants,
            leases::{self, LeaseBlock},
            policy::{Compaction, Policy, Profile, method_named},
        },
    },
};

/// The name of the tenant that everyone is when nothing tells clients apart.
const EVERYONE: &str = "default";

/// A key of fewer bytes can be guessed.
const MIN_LEASE_KEY: usize = 16;

pub(super) fn tenants(flags: &Flags) -> Result<Tenants, ConfigError> {
    let namespace = Namespace::new(flags.namespace.clone());
    let own = Arc::new(Tenant::new("proxy", namespace.clone(), Policy::default()));
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
    let allowed = methods("api-allow", &flags.tenancy.api_allow)?;
    let denied = methods("api-deny", &flags.tenancy.api_deny)?;
    let key = lease_key(flags)?;
    let namespace = kept_apart(namespace, profile, &key);
    let policy = Policy::new(profile, compaction(&flags.tenancy.api_compact), &allowed, &denied);
    Ok(Tenants::one(own, Arc::new(Tenant::new(EVERYONE, namespace, policy))))
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
fn lease_key(flags: &Flags) -> Result<Vec<u8>, ConfigError> {
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
    use crate::{flags::TenancyFlags, rules::tenant::policy::Verdict};

    fn flags(namespace: &str, change: impl FnOnce(&mut TenancyFlags)) -> Flags {
        let mut flags = Flags { namespace: namespace.into(), ..Flags::default() };
        change(&mut flags.tenancy);
        flags
    }

    fn check_refused(flags: &Flags, words: &str) {
        let error = tenants(flags).expect_err(words).to_string();
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
    fn without_flags_everyone_may_do_everything() {
        let tenants = tenants(&Flags::default()).expect("the defaults");
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
        let everyone = tenants(&flags).expect("good flags").of(None).expect("one tenant for all");
        let verdict = |name| everyone.policy.verdict(method_named(name).expect("a method"));
        assert_eq!(verdict("Maintenance/Hash"), Verdict::Allowed);
        assert!(matches!(verdict("KV/Put"), Verdict::Refused(_)));
        assert!(matches!(verdict("Maintenance/HashKV"), Verdict::Refused(_)));
    }
}
