//! `docs/metrics.md`, made of the table of metrics.

use std::fmt::Write;

use prometheus::proto::MetricType;

use super::{
    family::{FAMILIES, Family},
    gateway, http_proxy,
};

const INTRODUCTION: &str = "\
# Metrics

Served as Prometheus' text at `/proxy/metrics`, on the listen address and on each `--metrics-addr`. (`/metrics` is one
etcd member's, as with etcd's own proxy.) The names that etcd's proxy has are kept with their types and labels; what is
new begins with `etcd_proxy_`. Series of a call appear when it is made for the first time.

This page is made of the code: `UPDATE_DOCS=1 cargo test -p etcd-proxy docs_metrics` writes it.

";

const HEAD: &str = "\
| Name | Type | Unit | Labels | Meaning |
|---|---|---|---|---|
";

const GATEWAY: &str = "
## `etcd-proxy gateway start`

Served at `/metrics` and `/proxy/metrics` on each `--metrics-addr`, together with `etcd_proxy_build_info`,
`etcd_proxy_draining`, the counts of log lines and what is told of the process.

";

const HTTP_PROXY: &str = "
## `etcd-proxy http-proxy start`

Served at `/metrics` on each listen address and each `--metrics-addr`, together with `etcd_proxy_build_info`,
`etcd_proxy_draining`, the counts of log lines and what is told of the process. The names and texts are etcd 3.5's.

";

/// The page.
pub fn markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    write_table(&mut page, FAMILIES);
    page += GATEWAY;
    write_table(&mut page, gateway::FAMILIES);
    page += HTTP_PROXY;
    write_table(&mut page, http_proxy::FAMILIES);
    page
}

fn write_table(page: &mut String, families: &[&Family]) {
    page.push_str(HEAD);
    for family in families {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, unit, labels) = (family.name, kind(family), unit(family), labels.join(", "));
        // Writing to a String does not fail.
        let _ = writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {} |", family.help);
    }
}

fn kind(family: &Family) -> &'static str {
    match family.kind {
        MetricType::COUNTER => "counter",
        MetricType::HISTOGRAM => "histogram",
        _ => "gauge",
    }
}

/// By Prometheus' convention the unit ends the name, before the `_total` of a counter.
fn unit(family: &Family) -> &'static str {
    let stem = family.name.strip_suffix("_total").unwrap_or(family.name);
    [("_seconds", "seconds"), ("_bytes", "bytes")]
        .into_iter()
        .find_map(|(ending, unit)| stem.ends_with(ending).then_some(unit))
        .unwrap_or_default()
}
