//! `client-identity` as tenants, and again when the file has changed: who is described as before stays the same tenant.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{
    ConfigError,
    identities::{self, Rule},
    tenants, users,
};
use crate::{
    app::identities::{Changed, Reread},
    flags::Flags,
    rules::tenant::{
        Tenant, UserNumber,
        identity::{Identity, Tenants},
        limits::Limits,
    },
    server::descriptors::affordable_connections,
    upstream,
};

/// All that does not change while the proxy runs, and what the rules were.
pub(super) struct RuleBook {
    flags: Flags,
    path: PathBuf,
    own: Arc<Tenant>,
    own_users: Vec<upstream::users::Config>,
    lease_key: Vec<u8>,
    everybodys: Limits,
    known: Vec<Known>,
    /// No number is given twice: connections may still ask as whom it was given to.
    next_user: usize,
    /// What the file said when it was looked at, and whether that has been judged.
    last: String,
    is_judged: bool,
}

/// A rule and what was made of it.
struct Known {
    rule: Rule,
    tenant: Arc<Tenant>,
    user: Option<upstream::users::Config>,
}

impl RuleBook {
    pub fn new(
        flags: &Flags,
        path: PathBuf,
        own: Arc<Tenant>,
        own_users: Vec<upstream::users::Config>,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            flags: flags.clone(),
            own,
            own_users,
            lease_key: tenants::lease_key(flags)?,
            everybodys: everybodys(flags, affordable_connections()),
            known: Vec::new(),
            // The proxy's own user has the first number.
            next_user: UserNumber::PROXY.0 + 1,
            last: identities::text(&path)?,
            is_judged: true,
            path,
        })
    }

    /// Makes tenants of rules, and keeps those that are there already. Nothing is kept of rules that do not do.
    pub fn take(&mut self, rules: Vec<Rule>) -> Result<Changed, ConfigError> {
        let mut known: Vec<Known> = Vec::with_capacity(rules.len());
        let mut next_user = self.next_user;
        for rule in rules {
            // Of two rules that look alike each must be somebody of its own, which their names tell.
            let same = self.known.iter().find(|known| known.rule.describes_the_same(&rule));
            let (tenant, user) = match same {
                Some(same) => (same.tenant.clone(), same.user.clone()),
                None => self.make(&rule, &mut next_user)?,
            };
            for other in &known {
                tenants::check_apart(&other.tenant, &tenant)?;
            }
            known.push(Known { rule, tenant, user });
        }
        let mut by_identity: Vec<(Identity, Arc<Tenant>)> = Vec::new();
        for known in &known {
            let identities = known.rule.identities().map_err(ConfigError::Tenants)?;
            by_identity.extend(identities.into_iter().map(|identity| (identity, known.tenant.clone())));
        }
        let of_rules = known.iter().filter_map(|known| known.user.clone());
        let users = self.own_users.iter().cloned().chain(of_rules).collect();
        (self.known, self.next_user) = (known, next_user);
        Ok(Changed { tenants: Tenants::by_identity(self.own.clone(), by_identity), users })
    }

    fn make(
        &self,
        rule: &Rule,
        next_user: &mut usize,
    ) -> Result<(Arc<Tenant>, Option<upstream::users::Config>), ConfigError> {
        let mut tenant = tenants::tenant(rule, &self.lease_key)?.limited(rule.limits(&self.everybodys));
        let mut user = None;
        if let Some(proof) = users::of_rule(&self.flags, rule)? {
            let number = UserNumber(*next_user);
            *next_user += 1;
            user = Some(upstream::users::Config { number, proof });
            tenant = tenant.acting_as(number);
        }
        Ok((Arc::new(tenant), user))
    }

    /// What the rules have become since the last look. A file is taken when two looks have found the same in it, since
    /// whoever writes it may be in the middle of it, where the last rules are missing.
    fn look(&mut self) -> Result<Option<Changed>, ConfigError> {
        let text = identities::text(&self.path)?;
        if text != self.last {
            (self.last, self.is_judged) = (text, false);
            return Ok(None);
        }
        if std::mem::replace(&mut self.is_judged, true) {
            return Ok(None);
        }
        let wrong = |cause| identities::unusable(&self.path, cause);
        let rules = identities::rules(&self.last).map_err(wrong)?;
        if rules.is_empty() {
            return Err(wrong("it has no client-identity any more, which takes a restart".to_owned()));
        }
        if rules.iter().eq(self.known.iter().map(|known| &known.rule)) {
            return Ok(None);
        }
        self.take(rules).map(Some)
    }

    pub fn reread(self) -> Reread {
        let book = Mutex::new(Looked { book: self, told: None });
        Arc::new(move || book.lock().expect("nothing panics while it reads the rules").look())
    }
}

/// The limits of each tenant, as far as its rule does not say otherwise: without one for connections, half of those that
/// there can be, so that one tenant alone cannot keep the others out.
fn everybodys(flags: &Flags, affordable: usize) -> Limits {
    let mut limits = tenants::limits(&flags.tenant_limits);
    if limits.connections == 0 {
        let allowed = if flags.max_connections == 0 { usize::MAX } else { flags.max_connections as usize };
        limits.connections = allowed.min(affordable).div_ceil(2) as u64;
    }
    limits
}

/// A book, and what was said of it last: a file that is missing for an hour is worth one line.
struct Looked {
    book: RuleBook,
    told: Option<String>,
}

impl Looked {
    fn look(&mut self) -> Result<Option<Changed>, String> {
        match self.book.look() {
            Ok(outcome) => {
                self.told = None;
                Ok(outcome)
            }
            Err(error) => {
                let error = error.to_string();
                if self.told.as_ref() == Some(&error) {
                    return Ok(None);
                }
                self.told = Some(error.clone());
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::NamedTempFile;

    use super::*;
    use crate::tls::PeerIdentity;

    fn rule(name: &str, identity: &str, more: &str) -> String {
        format!("- {{name: {name}, namespace: /{name}/, identities: [{{common-name: {identity}}}]{more}}}\n")
    }

    struct Book {
        file: NamedTempFile,
        book: Looked,
        tenants: Tenants,
    }

    impl Book {
        fn new(rules: &str) -> Self {
            let file = NamedTempFile::new().expect("a temporary file can be made");
            fs::write(file.path(), format!("client-identity:\n{rules}")).expect("it can be written");
            let mut book =
                RuleBook::new(&Flags::default(), file.path().into(), Tenant::whole(), Vec::new()).expect("a file");
            let rules = identities::rules(&book.last).expect("good rules");
            let tenants = book.take(rules).expect("good rules").tenants;
            Self { file, book: Looked { book, told: None }, tenants }
        }

        /// Writes rules and looks twice; says whether they were news.
        fn becomes(&mut self, text: &str) -> Result<bool, String> {
            fs::write(self.file.path(), text).expect("it can be written");
            assert!(self.book.look().expect("nothing is judged at once").is_none(), "{text}");
            let outcome = self.book.look()?;
            let is_news = outcome.is_some();
            if let Some(changed) = outcome {
                self.tenants = changed.tenants;
            }
            Ok(is_news)
        }

        fn of(&self, common_name: &str) -> Option<Arc<Tenant>> {
            let peer = PeerIdentity { common_name: Some(common_name.into()), ..PeerIdentity::default() };
            self.tenants.of(Some(&peer))
        }
    }

    fn rules(each: &[String]) -> String {
        format!("client-identity:\n{}", each.concat())
    }

    #[test]
    fn who_is_described_as_before_stays_the_same_and_others_do_not() {
        let mut book = Book::new(&[rule("a", "a", ""), rule("b", "b", "")].concat());
        let (a, b) = (book.of("a").expect("a rule"), book.of("b").expect("a rule"));
        // Another one comes, one is somebody of another name too, and one has another limit.
        let changed = [rule("c", "c", ""), rule("a", "'a*'", ""), rule("b", "b", ", limits: {max-watches: 1}")];
        assert_eq!(book.becomes(&rules(&changed)), Ok(true));
        assert_eq!(book.of("a-1"), Some(a));
        assert!(book.of("b").is_some_and(|new| new != b && new.usage.limits.watches == 1));
        assert!(book.of("c").is_some());
        assert_eq!(book.becomes(&rules(&changed[..1])), Ok(true));
        assert!(book.of("a").is_none() && book.of("c").is_some());
        // What is not of the rules is not news.
        assert_eq!(book.becomes(&format!("# a word\n{}", rules(&changed[..1]))), Ok(false));
    }

    #[test]
    fn rules_that_cannot_be_used_leave_the_old_ones_and_are_told_once() {
        let good = rule("a", "a", "");
        let mut book = Book::new(&good);
        let a = book.of("a");
        for (text, words) in [
            ("client-identity: []\n".to_owned(), "no client-identity any more"),
            ("client-identity:\n- {name".to_owned(), "cannot use config file"),
            (rules(&[good.clone(), rule("b", "b", ", api-profile: some")]), "api-profile must be one of"),
            (rules(&[good.clone(), good.clone()]), "two tenants of the name"),
        ] {
            let error = book.becomes(&text).expect_err(words);
            assert!(error.contains(words), "{error}");
            assert_eq!((book.book.look().map(|changed| changed.is_some()), book.of("a")), (Ok(false), a.clone()));
        }
        fs::remove_file(book.file.path()).expect("it can be removed");
        assert!(book.book.look().is_err());
        assert!(book.book.look().is_ok_and(|changed| changed.is_none()), "it is told once");
        assert_eq!(book.becomes(&rules(&[good])), Ok(false));
    }

    #[test]
    fn no_tenant_has_more_than_half_of_the_connections_unless_somebody_says_so() {
        let connections = |change: &dyn Fn(&mut Flags)| {
            let mut flags = Flags::default();
            change(&mut flags);
            everybodys(&flags, 1000).connections
        };
        assert_eq!(connections(&|_| ()), 500);
        assert_eq!(connections(&|flags| flags.max_connections = 11), 6);
        assert_eq!(connections(&|flags| flags.tenant_limits.tenant_max_connections = 3), 3);
        let book = Book::new(&(rule("a", "a", "") + &rule("b", "b", ", limits: {max-connections: 0}")));
        let limits: Vec<_> = book.tenants.all().iter().map(|tenant| tenant.usage.limits.connections).collect();
        assert!(limits[0] > 0 && limits[1] == 0, "{limits:?}");
    }
}
