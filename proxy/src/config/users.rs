//! As whom the proxy can ask etcd: its own user, and those of the rules in `client-identity`.

use std::{fs, path::Path};

use super::{ConfigError, identities::Rule};
use crate::{
    flags::Flags,
    rules::tenant::UserNumber,
    tls::{self, ClientTls},
    upstream::users::{Config, Password, Proof},
};

/// The proxy's own user, if it has one.
pub(super) fn own(flags: &Flags) -> Result<Option<Config>, ConfigError> {
    let (name, password) = match (flags.login.name_and_password(), &flags.login.password_file) {
        (Some((name, password)), _) => (name, Password::Given(password.to_owned())),
        (None, Some(file)) => (flags.login.name(), from_file(file)?),
        (None, None) => return Ok(None),
    };
    let proof = Proof::Password { name: name.to_owned(), password };
    Ok(Some(Config { number: UserNumber::PROXY, proof }))
}

/// The user of a rule, if it has one.
pub(super) fn of_rule(flags: &Flags, rule: &Rule) -> Result<Option<Proof>, ConfigError> {
    let wrong = |cause: &str| Err(ConfigError::Tenants(format!("client-identity {:?}: {cause}", rule.name)));
    let has_user = !rule.user.is_empty() || rule.password_file.is_some();
    let has_certificate = rule.cert.is_some() || rule.key.is_some();
    match (has_user, has_certificate) {
        (false, false) => Ok(None),
        (true, true) => wrong("want user and password-file, or cert and key, whose Common Name is the user; not both"),
        (true, false) => match &rule.password_file {
            _ if rule.user.is_empty() => wrong("password-file is given, but not whose password it is: give user too"),
            None => wrong("user is given without a password: give password-file"),
            Some(file) => Ok(Some(Proof::Password { name: rule.user.clone(), password: from_file(file)? })),
        },
        (false, true) if !speaks_tls(flags) => wrong("cert is for etcd over TLS, but no endpoint is https"),
        (false, true) => Ok(Some(Proof::Certificate(ClientTls::load(&tls::client::Config {
            cert: rule.cert.clone(),
            key: rule.key.clone(),
            cacert: flags.cacert.clone(),
            insecure_skip_verify: flags.insecure_skip_tls_verify,
            server_name: Some(flags.tls_server_name.clone()),
            cipher_suites: Vec::new(),
            // Of the one tenant that the rule names etcd is to think just that.
            allow_non_empty_cn: true,
        })?))),
    }
}

/// Whether etcd is spoken to over TLS, as far as flags tell.
fn speaks_tls(flags: &Flags) -> bool {
    let has_settings = flags.cert.is_some() || flags.cacert.is_some() || flags.insecure_skip_tls_verify;
    let is_https = |endpoint: &String| endpoint.starts_with("https://") || endpoint.starts_with("unixs://");
    has_settings || !flags.discovery_srv.is_empty() || flags.endpoints.iter().any(is_https)
}

/// A file that cannot be read now would let nobody in later.
fn from_file(path: &Path) -> Result<Password, ConfigError> {
    match fs::read_to_string(path) {
        Ok(_) => Ok(Password::File(path.to_owned())),
        Err(error) => Err(ConfigError::Tenants(format!("cannot read password-file {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::identities;

    fn check(more: &str, endpoint: &str, expected: Result<bool, &str>) {
        let text = format!("client-identity:\n- {{name: a, identities: [{{common-name: a}}]{more}}}\n");
        let rules = identities::rules(&text).expect("it can be read");
        let flags = Flags { endpoints: vec![endpoint.to_owned()], ..Flags::default() };
        match (of_rule(&flags, &rules[0]), expected) {
            (Ok(proof), Ok(expected)) => assert_eq!(proof.is_some(), expected, "{more}"),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (outcome, _) => panic!("{more}: {outcome:?}"),
        }
    }

    #[test]
    fn a_rule_has_a_user_with_all_that_proves_it_or_none() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let path = file.path().display();
        let https = "https://a:1";
        check("", https, Ok(false));
        check(&format!(", user: u, password-file: {path}"), https, Ok(true));
        check(&format!(", password-file: {path}"), https, Err("give user too"));
        check(", user: u", https, Err("give password-file"));
        check(", user: u, password-file: /nonexistent/p", https, Err("cannot read password-file /nonexistent/p"));
        check(", user: u, cert: c, key: k", https, Err("not both"));
        check(", cert: c, key: k", "a:1", Err("no endpoint is https"));
        check(", cert: c", https, Err("must both be present"));
        check(", cert: /nonexistent/c, key: /nonexistent/k", https, Err("/nonexistent/"));
    }

    #[test]
    fn the_proxys_own_password_is_in_the_flag_or_in_a_file() {
        let own = |user: &str, file: Option<&Path>| {
            let mut flags = Flags::default();
            flags.login.user = user.into();
            flags.login.password_file = file.map(Path::to_owned);
            super::own(&flags)
        };
        assert!(own("", None).expect("the default").is_none());
        let given = own("root:a:b", None).expect("both").expect("a user");
        assert!(
            matches!(given.proof, Proof::Password { name, password: Password::Given(text) } if name == "root" && text == "a:b")
        );
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let named = own("a:b", Some(file.path())).expect("both").expect("a user");
        assert!(matches!(named.proof, Proof::Password { name, password: Password::File(_) } if name == "a:b"));
        assert!(own("root", Some(Path::new("/nonexistent/p"))).is_err());
    }
}
