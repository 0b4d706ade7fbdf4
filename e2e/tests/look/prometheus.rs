//! The dashboard and the alerts of `deploy/`, in a real Prometheus that scrapes a real proxy.

use std::collections::BTreeSet;
use std::path::PathBuf;

use etcd_proxy_e2e::{Etcd, Process, Proxy, http, ports, programs, wait::until};
use serde_json::Value;

use super::program;

fn deploy(file: &str) -> PathBuf {
    programs::repository().join("deploy").join(file)
}

fn promtool(words: &[&str], file: &str) {
    let mut command = program("promtool", "prometheus");
    let path = deploy(file);
    let folder = path.parent().expect("a file lies in a folder");
    let mut process = Process::spawn(
        "promtool",
        command.args(words).arg(path.file_name().expect("it has a name")).current_dir(folder),
        b"",
    );
    let code = process.wait();
    process.stdout.wait_for_end();
    process.stderr.wait_for_end();
    assert_eq!(code, 0, "{}\n{}", process.stdout.text(), process.stderr.text());
}

#[test]
fn each_alert_fires_on_what_hurts_and_on_nothing_else() {
    promtool(&["check", "rules"], "alerts/etcd-proxy.yaml");
    promtool(&["test", "rules"], "alerts/etcd-proxy.test.yaml");
    let alerts = std::fs::read_to_string(deploy("alerts/etcd-proxy.yaml")).expect("the alerts");
    let tests = std::fs::read_to_string(deploy("alerts/etcd-proxy.test.yaml")).expect("their tests");
    let operations = std::fs::read_to_string(programs::repository().join("docs/operations.md")).expect("the page");
    for name in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {name}\n        exp_alerts:\n")), "{name} is never seen to fire");
        assert!(operations.contains(&format!("`{name}`")), "docs/operations.md does not say what to do about {name}");
    }
}

/// Every query of the dashboard.
fn queries() -> Vec<String> {
    let text = std::fs::read_to_string(deploy("dashboards/etcd-proxy.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().expect("a target has a query").to_owned()).collect()
}

/// The names of our metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|one: char| !one.is_ascii_alphanumeric() && one != '_');
    let ours = words.filter(|word| {
        ["etcd_proxy_", "etcd_grpc_proxy_", "grpc_server_", "process_"].iter().any(|start| word.starts_with(start))
    });
    let family = |word: &str| {
        let ends = ["_bucket", "_count", "_sum"];
        ends.iter()
            .find_map(|end| word.strip_suffix(end))
            .filter(|base| base.ends_with("_seconds"))
            .unwrap_or(word)
            .to_owned()
    };
    ours.map(family).collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let page = std::fs::read_to_string(programs::repository().join("docs/metrics.md")).expect("the page of metrics");
    let alerts = std::fs::read_to_string(deploy("alerts/etcd-proxy.yaml")).expect("the alerts");
    let named = metrics(&format!("{} {alerts}", queries().join(" ")));
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(page.contains(&format!("| `{name}` |")), "there is no metric {name}");
    }
}

/// Of these there is no series before something has failed, has a certificate, or has reached a limit.
const MAY_BE_EMPTY: [&str; 3] = [
    "etcd_proxy_upstream_failures_total",
    "etcd_proxy_tls_expiry_timestamp_seconds",
    "etcd_proxy_tenant_refused_total",
];

#[test]
fn a_real_prometheus_answers_every_query_and_judges_every_alert() {
    let etcd = Etcd::start();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag("--api-deny=KV/Compact")
        .flags(["--resolver-prefix=proxies", "--resolver-ttl=10"])
        .start();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let address = ports::free_address();
    let config = folder.path().join("prometheus.yml");
    let rules = deploy("alerts/etcd-proxy.yaml");
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{:?}]\nscrape_configs:\n\
         - job_name: etcd-proxy\n  metrics_path: /proxy/metrics\n  static_configs: [{{targets: [{:?}]}}]\n",
        rules.display(),
        proxy.address(),
    );
    std::fs::write(&config, text).expect("the folder can be written to");
    let mut command = program("prometheus", "prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={address}"));
    let _prometheus = Process::spawn("prometheus", &mut command, b"");

    // What its series come from: calls, a refusal, an error of etcd.
    let etcdctl = proxy.etcdctl();
    let _watcher = etcdctl.spawn(&["watch", "key"]);
    let ask = |query: &str| ask(&address, query);
    until("Prometheus scrapes", || ask("up").is_some_and(|found| found.iter().any(|one| one["value"][1] == "1")));
    let mut waiting: Vec<String> = queries();
    let all = waiting.len();
    until("each query has an answer", || {
        etcdctl.ok(&["put", "key", "value"]);
        assert_ne!(etcdctl.run(&["put", "", "value"]).code, 0, "no key is empty");
        assert_ne!(etcdctl.run(&["compaction", "1"]).code, 0, "it is denied");
        waiting.retain(|query| {
            let plain = query.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*");
            let answer = ask(&plain).unwrap_or_else(|| panic!("Prometheus refuses {plain}"));
            answer.is_empty() && !MAY_BE_EMPTY.iter().any(|name| query.contains(name))
        });
        waiting.is_empty()
    });
    assert!(all > 40, "{all}");

    let judged = || -> Option<Vec<Value>> {
        let answer = http::get(&address, "/api/v1/rules").ok()?;
        let answer: Value = serde_json::from_str(&answer.body).ok()?;
        Some(answer["data"]["groups"][0]["rules"].as_array()?.clone())
    };
    until("each alert is judged, and none fires", || {
        judged().is_some_and(|rules| {
            rules.len() >= 14 && rules.iter().all(|rule| rule["health"] == "ok" && rule["state"] != "firing")
        })
    });
}

/// What an instant query gives; nothing while Prometheus does not answer it.
fn ask(address: &str, query: &str) -> Option<Vec<Value>> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer = http::get(address, &format!("/api/v1/query?query={encoded}")).ok()?;
    let answer: Value = serde_json::from_str(&answer.body).ok()?;
    match &answer["data"]["result"] {
        Value::Array(found) if answer["status"] == "success" => Some(found.clone()),
        _ => None,
    }
}
