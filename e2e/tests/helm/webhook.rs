//! A release whose operator puts sidecars into pods, for API servers that do not serve MutatingAdmissionPolicy: what the
//! chart makes of each mode, and that all of it works together under the rights that the chart gives.

use std::collections::BTreeSet;
use std::time::Instant;

use etcd_proxy_e2e::ports;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, PATIENCE, POLL};
use crate::helm::Helm;
use crate::stand_ins;

const WEBHOOK: &str = "MutatingWebhookConfiguration";
const POLICY: &str = "MutatingAdmissionPolicy";

/// Which of both a release has, by the values of its mode.
pub fn each_mode_makes_what_it_says(helm: &Helm) {
    let ways = |kubernetes: &str, values: &str| -> BTreeSet<String> {
        let all = helm.objects(&["--kube-version", kubernetes, "--set", "image.repository=a", "--set", values]);
        let kinds = all.iter().map(|object| object["kind"].as_str().expect("objects have kinds").to_owned());
        kinds.filter(|kind| kind == WEBHOOK || kind == POLICY).collect()
    };
    let only = |kind: &str| BTreeSet::from([kind.to_owned()]);
    let (before, since) = ("1.35.0", "1.36.0");
    assert_eq!(ways(before, "injection.mode=auto"), only(WEBHOOK));
    assert_eq!(ways(since, "injection.mode=auto"), only(POLICY));
    assert_eq!(ways(before, "injection.mode=policy"), only(POLICY), "a feature gate may serve it");
    assert_eq!(ways(since, "injection.mode=webhook"), only(WEBHOOK));
    // As a file of values says it, an off without quotes is a false.
    for off in ["injection.mode=off", "injection.mode=false", "rbac.profile=namespaced"] {
        assert_eq!(ways(before, off), BTreeSet::new(), "{off}");
    }
}

/// All parts of the way name the same things.
pub fn the_webhook_leads_to_the_operator_and_to_nothing_else() {
    let [helm, _] = Helm::both();
    let set = |more: &str| helm.objects(&["--set", "image.repository=a,injection.mode=webhook", "--set", more]);
    let all = set("injection.webhook.port=8443");
    let of = |kind: &str, name: &str| {
        let found = all.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("there is no {kind} {name}")).clone()
    };
    let configuration = of(WEBHOOK, "etcdproxy-inject.etcd-proxy.etcd-proxy-system");
    let webhook = &configuration["webhooks"][0];
    let service =
        json!({"name": "etcd-proxy-webhook", "namespace": "etcd-proxy-system", "path": "/inject", "port": 443});
    assert_eq!(webhook["clientConfig"], json!({"service": service}), "the CA is the operator's to write");
    assert_eq!(webhook["failurePolicy"], "Fail", "no pod that asks starts without its proxy");
    assert_eq!(webhook["objectSelector"]["matchExpressions"][0]["key"], "etcdproxy.dev/inject");
    assert_eq!(of("Service", "etcd-proxy-webhook")["spec"]["ports"][0]["targetPort"], "webhook");

    let operator = &of("Deployment", "etcd-proxy")["spec"]["template"]["spec"]["containers"][0];
    for flag in [
        "--webhook-listen=0.0.0.0:8443",
        "--webhook-service=etcd-proxy-webhook",
        "--webhook-configuration=etcdproxy-inject.etcd-proxy.etcd-proxy-system",
    ] {
        assert!(operator["args"].as_array().expect("it has arguments").contains(&json!(flag)), "{operator}");
    }
    let port = json!({"name": "webhook", "containerPort": 8443, "protocol": "TCP"});
    assert!(operator["ports"].as_array().expect("it has ports").contains(&port), "{operator}");
    let ingress = &of("NetworkPolicy", "etcd-proxy")["spec"]["ingress"];
    assert!(ingress.to_string().contains(r#""port":"webhook""#), "{ingress}");

    // By name only: one configuration, and one Secret.
    let rule = |kind: &str, name: &str| of(kind, name)["rules"].clone();
    let verbs = json!(["get", "patch"]);
    let rules = rule("ClusterRole", "etcd-proxy-system:etcd-proxy:webhook");
    assert_eq!(rules[0]["resourceNames"], json!(["etcdproxy-inject.etcd-proxy.etcd-proxy-system"]));
    assert_eq!((rules[0]["verbs"].clone(), rules[1].is_null()), (verbs.clone(), true));
    let rules = rule("Role", "etcd-proxy-webhook");
    assert_eq!(rules[0]["resourceNames"], json!(["etcd-proxy-webhook"]));
    assert_eq!((rules[0]["verbs"].clone(), rules[1].is_null()), (verbs, true));

    let some = set("rbac.profile=namespaced,rbac.namespaces={team-a,team-b}");
    let some = some.iter().find(|one| one["kind"] == WEBHOOK).expect("it was asked for");
    let selected = &some["webhooks"][0]["namespaceSelector"]["matchExpressions"][0]["values"];
    assert_eq!(*selected, json!(["team-a", "team-b"]), "elsewhere the operator could not read what a pod asks for");

    let half = |scope: &str| set(&format!("resourceScope={scope}"));
    let (cluster, namespace) = (half("cluster"), half("namespace"));
    assert_eq!(cluster.len() + namespace.len(), all.len());
    assert!(namespace.iter().all(|object| object["metadata"]["namespace"].is_string()), "a team's half is a team's");
}

/// What the server makes of a pod that asks for this EtcdProxy, without keeping it.
fn admitted(cluster: &ControlPlane, namespace: &str, asks_for: &str) -> Result<Value, String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "labels": {"etcdproxy.dev/inject": asks_for}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict");
    cluster.request("POST", &path, "application/json", &pod.to_string())
}

/// Such a release from its install to its uninstall; the kinds are there already.
pub fn a_release_with_a_webhook_serves_pods_and_leaves_nothing(cluster: &ControlPlane, helm: &Helm, mode: &str) {
    let chart = Helm::chart().display().to_string();
    cluster.kubectl(&["create", "namespace", "hooks"]);
    let set = format!("image.repository=registry.example/etcd-proxy,crds.enabled=false,injection.mode={mode}");
    let notes = helm.release("install", "hooks", &["etcd-proxy", &chart, "--set", &set]);
    assert!(notes.contains("from the operator's webhook"), "{notes}");
    let address = ports::free_address();
    let mut operator = stand_ins::operator_at(cluster, "hooks", "etcd-proxy", &address);
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: beside, namespace: hooks}, \
         spec: {mode: Sidecar, upstream: {endpoints: ['http://etcd.example:2379']}}}",
    );
    cluster.wait_ready("hooks", "beside");

    let configuration = "mutatingwebhookconfiguration/etcdproxy-inject.etcd-proxy.hooks";
    let bundle = |object: &Value| object["webhooks"][0]["clientConfig"]["caBundle"].clone();
    let told = cluster.until("", configuration, "the API server is told the CA", |object| bundle(object).is_string());
    let secret = || cluster.get("hooks", "secret/etcd-proxy-webhook")["data"].clone();
    let issued = secret();
    assert!(issued["tls.key"].is_string(), "its certificate is in the release's Secret");
    assert_eq!(issued["ca.crt"], bundle(&told));
    helm.release("upgrade", "hooks", &["etcd-proxy", &chart, "--set", &set, "--set", "replicas=1"]);
    helm.release("rollback", "hooks", &["etcd-proxy", "1"]);
    assert_eq!(bundle(&cluster.get("", configuration)), issued["ca.crt"], "what the operator wrote is not Helm's");
    assert_eq!(secret(), issued);

    // Without nodes no Service leads anywhere, and a pod that asks is refused rather than started without.
    assert!(admitted(cluster, "hooks", "beside").is_err_and(|error| error.contains("inject.etcdproxy.dev")));
    let here = json!([
        {"op": "remove", "path": "/webhooks/0/clientConfig/service"},
        {"op": "add", "path": "/webhooks/0/clientConfig/url", "value": format!("https://{address}/inject")},
    ]);
    cluster.kubectl(&["patch", configuration, "--type=json", "-p", &here.to_string()]);
    let deadline = Instant::now() + PATIENCE;
    let pod = loop {
        match admitted(cluster, "hooks", "beside") {
            Ok(pod) => break pod,
            Err(error) => assert!(Instant::now() < deadline, "the pod gets no proxy: {error}"),
        }
        std::thread::sleep(POLL);
    };
    let sidecar = &pod["spec"]["initContainers"][0];
    assert_eq!((&sidecar["name"], &sidecar["restartPolicy"]), (&json!("etcd-proxy"), &json!("Always")));
    let refusal = admitted(cluster, "hooks", "nobody").expect_err("there is none of that name");
    assert!(refusal.contains("asks for EtcdProxy nobody, but namespace hooks has none of that name"), "{refusal}");
    let (Ok(said) | Err(said)) = cluster.plugin(&["check"]);
    assert!(said.contains("✓ sidecars are put into pods at admission, by the webhook"), "{said}");

    cluster.kubectl(&["delete", "etcdproxy/beside", "-n", "hooks", "--timeout=60s"]);
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0);
    helm.release("uninstall", "hooks", &["etcd-proxy"]);
    cluster.until_gone("", configuration);
    cluster.until_gone("hooks", "secret/etcd-proxy-webhook");
    let roles = cluster.kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"]);
    assert!(!roles.contains("hooks:etcd-proxy"), "{roles}");
    cluster.kubectl(&["delete", "namespace", "hooks", "--timeout=60s"]);
}
