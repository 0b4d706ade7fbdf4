//! Every metric, under etcd's names where etcd has one. Imports no room but the table of methods; labels are plain
//! values from closed sets.
//!
//! A call must not pay for being counted, so what happens at each call goes into plain arrays, and text is made of them
//! only when someone asks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus::{IntCounter, IntGauge, Registry, TextEncoder, proto::MetricFamily};
use tonic::Code;

use crate::rules::methods::Method;

mod calls;
mod document;
mod endpoint;
mod family;
pub mod gateway;
pub mod http_proxy;
mod observed;
mod process;
mod refusals;

pub use calls::{Call, CallTotals, Messages};
pub use document::markdown;
pub use endpoint::{EndpointCalls, Failure, Totals};
pub use observed::{Observed, Side, TenantUse, TlsFile};
pub use process::Usage;
pub use refusals::{Reason, Recent, Refusals, UNKNOWN};

use calls::Calls;
use family::{Series, Value};

/// Every counter of one proxy.
pub struct Metrics {
    registry: Registry,
    calls: &'static Calls,
    /// The endpoints that are in use, by name: one that comes back while calls still run on its former self goes on
    /// counting there.
    endpoints: Mutex<HashMap<String, Weak<EndpointCalls>>>,
    /// Client connections that are open.
    pub connections: IntGauge,
    pub handshakes_failed: IntCounter,
    /// Answers and events of etcd that held a key from outside the namespace.
    pub withheld: IntCounter,
    /// What the proxy itself refuses.
    pub refusals: Refusals,
    /// Watches that clients hold.
    pub client_watches: IntGauge,
    /// Watches that the proxy holds on etcd to serve them.
    pub upstream_watches: IntGauge,
    /// Watch RPCs that clients have open.
    pub watch_streams: IntGauge,
    /// Events that etcd sent to this proxy.
    pub watch_events_received: IntCounter,
    /// Events handed to clients, each counted once per client watch that got it.
    pub watch_events_delivered: IntCounter,
    /// Client watches that joined a shared watch that was already there.
    pub watch_joins: IntCounter,
    /// Client watches that began on, or fell back to, an upstream watch of their own until they were level.
    pub watch_catch_ups: IntCounter,
    /// Client watches that are served from a watch of a wider range.
    pub watches_contained: IntGauge,
    /// Client watches that have an upstream watch of their own until they are level.
    pub watches_catching_up: IntGauge,
    /// Client watches that fell off their log.
    pub watch_falls: IntCounter,
    /// Client watches that went from one shared watch to another.
    pub watch_moves: IntCounter,
    /// Upstream watches to which the right was withdrawn.
    pub watches_withdrawn: IntCounter,
    /// Watches of a prefix that were opened for many watches below it.
    pub watches_gathered: IntCounter,
    /// Requests of several tenants that may be under way at etcd.
    pub upstream_limit: IntGauge,
    /// Bytes of events that shared watches hold.
    pub watch_log_bytes: IntGauge,
    /// And how many they may.
    pub watch_log_max_bytes: IntGauge,
    /// Upstream watches that were taken up again after their stream broke.
    pub watch_resumes: IntCounter,
    /// Reads answered from the cache, and those that went to etcd.
    pub cache_hits: IntGauge,
    pub cache_misses: IntGauge,
    /// What the cache holds.
    pub cache_keys: IntGauge,
    pub cache_ranges: IntGauge,
    pub cache_bytes: IntGauge,
    /// What it may hold.
    pub cache_max_bytes: IntGauge,
    /// Ranges that the cache has given up.
    pub cache_drops: IntCounter,
    /// How old the knowledge was on which a read was last answered from the cache, in microseconds.
    staleness: AtomicU64,
    /// Reads that were answered together with another.
    pub reads_merged: IntCounter,
    /// LeaseKeepAlive RPCs that clients have open.
    pub keepalive_streams: IntGauge,
    /// Keepalive requests that came from clients.
    pub keepalives_received: IntCounter,
    /// Leases that were renewed lately.
    pub leases_kept_alive: IntGauge,
    /// Keepalive requests that went to etcd.
    pub keepalives_sent: IntCounter,
    /// Keys under which this proxy is registered.
    pub registrations: IntGauge,
    /// Leasing sessions, of which there is one at most.
    pub leasing_sessions: IntGauge,
    /// Keys whose values are kept under leases.
    pub leasing_keys: IntGauge,
    /// What they take.
    pub leasing_bytes: IntGauge,
    /// Reads and transactions answered from them.
    pub leasing_hits: IntCounter,
    /// Reads that might have been, but went to etcd.
    pub leasing_misses: IntCounter,
    /// Keys that were acquired.
    pub leasing_acquisitions: IntCounter,
    /// Keys that were given up for another writer.
    pub leasing_revocations: IntCounter,
    /// And those under which it should be.
    pub registrations_wanted: IntGauge,
    /// Health checks over HTTP that went well, and those that did not.
    pub health_success: IntCounter,
    pub health_failures: IntCounter,
    /// By side and then by [`RELOAD_RESULTS`].
    reloads: [[AtomicU64; 2]; 2],
    /// By [`Login`].
    logins: [AtomicU64; 3],
    /// By [`RELOAD_RESULTS`].
    rules_reloads: [AtomicU64; 2],
}

/// How a login at etcd ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    Accepted,
    /// Name or password did not do.
    Refused,
    /// etcd could not be asked.
    Failed,
}

const LOGIN_RESULTS: [&str; 3] = ["success", "refused", "unreached"];
const RELOAD_RESULTS: [&str; 2] = ["success", "failure"];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        Self {
            // A proxy lives as long as its process, and a static reference can be handed to every call for nothing.
            calls: Box::leak(Box::new(Calls::new())),
            endpoints: Mutex::default(),
            connections: family::CONNECTIONS.int_gauge(&registry),
            handshakes_failed: family::HANDSHAKES_FAILED.int_counter(&registry),
            withheld: family::WITHHELD.int_counter(&registry),
            refusals: Refusals::default(),
            client_watches: family::CLIENT_WATCHES.int_gauge(&registry),
            upstream_watches: family::UPSTREAM_WATCHES.int_gauge(&registry),
            watch_streams: family::WATCH_STREAMS.int_gauge(&registry),
            watch_events_received: family::WATCH_EVENTS_RECEIVED.int_counter(&registry),
            watch_events_delivered: family::WATCH_EVENTS_DELIVERED.int_counter(&registry),
            watch_joins: family::WATCH_JOINS.int_counter(&registry),
            watch_catch_ups: family::WATCH_CATCH_UPS.int_counter(&registry),
            watches_contained: family::WATCHES_CONTAINED.int_gauge(&registry),
            watches_catching_up: family::WATCHES_CATCHING_UP.int_gauge(&registry),
            watch_falls: family::WATCH_FALLS.int_counter(&registry),
            watch_moves: family::WATCH_MOVES.int_counter(&registry),
            watches_withdrawn: family::WATCHES_WITHDRAWN.int_counter(&registry),
            watches_gathered: family::WATCHES_GATHERED.int_counter(&registry),
            upstream_limit: family::UPSTREAM_LIMIT.int_gauge(&registry),
            watch_log_bytes: family::WATCH_LOG_BYTES.int_gauge(&registry),
            watch_log_max_bytes: family::WATCH_LOG_MAX_BYTES.int_gauge(&registry),
            watch_resumes: family::WATCH_RESUMES.int_counter(&registry),
            cache_hits: family::CACHE_HITS.int_gauge(&registry),
            cache_misses: family::CACHE_MISSES.int_gauge(&registry),
            cache_keys: family::CACHE_KEYS.int_gauge(&registry),
            cache_ranges: family::CACHE_RANGES.int_gauge(&registry),
            cache_bytes: family::CACHE_BYTES.int_gauge(&registry),
            cache_max_bytes: family::CACHE_MAX_BYTES.int_gauge(&registry),
            cache_drops: family::CACHE_DROPS.int_counter(&registry),
            staleness: AtomicU64::new(0),
            reads_merged: family::READS_MERGED.int_counter(&registry),
            keepalive_streams: family::KEEPALIVE_STREAMS.int_gauge(&registry),
            keepalives_received: family::KEEPALIVES_RECEIVED.int_counter(&registry),
            leases_kept_alive: family::LEASES_KEPT_ALIVE.int_gauge(&registry),
            keepalives_sent: family::KEEPALIVES_SENT.int_counter(&registry),
            registrations: family::REGISTRATIONS.int_gauge(&registry),
            leasing_sessions: family::LEASING_SESSIONS.int_gauge(&registry),
            leasing_keys: family::LEASING_KEYS.int_gauge(&registry),
            leasing_bytes: family::LEASING_BYTES.int_gauge(&registry),
            leasing_hits: family::LEASING_HITS.int_counter(&registry),
            leasing_misses: family::LEASING_MISSES.int_counter(&registry),
            leasing_acquisitions: family::LEASING_ACQUISITIONS.int_counter(&registry),
            leasing_revocations: family::LEASING_REVOCATIONS.int_counter(&registry),
            registrations_wanted: family::REGISTRATIONS_WANTED.int_gauge(&registry),
            health_success: family::HEALTH_SUCCESS.int_counter(&registry),
            health_failures: family::HEALTH_FAILURES.int_counter(&registry),
            reloads: Default::default(),
            logins: Default::default(),
            rules_reloads: Default::default(),
            registry,
        }
    }

    /// Notes how old the knowledge was on which a read was answered from the cache.
    pub fn served_stale_by(&self, age: Duration) {
        self.staleness.store(u64::try_from(age.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// The counters of the endpoints in use, by name.
    pub fn endpoint_totals(&self) -> BTreeMap<String, Totals> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.iter().filter_map(|(name, calls)| Some((name.clone(), calls.upgrade()?.totals()))).collect()
    }

    /// All calls of clients together.
    pub fn call_totals(&self) -> CallTotals {
        self.calls.totals()
    }

    /// Counts a call that has begun.
    pub fn started(&self, method: &'static Method) -> Call {
        self.calls.started(method)
    }

    /// The counters of an endpoint, shown for as long as someone holds them.
    pub fn endpoint(&self, name: &str) -> Arc<EndpointCalls> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.retain(|_, calls| calls.strong_count() > 0);
        if let Some(calls) = endpoints.get(name).and_then(Weak::upgrade) {
            return calls;
        }
        let calls = Arc::new(EndpointCalls::new(name));
        endpoints.insert(name.to_owned(), Arc::downgrade(&calls));
        calls
    }

    /// Counts a change of TLS files.
    pub fn reloaded(&self, side: Side, succeeded: bool) {
        self.reloads[side as usize][usize::from(!succeeded)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a change of who clients are.
    pub fn rules_reloaded(&self, succeeded: bool) {
        self.rules_reloads[usize::from(!succeeded)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a login at etcd.
    pub fn logged_in(&self, outcome: Login) {
        self.logins[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self, observed: &Observed) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.gather(observed))
    }

    fn gather(&self, observed: &Observed) -> Vec<MetricFamily> {
        let mut families = self.registry.gather();
        families.extend(self.calls.gather());
        families.extend(self.gather_endpoints());
        families.extend(self.gather_coalescing());
        let staleness = Duration::from_micros(self.staleness.load(Ordering::Relaxed));
        families.extend(family::CACHE_STALENESS.single(staleness.as_secs_f64()));
        families.extend(self.gather_reloads());
        families.extend(gather_results(&family::LOGINS, &LOGIN_RESULTS, &self.logins));
        families.extend(gather_results(&family::RULES_RELOADS, &RELOAD_RESULTS, &self.rules_reloads));
        families.extend(self.refusals.gather());
        families.extend(observed::gather(observed));
        families.extend(process::gather());
        families.sort_by(|one, other| one.name().cmp(other.name()));
        families
    }

    fn gather_endpoints(&self) -> impl Iterator<Item = MetricFamily> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let mut calls: Vec<_> = endpoints.iter().filter_map(|(name, calls)| Some((name, calls.upgrade()?))).collect();
        calls.sort_by_key(|(name, _)| *name);
        let each = |series: fn(&EndpointCalls) -> Vec<Series>| calls.iter().flat_map(move |(_, calls)| series(calls));
        let families = [
            family::UPSTREAM_SECONDS.gathered(each(EndpointCalls::seconds)),
            family::UPSTREAM_ERRORS.gathered(each(EndpointCalls::errors)),
            family::UPSTREAM_FAILURES.gathered(each(EndpointCalls::failures)),
        ];
        families.into_iter().flatten()
    }

    /// What sharing spares etcd; a client watch that is only just beginning spares nothing yet.
    fn gather_coalescing(&self) -> impl Iterator<Item = MetricFamily> {
        let watches = (self.client_watches.get() - self.upstream_watches.get()).max(0);
        let events = self.watch_events_delivered.get().saturating_sub(self.watch_events_received.get());
        [family::WATCHERS_COALESCING.single(watches as f64), family::EVENTS_COALESCING.single(events as f64)]
            .into_iter()
            .flatten()
    }

    fn gather_reloads(&self) -> Option<MetricFamily> {
        let series = Side::ALL.into_iter().zip(&self.reloads).flat_map(|(side, results)| {
            RELOAD_RESULTS
                .iter()
                .zip(results)
                .map(|(result, count)| (result, count.load(Ordering::Relaxed)))
                .filter(|(_, count)| *count > 0)
                .map(move |(result, count)| Series {
                    labels: vec![(*result).to_owned(), side.label().to_owned()],
                    value: Value::Number(count as f64),
                })
        });
        family::TLS_RELOADS.gathered(series)
    }
}

/// Counts by result, as far as there are any.
fn gather_results(family: &family::Family, results: &[&str], counts: &[AtomicU64]) -> Option<MetricFamily> {
    let counts = results.iter().zip(counts).map(|(result, count)| (result, count.load(Ordering::Relaxed)));
    let series = counts
        .filter(|(_, count)| *count > 0)
        .map(|(result, count)| Series { labels: vec![(*result).to_owned()], value: Value::Number(count as f64) });
    family.gathered(series)
}

/// Every code, each in the place of its number.
const CODES: [Code; 17] = [
    Code::Ok,
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];

/// A code as grpc-go spells it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests;
