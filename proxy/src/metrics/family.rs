//! The table of metrics: name, type, labels and meaning of each, of which `/proxy/metrics` and `docs/metrics.md` are
//! made.

use prometheus::{
    IntCounter, IntGauge, Opts, Registry,
    core::Collector,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

/// One metric with all its series.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: MetricType,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// One series of a family: the values of its labels, in the family's order, and what was measured.
pub struct Series {
    pub labels: Vec<String>,
    pub value: Value,
}

pub enum Value {
    Number(f64),
    /// Bounds in seconds with the count of what lies at or below each, and the sum; the last bound is infinity.
    Histogram {
        buckets: Vec<(f64, u64)>,
        sum: f64,
    },
}

pub(super) const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind: MetricType::COUNTER, labels, help }
}

pub(super) const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind: MetricType::GAUGE, labels, help }
}

pub(super) const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind: MetricType::HISTOGRAM, labels, help }
}

const CALL: &[&str] = &["grpc_method", "grpc_service", "grpc_type"];
const CALL_CODE: &[&str] = &["grpc_code", "grpc_method", "grpc_service", "grpc_type"];
const UPSTREAM: &[&str] = &["endpoint", "grpc_method", "grpc_service"];
const TLS_FILE: &[&str] = &["role", "side"];

macro_rules! families {
    ($($constant:ident = $family:expr;)*) => {
        $(pub static $constant: Family = $family;)*
        /// Every metric, in the order of the page about them.
        pub static FAMILIES: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    // What etcd's proxy has, under its names.
    CALLS_STARTED = counter("grpc_server_started_total", CALL, "Total number of RPCs started on the server.");
    CALLS_HANDLED = counter("grpc_server_handled_total", CALL_CODE, "Total number of RPCs completed on the server, regardless of success or failure.");
    MESSAGES_RECEIVED = counter("grpc_server_msg_received_total", CALL, "Total number of RPC stream messages received on the server.");
    MESSAGES_SENT = counter("grpc_server_msg_sent_total", CALL, "Total number of gRPC stream messages sent by the server.");
    WATCHERS_COALESCING = gauge("etcd_grpc_proxy_watchers_coalescing_total", &[], "Client watches beyond the watches on etcd that serve them, which is how many watches etcd is spared.");
    EVENTS_COALESCING = counter("etcd_grpc_proxy_events_coalescing_total", &[], "Events handed to clients beyond those that etcd sent, which is how many events etcd is spared.");
    CACHE_KEYS = gauge("etcd_grpc_proxy_cache_keys_total", &[], "Keys that the cache holds.");
    // Gauges that only grow, as the original declares them.
    CACHE_HITS = gauge("etcd_grpc_proxy_cache_hits_total", &[], "Reads that were answered from the cache.");
    CACHE_MISSES = gauge("etcd_grpc_proxy_cache_misses_total", &[], "Reads that went to etcd, by themselves or together with others.");
    HEALTH_SUCCESS = counter("etcd_server_health_success", &[], "The total number of successful health checks");
    HEALTH_FAILURES = counter("etcd_server_health_failures", &[], "The total number of failed health checks");
    // Clients.
    CALLS = gauge("etcd_proxy_calls", CALL, "Calls under way, streams included.");
    CONNECTIONS = gauge("etcd_proxy_client_connections", &[], "Client connections that are open.");
    HANDSHAKES_FAILED = counter("etcd_proxy_client_handshakes_failed_total", &[], "Client connections that ended before their first request.");
    // Tenants.
    WITHHELD = counter("etcd_proxy_withheld_total", &[], "Answers and events of etcd that held a key from outside the namespace of whoever asked, and were not handed on.");
    TENANT_REFUSED = counter("etcd_proxy_tenant_refused_total", &["limit", "tenant"], "What was refused because a tenant had reached a limit.");
    UPSTREAM_LIMIT = gauge("etcd_proxy_upstream_requests_limit", &[], "Requests of several tenants that may be under way at etcd now, 0 where there is no such limit.");
    TENANT_USED = gauge("etcd_proxy_tenant_used", &["limit", "tenant"], "What a tenant uses now of what has a limit.");
    AUDIT_LINES = counter("etcd_proxy_audit_lines_total", &[], "Lines that were written to the audit log.");
    AUDIT_DROPPED = counter("etcd_proxy_audit_lines_dropped_total", &[], "Lines of the audit log that were lost, because there were too many at a time or they could not be written.");
    REFUSALS = counter("etcd_proxy_refusals_total", &["reason", "tenant"], "What the proxy itself refused: reason is handshake, connections or policy; tenant is unknown where nobody could say yet.");
    // Etcd.
    UPSTREAM_SECONDS = histogram("etcd_proxy_upstream_seconds", UPSTREAM, "Time from sending a call to an endpoint until its answer began.");
    UPSTREAM_ERRORS = counter("etcd_proxy_upstream_errors_total", &["endpoint", "grpc_code", "grpc_method", "grpc_service"], "Calls that an endpoint answered with an error and nothing else.");
    UPSTREAM_FAILURES = counter("etcd_proxy_upstream_failures_total", &["endpoint", "grpc_method", "grpc_service", "kind"], "Calls to an endpoint that ended without an answer: kind is unsent if none of it reached etcd, else broken.");
    ENDPOINT_STATE = gauge("etcd_proxy_endpoint_state", &["endpoint", "state"], "1 for the state that an endpoint is in, 0 for the others.");
    // Watches.
    WATCH_STREAMS = gauge("etcd_proxy_watch_streams", &[], "Watch RPCs that clients have open.");
    CLIENT_WATCHES = gauge("etcd_proxy_client_watches", &[], "Watches that clients hold.");
    UPSTREAM_WATCHES = gauge("etcd_proxy_upstream_watches", &[], "Watches that the proxy holds on etcd.");
    WATCH_JOINS = counter("etcd_proxy_watch_joins_total", &[], "Client watches that joined a shared watch that was already there.");
    WATCHES_CONTAINED = gauge("etcd_proxy_watches_contained", &[], "Client watches that are served from a watch of a wider range.");
    WATCHES_CATCHING_UP = gauge("etcd_proxy_watches_catching_up", &[], "Client watches that have an upstream watch of their own until they are level.");
    WATCH_CATCH_UPS = counter("etcd_proxy_watch_catch_ups_total", &[], "Client watches that needed an upstream watch of their own until they were level.");
    WATCH_FALLS = counter("etcd_proxy_watch_falls_total", &[], "Client watches that lagged so far that the shared watch did not hold their next event any more.");
    WATCH_MOVES = counter("etcd_proxy_watch_moves_total", &[], "Client watches that went from one shared watch to another, wider or narrower.");
    WATCHES_WITHDRAWN = counter("etcd_proxy_watches_withdrawn_total", &[], "Upstream watches that were ended because etcd does not give the right to them any more.");
    WATCHES_GATHERED = counter("etcd_proxy_watches_gathered_total", &[], "Upstream watches of a whole prefix that were opened because many watches stood below it.");
    WATCH_LOG_BYTES = gauge("etcd_proxy_watch_log_bytes", &[], "Bytes of events that shared watches hold for their readers.");
    WATCH_LOG_MAX_BYTES = gauge("etcd_proxy_watch_log_max_bytes", &[], "Bytes of events that shared watches may hold together.");
    WATCH_RESUMES = counter("etcd_proxy_watch_resumes_total", &[], "Upstream watches that were taken up again after their stream broke.");
    WATCH_EVENTS_RECEIVED = counter("etcd_proxy_watch_events_received_total", &[], "Events that etcd sent to this proxy.");
    WATCH_EVENTS_DELIVERED = counter("etcd_proxy_watch_events_delivered_total", &[], "Events handed to clients, each counted once per client watch that got it.");
    // Reads.
    CACHE_RANGES = gauge("etcd_proxy_cache_ranges", &[], "Ranges that the cache holds.");
    CACHE_BYTES = gauge("etcd_proxy_cache_bytes", &[], "About how much memory the cached ranges take.");
    CACHE_MAX_BYTES = gauge("etcd_proxy_cache_max_bytes", &[], "How much memory the cached ranges may take, 0 without a cache.");
    CACHE_DROPS = counter("etcd_proxy_cache_drops_total", &[], "Ranges that the cache has given up, because they were idle, too much, or lost.");
    CACHE_STALENESS = gauge("etcd_proxy_cache_staleness_seconds", &[], "How old the knowledge was on which a read was last answered from the cache; 0 unless --cache-staleness allows more.");
    READS_MERGED = counter("etcd_proxy_reads_merged_total", &[], "Reads that were answered together with another that asked the same.");
    // Leases and registration.
    KEEPALIVE_STREAMS = gauge("etcd_proxy_keepalive_streams", &[], "LeaseKeepAlive RPCs that clients have open.");
    KEEPALIVES_RECEIVED = counter("etcd_proxy_keepalives_received_total", &[], "Lease keepalive requests that came from clients.");
    LEASES_KEPT_ALIVE = gauge("etcd_proxy_leases_kept_alive", &[], "Leases that were renewed lately, each counted until the TTL that etcd gave it has passed since.");
    KEEPALIVES_SENT = counter("etcd_proxy_keepalives_sent_total", &[], "Lease keepalive requests that went to etcd.");
    REGISTRATIONS = gauge("etcd_proxy_registrations", &[], "Keys under which this proxy is registered: 1 while it is, 0 without --resolver-prefix.");
    // Leasing.
    LEASING_SESSIONS = gauge("etcd_proxy_leasing_sessions", &[], "Leasing sessions: 1 while this proxy has one, 0 without --experimental-leasing-prefix.");
    LEASING_KEYS = gauge("etcd_proxy_leasing_keys", &[], "Keys that this proxy owns and answers reads of by itself.");
    LEASING_BYTES = gauge("etcd_proxy_leasing_bytes", &[], "Memory that the leased keys and values take, about.");
    LEASING_HITS = counter("etcd_proxy_leasing_hits_total", &[], "Reads and transactions answered from leased keys, without etcd.");
    LEASING_MISSES = counter("etcd_proxy_leasing_misses_total", &[], "Reads of single keys that went to etcd with leasing on.");
    LEASING_ACQUISITIONS = counter("etcd_proxy_leasing_acquisitions_total", &[], "Keys that this proxy came to own.");
    LEASING_REVOCATIONS = counter("etcd_proxy_leasing_revocations_total", &[], "Keys given up because another writer asked for them.");
    REGISTRATIONS_WANTED = gauge("etcd_proxy_registrations_wanted", &[], "Keys under which this proxy should be registered: 1 with --resolver-prefix, else 0.");
    // Certificates.
    TLS_EXPIRY = gauge("etcd_proxy_tls_expiry_timestamp_seconds", TLS_FILE, "When the certificate, CA or revocation list in use runs out, as seconds since 1970; side is clients or etcd, role is cert, ca or crl.");
    TLS_FILE_CURRENT = gauge("etcd_proxy_tls_file_current", TLS_FILE, "1 if the newest content of a TLS file is in use, 0 if it could not be used and older content is.");
    TLS_RELOADS = counter("etcd_proxy_tls_reloads_total", &["result", "side"], "Changes of TLS files that were taken over (result is success) or could not be used (failure).");
    RULES_RELOADS = counter("etcd_proxy_rules_reloads_total", &["result"], "Changes of client-identity in the config file that were taken over (success) or could not be used (failure).");
    LOGINS = counter("etcd_proxy_logins_total", &["result"], "Logins at etcd as the proxy's own user or a tenant's; result is success, refused (name or password does not do) or unreached.");
    // The process.
    BUILD_INFO = gauge("etcd_proxy_build_info", &["etcd_api_version", "version"], "Always 1; the labels tell the version of this proxy and of etcd's API that it was built for.");
    DRAINING = gauge("etcd_proxy_draining", &[], "1 while the proxy waits for its last calls to end.");
    LOG_LINES_DROPPED = counter("etcd_proxy_log_lines_dropped_total", &[], "Log lines that were lost because nobody read them.");
    LOG_LINES_SAMPLED = counter("etcd_proxy_log_lines_sampled_total", &[], "Log lines that were left out because there were too many of one message.");
    MEMORY_LIMIT = gauge("etcd_proxy_memory_limit_bytes", &[], "Memory that the process may use with the others of its control group (in Kubernetes its container), -1 for no limit.");
    PANICS = counter("etcd_proxy_panics_total", &[], "Faults of this program that ended a call or a task; each is logged as panicked. Anything but 0 is worth a report.");
    PROCESS_CPU = counter("process_cpu_seconds_total", &[], "Total user and system CPU time spent in seconds.");
    PROCESS_MAX_FDS = gauge("process_max_fds", &[], "Maximum number of open file descriptors.");
    PROCESS_OPEN_FDS = gauge("process_open_fds", &[], "Number of open file descriptors.");
    PROCESS_RESIDENT = gauge("process_resident_memory_bytes", &[], "Resident memory size in bytes.");
    PROCESS_START = gauge("process_start_time_seconds", &[], "Start time of the process since unix epoch in seconds.");
    PROCESS_THREADS = gauge("process_threads", &[], "Number of OS threads in the process.");
    PROCESS_VIRTUAL = gauge("process_virtual_memory_bytes", &[], "Virtual memory size in bytes.");
    PROCESS_VIRTUAL_MAX = gauge("process_virtual_memory_max_bytes", &[], "Maximum amount of virtual memory available in bytes, -1 for no limit.");
}

impl Family {
    /// A counter of its own in the registry.
    pub fn int_counter(&self, registry: &Registry) -> IntCounter {
        self.registered(registry, IntCounter::with_opts(Opts::new(self.name, self.help)))
    }

    /// A gauge of its own in the registry.
    pub fn int_gauge(&self, registry: &Registry) -> IntGauge {
        self.registered(registry, IntGauge::with_opts(Opts::new(self.name, self.help)))
    }

    fn registered<C: Collector + Clone + 'static>(
        &self,
        registry: &Registry,
        collector: Result<C, prometheus::Error>,
    ) -> C {
        let collector = collector.expect("the names of the table are well-formed, as a test that makes all has seen");
        registry.register(Box::new(collector.clone())).expect("each metric is registered once");
        collector
    }

    /// The one series of a family without labels.
    pub fn single(&self, value: f64) -> Option<MetricFamily> {
        self.gathered([Series { labels: Vec::new(), value: Value::Number(value) }])
    }

    /// The family as it is now; nothing if it has no series yet.
    pub fn gathered(&self, series: impl IntoIterator<Item = Series>) -> Option<MetricFamily> {
        let metrics: Vec<Metric> = series.into_iter().map(|series| self.metric(series)).collect();
        if metrics.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(metrics);
        Some(family)
    }

    fn metric(&self, series: Series) -> Metric {
        debug_assert_eq!(series.labels.len(), self.labels.len(), "{} has other labels", self.name);
        let labels = self.labels.iter().zip(series.labels).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        });
        let mut metric = Metric::from_label(labels.collect());
        match series.value {
            Value::Number(value) if self.kind == MetricType::COUNTER => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Value::Number(value) => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Value::Histogram { buckets, sum } => metric.set_histogram(as_histogram(&buckets, sum)),
        }
        metric
    }
}

fn as_histogram(buckets: &[(f64, u64)], sum: f64) -> Histogram {
    let mut histogram = Histogram::default();
    histogram.set_sample_count(buckets.last().map_or(0, |(_, count)| *count));
    histogram.set_sample_sum(sum);
    // The encoder adds the bucket of infinity by itself.
    let bounded = buckets.iter().filter(|(bound, _)| bound.is_finite());
    histogram.set_bucket(
        bounded
            .map(|(bound, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(*count);
                bucket
            })
            .collect(),
    );
    histogram
}
