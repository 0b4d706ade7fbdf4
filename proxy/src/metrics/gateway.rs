//! The metrics of `gateway start`.

use prometheus::{TextEncoder, proto::MetricFamily};

use super::{
    family::{BUILD_INFO, DRAINING, Family, LOG_LINES_DROPPED, LOG_LINES_SAMPLED, Series, Value, counter, gauge},
    process,
};

/// What the gateway knows, as of the moment when someone asks.
#[derive(Debug, Default)]
pub struct Observed {
    /// Connections of clients that are open.
    pub open: u64,
    pub accepted: u64,
    /// Those that no endpoint took.
    pub refused: u64,
    pub bytes_to_endpoints: u64,
    pub bytes_to_clients: u64,
    pub endpoints: Vec<Endpoint>,
    pub draining: bool,
    pub log_lines_dropped: u64,
    pub log_lines_sampled: u64,
}

/// One endpoint.
#[derive(Debug)]
pub struct Endpoint {
    pub name: String,
    pub is_active: bool,
    pub connections: u64,
    pub failures: u64,
}

static CONNECTIONS: Family = gauge("etcd_proxy_gateway_connections", &[], "Client connections that are open.");
static ACCEPTED: Family =
    counter("etcd_proxy_gateway_accepted_total", &[], "Client connections that came, whatever became of them.");
static REFUSED: Family = counter(
    "etcd_proxy_gateway_refused_total",
    &[],
    "Client connections that were closed because no endpoint accepted a connection.",
);
static BYTES: Family = counter(
    "etcd_proxy_gateway_bytes_total",
    &["to"],
    "Bytes moved to clients (to is clients) and to etcd (to is endpoints).",
);
static ACTIVE: Family = gauge(
    "etcd_proxy_gateway_endpoint_active",
    &["endpoint"],
    "1 for an endpoint that takes connections, 0 for one that failed and waits for its retry.",
);
static ENDPOINT_CONNECTIONS: Family = counter(
    "etcd_proxy_gateway_endpoint_connections_total",
    &["endpoint"],
    "Connections that were made to an endpoint.",
);
static ENDPOINT_FAILURES: Family = counter(
    "etcd_proxy_gateway_endpoint_failures_total",
    &["endpoint"],
    "Connections to an endpoint that could not be made.",
);

/// Every metric that only the gateway has, in the order of the page about them.
pub static FAMILIES: &[&Family] =
    &[&CONNECTIONS, &ACCEPTED, &REFUSED, &BYTES, &ACTIVE, &ENDPOINT_CONNECTIONS, &ENDPOINT_FAILURES];

/// Everything in Prometheus' text format.
pub fn text(observed: &Observed) -> String {
    TextEncoder::new()
        .encode_to_string(&gather(observed))
        .expect("the names of the table are well-formed, as a test that writes all has seen")
}

fn gather(observed: &Observed) -> Vec<MetricFamily> {
    let per_endpoint = |value: fn(&Endpoint) -> f64| {
        let series =
            |endpoint: &Endpoint| Series { labels: vec![endpoint.name.clone()], value: Value::Number(value(endpoint)) };
        observed.endpoints.iter().map(series).collect::<Vec<_>>()
    };
    let bytes = [("clients", observed.bytes_to_clients), ("endpoints", observed.bytes_to_endpoints)];
    let bytes = bytes.map(|(to, bytes)| Series { labels: vec![to.to_owned()], value: Value::Number(bytes as f64) });
    let versions = [etcd_proxy_proto::ETCD_VERSION, env!("CARGO_PKG_VERSION")];
    let build = Series { labels: versions.map(str::to_owned).to_vec(), value: Value::Number(1.0) };
    let own = [
        CONNECTIONS.single(observed.open as f64),
        ACCEPTED.single(observed.accepted as f64),
        REFUSED.single(observed.refused as f64),
        BYTES.gathered(bytes),
        ACTIVE.gathered(per_endpoint(|endpoint| f64::from(u8::from(endpoint.is_active)))),
        ENDPOINT_CONNECTIONS.gathered(per_endpoint(|endpoint| endpoint.connections as f64)),
        ENDPOINT_FAILURES.gathered(per_endpoint(|endpoint| endpoint.failures as f64)),
        BUILD_INFO.gathered([build]),
        DRAINING.single(f64::from(u8::from(observed.draining))),
        LOG_LINES_DROPPED.single(observed.log_lines_dropped as f64),
        LOG_LINES_SAMPLED.single(observed.log_lines_sampled as f64),
    ];
    let mut families: Vec<MetricFamily> = own.into_iter().flatten().chain(process::gather()).collect();
    families.sort_by(|one, other| one.name().cmp(other.name()));
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_of_the_gateway_is_written_with_its_labels() {
        let endpoint = Endpoint { name: "a:1".into(), is_active: true, connections: 3, failures: 0 };
        let observed = Observed { open: 2, endpoints: vec![endpoint], bytes_to_clients: 7, ..Observed::default() };
        let text = text(&observed);
        for family in FAMILIES {
            assert!(text.contains(&format!("# TYPE {} ", family.name)), "{} is missing in {text}", family.name);
            assert!(family.labels.is_sorted(), "{}", family.name);
        }
        for line in [
            "etcd_proxy_gateway_connections 2",
            r#"etcd_proxy_gateway_bytes_total{to="clients"} 7"#,
            r#"etcd_proxy_gateway_endpoint_active{endpoint="a:1"} 1"#,
            r#"etcd_proxy_gateway_endpoint_connections_total{endpoint="a:1"} 3"#,
        ] {
            assert!(text.lines().any(|found| found == line), "missing {line} in {text}");
        }
    }
}
