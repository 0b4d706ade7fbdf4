//! The proxy's own metrics: what etcd's proxy has is here under the same names, and the numbers are true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Proxy, process::PATIENCE};

/// How often a number is asked for that no event tells of.
const POLL: Duration = Duration::from_millis(20);

/// Waits for a series to have this value.
fn until_metric(proxy: &Proxy, series: &str, value: f64) {
    let deadline = Instant::now() + PATIENCE;
    while proxy.metric(series) != Some(value) {
        assert!(Instant::now() < deadline, "{series} is {:?}, not {value}", proxy.metric(series));
        std::thread::sleep(POLL);
    }
}

/// The families of a page with their types, and the names of their labels.
fn families(page: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut families = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((name, rest)) = line.split_once('{')
            && let Some((_, labels)) = families.get_mut(name)
        {
            // No value of a label in these families has a comma or an equals sign.
            let pairs = rest.split_once('}').map_or("", |(pairs, _)| pairs).split(',');
            labels.extend(pairs.filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())));
        }
    }
    families
}

#[test]
fn what_etcds_proxy_measures_is_measured_under_the_same_names() {
    let etcd = Etcd::start();
    let pages = [Proxy::start(&etcd.endpoints()), Proxy::original(&etcd.endpoints())].map(|proxy| {
        proxy.etcdctl().ok(&["put", "key", "value"]);
        assert_ne!(proxy.etcdctl().run(&["put", "", "value"]).code, 0);
        proxy.get("/health");
        families(&proxy.get("/proxy/metrics").body)
    });
    let [ours, theirs] = pages;
    let wanted = |name: &str| {
        ["etcd_grpc_proxy_", "grpc_server_", "etcd_server_health_", "process_"].iter().any(|start| name.starts_with(start))
            // Of the machine's network, which is not this process's.
            && !name.starts_with("process_network_")
            // A part of the embedded server's, which no proxy sets.
            && !name.starts_with("grpc_server_handling")
    };
    let mut compared = 0;
    for (name, family) in theirs.iter().filter(|(name, _)| wanted(name)) {
        assert_eq!(ours.get(name), Some(family), "{name}");
        compared += 1;
    }
    assert!(compared >= 15, "the page of etcd's proxy was not read right: {theirs:?}");
}

#[test]
fn calls_are_counted_by_method_and_code_and_endpoint() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    for number in 0..3 {
        proxy.etcdctl().ok(&["put", "key", &number.to_string()]);
    }
    assert_ne!(proxy.etcdctl().run(&["put", "", "value"]).code, 0);
    let put = r#"grpc_method="Put",grpc_service="etcdserverpb.KV""#;
    for (series, value) in [
        (format!(r#"grpc_server_started_total{{{put},grpc_type="unary"}}"#), 4.0),
        (format!(r#"grpc_server_handled_total{{grpc_code="OK",{put},grpc_type="unary"}}"#), 3.0),
        (format!(r#"grpc_server_handled_total{{grpc_code="InvalidArgument",{put},grpc_type="unary"}}"#), 1.0),
        (format!(r#"grpc_server_msg_received_total{{{put},grpc_type="unary"}}"#), 4.0),
        (format!(r#"grpc_server_msg_sent_total{{{put},grpc_type="unary"}}"#), 3.0),
        (format!(r#"etcd_proxy_upstream_seconds_count{{endpoint="{}",{put}}}"#, etcd.endpoint(0)), 4.0),
    ] {
        assert_eq!(proxy.metric(&series), Some(value), "{series}");
    }
    let error = format!(
        r#"etcd_proxy_upstream_errors_total{{endpoint="{}",grpc_code="InvalidArgument",{put}}}"#,
        etcd.endpoint(0)
    );
    assert_eq!(proxy.metric(&error), Some(1.0));
}

#[test]
fn the_state_of_each_endpoint_is_told() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let series = |index: usize, state: &str| {
        format!(r#"etcd_proxy_endpoint_state{{endpoint="{}",state="{state}"}}"#, etcd.endpoint(index))
    };
    let [serving, unreachable] = ["serving", "unreachable"].map(|state| [0, 1, 2].map(|index| series(index, state)));
    for series in &serving {
        until_metric(&proxy, series, 1.0);
    }
    etcd.member(1).kill();
    until_metric(&proxy, &unreachable[1], 1.0);
    assert_eq!(proxy.metric(&serving[1]), Some(0.0));
    assert_eq!(proxy.metric(&serving[2]), Some(1.0));
}

#[test]
fn shared_watches_and_events_show_what_etcd_is_spared() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let watchers: Vec<_> = (0..4).map(|_| proxy.etcdctl().spawn(&["watch", "key"])).collect();
    until_metric(&proxy, "etcd_proxy_client_watches", 4.0);
    until_metric(&proxy, "etcd_proxy_upstream_watches", 1.0);
    until_metric(&proxy, "etcd_grpc_proxy_watchers_coalescing_total", 3.0);
    assert_eq!(proxy.metric("etcd_proxy_watch_joins_total"), Some(3.0));
    etcd.etcdctl().ok(&["put", "key", "value"]);
    for watcher in &watchers {
        watcher.expect_stdout("value");
    }
    until_metric(&proxy, "etcd_proxy_watch_events_delivered_total", 4.0);
    assert_eq!(proxy.metric("etcd_proxy_watch_events_received_total"), Some(1.0));
    assert_eq!(proxy.metric("etcd_grpc_proxy_events_coalescing_total"), Some(3.0));
    drop(watchers);
    for gauge in ["etcd_proxy_client_watches", "etcd_proxy_upstream_watches", "etcd_proxy_watch_streams"] {
        until_metric(&proxy, gauge, 0.0);
    }
}

#[test]
fn leases_that_are_kept_alive_show() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let granted = proxy.etcdctl().ok(&["lease", "grant", "60"]);
    let lease = granted.split(' ').nth(1).expect("etcdctl says: lease <id> granted");
    let keep_alive = proxy.etcdctl().spawn(&["lease", "keep-alive", lease]);
    keep_alive.expect_stdout("keepalived");
    until_metric(&proxy, "etcd_proxy_keepalive_streams", 1.0);
    assert!(proxy.metric("etcd_proxy_keepalives_received_total") >= Some(1.0));
    assert!(proxy.metric("etcd_proxy_keepalives_sent_total") >= Some(1.0));
}
