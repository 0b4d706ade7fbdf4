//! Which endpoints there are: found by SRV records, told by the cluster's own member list, or as configured.
//!
//! What is found is asked for again while the proxy runs, so that members may come and go. Whatever fails, the last
//! good endpoints stay, and when none of them serves any more the configured ones are tried as well.

pub mod dns;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_proxy_proto::etcdserverpb::{Member, MemberListRequest, cluster_client::ClusterClient};
use futures_util::future::join_all;

use super::{
    Upstream,
    channel::{self, DialError},
    endpoint::{Endpoint, Security, State},
};
use crate::{backoff::Backoff, exchange::until};

/// How endpoints are found.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where SRV records name the first endpoints, and those to fall back to.
    pub srv: Option<dns::Config>,
    /// How often the member list replaces the endpoints; zero never.
    pub sync_interval: Duration,
}

/// SRV records are asked for again when their TTL is over, within these bounds: a TTL of zero must not keep a name
/// server busy, and one of a day must not keep a member that was replaced.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);
const LONGEST_REFRESH: Duration = Duration::from_secs(30);
/// Between tries after a look-up that failed.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How long the start waits for the first look-up, so that the first calls find endpoints.
const FIRST_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the member list may take, as with etcd's own client.
const SYNC_TIMEOUT: Duration = Duration::from_secs(5);
/// After all endpoints are lost, the least time between two look-ups or syncs that this sets off.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);
/// The longest between two syncs while no endpoint serves, however rarely they are made otherwise.
const LOSS_RETRY: Duration = Duration::from_secs(5);
/// Far more members than a cluster can have. It keeps a wrong record or list from making hundreds of connections.
const MAX_ENDPOINTS: usize = 100;

/// Keeps the endpoints up to date.
pub struct Discovery {
    config: Config,
    upstream: Upstream,
    channel: Arc<channel::Config>,
    /// What the user named, or the SRV records did.
    seeds: Vec<String>,
    /// Whether endpoints that someone else names must be spoken to over TLS.
    only_tls: bool,
    refresh_at: Instant,
    retry: Backoff,
}

impl Discovery {
    /// `upstream` has the configured endpoints.
    pub fn new(config: Config, upstream: Upstream, channel: Arc<channel::Config>) -> Self {
        let list = upstream.endpoints().list();
        Self {
            only_tls: is_tls_meant(&config, list.first(), &channel),
            seeds: list.iter().map(|endpoint| endpoint.name.clone()).collect(),
            config,
            upstream,
            channel,
            refresh_at: Instant::now(),
            retry: Backoff::new(FIRST_RETRY, LONGEST_REFRESH),
        }
    }

    /// Makes the first look-up. If it fails, it is tried again while the proxy serves already.
    pub async fn begin(&mut self) {
        if self.config.srv.is_some() {
            let looked_up = tokio::time::timeout(FIRST_LOOKUP_TIMEOUT, self.refresh());
            if looked_up.await.is_err() {
                tracing::warn!(timeout = ?FIRST_LOOKUP_TIMEOUT, "starting before DNS has answered");
            }
        }
    }

    /// Keeps the endpoints up to date for as long as it runs.
    pub async fn run(mut self) {
        let mut serving = self.upstream.endpoints().watch_serving();
        let mut sync_at = Instant::now() + self.config.sync_interval;
        loop {
            let (refreshes, syncs) = (self.config.srv.is_some(), !self.config.sync_interval.is_zero());
            if !refreshes && !syncs {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.refresh_at.into()), if refreshes => self.refresh().await,
                () = tokio::time::sleep_until(sync_at.into()), if syncs => {
                    self.sync().await;
                    let is_well = self.upstream.endpoints().any_serving();
                    let wait = if is_well { self.config.sync_interval } else { self.config.sync_interval.min(LOSS_RETRY) };
                    sync_at = Instant::now() + wait;
                }
                Ok(()) = serving.changed() => {
                    if !*serving.borrow_and_update() {
                        // What is known is of no use any more, so there is no point in waiting for its time.
                        let soon = Instant::now() + LOSS_INTERVAL;
                        self.refresh_at = self.refresh_at.min(soon);
                        sync_at = sync_at.min(soon);
                    }
                }
            }
        }
    }

    /// Asks for SRV records, and says when to ask again.
    async fn refresh(&mut self) {
        let Some(srv) = &self.config.srv else { return };
        match self.look_up(srv).await {
            Ok((mut found, valid_until)) => {
                self.retry.reset();
                let now = Instant::now();
                self.refresh_at = valid_until.clamp(now + SHORTEST_REFRESH, now + LONGEST_REFRESH);
                found.truncate(MAX_ENDPOINTS);
                self.seeds = found;
                // A member list knows better than DNS which members there are; then records are only where to begin.
                if self.config.sync_interval.is_zero() || self.upstream.endpoints().list().is_empty() {
                    self.adopt(&self.seeds);
                }
            }
            Err(error) => {
                tracing::warn!("srv-server" = srv.domain, error, "failed to discover endpoints, keeping the last ones");
                self.refresh_at = Instant::now() + self.retry.next();
            }
        }
        self.fall_back();
    }

    async fn look_up(&self, srv: &dns::Config) -> Result<(Vec<String>, Instant), String> {
        let found = dns::look_up(srv, &self.seeds).await?;
        let endpoints = found.endpoints();
        let is_news = endpoints != self.seeds;
        if is_news {
            tracing::info!("srv-server" = srv.domain, ?endpoints, "discovered cluster from SRV");
        }
        if srv.insecure {
            return Ok((endpoints, found.valid_until));
        }
        let (good, errors) = self.validate(endpoints).await;
        if !errors.is_empty() && is_news {
            let error = errors.join(",");
            tracing::warn!("srv-server" = srv.domain, endpoints = ?good, error, "failed to validate discovered endpoints");
        }
        if good.is_empty() {
            return Err(format!("none of the discovered endpoints can be used: {}", errors.join(",")));
        }
        if is_news {
            tracing::info!("srv-server" = srv.domain, endpoints = ?good, "using validated discovered SRV endpoints");
        }
        Ok((good, found.valid_until))
    }

    /// Those that are reached over TLS, and what is wrong with the others. One that was good stays so: whether it
    /// serves right now is for the health check to say.
    async fn validate(&self, endpoints: Vec<String>) -> (Vec<String>, Vec<String>) {
        let checked = endpoints.into_iter().take(MAX_ENDPOINTS).map(async |name| {
            if self.seeds.contains(&name) {
                return Ok(name);
            }
            if !name.starts_with("https://") {
                return Err(format!("{name:?} is insecure"));
            }
            let endpoint = Endpoint::parse(&name).map_err(|error| error.to_string())?;
            let dialled: Result<(), DialError> = channel::check(&self.channel, &endpoint).await;
            dialled.map(|()| name.clone()).map_err(|error| format!("{name:?} failed to dial ({error})"))
        });
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for outcome in join_all(checked).await {
            match outcome {
                Ok(name) => good.push(name),
                Err(error) => bad.push(error),
            }
        }
        (good, bad)
    }

    /// Takes the endpoints over that the cluster's members advertise.
    async fn sync(&self) {
        let mut client = ClusterClient::new(self.upstream.clone());
        let asked = async { client.member_list(MemberListRequest { linearizable: true }).await };
        match until(Some(Instant::now() + SYNC_TIMEOUT), asked).await {
            Ok(answer) => {
                let advertised = advertised(&answer.into_inner().members, self.only_tls);
                tracing::debug!(endpoints = ?advertised, "set etcd endpoints by autoSync");
                self.adopt(&advertised);
            }
            Err(status) => tracing::info!(error = status.message(), "Auto sync endpoints failed."),
        }
        self.fall_back();
    }

    /// Replaces the endpoints by those that were found, but lets none go that serves before one of the new ones does:
    /// a cluster may advertise URLs that cannot be reached from here.
    fn adopt(&self, found: &[String]) {
        let endpoints = self.upstream.endpoints();
        let current = endpoints.list();
        let known = current.iter().map(|endpoint| (endpoint.name.as_str(), endpoint.state()));
        endpoints.replace(&successors(&known.collect::<Vec<_>>(), found));
    }

    /// When none of the endpoints is of use, the configured ones are tried besides.
    fn fall_back(&self) {
        let endpoints = self.upstream.endpoints();
        let list = endpoints.list();
        if list.iter().any(|endpoint| endpoint.state() < State::Unreachable) {
            return;
        }
        let mut names: Vec<String> = list.iter().map(|endpoint| endpoint.name.clone()).collect();
        let missing: Vec<&String> = self.seeds.iter().filter(|seed| !names.contains(seed)).collect();
        if !missing.is_empty() {
            tracing::warn!(endpoints = ?missing, "no endpoint can be reached, trying those that were given at first");
            names.extend(missing.into_iter().cloned());
            endpoints.replace(&names);
        }
    }
}

/// As etcd's client takes it from its first endpoint. Plaintext would give the callers' tokens away to whoever can put
/// a URL into the member list.
fn is_tls_meant(config: &Config, first: Option<&Arc<Endpoint>>, channel: &channel::Config) -> bool {
    match (&config.srv, first) {
        (Some(srv), _) => !srv.insecure,
        (None, Some(endpoint)) => match endpoint.security {
            Security::Always => true,
            Security::Never => false,
            Security::IfConfigured => channel.tls.is_some(),
        },
        (None, None) => false,
    }
}

/// The client URLs of the members that have started and may vote: learners refuse most calls.
fn advertised(members: &[Member], only_tls: bool) -> Vec<String> {
    let voting = members.iter().filter(|member| !member.name.is_empty() && !member.is_learner);
    let urls = voting.flat_map(|member| &member.client_ur_ls).take(MAX_ENDPOINTS);
    urls.map(|url| match url.strip_prefix("http://") {
        Some(rest) if only_tls => format!("https://{rest}"),
        _ => url.clone(),
    })
    .collect()
}

/// What was found, and besides it those of the current endpoints that serve while none that was found does.
fn successors(current: &[(&str, State)], found: &[String]) -> Vec<String> {
    let is_found = |name: &str| found.iter().any(|found| found == name);
    let serves = |state: &State| *state == State::Serving;
    let mut names = found.to_vec();
    if !found.is_empty() && !current.iter().any(|(name, state)| serves(state) && is_found(name)) {
        let kept = current.iter().filter(|(name, state)| serves(state) && !is_found(name));
        names.extend(kept.map(|(name, _)| (*name).to_owned()));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn learners_and_members_that_have_not_started_are_left_out() {
        let member = |name: &str, url: &str, is_learner| Member {
            name: name.into(),
            client_ur_ls: vec![url.into()],
            is_learner,
            ..Member::default()
        };
        let members =
            [member("a", "http://a:1", false), member("", "http://b:1", false), member("c", "http://c:1", true)];
        assert_eq!(advertised(&members, false), ["http://a:1"]);
        assert_eq!(advertised(&members, true), ["https://a:1"], "tokens do not travel in plaintext");
    }

    #[test]
    fn an_endpoint_that_serves_goes_only_when_another_does() {
        let check = |current: &[(&str, State)], found: &[&str], expected: &[&str]| {
            assert_eq!(successors(current, &names(found)), expected, "{current:?} {found:?}");
        };
        check(&[("a", State::Serving)], &["b"], &["b", "a"]);
        check(&[("a", State::Serving), ("b", State::Untried)], &["b"], &["b", "a"]);
        check(&[("a", State::Serving), ("b", State::Serving)], &["b"], &["b"]);
        check(&[("a", State::Unreachable)], &["b"], &["b"]);
        check(&[("a", State::Serving)], &["a", "b"], &["a", "b"]);
        check(&[("a", State::Serving)], &[], &[]);
    }

    #[test]
    fn tls_is_meant_when_the_first_endpoint_is_over_tls() {
        let channel = channel::Config {
            tls: None,
            keepalive_time: Duration::ZERO,
            keepalive_timeout: Duration::ZERO,
            keepalive_without_stream: false,
            is_judge: true,
        };
        let srv =
            |insecure| dns::Config { domain: "d".into(), service_name: String::new(), insecure, name_server: None };
        for (srv, first, expected) in [
            (None, Some("https://a:1"), true),
            (None, Some("http://a:1"), false),
            (None, Some("a:1"), false),
            (None, None, false),
            (Some(srv(false)), Some("http://a:1"), true),
            (Some(srv(true)), None, false),
        ] {
            let config = Config { srv, sync_interval: Duration::ZERO };
            let first = first.map(|name| Endpoint::parse(name).expect("a good name"));
            assert_eq!(is_tls_meant(&config, first.as_ref(), &channel), expected, "{config:?} {first:?}");
        }
    }
}
