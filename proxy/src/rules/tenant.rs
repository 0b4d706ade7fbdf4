//! To whom a connection belongs: which keys it sees, which calls it may make, and what it may use.
//!
//! It is decided once, when the connection is accepted, and everything that is shared is shared within one tenant only:
//! [`super::caller::Credentials`] hold the tenant.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::namespace::Namespace;

pub mod identity;
pub mod leases;
pub mod limits;
pub mod policy;

use limits::{Limits, Usage};
use policy::Policy;

/// One tenant of the proxy. Two are the same only if they are one and the same value, not if they look alike: what is
/// shared under one must not go to another.
#[derive(Debug)]
pub struct Tenant {
    number: u64,
    /// As it is shown to operators, in logs, metrics and the audit log. Never to clients.
    pub name: String,
    pub namespace: Namespace,
    pub policy: Policy,
    pub usage: Usage,
    /// As whom etcd is asked for requests that bring no credentials of their own; none is nobody.
    pub user: Option<UserNumber>,
}

/// An etcd user as whom the proxy can ask, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserNumber(pub usize);

impl UserNumber {
    /// The proxy's own user, if it has one.
    pub const PROXY: Self = Self(0);
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);
static WHOLE: LazyLock<Arc<Tenant>> = LazyLock::new(|| {
    Arc::new(Tenant::new("proxy", Namespace::new(""), Policy::default()).acting_as(UserNumber::PROXY))
});

static NOBODY: LazyLock<Arc<Tenant>> =
    LazyLock::new(|| Arc::new(Tenant::new("unknown", Namespace::new(""), Policy::nothing())));

impl Tenant {
    pub fn new(name: impl Into<String>, namespace: Namespace, policy: Policy) -> Self {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { number, name: name.into(), namespace, policy, usage: Usage::new(Limits::default()), user: None }
    }

    pub fn acting_as(self, user: UserNumber) -> Self {
        Self { user: Some(user), ..self }
    }

    /// The same with limits.
    pub fn limited(self, limits: Limits) -> Self {
        Self { usage: Usage::new(limits), ..self }
    }

    /// The proxy itself, which sees everything.
    pub fn whole() -> Arc<Self> {
        WHOLE.clone()
    }

    /// A client whose certificate names nobody: it may do nothing.
    pub fn nobody() -> Arc<Self> {
        NOBODY.clone()
    }

    /// Whether it is the proxy, at its own work.
    pub fn is_the_proxy(&self) -> bool {
        self.user == Some(UserNumber::PROXY)
    }

    /// Whether an RPC that nobody here knows may pass: it may carry a key, and nobody can say what it does.
    pub fn lets_unknown_calls_pass(&self) -> bool {
        self.namespace.is_empty() && self.policy.is_full()
    }
}

impl PartialEq for Tenant {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Tenant {}

impl Hash for Tenant {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_that_look_alike_are_not_the_same() {
        let one = || Tenant::new("team", Namespace::new("a/"), Policy::default());
        assert_ne!(one(), one());
        assert_eq!(Tenant::whole(), Tenant::whole());
    }

    #[test]
    fn only_who_may_do_everything_everywhere_may_do_what_nobody_knows() {
        assert!(Tenant::whole().lets_unknown_calls_pass());
        assert!(!Tenant::new("team", Namespace::new("a/"), Policy::default()).lets_unknown_calls_pass());
        let reader = Policy::new(policy::Profile::ReadOnly, policy::Compaction::Deny, &[], &[]);
        assert!(!Tenant::new("reader", Namespace::new(""), reader).lets_unknown_calls_pass());
    }
}
