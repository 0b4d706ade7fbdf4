//! Proxies that register: who is in the member list when pods go.

use etcd_proxy_e2e::{Etcdctl, Version};

use crate::cluster::{Cluster, text};

/// Long enough that a member which is gone sooner was taken off and did not run out.
const TTL_SECONDS: u64 = 15;

pub fn a_deleted_proxy_leaves_the_list_at_once_and_a_killed_one_after_its_ttl(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "known"]);
    cluster.give_credential("known");
    cluster.apply(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: known, namespace: known}}, spec: {{\
         mode: Deployment, replicas: 2, upstream: {{endpoints: ['https://etcd-0.etcd.etcd.svc:2379'], \
         tls: {{secretRef: {{name: etcd-client}}}}}}, keyPrefix: known/, tls: {{source: Disabled, insecure: true}}, \
         registration: {{ttlSeconds: {TTL_SECONDS}, advertise: PodIP}}}}}}"
    ));
    cluster.kubectl(&["wait", "-n", "known", "--for=condition=Ready", "etcdproxy/known", "--timeout=120s"]);
    let pods = cluster.proxies("known", "known");
    let pod = |index: usize| (text(&pods[index]["metadata"]["name"]), address(&pods[index]));
    let ((doomed, doomed_address), (watcher, watcher_address)) = (pod(0), pod(1));
    let known = |address: &str| known_by(&watcher_address).is_some_and(|list| list.contains(address));
    Cluster::until("both are known", || (known(&doomed_address) && known(&watcher_address)).then_some(()));

    // A pod that is deleted says good-bye: when it is gone, so is its entry.
    cluster.kubectl(&["delete", "pod", "-n", "known", &doomed, "--timeout=60s"]);
    assert!(!known(&doomed_address), "what has ended by itself is off the list before its pod is gone");
    let heir = Cluster::until("another pod", || {
        let pods = cluster.proxies("known", "known");
        let heir = pods.into_iter().find(|pod| text(&pod["metadata"]["name"]) != watcher);
        heir.filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true)
    });
    let heir_address = address(&heir);
    Cluster::until("the new one is known", || known(&heir_address).then_some(()));

    // A proxy that is killed with its node says nothing. Without kubelet nobody starts it again.
    let folder = cluster.folder();
    let kubelet = |signal: &str| cluster.on_node(&format!("kill -{signal} $(cat {}/kubelet.pid)", folder.display()));
    let container = text(&heir["status"]["containerStatuses"][0]["containerID"]);
    let container = container.trim_start_matches("containerd://");
    kubelet("STOP");
    cluster
        .on_node(&format!("ctr -a {}/containerd.sock -n k8s.io tasks kill -s SIGKILL {container}", folder.display()));
    assert!(known(&heir_address), "nobody has taken it off yet");
    Cluster::until("its lease is over", || (!known(&heir_address)).then_some(()));
    kubelet("CONT");
    Cluster::until("it was started again and is known", || known(&heir_address).then_some(()));
}

/// The member list as the proxy at this address has it; nothing while it does not answer.
fn known_by(address: &str) -> Option<String> {
    let etcdctl = Etcdctl::new(Version::default(), address).flag("--command-timeout=5s");
    let outcome = etcdctl.run(&["member", "list"]);
    (outcome.code == 0).then_some(outcome.stdout)
}

fn address(pod: &serde_json::Value) -> String {
    format!("http://{}:2379", text(&pod["status"]["podIP"]))
}
