//! Objects of one's own etcd: created, changed, broken, put right and deleted.

use etcd_proxy_e2e::Authority;
use serde_json::Value;

use crate::control_plane::ControlPlane;

pub fn a_deployment_becomes_ready_scales_and_is_put_right(cluster: &ControlPlane) {
    cluster.kubectl(&["create", "namespace", "own"]);
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: x, namespace: own}, \
         spec: {mode: Deployment, upstream: {endpoints: ['http://etcd.example:2379']}, keyPrefix: app/}}",
    );
    cluster.wait_ready("own", "x");
    let proxy = cluster.get("own", "etcdproxy/x");
    assert_eq!(proxy["status"]["keyPrefix"], "app/");
    assert_eq!(proxy["status"]["endpoints"][0], "https://x.own.svc:2379");
    let binding = cluster.get("own", "secret/x-client");
    for key in ["endpoints", "ca.crt", "tls.crt", "tls.key", "type"] {
        assert!(binding["data"][key].is_string(), "the binding has {key}");
    }
    for child in ["service/x", "service/x-pods", "serviceaccount/x", "networkpolicy/x", "pdb/x", "secret/x-serving"] {
        assert!(!cluster.get("own", child).is_null(), "{child} is there");
    }
    let shown = cluster.kubectl(&["get", "etcdp", "-n", "own", "-o", "wide"]);
    assert!(shown.contains("app/") && shown.contains("https://x.own.svc:2379"), "{shown}");
    let explained = cluster.kubectl(&["explain", "etcdproxy.spec.tls"]);
    assert!(explained.contains("TLS to clients"), "{explained}");

    // A person scales the object as any workload.
    cluster.kubectl(&["scale", "-n", "own", "etcdproxy/x", "--replicas=3"]);
    cluster
        .until("own", "etcdproxy/x", "three replicas are available", |proxy| proxy["status"]["availableReplicas"] == 3);

    // Somebody else's hands are put right.
    cluster.kubectl(&[
        "patch",
        "-n",
        "own",
        "service/x",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/ports/0/port","value":9999}]"#,
    ]);
    cluster.until("own", "service/x", "its port is put right", |service| service["spec"]["ports"][0]["port"] == 2379);
    cluster.kubectl(&["delete", "-n", "own", "service/x", "deployment/x"]);
    cluster.until("own", "service/x", "it comes back", Value::is_object);
    cluster.until("own", "deployment/x", "it comes back", Value::is_object);

    let events = cluster.kubectl(&["get", "events", "-n", "own"]);
    assert!(events.contains("CertificateIssued") && events.contains("Ready"), "{events}");
}

pub fn a_paused_object_is_left_as_it_is(cluster: &ControlPlane) {
    let patch = |patch: &str| cluster.kubectl(&["patch", "-n", "own", "etcdproxy/x", "--type=merge", "-p", patch]);
    patch(r#"{"spec":{"paused":true,"drainSeconds":7}}"#);
    let paused = |proxy: &Value| {
        condition(proxy, "Programmed")["reason"] == "Paused"
            && proxy["status"]["observedGeneration"] == proxy["metadata"]["generation"]
    };
    let proxy = cluster.until("own", "etcdproxy/x", "that it is paused is told", paused);
    assert_eq!(proxy["status"]["availableReplicas"], 3, "the status is kept current");
    let grace = |deployment: &Value| deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].clone();
    assert_eq!(grace(&cluster.get("own", "deployment/x")), 30, "what runs is left as it is");
    patch(r#"{"spec":{"paused":null}}"#);
    cluster.until("own", "deployment/x", "the change comes with the end of the pause", |live| grace(live) == 12);
    cluster.wait_ready("own", "x");
}

pub fn a_daemonset_takes_the_place_of_a_deployment(cluster: &ControlPlane) {
    cluster.kubectl(&[
        "patch",
        "-n",
        "own",
        "etcdproxy/x",
        "--type=merge",
        "-p",
        r#"{"spec":{"mode":"DaemonSet","replicas":null}}"#,
    ]);
    cluster.until_gone("own", "deployment/x");
    cluster.until_gone("own", "pdb/x");
    cluster.until("own", "etcdproxy/x", "a pod of each node is available", |proxy| {
        proxy["status"]["workload"]["kind"] == "DaemonSet" && proxy["status"]["availableReplicas"] == 2
    });
    cluster.wait_ready("own", "x");
    let service = cluster.get("own", "service/x");
    assert_eq!(service["spec"]["trafficDistribution"], "PreferSameNode");
}

pub fn a_missing_secret_is_named_and_its_arrival_helps(cluster: &ControlPlane) {
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: late, namespace: own}, \
         spec: {mode: Deployment, replicas: 1, \
         upstream: {endpoints: ['https://etcd.example:2379'], tls: {secretRef: {name: etcd-client}}}}}",
    );
    let refused = |proxy: &Value, reason: &str| condition(proxy, "ResolvedRefs")["reason"] == reason;
    let proxy =
        cluster.until("own", "etcdproxy/late", "the Secret is missed", |proxy| refused(proxy, "SecretNotFound"));
    let message = condition(&proxy, "Ready")["message"].to_string();
    assert!(message.contains("spec.upstream.tls.secretRef names Secret etcd-client"), "{message}");

    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let path = |path: &std::path::Path| path.display().to_string();
    let secret = |pair: &etcd_proxy_e2e::Pair| {
        let _ = cluster.try_kubectl(&["delete", "secret", "-n", "own", "etcd-client"]);
        let ca = format!("--from-file=ca.crt={}", path(&authority.ca()));
        let (cert, key) =
            (format!("--from-file=tls.crt={}", path(&pair.cert)), format!("--from-file=tls.key={}", path(&pair.key)));
        cluster.kubectl(&["create", "secret", "generic", "-n", "own", "etcd-client", &ca, &cert, &key]);
        // Secrets are not watched; touching the object makes the operator look now and not in a while.
        cluster.kubectl(&[
            "annotate",
            "-n",
            "own",
            "etcdproxy/late",
            "--overwrite",
            &format!("touched={}", pair.cert.display()).replace('/', "-"),
        ]);
    };
    secret(&authority.client("named", "somebody"));
    cluster.until("own", "etcdproxy/late", "a certificate with a name is refused", |proxy| {
        refused(proxy, "CertificateInvalid")
    });
    secret(&authority.nameless_client("nameless"));
    cluster.wait_ready("own", "late");
}

/// The autoscaler of kube-controller-manager looks every 15 seconds; what came of it is looked at later. Without metrics it
/// still keeps to its bounds, by the same subresource by which it would scale with the load.
pub fn an_autoscaler_is_set_on_an_object(cluster: &ControlPlane) {
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: auto, namespace: own}, \
         spec: {mode: Deployment, upstream: {endpoints: ['http://etcd.example:2379']}}}",
    );
    let scale = "/apis/etcdproxy.dev/v1alpha1/namespaces/own/etcdproxies/auto/scale";
    let nothing = cluster.try_kubectl(&["get", &format!("--raw={scale}")]).expect_err("there are no replicas to tell");
    assert!(nothing.contains("spec.replicas"), "{nothing}");
    cluster.kubectl(&["scale", "-n", "own", "etcdproxy/auto", "--replicas=1"]);
    cluster.kubectl(&["get", &format!("--raw={scale}")]);
    cluster.apply_text(
        "{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: auto, namespace: own}, spec: {\
         scaleTargetRef: {apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, name: auto}, minReplicas: 3, \
         maxReplicas: 4, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, \
         averageUtilization: 70}}}]}}",
    );
}

pub fn an_autoscaler_has_kept_an_object_within_its_bounds(cluster: &ControlPlane) {
    cluster.until("own", "etcdproxy/auto", "the autoscaler has raised it to its least", |proxy| {
        proxy["spec"]["replicas"] == 3 && proxy["status"]["availableReplicas"] == 3
    });
    let autoscaler = cluster.get("own", "hpa/auto");
    let able = condition(&autoscaler, "AbleToScale");
    assert_eq!(able["status"], "True", "{autoscaler:#}");
    cluster.kubectl(&["delete", "-n", "own", "hpa/auto", "etcdproxy/auto", "--timeout=60s"]);
}

pub fn what_belongs_to_someone_else_is_never_touched(cluster: &ControlPlane) {
    cluster.apply_text(
        "{apiVersion: v1, kind: Service, metadata: {name: taken, namespace: own}, spec: {ports: [{port: 80}]}}",
    );
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: taken, namespace: own}, \
         spec: {mode: Deployment, upstream: {endpoints: ['http://etcd.example:2379']}}}",
    );
    let proxy = cluster.until("own", "etcdproxy/taken", "the conflict is told", |proxy| {
        condition(proxy, "Programmed")["reason"] == "NameConflict"
    });
    assert_eq!(condition(&proxy, "Stalled")["status"], "True");
    assert_eq!(cluster.get("own", "service/taken")["spec"]["ports"][0]["port"], 80);
    cluster.kubectl(&["delete", "-n", "own", "etcdproxy/taken"]);
    cluster.until_gone("own", "serviceaccount/taken");
    assert_eq!(cluster.get("own", "service/taken")["spec"]["ports"][0]["port"], 80);
}

pub fn a_sidecar_is_offered_that_the_server_takes(cluster: &ControlPlane) {
    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: beside, namespace: own}, \
         spec: {mode: Sidecar, upstream: {endpoints: ['http://etcd.example:2379']}}}",
    );
    cluster.wait_ready("own", "beside");
    let sidecar = cluster.get("own", "etcdproxy/beside")["status"]["sidecar"].clone();
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "namespace": "own"},
        "spec": {
            "initContainers": [sidecar["container"]], "volumes": sidecar["volumes"],
            "containers": [{"name": "app", "image": "app"}],
        },
    });
    let path = cluster.write(&pod.to_string());
    cluster.kubectl(&["create", "--dry-run=server", "--validate=strict", "-f", &path]);
}

pub fn the_plugin_shows_what_is_there_and_what_is_wrong(cluster: &ControlPlane) {
    let shown = cluster.plugin(&["status", "-n", "own", "x"]).expect("what is ready is no failure");
    assert!(shown.contains("✓ own/x  DaemonSet before http://etcd.example:2379"), "{shown}");
    assert!(shown.contains("DaemonSet own/x: 2 wanted, 2 updated, 2 available"), "{shown}");
    assert!(shown.contains("node-0  Running, ready") && shown.contains("node-1  Running, ready"), "{shown}");

    cluster.apply_text(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: lost, namespace: own}, \
         spec: {mode: Deployment, backendRef: {name: nowhere}}}",
    );
    cluster.until("own", "etcdproxy/lost", "it is refused", |proxy| condition(proxy, "Stalled")["status"] == "True");
    let words = "Ready is False: BackendNotFound: spec.backendRef names EtcdBackend nowhere, which does not exist";
    let shown = cluster.plugin(&["status", "-n", "own"]).expect_err("something is not ready");
    assert!(shown.contains("✗ own/lost") && shown.contains(words), "{shown}");
    let checked = cluster.plugin(&["check"]).expect_err("something is not ready");
    for wanted in [
        "✓ EtcdProxy and EtcdBackend are served",
        "✓ operator first works",
        "✓ sidecars are put into pods at admission",
        "✗ EtcdProxy own/lost: BackendNotFound",
    ] {
        assert!(checked.contains(wanted), "{checked}");
    }
    cluster.kubectl(&["delete", "-n", "own", "etcdproxy/lost", "--timeout=60s"]);
    cluster.plugin(&["check"]).expect("all is well again");
    let missed = cluster.plugin(&["logs", "-n", "own", "nobody"]).expect_err("there is none of that name");
    assert!(missed.contains("namespace own has no EtcdProxy nobody"), "{missed}");

    let app = cluster.write(
        "{apiVersion: v1, kind: Pod, metadata: {name: app, labels: {etcdproxy.dev/inject: beside}}, \
         spec: {containers: [{name: app, image: app}]}}",
    );
    let injected = cluster.plugin(&["inject", "-n", "own", "-f", &app]).expect("the EtcdProxy is found in the cluster");
    assert!(injected.contains("name: etcd-proxy") && injected.contains("restartPolicy: Always"), "{injected}");
    assert!(!injected.contains("kind: EtcdProxy"), "only what was given comes out: {injected}");
}

pub fn deleting_an_object_deletes_its_children(cluster: &ControlPlane) {
    cluster.kubectl(&["delete", "-n", "own", "etcdproxy/x", "--timeout=60s"]);
    for child in ["daemonset/x", "service/x", "service/x-pods", "serviceaccount/x", "secret/x-client", "secret/x-ca"] {
        cluster.until_gone("own", child);
    }
}

pub fn the_account_can_do_no_more_than_it_must(cluster: &ControlPlane) {
    let account = "--as=system:serviceaccount:etcd-proxy-system:etcd-proxy-operator";
    let can = |verb: &str, what: &str| cluster.try_kubectl(&["auth", "can-i", verb, what, account, "-A"]).is_ok();
    assert!(can("get", "secrets"), "it reads the Secrets that are named");
    for (verb, what) in [
        ("list", "secrets"),
        ("watch", "secrets"),
        ("create", "pods"),
        ("update", "etcdproxies"),
        ("create", "clusterroles"),
    ] {
        assert!(!can(verb, what), "it may not {verb} {what}");
    }
}

/// One condition of an object.
pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
}
