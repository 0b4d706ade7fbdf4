//! `/` and `/status.json` of a metrics address: how this proxy is doing, for a person and for `etcd-proxy top`.
//!
//! Whoever reaches a metrics address may read this, so it has names, counts and dates. It never has a key, a value, a
//! prefix of a tenant, a token or the content of a file.

use std::{sync::LazyLock, time::SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use axum::body::Body;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};

use super::{NOSNIFF, Watched, ready, with_type};
use crate::{
    admission,
    metrics::{Side, UNKNOWN, Usage},
    router::Router,
    rules::{
        status,
        tenant::{Tenant as RuleTenant, limits::Limit},
    },
    tls::Role,
};

mod document;

pub use document::*;

/// The page; it has no other parts, and fills itself from the document.
const PAGE: &str = include_str!("status/page.html");
/// How many of the registered proxies are named; beyond that only their number is told.
const MAX_PROXIES: usize = 100;
/// How many refusals are told of; with many tenants there may be more, and a person reads the newest.
const MAX_REFUSALS: usize = 50;

/// Nothing but the page's own script may run, so that no text in the document can become one.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let script = between(PAGE, "<script>", "</script>");
    let style = between(PAGE, "<style>", "</style>");
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes())));
    let policy = format!(
        "default-src 'none'; connect-src 'self'; script-src {}; style-src {}; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(script),
        hash(style)
    );
    HeaderValue::try_from(policy).expect("a policy is made of visible characters")
});

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let after = text.split_once(start).map_or("", |(_, after)| after);
    after.split_once(end).map_or("", |(inner, _)| inner)
}

/// The page.
pub fn page() -> Response<Body> {
    let mut response = with_type(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(NOSNIFF.0, NOSNIFF.1);
    response
}

/// The document.
pub fn json(watched: &Watched, router: &Router) -> Response<Body> {
    let document = document(watched, router, SystemTime::now());
    let text = serde_json::to_string(&document).expect("texts, numbers and lists have a JSON form");
    let mut response = with_type(StatusCode::OK, "application/json", text);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(NOSNIFF.0, NOSNIFF.1);
    response
}

fn document(watched: &Watched, router: &Router, now: SystemTime) -> Document {
    let failures = ready::failures(watched, router);
    let usage = Usage::now();
    Document {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        etcd_api_version: etcd_proxy_proto::ETCD_VERSION.to_owned(),
        name: watched.identity.name.clone(),
        listen_address: watched.identity.listen_address.clone(),
        now: seconds(now),
        started: seconds(watched.identity.started),
        draining: watched.drain.is_signaled(),
        ready: failures.is_empty(),
        not_ready_because: failures.into_iter().map(|(_, why)| why).collect(),
        endpoints: endpoints(router),
        tenants: tenants(router),
        clients: clients(router),
        watches: watches(router),
        cache: cache(router),
        leases: leases(router),
        registration: registration(watched, router),
        certificates: certificates(watched, now),
        refusals: refusals(router, now),
        process: Process {
            cpu_seconds: usage.cpu_seconds,
            resident_bytes: usage.resident_bytes,
            memory_limit_bytes: usage.memory_limit_bytes,
            threads: usage.threads,
            descriptors: usage.descriptors,
            max_descriptors: usage.max_descriptors,
        },
    }
}

fn endpoints(router: &Router) -> Vec<Endpoint> {
    let totals = router.metrics.endpoint_totals();
    let list = router.upstream.endpoints().list();
    let endpoints = list.iter().map(|endpoint| {
        let totals = totals.get(&endpoint.name).copied().unwrap_or_default();
        Endpoint {
            address: endpoint.shown(),
            state: endpoint.state().name().to_owned(),
            member: endpoint.member().map(|member| format!("{member:x}")),
            answered: totals.answered,
            errors: totals.errors,
            failures: totals.failures,
            seconds: totals.seconds,
        }
    });
    endpoints.collect()
}

fn tenants(router: &Router) -> Vec<Tenant> {
    let refusals = &router.metrics.refusals;
    let known = router.tenants.borrow().all();
    let mut tenants: Vec<Tenant> = known
        .iter()
        .map(|tenant| Tenant {
            name: tenant.name.clone(),
            profile: tenant.policy.profile().name().to_owned(),
            has_namespace: !tenant.namespace.is_empty(),
            refused: refusals.of(&tenant.name)
                + Limit::ALL.into_iter().map(|limit| tenant.usage.refusals(limit)).sum::<u64>(),
        })
        .collect();
    let refused = refusals.of(UNKNOWN);
    if refused > 0 {
        let profile = "none".to_owned();
        tenants.push(Tenant { name: UNKNOWN.to_owned(), profile, has_namespace: false, refused });
    }
    tenants
}

fn clients(router: &Router) -> Clients {
    let metrics = &router.metrics;
    let calls = metrics.call_totals();
    Clients {
        connections: metrics.connections.get(),
        handshakes_failed: metrics.handshakes_failed.get(),
        calls: calls.started,
        calls_failed: calls.failed,
        calls_under_way: calls.under_way,
    }
}

fn watches(router: &Router) -> Watches {
    let metrics = &router.metrics;
    let own = metrics.watches_catching_up.get();
    Watches {
        streams: metrics.watch_streams.get(),
        clients: metrics.client_watches.get(),
        upstream: metrics.upstream_watches.get(),
        // Catch-ups are counted a moment before and after their upstream watch is.
        shared: (metrics.upstream_watches.get() - own).max(0),
        own,
        contained: metrics.watches_contained.get(),
        falls: metrics.watch_falls.get(),
        resumes: metrics.watch_resumes.get(),
        events_received: metrics.watch_events_received.get(),
        events_delivered: metrics.watch_events_delivered.get(),
        log_bytes: metrics.watch_log_bytes.get(),
        log_max_bytes: metrics.watch_log_max_bytes.get(),
    }
}

fn cache(router: &Router) -> Cache {
    let metrics = &router.metrics;
    Cache {
        enabled: router.cache.is_some(),
        hits: metrics.cache_hits.get(),
        misses: metrics.cache_misses.get(),
        merged: metrics.reads_merged.get(),
        ranges: metrics.cache_ranges.get(),
        keys: metrics.cache_keys.get(),
        bytes: metrics.cache_bytes.get(),
        max_bytes: metrics.cache_max_bytes.get(),
        drops: metrics.cache_drops.get(),
    }
}

fn leases(router: &Router) -> Leases {
    let metrics = &router.metrics;
    Leases {
        kept_alive: metrics.leases_kept_alive.get(),
        streams: metrics.keepalive_streams.get(),
        received: metrics.keepalives_received.get(),
        sent: metrics.keepalives_sent.get(),
    }
}

fn registration(watched: &Watched, router: &Router) -> Registration {
    let registered = watched.registered.as_ref().map(|registered| registered.borrow());
    let proxies = registered.iter().flat_map(|registered| registered.proxies());
    let proxies: Vec<_> =
        proxies.map(|proxy| Proxy { name: proxy.name.clone(), address: proxy.address.clone() }).collect();
    Registration {
        wanted: router.metrics.registrations_wanted.get(),
        held: router.metrics.registrations.get(),
        known: proxies.len() as u64,
        proxies: proxies.into_iter().take(MAX_PROXIES).collect(),
    }
}

fn certificates(watched: &Watched, now: SystemTime) -> Vec<Certificate> {
    let files = watched.tls_files().into_iter().filter(|(_, file)| file.role != Role::Key);
    files
        .map(|(side, file)| {
            let not_after = file.not_after.map(seconds);
            Certificate {
                side: match side {
                    Side::Clients => "clients".to_owned(),
                    Side::Etcd => "etcd".to_owned(),
                },
                role: file.role.label().to_owned(),
                file: file.path.display().to_string(),
                subject: file.subject,
                not_after,
                days_left: not_after.map(|not_after| (not_after - seconds(now)) / SECONDS_PER_DAY),
                error: file.last_error,
            }
        })
        .collect()
}

const SECONDS_PER_DAY: f64 = 86_400.0;

fn refusals(router: &Router, now: SystemTime) -> Vec<Refusal> {
    let recent = router.metrics.refusals.recent();
    let others = recent.into_iter().map(|one| Refusal {
        at: seconds(one.at),
        tenant: one.tenant,
        reason: one.reason.label().to_owned(),
        what: one.what,
        count: one.count,
    });
    let tenants = router.tenants.borrow().all();
    let mut refusals: Vec<Refusal> = others.chain(tenants.iter().flat_map(|tenant| over_limits(tenant, now))).collect();
    refusals.sort_by(|one, other| other.at.total_cmp(&one.at));
    refusals.truncate(MAX_REFUSALS);
    refusals
}

/// What was refused for a tenant's own limits: each limit once.
fn over_limits(tenant: &RuleTenant, now: SystemTime) -> impl Iterator<Item = Refusal> {
    Limit::ALL.into_iter().filter_map(move |limit| {
        let ago = admission::now().saturating_sub(tenant.usage.last_refusal(limit)?);
        Some(Refusal {
            at: seconds(now.checked_sub(ago).unwrap_or(now)),
            tenant: tenant.name.clone(),
            reason: limit.label().to_owned(),
            what: status::of_limit(limit).to_owned(),
            count: tenant.usage.refusals(limit),
        })
    })
}

/// Since 1970; a clock before that says zero.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for part in ["http://", "https://", "src=", "href=", "@import", "url("] {
            let found = PAGE.lines().find(|line| line.contains(part) && !line.contains("http://www.w3.org/2000/svg"));
            assert_eq!(found, None, "{part}");
        }
        // Text of others must not become markup.
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!PAGE.contains(way), "{way}");
        }
    }

    #[test]
    fn only_the_pages_own_script_may_run() {
        let policy = POLICY.to_str().expect("visible characters");
        assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        assert!(!PAGE.contains("style="), "the policy forbids it");
    }
}
