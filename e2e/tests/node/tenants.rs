//! What the walk-through's two tenants have, and what they cannot have.

use etcd_proxy_e2e::http;

use crate::cluster::{Cluster, text};

pub fn pods_are_ready_by_their_probes_under_restricted_rules(cluster: &Cluster) {
    let pods = cluster.proxies("team-a", "registry");
    assert_eq!(pods.len(), 1, "one on each node");
    for pod in pods.iter().chain(&cluster.proxies("team-b", "registry")) {
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
        assert_eq!(pod["status"]["containerStatuses"][0]["ready"], true, "kubelet has asked and was answered well");
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
        let metrics = format!("{}:{}", text(&pod["status"]["podIP"]), container["readinessProbe"]["httpGet"]["port"]);
        let page = http::get(&metrics, "/metrics").expect("the metrics are served");
        assert!(page.body.contains("etcd_grpc_proxy_"), "they are the proxy's");
    }
    // The applications run where nothing else would be let in.
    let privileged = ["run", "other", "-n", "team-a", "--image=localhost/etcd:any", "--privileged"];
    let refused = cluster.try_kubectl(&privileged).expect_err("the namespace is restricted");
    assert!(refused.contains("restricted"), "{refused}");
}

pub fn one_tenants_certificate_opens_nothing_of_the_others(cluster: &Cluster) {
    // Whichever way it asks: by the Service of the other, by its pods, or with no certificate at all.
    let pod = text(&cluster.proxies("team-a", "registry")[0]["status"]["podIP"]);
    for endpoint in ["https://registry.team-a.svc:2379".to_owned(), format!("https://{pod}:2379")] {
        let ask = |more: &[&str]| {
            let endpoint = format!("ETCDCTL_ENDPOINTS={endpoint}");
            let begin = ["exec", "-n", "team-b", "app", "--", "env"];
            let end = [&endpoint, "etcdctl", "--command-timeout=2s", "get", "greeting"];
            cluster.try_kubectl(&[&begin, more, &end].concat())
        };
        let insecure = "ETCDCTL_INSECURE_SKIP_TLS_VERIFY=true";
        for more in [&[][..], &[insecure], &["-u", "ETCDCTL_CERT", "-u", "ETCDCTL_KEY", insecure]] {
            let answer = ask(more);
            assert!(answer.as_ref().is_err_and(|error| !error.contains("from a")), "{endpoint} {more:?}: {answer:?}");
        }
    }
    // And with its own proxy it reaches no key of the other, by whatever range.
    for range in [&["", "--from-key"][..], &["/tenants/team-a/", "--prefix"], &["../team-a/registry/greeting"]] {
        let found = cluster.try_etcdctl("team-b", &[&["get"], range].concat()).expect("its own range is open to it");
        assert!(!found.contains("from a"), "{found}");
    }
}
