//! The metrics of `http-proxy start`: the four of etcd's HTTP proxy under its names, and the process's own.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder, exponential_buckets};

use super::{
    family::{BUILD_INFO, DRAINING, Family, LOG_LINES_DROPPED, LOG_LINES_SAMPLED, Series, Value, counter, histogram},
    process,
};

static REQUESTS: Family = counter("etcd_proxy_requests_total", &["method"], "Counter requests incoming by method.");
static HANDLED: Family = counter(
    "etcd_proxy_handled_total",
    &["code", "method"],
    "Counter of requests fully handled (by authoratitave servers)",
);
static DROPPED: Family =
    counter("etcd_proxy_dropped_total", &["method", "proxying_error"], "Counter of requests dropped on the proxy.");
static SECONDS: Family = histogram(
    "etcd_proxy_handling_duration_seconds",
    &["method"],
    "Bucketed histogram of handling time of successful events (non-watches), by method (GET/PUT etc.).",
);

/// Every metric that only the HTTP proxy has, in the order of the page about them.
pub static FAMILIES: &[&Family] = &[&REQUESTS, &HANDLED, &DROPPED, &SECONDS];

/// The methods that have series of their own; any other text that a client sends is counted as one.
const METHODS: [&str; 7] = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"];

/// Why a request was not handled, or not by a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    ZeroEndpoints,
    FailedSendingRequest,
    FailedGettingResponse,
}

impl Drop {
    fn label(self) -> &'static str {
        match self {
            Drop::ZeroEndpoints => "zero_endpoints",
            Drop::FailedSendingRequest => "failed_sending_request",
            Drop::FailedGettingResponse => "failed_getting_response",
        }
    }
}

/// Every counter of one HTTP proxy.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    handled: IntCounterVec,
    dropped: IntCounterVec,
    seconds: HistogramVec,
}

impl Default for Metrics {
    fn default() -> Self {
        /// As in etcd: from half a millisecond to two seconds, each bound twice the one before.
        const BOUNDS: (f64, f64, usize) = (0.0005, 2.0, 13);
        const WELL_FORMED: &str = "the names of the table are well-formed, as a test that writes all has seen";
        let registry = Registry::new();
        let vector = |family: &Family| {
            let vector = IntCounterVec::new(Opts::new(family.name, family.help), family.labels).expect(WELL_FORMED);
            registry.register(Box::new(vector.clone())).expect("each metric is registered once");
            vector
        };
        let bounds = exponential_buckets(BOUNDS.0, BOUNDS.1, BOUNDS.2).expect("the bounds grow");
        let options = HistogramOpts::new(SECONDS.name, SECONDS.help).buckets(bounds);
        let seconds = HistogramVec::new(options, SECONDS.labels).expect(WELL_FORMED);
        registry.register(Box::new(seconds.clone())).expect("each metric is registered once");
        let (requests, handled, dropped) = (vector(&REQUESTS), vector(&HANDLED), vector(&DROPPED));
        Self { requests, handled, dropped, seconds, registry }
    }
}

impl Metrics {
    pub fn incoming(&self, method: &str) {
        self.requests.with_label_values(&[known(method)]).inc();
    }

    /// A member has begun to answer after `elapsed`.
    pub fn handled(&self, method: &str, code: u16, elapsed: Duration) {
        self.handled.with_label_values(&[code.to_string().as_str(), known(method)]).inc();
        self.seconds.with_label_values(&[known(method)]).observe(elapsed.as_secs_f64());
    }

    pub fn dropped(&self, method: &str, why: Drop) {
        self.dropped.with_label_values(&[known(method), why.label()]).inc();
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self, draining: bool, log_lines_dropped: u64, log_lines_sampled: u64) -> String {
        let versions = [etcd_proxy_proto::ETCD_VERSION, env!("CARGO_PKG_VERSION")];
        let build = Series { labels: versions.map(str::to_owned).to_vec(), value: Value::Number(1.0) };
        let own = [
            BUILD_INFO.gathered([build]),
            DRAINING.single(f64::from(u8::from(draining))),
            LOG_LINES_DROPPED.single(log_lines_dropped as f64),
            LOG_LINES_SAMPLED.single(log_lines_sampled as f64),
        ];
        let mut families = self.registry.gather();
        families.extend(own.into_iter().flatten().chain(process::gather()));
        families.sort_by(|one, other| one.name().cmp(other.name()));
        TextEncoder::new().encode_to_string(&families).expect("the names of the table are well-formed")
    }
}

fn known(method: &str) -> &'static str {
    METHODS.into_iter().find(|known| *known == method).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_has_etcds_series_and_a_foreign_method_is_other() {
        let metrics = Metrics::default();
        metrics.incoming("GET");
        metrics.incoming("NONSENSE");
        metrics.handled("GET", 404, Duration::from_millis(1));
        metrics.dropped("PUT", Drop::ZeroEndpoints);
        let text = metrics.text(false, 0, 0);
        for line in [
            r#"etcd_proxy_requests_total{method="GET"} 1"#,
            r#"etcd_proxy_requests_total{method="other"} 1"#,
            r#"etcd_proxy_handled_total{code="404",method="GET"} 1"#,
            r#"etcd_proxy_dropped_total{method="PUT",proxying_error="zero_endpoints"} 1"#,
            r#"etcd_proxy_handling_duration_seconds_bucket{method="GET",le="0.001"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "missing {line} in {text}");
        }
        assert!(FAMILIES.iter().all(|family| family.labels.is_sorted()));
    }
}
