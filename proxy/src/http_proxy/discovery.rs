//! The v2 discovery protocol: a URL of some etcd under which the members of a cluster that is being made register.

use bytes::Bytes;
use http::{
    Method, Request, StatusCode,
    header::{HOST, PROXY_AUTHORIZATION},
};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use std::time::Duration;

use super::{
    origin::{self, Origin},
    pool::{Body, Pool},
};
use crate::backoff::Backoff;

/// How long one question may take, as with etcd's own client.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A cluster of a hundred members tells of itself in a tenth of this.
const MAX_ANSWER: usize = 1 << 20;
/// Between two looks whether all members are there, and between tries that fail, up to etcd's longest wait.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(256);

/// What the v2 keys API answers.
#[derive(Deserialize)]
pub(super) struct Answer {
    node: Option<Node>,
    #[serde(default, rename = "errorCode")]
    error_code: u32,
}

#[derive(Deserialize)]
pub(super) struct Node {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    nodes: Vec<Node>,
    #[serde(default, rename = "createdIndex")]
    created: u64,
}

/// What ends the wait for an answer.
enum Problem {
    /// Another try may go better.
    Passing(String),
    Lasting(String),
}

/// The peer URLs of the cluster, once all of its members have registered. It waits for as long as that takes.
pub async fn look_up(pool: &Pool, url: &str) -> Result<Vec<String>, String> {
    let (origin, token) = split(url)?;
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut told = 0;
    loop {
        match registered(pool, &origin, &token).await {
            Ok((members, size)) if members.len() >= size => {
                tracing::info!(
                    "discovery-url" = url,
                    "found-peers" = size,
                    "found all needed peers from discovery server"
                );
                return of_members(&members[..size]);
            }
            Ok((members, size)) => {
                backoff.reset();
                if told != members.len() + 1 {
                    told = members.len() + 1;
                    let (found, needed) = (members.len(), size - members.len());
                    tracing::info!(
                        "discovery-url" = url,
                        "found-peers" = found,
                        "needed-peers" = needed,
                        "found peers from discovery server; waiting for more"
                    );
                }
                tokio::time::sleep(FIRST_WAIT).await;
            }
            Err(Problem::Passing(reason)) => {
                let wait = backoff.next();
                tracing::info!(url, reason, backoff = ?wait, "retry connecting to discovery service");
                tokio::time::sleep(wait).await;
            }
            Err(Problem::Lasting(reason)) => return Err(reason),
        }
    }
}

pub(super) fn split(url: &str) -> Result<(Origin, String), String> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("invalid discovery URL {url:?}"))?;
    let (authority, token) = rest.split_once('/').ok_or_else(|| format!("no token in the discovery URL {url:?}"))?;
    let port = if scheme == "https" { 443 } else { 80 };
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
    Ok((Origin::parse(&format!("{scheme}://{authority}"))?, format!("/{}", token.trim_end_matches('/'))))
}

/// The values of those that have registered so far, in their order, and how many the cluster is to have.
async fn registered(pool: &Pool, origin: &Origin, token: &str) -> Result<(Vec<String>, usize), Problem> {
    let lasting = |reason: &str| Problem::Lasting(reason.to_owned());
    let size = get(pool, origin, &format!("{token}/_config/size")).await?;
    const KEY_NOT_FOUND: u32 = 100;
    if size.error_code == KEY_NOT_FOUND {
        return Err(lasting("discovery: size key not found"));
    }
    let size = size.node.and_then(|node| node.value.parse::<usize>().ok()).filter(|size| *size > 0);
    let size = size.ok_or_else(|| lasting("discovery: size key is bad"))?;
    let mut nodes = get(pool, origin, token).await?.node.map(|node| node.nodes).unwrap_or_default();
    nodes.retain(|node| !node.key.ends_with("/_config"));
    nodes.sort_by_key(|node| node.created);
    Ok((nodes.into_iter().map(|node| node.value).collect(), size))
}

async fn get(pool: &Pool, origin: &Origin, path: &str) -> Result<Answer, Problem> {
    let asked = tokio::time::timeout(TIMEOUT, ask(pool, origin, path)).await;
    let (status, body) =
        asked.map_err(|_| Problem::Passing("no answer in time".to_owned()))?.map_err(Problem::Passing)?;
    if status.is_server_error() {
        return Err(Problem::Passing(format!("the discovery service answers {status}")));
    }
    serde_json::from_slice(&body).map_err(|_| Problem::Lasting("discovery: bad discovery endpoint".to_owned()))
}

/// GET a small document.
pub async fn ask(pool: &Pool, origin: &Origin, path: &str) -> Result<(StatusCode, Bytes), String> {
    let (head, body) = ask_whole(pool, origin, path).await?;
    Ok((head.status, body))
}

/// GET a small document with its head.
pub async fn ask_whole(pool: &Pool, origin: &Origin, path: &str) -> Result<(http::response::Parts, Bytes), String> {
    let body: Body = Full::default().map_err(|never| match never {}).boxed();
    let mut request = Request::builder().method(Method::GET).uri(path).header(HOST, origin.authority());
    if let Some(through) = pool.relay(origin) {
        request = request.uri(format!("http://{}{path}", origin.authority()));
        if let Some(value) = &through.authorization {
            request = request.header(PROXY_AUTHORIZATION, value);
        }
    }
    let request = request.body(body).map_err(|error| error.to_string())?;
    let response = pool.send(origin, request).await.map_err(|error| error.to_string())?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
    Ok((head, body.to_bytes()))
}

fn of_members(members: &[String]) -> Result<Vec<String>, String> {
    origin::of_cluster(&members.join(",")).map_err(|_| "discovery: invalid peer URL".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discovery_url_is_a_service_and_a_token() {
        let (origin, token) = split("https://discovery.example/v2/keys/abc").expect("a good URL");
        assert_eq!((origin.url.as_str(), token.as_str()), ("https://discovery.example:443", "/v2/keys/abc"));
        let (origin, _) = split("http://127.0.0.1:7/abc").expect("a good URL");
        assert_eq!(origin.url, "http://127.0.0.1:7");
        assert!(split("abc").is_err() && split("http://a").is_err());
    }
}
