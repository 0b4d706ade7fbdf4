//! The etcd users as whom the proxy asks where a request brings no credentials of its own: the proxy's own user, and
//! those whom tenants are mapped to.
//!
//! A user is shown to etcd by a token, for which the proxy logs in with the user's password, or by a certificate with
//! the user's name, on connections of its own. A token that etcd does not take any more is exchanged for a fresh one;
//! nothing was done under it, so the call is made again.

use std::{
    collections::HashMap,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use etcd_proxy_proto::etcdserverpb::{AuthenticateRequest, AuthenticateResponse};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{HeaderMap, HeaderValue};
use prost::Message as _;
use tokio::io::AsyncReadExt;

use super::{Answer, OWN_CALL_TIMEOUT, Upstream, code_of};
use crate::{
    exchange::until,
    metrics::{Login as Outcome, Metrics},
    rules::{
        caller::Caller,
        framing, methods,
        status::{self, Code, Status},
        tenant::UserNumber,
    },
    tls::ClientTls,
};

/// One user and how it is proved to etcd.
#[derive(Clone, Debug)]
pub struct Config {
    pub number: UserNumber,
    pub proof: Proof,
}

#[derive(Clone)]
pub enum Proof {
    Password {
        name: String,
        password: Password,
    },
    /// The settings of connections that show the user's certificate.
    Certificate(ClientTls),
}

#[derive(Clone)]
pub enum Password {
    Given(String),
    /// Read at each login, so that a new password needs no restart.
    File(PathBuf),
}

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
const HEALTH_SERVICE: &str = "/grpc.health.v1.Health/";

/// How long a login that etcd refused is not tried again: each costs etcd a computation that is slow on purpose.
const REFUSED_FOR: Duration = Duration::from_secs(2);
/// Longer than any password that etcd's hash looks at; a larger file is some other file.
const MAX_PASSWORD_FILE: u64 = 4096;

/// Every user, shared by all shards.
pub struct Users {
    known: RwLock<Known>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Known {
    logins: HashMap<UserNumber, Arc<Login>>,
    certificates: HashMap<UserNumber, ClientTls>,
}

/// A right to go as some user, for as long as etcd takes it.
#[derive(Clone)]
pub struct Pass {
    login: Arc<Login>,
    token: Arc<Token>,
}

/// None where auth is off.
type Token = Option<HeaderValue>;
type LoggingIn = Shared<BoxFuture<'static, Result<Arc<Token>, Status>>>;

struct Login {
    name: String,
    password: Password,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

enum State {
    Out,
    /// Whoever asks meanwhile waits for the same one.
    UnderWay(LoggingIn),
    In(Arc<Token>),
    Refused {
        until: Instant,
        status: Status,
    },
}

/// Why a login has brought nothing.
enum NoToken {
    /// etcd could not be asked, which the next call may find over.
    Unreached(Status),
    /// The name or the password does not do.
    Refused(String),
}

// === impl Users ===

impl Users {
    pub fn new(configs: Vec<Config>, metrics: &Arc<Metrics>) -> Arc<Self> {
        let users = Self { known: RwLock::default(), metrics: metrics.clone() };
        users.replace(configs);
        Arc::new(users)
    }

    /// From now on there are these. Who was there under the same number stays logged in.
    pub fn replace(&self, configs: Vec<Config>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *known);
        for Config { number, proof } in configs {
            match proof {
                Proof::Password { name, password } => {
                    let login = before.logins.remove(&number).unwrap_or_else(|| {
                        let (metrics, state) = (self.metrics.clone(), Mutex::new(State::Out));
                        Arc::new(Login { name, password, metrics, state })
                    });
                    known.logins.insert(number, login);
                }
                Proof::Certificate(tls) => {
                    known.certificates.insert(number, tls);
                }
            }
        }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        // It is held for the look into a map.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether calls may be made as this user. The proxy itself may be nobody.
    pub fn knows(&self, user: UserNumber) -> bool {
        let known = self.known();
        user == UserNumber::PROXY || known.logins.contains_key(&user) || known.certificates.contains_key(&user)
    }

    /// What a user shows who needs connections of its own.
    pub fn certificate(&self, user: UserNumber) -> Option<ClientTls> {
        self.known().certificates.get(&user).cloned()
    }

    /// What a call must show, if it is made as a user who logs in.
    pub async fn pass(&self, upstream: &Upstream, caller: &Caller, path: &str) -> Result<Option<Pass>, Status> {
        let Some(user) = caller.user() else { return Ok(None) };
        if !self.knows(user) {
            // Its rule is gone, and the connection is about to be.
            return Err(status::cannot_log_in());
        }
        let Some(login) = self.known().logins.get(&user).cloned() else { return Ok(None) };
        // etcd asks nobody for a name here, and whoever logs in has no pass yet.
        if path == AUTHENTICATE || path.starts_with(HEALTH_SERVICE) {
            return Ok(None);
        }
        login.pass(upstream).await.map(Some)
    }
}

// === impl Pass ===

impl Pass {
    pub fn token(&self) -> Option<&HeaderValue> {
        self.token.as_ref().as_ref()
    }

    /// Takes note of what etcd refused a call with. Says whether it does not take this pass any more, so that a fresh
    /// one may help.
    pub fn is_refused(&self, message: &str) -> bool {
        if !status::asks_for_login(message) {
            return false;
        }
        let mut state = self.login.lock();
        if matches!(&*state, State::In(token) if Arc::ptr_eq(token, &self.token)) {
            *state = State::Out;
        }
        true
    }

    /// The same for an answer, which refuses if it has no message.
    pub fn is_refused_by(&self, answer: &Answer) -> bool {
        self.is_refused_in(&answer.headers)
    }

    /// The same for headers or trailers, which refuse if they have a status that is not OK.
    pub fn is_refused_in(&self, headers: &HeaderMap) -> bool {
        code_of(headers).is_some_and(|code| code != Code::Ok)
            && status::of_trailers(headers).is_some_and(|status| self.is_refused(status.message()))
    }
}

// === impl Login ===

impl Login {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }

    async fn pass(self: &Arc<Self>, upstream: &Upstream) -> Result<Pass, Status> {
        let under_way = {
            let mut state = self.lock();
            match &*state {
                State::In(token) => return Ok(Pass { login: self.clone(), token: token.clone() }),
                State::Refused { until, status } if Instant::now() < *until => return Err(status.clone()),
                State::UnderWay(under_way) => under_way.clone(),
                State::Out | State::Refused { .. } => {
                    let under_way = log_in(self.clone(), upstream.clone()).shared();
                    // It goes on when the call that began it is given up, for the others who wait.
                    tokio::spawn(under_way.clone());
                    *state = State::UnderWay(under_way.clone());
                    under_way
                }
            }
        };
        let token = under_way.await?;
        Ok(Pass { login: self.clone(), token })
    }

    async fn authenticate(&self, upstream: &Upstream) -> Result<Token, NoToken> {
        let method = methods::find(AUTHENTICATE).expect("a row of the table");
        let password = self.password.read().await.map_err(NoToken::Refused)?;
        let request = AuthenticateRequest { name: self.name.clone(), password };
        let asked = async {
            let answer = upstream.call(&Caller::proxy(), method, framing::frame(&request.encode_to_vec())).await?;
            answer.collect(upstream.limits().max_answer).await?.into_message()
        };
        match until(Some(Instant::now() + OWN_CALL_TIMEOUT), asked).await {
            Ok(message) => {
                let unreadable = |error: &dyn fmt::Display| NoToken::Refused(format!("unreadable answer: {error}"));
                let answer = AuthenticateResponse::decode(message).map_err(|error| unreadable(&error))?;
                let mut token = HeaderValue::from_str(&answer.token).map_err(|error| unreadable(&error))?;
                token.set_sensitive(true);
                Ok(Some(token))
            }
            Err(status) if status.message() == status::AUTH_NOT_ENABLED => Ok(None),
            Err(status) => match status.code() {
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Err(NoToken::Unreached(status)),
                _ => Err(NoToken::Refused(status.message().to_owned())),
            },
        }
    }
}

/// One login, and what is known after it.
fn log_in(login: Arc<Login>, upstream: Upstream) -> BoxFuture<'static, Result<Arc<Token>, Status>> {
    let work = async move {
        let (state, outcome) = match login.authenticate(&upstream).await {
            Ok(token) => {
                login.metrics.logged_in(Outcome::Accepted);
                tracing::debug!(user = login.name, auth = token.is_some(), "logged in to etcd");
                let token = Arc::new(token);
                (State::In(token.clone()), Ok(token))
            }
            Err(NoToken::Unreached(status)) => {
                login.metrics.logged_in(Outcome::Failed);
                (State::Out, Err(status))
            }
            Err(NoToken::Refused(error)) => {
                login.metrics.logged_in(Outcome::Refused);
                tracing::warn!(
                    user = login.name,
                    error,
                    "cannot log in to etcd; are the user's name and password right?"
                );
                let told = status::cannot_log_in();
                (State::Refused { until: Instant::now() + REFUSED_FOR, status: told.clone() }, Err(told))
            }
        };
        *login.lock() = state;
        outcome
    };
    work.boxed()
}

// === impl Password ===

impl Password {
    /// The password, without the end of its line.
    async fn read(&self) -> Result<String, String> {
        let path = match self {
            Self::Given(password) => return Ok(password.clone()),
            Self::File(path) => path,
        };
        let explain = |error: io::Error| format!("cannot read the password file {}: {error}", path.display());
        let mut text = String::new();
        let file = tokio::fs::File::open(path).await.map_err(explain)?;
        file.take(MAX_PASSWORD_FILE + 1).read_to_string(&mut text).await.map_err(explain)?;
        if text.len() as u64 > MAX_PASSWORD_FILE {
            return Err(format!("the password file {} is larger than {MAX_PASSWORD_FILE} bytes", path.display()));
        }
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        Ok(line.to_owned())
    }
}

/// Passwords stay out of logs, whoever prints what holds them.
impl fmt::Debug for Proof {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { name, .. } => out.debug_struct("Password").field("name", name).finish_non_exhaustive(),
            Self::Certificate(_) => out.write_str("Certificate"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(content: &str, expected: Result<&str, &str>) {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        std::fs::write(file.path(), content).expect("it can be written");
        let read = Password::File(file.path().into()).read().await;
        match expected {
            Ok(password) => assert_eq!(read.as_deref(), Ok(password), "{content:?}"),
            Err(words) => assert!(read.expect_err("it is refused").contains(words), "{words}"),
        }
    }

    #[tokio::test]
    async fn a_password_file_holds_a_password_and_the_end_of_its_line() {
        check("secret", Ok("secret")).await;
        check("secret\n", Ok("secret")).await;
        check("secret\r\n", Ok("secret")).await;
        check(" with blanks \n\n", Ok(" with blanks \n")).await;
        check("", Ok("")).await;
        check(&"x".repeat(5000), Err("larger than")).await;
        let missing = Password::File("/nonexistent/password".into()).read().await;
        assert!(missing.expect_err("there is none").contains("/nonexistent/password"));
    }

    #[test]
    fn a_password_is_not_printed() {
        let proof = Proof::Password { name: "root".into(), password: Password::Given("secret".into()) };
        assert_eq!(format!("{proof:?}"), "Password { name: \"root\", .. }");
    }
}
