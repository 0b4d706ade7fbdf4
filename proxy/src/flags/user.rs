//! The flags of the proxy's own user at etcd.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::{Serialize, Serializer};

const LOGIN: &str = super::LOGIN;
/// What is shown of a password.
const MASKED: &str = "***";

/// See [`super::Flags`].
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct UserFlags {
    /// etcd user as whom this proxy asks for itself: health, registration, discovery; username[:password]
    ///
    /// None, which does while auth is off. As etcdctl takes it; a password here is seen by whoever may list processes,
    /// so better give password-file.
    #[arg(long, help_heading = LOGIN, value_name = "string", default_value = "", value_parser = user)]
    pub user: User,

    /// file with the password of user, which is then a name only
    ///
    /// None. It is read at each login, so that a new password needs no restart.
    #[arg(long, help_heading = LOGIN, value_name = "string", default_value = "", value_parser = super::path())]
    pub password_file: std::option::Option<PathBuf>,
}

/// A user, maybe with a password, which nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub struct User(String);

fn user(text: &str) -> Result<User, String> {
    Ok(User::from(text))
}

impl UserFlags {
    /// Name and password, where both are in the flag.
    pub fn name_and_password(&self) -> Option<(&str, &str)> {
        self.user.0.split_once(':').filter(|_| self.password_file.is_none())
    }

    /// The name, where the password is in a file. It may hold colons, as in etcdctl with --password.
    pub fn name(&self) -> &str {
        &self.user.0
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let text = self.user.0.as_str();
        if self.password_file.is_some() {
            let refuse = || Err("password-file is given, but not whose password it is: give --user as well".to_owned());
            return if text.is_empty() { refuse() } else { Ok(()) };
        }
        match text.split_once(':') {
            None if text.is_empty() => Ok(()),
            None => Err("user is given without a password: give --password-file".to_owned()),
            Some(("", _)) => Err("user has a password, but no name before it: want username:password".to_owned()),
            Some((_, "")) => Err("user has an empty password, with which etcd lets nobody in".to_owned()),
            Some(_) => Ok(()),
        }
    }
}

impl From<&str> for User {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl User {
    fn shown(&self) -> String {
        match self.0.split_once(':') {
            Some((name, _)) => format!("{name}:{MASKED}"),
            None => self.0.clone(),
        }
    }
}

impl fmt::Debug for User {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown(), out)
    }
}

impl Serialize for User {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(user: &str, file: Option<&str>) -> UserFlags {
        UserFlags { user: user.into(), password_file: file.map(PathBuf::from) }
    }

    #[test]
    fn a_user_is_given_as_etcdctl_takes_it() {
        let check = |user: &str, file: Option<&str>, expected: Result<Option<(&str, &str)>, &str>| {
            let flags = flags(user, file);
            match (flags.check(), expected) {
                (Ok(()), Ok(expected)) => assert_eq!(flags.name_and_password(), expected, "{user}"),
                (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
                (outcome, _) => panic!("{user}: {outcome:?}"),
            }
        };
        check("", None, Ok(None));
        check("root:secret", None, Ok(Some(("root", "secret"))));
        check("root:a:b", None, Ok(Some(("root", "a:b"))));
        check("root", Some("file"), Ok(None));
        check("a:b", Some("file"), Ok(None));
        check("root", None, Err("give --password-file"));
        check("root:", None, Err("empty password"));
        check(":secret", None, Err("no name"));
        check("", Some("file"), Err("give --user"));
    }

    #[test]
    fn a_password_is_neither_logged_nor_printed() {
        let flags = flags("root:secret", None);
        let logged = serde_json::to_string(&flags).expect("a struct of texts");
        assert_eq!(logged, r#"{"user":"root:***","password-file":null}"#);
        assert!(!format!("{flags:?}").contains("secret"));
    }
}
