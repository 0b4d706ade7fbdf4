//! What waits: for its turn at etcd, and for etcd to say that it is well.

use std::time::Duration;

use etcd_proxy_e2e::{Etcd, Proxy, http, ports, wait::eventually};
use etcd_proxy_proto::etcdserverpb::{PutRequest, kv_client::KvClient};
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    fairness::{channel, tls},
    port::Port,
};

const RULES: &str = "
client-identity:
- name: team-a
  identities: [{common-name: team-a}]
  namespace: /a/
  limits: {max-keys: 10}
- name: team-b
  identities: [{common-name: team-b}]
  namespace: /b/
max-upstream-requests: 1
";
const PUTS: usize = 300;
const CHECKS: usize = 50;

#[tokio::test]
async fn what_waits_for_its_turn_is_not_stored_beyond_what_its_tenant_may() {
    let metrics = ports::free_address();
    let mut port = Port::open(RULES, |_| vec![format!("--metrics-addr=http://{metrics}")]);
    let metric = |series: &str| http::get(&metrics, "/proxy/metrics").expect("metrics").metric(series);
    let tls = tls(&port.authority, &port.authority.client("team-a", "team-a"));
    let channel = channel(port.proxy.address(), &tls).await;
    let put = |number: usize| {
        let mut kv = KvClient::new(channel.clone());
        async move { kv.put(PutRequest { key: format!("{number}").into(), ..PutRequest::default() }).await }
    };
    put(0).await.expect("there is room");
    let stored = || metric("etcd_proxy_tenant_used{limit=\"keys\",tenant=\"team-a\"}");
    eventually("what is stored is counted", || async { stored() == Some(1.0) }).await;

    port.etcd.member(0).pause();
    let mut puts = JoinSet::new();
    (1..=PUTS).for_each(|number| drop(puts.spawn(put(number))));
    let started = "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
    eventually("all wait", || async { metric(started) == Some(PUTS as f64 + 1.0) }).await;
    port.etcd.member(0).resume();
    let mut stored = 1;
    while let Some(put) = puts.join_next().await {
        match put.expect("a call ends") {
            Ok(_) => stored += 1,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        }
    }
    // They come one after the other, and the count is behind by what the watch of it has not told yet.
    assert!((10..PUTS / 2).contains(&stored), "{stored} keys where ten may be");
}

#[tokio::test]
async fn many_who_ask_for_health_at_a_time_cost_etcd_one_question() {
    let mut etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let ranges = |etcd: &Etcd| {
        let method = "grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        etcd.members()[0].metric(&format!("grpc_server_started_total{{{method}}}")).unwrap_or(0.0)
    };
    assert_eq!(proxy.get("/health").status, 200);
    let before = ranges(&etcd);
    etcd.member(0).pause();
    let asking: Vec<_> = (0..CHECKS)
        .map(|_| {
            let address = proxy.address().to_owned();
            std::thread::spawn(move || http::get(&address, "/health").expect("an answer").status)
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    etcd.member(0).resume();
    let answered = asking.into_iter().map(|asking| asking.join().expect("an answer"));
    assert!(answered.into_iter().all(|status| matches!(status, 200 | 503)));
    let asked = ranges(&etcd) - before;
    assert!(asked < CHECKS as f64 / 2.0, "{asked} reads for {CHECKS} who asked");
}
