//! `/livez` and `/readyz`: whether this process lives, and whether clients should be sent to it.

use std::time::SystemTime;

use axum::body::Body;
use http::{Response, StatusCode};

use super::{Watched, query::Query, text};
use crate::{router::Router, tls::Role};

/// One thing that is looked at, with why it failed if it did.
struct Check {
    name: &'static str,
    failure: Option<String>,
}

/// Answers `/livez`, `/readyz` and the same with the name of one check behind them; `None` if there is no such check.
pub fn answer(path: &str, watched: &Watched, router: &Router, query: &Query) -> Option<Response<Body>> {
    let (kind, name) = match path[1..].split_once('/') {
        Some((kind, name)) => (kind, Some(name)),
        None => (&path[1..], None),
    };
    let mut checks = match kind {
        // Whoever gets an answer knows that the process lives; etcd's state is no reason to restart the proxy.
        "livez" => vec![Check { name: "ping", failure: None }],
        "readyz" => readiness(watched, router),
        _ => return None,
    };
    match name {
        Some(name) => {
            checks.retain(|check| check.name == name);
            if checks.is_empty() {
                return None;
            }
        }
        None => checks.retain(|check| query.all("exclude").all(|excluded| excluded != check.name)),
    }
    Some(report(kind, &checks, query.first("verbose").is_some()))
}

/// As Kubernetes' API server writes it: a line for each check where one failed or the reader asks.
fn report(kind: &str, checks: &[Check], verbose: bool) -> Response<Body> {
    let failed = checks.iter().any(|check| check.failure.is_some());
    if !failed && !verbose {
        return text(StatusCode::OK, "ok\n");
    }
    let mut lines: String = checks
        .iter()
        .map(|Check { name, failure }| match failure {
            None => format!("[+]{name} ok\n"),
            Some(why) => format!("[-]{name} failed: {why}\n"),
        })
        .collect();
    if failed {
        lines += &format!("{kind} check failed\n");
        return text(StatusCode::SERVICE_UNAVAILABLE, lines);
    }
    lines += &format!("{kind} check passed\n");
    text(StatusCode::OK, lines)
}

/// The checks that `/readyz` fails by, and why.
pub fn failures(watched: &Watched, router: &Router) -> Vec<(&'static str, String)> {
    readiness(watched, router).into_iter().filter_map(|check| Some((check.name, check.failure?))).collect()
}

fn readiness(watched: &Watched, router: &Router) -> Vec<Check> {
    vec![
        Check { name: "etcd", failure: unreachable(router) },
        Check { name: "certificates", failure: expired(watched, SystemTime::now()) },
        Check {
            name: "shutdown",
            failure: watched.drain.is_signaled().then(|| "this proxy drains; go to another one".to_owned()),
        },
    ]
}

fn unreachable(router: &Router) -> Option<String> {
    let endpoints = router.upstream.endpoints();
    if endpoints.any_serving() {
        return None;
    }
    let states: Vec<String> = endpoints
        .list()
        .iter()
        .map(|endpoint| format!("{} is {}", endpoint.shown(), endpoint.state().name()))
        .collect();
    Some(format!("no etcd endpoint serves: {}", states.join(", ")))
}

/// A certificate that has run out fails every handshake. A file whose new content cannot be used does not: what was in
/// use still is, and a shared mistake must not take all proxies out of service at once. The metrics tell of it.
fn expired(watched: &Watched, now: SystemTime) -> Option<String> {
    let files = watched.tls_files();
    let expired = files
        .iter()
        .find(|(_, file)| file.role == Role::Certificate && file.not_after.is_some_and(|not_after| not_after < now));
    expired.map(|(_, file)| format!("the certificate in {} has run out; renew it", file.path.display()))
}
