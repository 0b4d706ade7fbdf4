//! Operators that die, an API server that goes away, and what is found wanting afterwards.

use std::time::Instant;

use etcd_proxy_e2e::Process;
use serde_json::Value;

use crate::control_plane::{ControlPlane, PATIENCE, POLL, path};

/// Kills the leader, then stops the API server until the next leader ends itself, as it must. Answers with the third.
pub fn the_work_goes_on(cluster: &ControlPlane, mut first: Process, mut second: Process) -> Process {
    assert_eq!(holder(cluster), "first", "one works at a time");
    first.kill();
    cluster.kubectl(&["delete", "-n", "own", "service/x", "--wait=false"]);
    second.expect_stderr("this process leads");
    cluster.until("own", "service/x", "the standby puts right what happened meanwhile", |service| {
        service.is_object() && service["metadata"]["deletionTimestamp"].is_null()
    });

    cluster.kubectl(&["delete", "-n", "own", "service/x"]);
    cluster.api_server.signal(libc::SIGSTOP);
    let code = second.wait();
    cluster.api_server.signal(libc::SIGCONT);
    wait_for_the_api_server(cluster);
    assert_eq!(code, 1, "who cannot renew the lease ends, so that kubelet starts it anew");
    let said = second.stderr.text();
    assert!(said.contains("could not renew the lease"), "{said}");

    let rolling = rolling(cluster);
    let third = cluster.start_operator("third", "example/etcd-proxy:2");
    third.expect_stderr("this process leads");
    proxies_get_the_newer_image_one_after_the_other(cluster, &rolling);
    cluster.until("own", "service/x", "the outage is made good", Value::is_object);
    assert_eq!(holder(cluster), "third");
    third
}

fn wait_for_the_api_server(cluster: &ControlPlane) {
    let deadline = Instant::now() + PATIENCE;
    while cluster.request("GET", &path("", "namespace/own"), "", "").is_err() {
        assert!(Instant::now() < deadline, "the API server is back");
        std::thread::sleep(POLL);
    }
}

/// The workloads of the objects that are there for the test of rollouts.
fn rolling(cluster: &ControlPlane) -> Vec<Value> {
    let all = cluster.request("GET", &path("rolling", "deployment"), "", "").expect("they can be listed");
    let all = all["items"].as_array().cloned().unwrap_or_default();
    assert_eq!(all.len(), ROLLING.len(), "{all:#?}");
    all
}

/// Objects of one namespace, made before the operator gets a newer image.
const ROLLING: [&str; 3] = ["a", "b", "c"];

pub fn some_proxies_that_will_be_upgraded(cluster: &ControlPlane) {
    cluster.kubectl(&["create", "namespace", "rolling"]);
    for name in ROLLING {
        cluster.apply_text(&format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: {name}, namespace: rolling}}, \
             spec: {{mode: Deployment, upstream: {{endpoints: ['http://etcd.example:2379']}}}}}}"
        ));
    }
    for name in ROLLING {
        cluster.wait_ready("rolling", name);
    }
}

/// At no time are the pods of two objects exchanged, though all of them need newer ones.
fn proxies_get_the_newer_image_one_after_the_other(cluster: &ControlPlane, before: &[Value]) {
    let image = |one: &Value| one["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    assert!(before.iter().all(|one| image(one) == "example/etcd-proxy:1"), "{before:#?}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = rolling(cluster);
        let newer: Vec<&Value> = all.iter().filter(|one| image(one) == "example/etcd-proxy:2").collect();
        let under_way = |one: &&Value| {
            let (status, replicas) = (&one["status"], &one["spec"]["replicas"]);
            status["observedGeneration"] != one["metadata"]["generation"]
                || status["updatedReplicas"] != *replicas
                || status["availableReplicas"] != *replicas
        };
        let running: Vec<&Value> = newer.iter().copied().filter(under_way).collect();
        assert!(running.len() <= 1, "more than one at a time: {running:#?}");
        if newer.len() == all.len() && running.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "all get the newer image: {all:#?}");
        std::thread::sleep(POLL / 4);
    }
}

/// An operator that is asked to end gives the lease back, so that the next need not wait for its end.
pub fn the_lease_is_given_back(cluster: &ControlPlane, mut leader: Process) {
    leader.signal(libc::SIGTERM);
    assert_eq!(leader.wait(), 0, "the operator ends well");
    let lease = cluster.get("etcd-proxy-system", "lease/etcd-proxy-operator");
    assert!(lease["spec"]["holderIdentity"].is_null(), "{lease}");
}

fn holder(cluster: &ControlPlane) -> String {
    let lease = cluster.get("etcd-proxy-system", "lease/etcd-proxy-operator");
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}
