//! Proxies that register: by names that their certificate has, and who is in the member list when pods go.

use std::path::{Path, PathBuf};

use etcd_proxy_e2e::{Etcdctl, Version};
use serde_json::Value;

use crate::cluster::{Cluster, text};

/// Long enough that a member which is gone sooner was taken off and did not run out.
const TTL_SECONDS: u64 = 15;

pub fn a_deleted_proxy_leaves_the_list_at_once_and_a_killed_one_after_its_ttl(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "known"]);
    cluster.give_credential("known");
    cluster.apply(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: known, namespace: known}}, spec: {{\
         mode: Deployment, replicas: 2, upstream: {{endpoints: ['https://etcd-0.etcd.etcd.svc:2379'], \
         tls: {{secretRef: {{name: etcd-client}}}}}}, keyPrefix: known/, registration: {{ttlSeconds: {TTL_SECONDS}}}}}}}"
    ));
    cluster.kubectl(&["wait", "-n", "known", "--for=condition=Ready", "etcdproxy/known", "--timeout=120s"]);
    let binding = binding(cluster);
    let pods = cluster.proxies("known", "known");
    let pod = |index: usize| (text(&pods[index]["metadata"]["name"]), name(&pods[index]));
    let ((doomed, doomed_name), (watcher, watcher_name)) = (pod(0), pod(1));
    let watcher_address = format!("https://{}:2379", text(&pods[1]["status"]["podIP"]));
    let known = |name: &str| known_by(&watcher_address, &binding).is_some_and(|list| list.contains(name));
    let unknown = |name: &str| known_by(&watcher_address, &binding).is_some_and(|list| !list.contains(name));
    Cluster::until("both are known", || (known(&doomed_name) && known(&watcher_name)).then_some(()));

    // What the list says is what a pod can connect to, and the certificate there is for that name.
    cluster.apply(APP);
    cluster.kubectl(&["wait", "-n", "known", "--for=condition=Ready", "pod/app", "--timeout=120s"]);
    for name in [&doomed_name, &watcher_name] {
        let endpoint = format!("ETCDCTL_ENDPOINTS={name}");
        let put = ["exec", "-n", "known", "app", "--", "env", &endpoint, "etcdctl", "put", "by", name];
        cluster.kubectl(&put);
    }

    // A pod that is deleted says good-bye: when it is gone, so is its entry.
    cluster.kubectl(&["delete", "pod", "-n", "known", &doomed, "--timeout=60s"]);
    assert!(unknown(&doomed_name), "what has ended by itself is off the list before its pod is gone");
    let heir = Cluster::until("another pod", || {
        let pods = cluster.proxies("known", "known");
        let heir = pods.into_iter().find(|pod| text(&pod["metadata"]["name"]) != watcher);
        heir.filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true)
    });
    let heir_name = name(&heir);
    Cluster::until("the new one is known", || known(&heir_name).then_some(()));

    // A proxy that is killed with its node says nothing. Without kubelet nobody starts it again.
    let folder = cluster.folder();
    let kubelet = |signal: &str| cluster.on_node(&format!("kill -{signal} $(cat {}/kubelet.pid)", folder.display()));
    let container = text(&heir["status"]["containerStatuses"][0]["containerID"]);
    let container = container.trim_start_matches("containerd://");
    kubelet("STOP");
    cluster
        .on_node(&format!("ctr -a {}/containerd.sock -n k8s.io tasks kill -s SIGKILL {container}", folder.display()));
    assert!(known(&heir_name), "nobody has taken it off yet");
    Cluster::until("its lease is over", || unknown(&heir_name).then_some(()));
    kubelet("CONT");
    Cluster::until("it was started again and is known", || known(&heir_name).then_some(()));
}

const APP: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: known}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: localhost/etcd:3.7.3
    imagePullPolicy: Never
    command: [sleep, infinity]
    env:
    - {name: ETCDCTL_CACERT, value: /etcd/ca.crt}
    - {name: ETCDCTL_CERT, value: /etcd/tls.crt}
    - {name: ETCDCTL_KEY, value: /etcd/tls.key}
    volumeMounts: [{name: etcd, mountPath: /etcd, readOnly: true}]
  volumes: [{name: etcd, secret: {secretName: known-client}}]
"#;

/// What applications of the namespace show, as files here.
fn binding(cluster: &Cluster) -> PathBuf {
    let folder = cluster.folder().join("known-client");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    for key in ["tls.crt", "tls.key"] {
        let template = format!("--template={{{{index .data \"{key}\" | base64decode}}}}");
        let text = cluster.kubectl(&["get", "secret", "-n", "known", "known-client", &template]);
        std::fs::write(folder.join(key), text).expect("the file can be written");
    }
    folder
}

/// The member list as the proxy at this address has it; nothing while it does not answer. Outside of the node nobody knows
/// the pods' names, and no certificate has their addresses.
fn known_by(address: &str, binding: &Path) -> Option<String> {
    let etcdctl = Etcdctl::new(Version::default(), address)
        .flag("--command-timeout=5s")
        .flag("--insecure-skip-tls-verify")
        .flag(format!("--cert={}", binding.join("tls.crt").display()))
        .flag(format!("--key={}", binding.join("tls.key").display()));
    let outcome = etcdctl.run(&["member", "list"]);
    (outcome.code == 0).then_some(outcome.stdout)
}

/// What a pod registers.
fn name(pod: &Value) -> String {
    format!("https://{}.known-pods.known.svc:2379", text(&pod["status"]["podIP"]).replace('.', "-"))
}
