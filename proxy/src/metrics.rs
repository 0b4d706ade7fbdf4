//! Every metric, under etcd's names where etcd has one. Imports no room but the table of methods; labels are plain
//! values from closed sets.

use std::time::{Duration, Instant};

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector, exponential_buckets,
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
            Opts::new("grpc_server_handled_total", "Total number of RPCs completed on the server, regardless of success or failure."),
            &["grpc_code", "grpc_method", "grpc_service", "grpc_type"],
        );
        let buckets = exponential_buckets(0.000_1, 2.0, 18).expect("a positive start, factor and count");
        let upstream_seconds = HistogramVec::new(
            HistogramOpts::new("etcd_proxy_upstream_seconds", "Time until etcd began to answer, in seconds.").buckets(buckets),
            &["endpoint", "grpc_method", "grpc_code"],
        );
        let upstream_failures = IntCounterVec::new(
            Opts::new("etcd_proxy_upstream_failures_total", "Calls to etcd that ended without an answer."),
            &["endpoint", "grpc_method", "kind"],
        );
        Self {
            connections: registered(&registry, connections),
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
        self.upstream_seconds.with_label_values(&[endpoint, method.name(), code_name(code)]).observe(elapsed.as_secs_f64());
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
