//! The table of metrics and what is exposed are the same, and the page about them is current.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, SystemTime},
};

use prometheus::proto::MetricType;

use super::{family::FAMILIES, *};
use crate::rules::methods;

/// Metrics to which everything has happened once.
fn exercised() -> (Metrics, Arc<EndpointCalls>, Observed) {
    let metrics = Metrics::new();
    let range = methods::find("/etcdserverpb.KV/Range").expect("a row");
    metrics.started(range).finished(Code::Ok);
    metrics.logged_in(Login::Accepted);
    metrics.rules_reloaded(true);
    metrics.reloaded(Side::Clients, true);
    metrics.refusals.note("team", Reason::Policy, "/etcdserverpb.KV/Put");
    metrics.reloaded(Side::Etcd, false);
    let endpoint = metrics.endpoint("http://a:1");
    endpoint.answered(range, Some(Code::Unavailable), Duration::from_millis(1));
    endpoint.failed(range, Failure::Unsent);
    let observed = Observed {
        endpoints: vec![("http://a:1".into(), "serving")],
        endpoint_states: vec!["serving", "unreachable"],
        tls_files: vec![TlsFile {
            side: Side::Clients,
            role: "cert",
            not_after: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60)),
            is_current: true,
        }],
        tenants: vec![TenantUse { tenant: "a".into(), refused: vec![("watches", 2)], used: vec![("watches", 1)] }],
        ..Observed::default()
    };
    (metrics, endpoint, observed)
}

#[test]
fn what_is_exposed_is_what_the_table_says() {
    let (metrics, _endpoint, observed) = exercised();
    let gathered = metrics.gather(&observed);
    let exposed: BTreeSet<&str> = gathered.iter().map(MetricFamily::name).collect();
    assert_eq!(exposed.len(), gathered.len(), "a family is gathered twice");
    assert_eq!(exposed, FAMILIES.iter().map(|family| family.name).collect());
    for found in &gathered {
        let family = FAMILIES.iter().find(|family| family.name == found.name()).expect("the sets are equal");
        assert_eq!((found.get_field_type(), found.help()), (family.kind, family.help), "{}", family.name);
        for metric in found.get_metric() {
            let labels: Vec<&str> = metric.get_label().iter().map(|pair| pair.name()).collect();
            assert_eq!(labels, family.labels, "{}", family.name);
        }
    }
}

#[test]
fn labels_are_sorted_and_types_fit_their_names() {
    for family in FAMILIES {
        assert!(family.labels.is_sorted(), "{}", family.name);
        // What etcd misnamed keeps its name, since dashboards know it.
        let is_etcds = family.name.starts_with("etcd_grpc_proxy_") || family.name.starts_with("etcd_server_");
        let is_counter = family.kind == MetricType::COUNTER;
        assert!(is_etcds || is_counter == family.name.ends_with("_total"), "{}", family.name);
    }
}

#[test]
fn the_text_has_a_line_for_each_series() {
    let (metrics, _endpoint, observed) = exercised();
    let text = metrics.text(&observed).expect("it can be encoded");
    for line in [
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"etcd_proxy_endpoint_state{endpoint="http://a:1",state="serving"} 1"#,
        r#"etcd_proxy_endpoint_state{endpoint="http://a:1",state="unreachable"} 0"#,
        r#"etcd_proxy_upstream_seconds_bucket{endpoint="http://a:1",grpc_method="Range",grpc_service="etcdserverpb.KV",le="+Inf"} 1"#,
        r#"etcd_proxy_tls_expiry_timestamp_seconds{role="cert",side="clients"} 60"#,
        r#"etcd_proxy_tls_reloads_total{result="failure",side="etcd"} 1"#,
        "# TYPE etcd_grpc_proxy_cache_hits_total gauge",
        "etcd_grpc_proxy_cache_hits_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "missing {line} in\n{text}");
    }
}

#[test]
fn sharing_is_what_clients_hold_beyond_what_etcd_serves() {
    let metrics = Metrics::new();
    metrics.client_watches.set(10);
    metrics.upstream_watches.set(2);
    metrics.watch_events_delivered.inc_by(50);
    metrics.watch_events_received.inc_by(10);
    let text = metrics.text(&Observed::default()).expect("it can be encoded");
    assert!(text.contains("\netcd_grpc_proxy_watchers_coalescing_total 8\n"), "{text}");
    assert!(text.contains("\netcd_grpc_proxy_events_coalescing_total 40\n"), "{text}");
}

#[test]
fn an_endpoint_that_nobody_uses_any_more_is_not_shown() {
    let (metrics, endpoint, observed) = exercised();
    let again = metrics.endpoint("http://a:1");
    assert!(Arc::ptr_eq(&endpoint, &again), "one name must not have two series");
    drop((endpoint, again));
    let text = metrics.text(&observed).expect("it can be encoded");
    assert!(!text.contains("etcd_proxy_upstream_seconds"), "{text}");
}

#[test]
fn every_code_stands_in_the_place_of_its_number() {
    for (index, code) in CODES.iter().enumerate() {
        assert_eq!(*code as usize, index, "{}", code_name(*code));
    }
}

#[test]
fn docs_metrics_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, markdown()).expect("the page can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, markdown(), "docs/metrics.md is stale; UPDATE_DOCS=1 cargo test -p etcd-proxy docs_metrics");
}
