//! Every metric, under etcd's names where etcd has one. Imports no room but the table of methods; labels are plain
//! values from closed sets.

use std::time::{Duration, Instant};

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
    exponential_buckets,
};
use tonic::Code;

use crate::rules::methods::Method;

/// How a call to etcd failed before an answer came.
#[derive(Clone, Copy, Debug)]
pub enum Upstream {
    Unsent,
    Broken,
}

pub struct Metrics {
    registry: Registry,
    pub connections: IntGauge,
    /// Watches that clients hold.
    pub client_watches: IntGauge,
    /// Watches that the proxy holds on etcd to serve them.
    pub upstream_watches: IntGauge,
    /// Watch RPCs that clients have open.
    pub watch_streams: IntGauge,
    /// Events handed to clients, each counted once per client watch that got it.
    pub watch_events_delivered: IntCounter,
    /// Client watches that joined a shared watch that was already there.
    pub watch_joins: IntCounter,
    /// Client watches that began on, or fell back to, an upstream watch of their own until they were level.
    pub watch_catch_ups: IntCounter,
    /// Upstream watches that were taken up again after their stream broke.
    pub watch_resumes: IntCounter,
    /// LeaseKeepAlive RPCs that clients have open.
    pub keepalive_streams: IntGauge,
    /// Keepalive requests that came from clients.
    pub keepalives_received: IntCounter,
    /// Keepalive requests that went to etcd.
    pub keepalives_sent: IntCounter,
    handshakes_failed: IntCounter,
    started: IntCounterVec,
    handled: IntCounterVec,
    upstream_seconds: HistogramVec,
    upstream_failures: IntCounterVec,
}

const METHOD_LABELS: [&str; 3] = ["grpc_method", "grpc_service", "grpc_type"];

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let connections = IntGauge::new("etcd_proxy_client_connections", "Client connections that are open.");
        let handshakes_failed = IntCounter::new(
            "etcd_proxy_client_handshakes_failed_total",
            "Client connections that ended before their first request.",
        );
        let started = IntCounterVec::new(
            Opts::new("grpc_server_started_total", "Total number of RPCs started on the server."),
            &METHOD_LABELS,
        );
        let handled = IntCounterVec::new(
            Opts::new(
                "grpc_server_handled_total",
                "Total number of RPCs completed on the server, regardless of success or failure.",
            ),
            &["grpc_code", "grpc_method", "grpc_service", "grpc_type"],
        );
        let client_watches = IntGauge::new("etcd_proxy_client_watches", "Watches that clients hold.");
        let upstream_watches = IntGauge::new("etcd_proxy_upstream_watches", "Watches that the proxy holds on etcd.");
        let watch_streams = IntGauge::new("etcd_proxy_watch_streams", "Watch RPCs that clients have open.");
        let watch_events_delivered = IntCounter::new(
            "etcd_proxy_watch_events_delivered_total",
            "Events handed to clients, each counted once per client watch that got it.",
        );
        let watch_joins = IntCounter::new(
            "etcd_proxy_watch_joins_total",
            "Client watches that joined a shared watch that was already there.",
        );
        let watch_catch_ups = IntCounter::new(
            "etcd_proxy_watch_catch_ups_total",
            "Client watches that needed an upstream watch of their own until they were level.",
        );
        let watch_resumes = IntCounter::new(
            "etcd_proxy_watch_resumes_total",
            "Upstream watches that were taken up again after their stream broke.",
        );
        let keepalive_streams =
            IntGauge::new("etcd_proxy_keepalive_streams", "LeaseKeepAlive RPCs that clients have open.");
        let keepalives_received =
            IntCounter::new("etcd_proxy_keepalives_received_total", "Lease keepalive requests that came from clients.");
        let keepalives_sent =
            IntCounter::new("etcd_proxy_keepalives_sent_total", "Lease keepalive requests that went to etcd.");
        let buckets = exponential_buckets(0.000_1, 2.0, 18).expect("a positive start, factor and count");
        let upstream_seconds = HistogramVec::new(
            HistogramOpts::new("etcd_proxy_upstream_seconds", "Time until etcd began to answer, in seconds.")
                .buckets(buckets),
            &["endpoint", "grpc_method", "grpc_code"],
        );
        let upstream_failures = IntCounterVec::new(
            Opts::new("etcd_proxy_upstream_failures_total", "Calls to etcd that ended without an answer."),
            &["endpoint", "grpc_method", "kind"],
        );
        Self {
            connections: registered(&registry, connections),
            client_watches: registered(&registry, client_watches),
            upstream_watches: registered(&registry, upstream_watches),
            watch_streams: registered(&registry, watch_streams),
            watch_events_delivered: registered(&registry, watch_events_delivered),
            watch_joins: registered(&registry, watch_joins),
            watch_catch_ups: registered(&registry, watch_catch_ups),
            watch_resumes: registered(&registry, watch_resumes),
            keepalive_streams: registered(&registry, keepalive_streams),
            keepalives_received: registered(&registry, keepalives_received),
            keepalives_sent: registered(&registry, keepalives_sent),
            handshakes_failed: registered(&registry, handshakes_failed),
            started: registered(&registry, started),
            handled: registered(&registry, handled),
            upstream_seconds: registered(&registry, upstream_seconds),
            upstream_failures: registered(&registry, upstream_failures),
            registry,
        }
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// Counts a call that has begun.
    pub fn started(&self, method: &'static Method) -> Call<'_> {
        self.started.with_label_values(&[method.name(), method.service(), method.grpc_type()]).inc();
        Call { metrics: self, method, _started: Instant::now() }
    }

    pub fn upstream_answered(&self, endpoint: &str, method: &Method, code: Code, elapsed: Duration) {
        self.upstream_seconds
            .with_label_values(&[endpoint, method.name(), code_name(code)])
            .observe(elapsed.as_secs_f64());
    }

    pub fn upstream_failed(&self, endpoint: &str, method: &Method, kind: Upstream) {
        let kind = match kind {
            Upstream::Unsent => "unsent",
            Upstream::Broken => "broken",
        };
        self.upstream_failures.with_label_values(&[endpoint, method.name(), kind]).inc();
    }
}

/// A call under way.
pub struct Call<'a> {
    metrics: &'a Metrics,
    method: &'static Method,
    _started: Instant,
}

impl Call<'_> {
    pub fn finished(self, code: Code) {
        let labels = [code_name(code), self.method.name(), self.method.service(), self.method.grpc_type()];
        self.metrics.handled.with_label_values(&labels).inc();
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: Result<C, prometheus::Error>) -> C {
    let collector = collector.expect("names and labels are constants that tests have seen");
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}

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
