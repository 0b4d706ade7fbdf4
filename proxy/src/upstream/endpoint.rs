//! One etcd member's client URL: where it is, what it is called in its certificate, and how it is doing.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use crate::metrics::{EndpointCalls, Metrics};

/// An address as `clientv3` reads it: `http://`, `https://`, `unix://`, `unixs://` or bare `host:port`.
#[derive(Debug)]
pub struct Endpoint {
    /// Different for every endpoint of the process's life, also when one comes back under the same name.
    pub id: u64,
    /// As the user or the cluster spelled it.
    pub name: String,
    pub address: Address,
    /// What the member's certificate must be good for.
    pub server_name: String,
    pub security: Security,
    state: watch::Sender<State>,
    /// The id of the member behind it, as that has told in its answers; zero before the first.
    member: AtomicU64,
    /// Whether any answer has come from it since this was last taken back.
    heard: AtomicBool,
    /// Made at its first call.
    calls: OnceLock<Arc<EndpointCalls>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `host:port`, the host a name or an IP address.
    Tcp(String),
    Unix(PathBuf),
}

/// Whether TLS is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Always,
    Never,
    /// If the proxy was given anything about TLS towards etcd.
    IfConfigured,
}

/// How a member is doing, best first: calls go to the best there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Serving,
    /// Not asked yet.
    Untried,
    /// Answers, but says that it does not serve (as while it defragments).
    NotServing,
    Learner,
    NoLeader,
    Unreachable,
    /// No longer among the endpoints.
    Removed,
}

impl State {
    pub const ALL: [State; 7] = [
        Self::Serving,
        Self::Untried,
        Self::NotServing,
        Self::Learner,
        Self::NoLeader,
        Self::Unreachable,
        Self::Removed,
    ];

    /// The name that metrics and logs use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Untried => "untried",
            Self::NotServing => "not-serving",
            Self::Learner => "learner",
            Self::NoLeader => "no-leader",
            Self::Unreachable => "unreachable",
            Self::Removed => "removed",
        }
    }

    /// Whether calls are sent there while another endpoint is in the same or a better state.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Serving | Self::Untried)
    }
}

/// An endpoint that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "endpoint {endpoint:?} {problem}; write host:port, http://host:port, https://host:port, unix://path or unixs://path"
)]
pub struct BadEndpoint {
    endpoint: String,
    problem: &'static str,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Endpoint {
    pub fn parse(text: &str) -> Result<Arc<Self>, BadEndpoint> {
        let bad = |problem| BadEndpoint { endpoint: text.to_owned(), problem };
        let text_trimmed = text.trim();
        if text_trimmed.is_empty() {
            return Err(bad("is empty"));
        }
        let (address, server_name, security) = match split_scheme(text_trimmed) {
            Some((scheme @ ("unix" | "unixs"), rest)) => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() {
                    return Err(bad("names no socket file"));
                }
                let file = path.rsplit('/').next().unwrap_or(path);
                let security = if scheme == "unixs" { Security::Always } else { Security::IfConfigured };
                (Address::Unix(PathBuf::from(path)), host_of(file).to_owned(), security)
            }
            Some((scheme @ ("http" | "https"), rest)) => {
                let authority = rest.trim_start_matches('/').split(['/', '?', '#']).next().unwrap_or_default();
                let security = if scheme == "https" { Security::Always } else { Security::Never };
                let host_port = authority.rsplit_once('@').map_or(authority, |(_, host_port)| host_port);
                (Address::Tcp(check_host_port(host_port).map_err(bad)?), host_of(host_port).to_owned(), security)
            }
            Some(_) => return Err(bad("has a scheme that etcd does not speak")),
            None => (
                Address::Tcp(check_host_port(text_trimmed).map_err(bad)?),
                host_of(text_trimmed).to_owned(),
                Security::IfConfigured,
            ),
        };
        Ok(Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name: text_trimmed.to_owned(),
            address,
            server_name,
            security,
            state: watch::Sender::new(State::Untried),
            member: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            calls: OnceLock::new(),
        }))
    }

    /// Its name for people, without the user and password that a URL may carry.
    pub fn shown(&self) -> String {
        let Some((scheme, rest)) = self.name.split_once("://") else { return self.name.clone() };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let host = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
        format!("{scheme}://{host}{}", &rest[end..])
    }

    /// The id of the member behind it, once that has answered.
    pub fn member(&self) -> Option<u64> {
        Some(self.member.load(Ordering::Relaxed)).filter(|member| *member != 0)
    }

    pub fn note_member(&self, member: u64) {
        // It is nearly always the same, and a store would take the line from all other cores.
        if self.member.load(Ordering::Relaxed) != member {
            self.member.store(member, Ordering::Relaxed);
        }
    }

    /// Notes that something of an answer has come from it.
    pub fn note_heard(&self) {
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// Whether anything has come from it since this was last asked.
    pub fn take_heard(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed)
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Notes how the member is doing; those who watch hear of it only if that is news. What was removed stays so.
    pub fn note(&self, state: State) {
        let changed = self.state.send_if_modified(|current| {
            let news = *current != state && *current != State::Removed;
            if news {
                *current = state;
            }
            news
        });
        if changed {
            match state {
                State::Serving => tracing::info!(endpoint = %self.name, "endpoint is serving"),
                State::Removed => tracing::info!(endpoint = %self.name, "endpoint removed"),
                _ => tracing::warn!(endpoint = %self.name, state = state.name(), "endpoint is not serving"),
            }
        }
    }

    /// Counts calls to it.
    pub fn calls(&self, metrics: &Metrics) -> &EndpointCalls {
        self.calls.get_or_init(|| metrics.endpoint(&self.name))
    }

    pub fn watch_state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The `:authority` of requests, as grpc-go sends it.
    pub fn authority(&self) -> &str {
        match &self.address {
            Address::Tcp(host_port) => host_port,
            Address::Unix(_) => "localhost",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => write!(formatter, "tcp {host_port}"),
            Self::Unix(path) => write!(formatter, "unix {}", path.display()),
        }
    }
}

/// `scheme` and what follows its colon; `host:port` has none.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    if let Some((scheme, rest)) = text.split_once("://") {
        return Some((scheme, rest));
    }
    // `unix:path` without slashes is read as well, as clientv3 does.
    let (scheme, rest) = text.split_once(':')?;
    matches!(scheme, "unix" | "unixs").then_some((scheme, rest))
}

fn check_host_port(text: &str) -> Result<String, &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("names no port")?;
    if host.is_empty() {
        return Err("names no host");
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err("has an IPv6 address without brackets");
    }
    port.parse::<u16>().map_err(|_| "has a port that is not a number from 0 to 65535")?;
    // It goes into the head of every call, which could not be sent with anything else in it.
    text.parse::<http::uri::Authority>().map_err(|_| "has a host that is neither a name nor an address")?;
    Ok(text.to_owned())
}

/// The host without its port and without the brackets of IPv6.
fn host_of(text: &str) -> &str {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, address: Address, server_name: &str, security: Security) {
        let endpoint = Endpoint::parse(text).expect(text);
        assert_eq!(
            (&endpoint.address, endpoint.server_name.as_str(), endpoint.security),
            (&address, server_name, security),
            "{text}"
        );
    }

    #[test]
    fn endpoints_are_read_as_clientv3_reads_them() {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        let unix = |text: &str| Address::Unix(text.into());
        check("127.0.0.1:2379", tcp("127.0.0.1:2379"), "127.0.0.1", Security::IfConfigured);
        check("http://etcd-0.etcd:2379", tcp("etcd-0.etcd:2379"), "etcd-0.etcd", Security::Never);
        check("https://[::1]:2379/", tcp("[::1]:2379"), "::1", Security::Always);
        check("unix:///run/etcd.sock", unix("/run/etcd.sock"), "etcd.sock", Security::IfConfigured);
        check("unix://localhost:20000", unix("localhost:20000"), "localhost", Security::IfConfigured);
        check("unixs://dir/name:0", unix("dir/name:0"), "name", Security::Always);
        check("unix:relative.sock", unix("relative.sock"), "relative.sock", Security::IfConfigured);
    }

    #[test]
    fn what_no_one_could_dial_is_refused_with_a_remedy() {
        for text in ["", "  ", "ftp://x:1", "http://", "host", "host:port", "::1:2379", "http://host:70000", "unix://"]
        {
            let error = Endpoint::parse(text).expect_err(text).to_string();
            assert!(error.contains("host:port"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_endpoint_or_refused(text in "(https?|unixs?|http2|)(:|)/{0,3}[\\PC]{0,40}(:[0-9]{0,7})?(/[a-z]*)?") {
            if let Ok(endpoint) = Endpoint::parse(&text) {
                proptest::prop_assert!(!endpoint.name.is_empty());
                // What it says as an authority must be one, or no call could be made to it.
                proptest::prop_assert!(endpoint.authority().parse::<http::uri::Authority>().is_ok(), "{}", text);
            }
        }
    }
}
