//! What the API server takes by the committed definitions, and the words with which it refuses the rest.

use crate::control_plane::ControlPlane;

const OWN: &str = "upstream: {endpoints: ['http://a:1']}";
const SHARED: &str = "backendRef: {name: s}";
const BACKEND: &str = "endpoints: ['http://a:1'], namespace: b, keyspace: {root: /t/}";

/// A spec of an EtcdProxy, and the words of its refusal; none if it is good.
fn proxies() -> Vec<(String, &'static str)> {
    let own = |rest: &str| format!("{{{OWN}, {rest}}}");
    let shared = |rest: &str| format!("{{{SHARED}, {rest}}}");
    let tls = "upstream: {endpoints: ['https://a:1'], tls: {secretRef: {name: c}, caRef: {kind: ConfigMap, name: m}}}";
    vec![
        (format!("{{{OWN}}}"), ""),
        (format!("{{{SHARED}}}"), ""),
        (format!("{{{tls}}}"), ""),
        (shared("mode: Deployment, replicas: 3, keyPrefix: a/b/, api: {compact: Ignore}"), ""),
        (shared("mode: Sidecar, replicas: 3, sidecar: {position: Last}"), ""),
        (own("mode: Sidecar, tls: {source: Disabled}"), ""),
        (own("hostPort: 2379, updateStrategy: {maxSurge: 0, maxUnavailable: 1}"), ""),
        (
            own("tls: {source: Secret, secretRef: {name: a}, clientCARef: {kind: Secret, name: a}}, registration: {}"),
            "",
        ),
        (own("tls: {source: Disabled, insecure: true}, hostPort: 3000, registration: {advertise: HostIP}"), ""),
        (own("tls: {extraSANs: [a.example, 10.0.0.1]}, drainSeconds: 0, paused: true, networkPolicy: Disabled"), ""),
        (
            own("resources: {limits: {cpu: 1, memory: 64Mi}}, nodeSelector: {a: b}, tolerations: [{operator: Exists}]"),
            "",
        ),
        (own("limits: {connections: 1}, service: {traffic: NodeOnly, annotations: {a: b}}, metrics: {port: 9000}"), ""),
        (own("limits: {watches: 1, storedBytes: 6000000000, perConnection: {watches: 1}}"), ""),
        (own("api: {allow: [Maintenance/HashKV], deny: [Lock/Lock]}"), ""),
        (shared("api: {deny: [KV/Txn]}"), ""),
        (shared("registration: {}"), ""),
        (own("registration: {advertise: PodDNS}"), ""),
        (
            "{upstream: {endpoints: ['https://a:1'], tls: {serverName: etcd}, auth: {secretRef: {name: u}}}}"
                .to_owned(),
            "",
        ),
        ("{upstream: {endpoints: ['http://[::1]:1', 'http://a_b.c-d:65535']}}".to_owned(), ""),
        (own("tls: {extraSANs: ['*.a.example', '::1', a_b]}, keyPrefix: 'a b$(C)/'"), ""),
        ("{}".to_owned(), "set exactly one of spec.backendRef"),
        (format!("{{{OWN}, {SHARED}}}"), "set exactly one of spec.backendRef"),
        (own("mode: Cluster"), "spec.mode: Unsupported value"),
        (own("keyPrefix: app"), "keyPrefix must end with '/'"),
        (own("keyPrefix: a//b/"), "keyPrefix must not contain '//'"),
        (own("port: 80"), "spec.port"),
        (own("port: 2381"), "port and metrics.port must differ"),
        (own("replicas: 2"), "spec.replicas is only used with mode Deployment"),
        (own("mode: Deployment, replicas: -1"), "spec.replicas"),
        (own("mode: Deployment, hostPort: 3000"), "spec.hostPort is only used with mode DaemonSet"),
        (own("hostPort: 3000, updateStrategy: {maxSurge: 1}"), "maxSurge must be 0 with hostPort"),
        (own("updateStrategy: {maxSurge: 101%}"), "spec.updateStrategy.maxSurge"),
        (own("sidecar: {position: First}"), "spec.sidecar is only used with mode Sidecar"),
        (own("tls: {source: Disabled}"), "tls.source Disabled exposes etcd in clear text"),
        (own("tls: {source: Secret}"), "tls.secretRef must be set if and only if"),
        (own("tls: {secretRef: {name: a}}"), "tls.secretRef must be set if and only if"),
        (own("tls: {source: Secret, secretRef: {name: a}}"), "tls.clientCARef is required"),
        (own("tls: {source: Disabled, insecure: true, clientCARef: {kind: Secret, name: a}}"), "has no effect"),
        (own("tls: {source: Disabled, insecure: true, extraSANs: [a]}"), "tls.extraSANs go into a Managed certificate"),
        (own("api: {profile: Tenant}"), "set a keyPrefix, or leave the profile out"),
        (own("registration: {advertise: PodIP}"), "which a Managed certificate cannot name"),
        (own("tls: {source: Disabled, insecure: true}, registration: {prefix: /a}"), "must not start or end with '/'"),
        (
            own("tls: {source: Disabled, insecure: true}, registration: {advertise: HostIP}"),
            "HostIP needs spec.hostPort",
        ),
        (own("tls: {source: Disabled, insecure: true}, registration: {ttlSeconds: 1}"), "spec.registration.ttlSeconds"),
        ("{upstream: {endpoints: []}}".to_owned(), "spec.upstream.endpoints"),
        ("{upstream: {endpoints: ['a:1']}}".to_owned(), "must be http(s)://host:port without a path"),
        ("{upstream: {endpoints: ['http://a:1/x']}}".to_owned(), "must be http(s)://host:port without a path"),
        ("{upstream: {endpoints: ['http://a']}}".to_owned(), "must be http(s)://host:port without a path"),
        ("{upstream: {endpoints: ['http://a,b:1']}}".to_owned(), "must be http(s)://host:port without a path"),
        ("{upstream: {endpoints: ['http://user:word@a:1']}}".to_owned(), "must be http(s)://host:port without a path"),
        ("{upstream: {endpoints: ['http://a:1?b=c']}}".to_owned(), "must be http(s)://host:port without a path"),
        ("{upstream: {endpoints: ['http://a:1#b']}}".to_owned(), "must be http(s)://host:port without a path"),
        ("{upstream: {endpoints: ['http://a:70000']}}".to_owned(), "must be http(s)://host:port without a path"),
        (
            "{upstream: {endpoints: ['https://a:1'], tls: {serverName: 'https://b'}}}".to_owned(),
            "must be a host name or an IP address",
        ),
        (
            "{upstream: {endpoints: ['https://a:1'], tls: {secretRef: {name: ../b}}}}".to_owned(),
            "must be the name of an object",
        ),
        (
            "{upstream: {endpoints: ['https://a:1'], tls: {caRef: {kind: Secret, name: 'b?c'}}}}".to_owned(),
            "must be the name of an object",
        ),
        (
            "{upstream: {endpoints: ['https://a:1'], tls: {caRef: {kind: Secret, name: b, key: ../c}}}}".to_owned(),
            "must be a key of a Secret or ConfigMap",
        ),
        ("{backendRef: {name: s/status}}".to_owned(), "must be the name of an object"),
        (own("keyPrefix: \"a\\nb/\""), "keyPrefix must not contain control characters"),
        (own("keyPrefix: \"a\\0b/\""), "keyPrefix must not contain control characters"),
        (own("tls: {extraSANs: ['a b']}"), "must be a host name, with '*.' before it or not"),
        (own("registration: {prefix: \"a\\nb\"}"), "must not contain control characters"),
        ("{upstream: {endpoints: ['http://a:1', 'https://b:1']}}".to_owned(), "all endpoints must use the same scheme"),
        ("{upstream: {endpoints: ['http://a:1', 'http://a:1']}}".to_owned(), "Duplicate value"),
        ("{upstream: {endpoints: ['http://a:1'], tls: {}}}".to_owned(), "upstream.tls needs https:// endpoints"),
        (
            "{upstream: {endpoints: ['http://a:1'], auth: {secretRef: {name: u}}}}".to_owned(),
            "upstream.auth needs https:// endpoints",
        ),
        (own("api: {deny: [Lock/Lok]}"), "Unsupported value"),
        (own("limits: {keys: 0}"), "spec.limits.keys"),
        (shared("api: {allow: [Maintenance/HashKV]}"), "api.allow is only allowed with spec.upstream"),
        (shared("image: mine:1"), "spec.image cannot be set with spec.backendRef"),
        (shared("api: {profile: Full}"), "api.profile Full is only allowed with spec.upstream"),
        (shared("api: {compact: Allow}"), "api.compact Allow is only allowed with spec.upstream"),
        (shared("tls: {source: Disabled, insecure: true}"), "tls.source must be Managed with spec.backendRef"),
        (shared("nodeSelector: {a: b}"), "are the admin's choice"),
        (shared("hostPort: 3000"), "are the admin's choice"),
    ]
}

fn backends() -> Vec<(String, &'static str)> {
    let with = |rest: &str| format!("{{{BACKEND}, {rest}}}");
    let grant = |name: &str, prefix: &str| format!("{{name: {name}, prefix: {prefix}, namespaces: [a]}}");
    vec![
        (format!("{{{BACKEND}}}"), ""),
        (with(&format!("grants: [{}, {}]", grant("a", "/a/"), grant("b", "/b/"))), ""),
        (with("limits: {modes: [Sidecar], maxReplicas: 2}, allowedNamespaces: {selector: {}}"), ""),
        (with(&format!("grants: [{}]", grant("a", "/t/a/"))), "must not overlap keyspace.root"),
        (with(&format!("grants: [{}, {}]", grant("a", "/a/"), grant("b", "/a/b/"))), "grants must not overlap"),
        (with(&format!("grants: [{}]", grant("a", "/a"))), "prefix must end with '/'"),
        (with(&format!("grants: [{}, {}]", grant("a", "/a/"), grant("a", "/b/"))), "Duplicate value"),
        (with("limits: {modes: []}"), "spec.limits.modes"),
        (with("limits: {perProxy: {connections: 9, perConnection: {watches: 3}}}"), ""),
        (with("auth: {secretRef: {name: u}}"), "auth needs https:// endpoints"),
        ("{endpoints: ['http://a:1'], namespace: b, keyspace: {root: /t/, reclaimPolicy: Delete}}".to_owned(), ""),
        (
            "{endpoints: ['http://a:1'], namespace: b, keyspace: {root: /t/, reclaimPolicy: Burn}}".to_owned(),
            "spec.keyspace.reclaimPolicy: Unsupported value",
        ),
        (with("tls: {}"), "tls needs https:// endpoints"),
        ("{endpoints: ['http://a:1'], namespace: b, keyspace: {root: /t}}".to_owned(), "root must end with '/'"),
        ("{endpoints: ['http://a:1'], namespace: b, keyspace: {root: //t/}}".to_owned(), "root must not contain '//'"),
        ("{endpoints: ['http://a:1'], keyspace: {root: /t/}}".to_owned(), "spec.namespace: Required value"),
        (
            "{endpoints: ['http://a:1'], namespace: b/c, keyspace: {root: /t/}}".to_owned(),
            "spec.namespace must be the name of a namespace",
        ),
    ]
}

/// Changes of an object that exists: its kind and name, a merge patch, and the words of the refusal.
const CHANGES: [(&str, &str, &str); 7] = [
    ("etcdproxy/kept", r#"{"spec":{"port":3000}}"#, ""),
    ("etcdproxy/kept", r#"{"spec":{"keyPrefix":"b/"}}"#, "spec.keyPrefix is immutable"),
    ("etcdproxy/kept", r#"{"spec":{"keyPrefix":null}}"#, "spec.keyPrefix is immutable"),
    ("etcdproxy/kept", r#"{"spec":{"upstream":null,"backendRef":{"name":"s"}}}"#, "spec.backendRef is immutable"),
    ("etcdbackend/kept", r#"{"spec":{"namespace":"c"}}"#, "spec.namespace is immutable"),
    ("etcdbackend/kept", r#"{"spec":{"keyspace":{"root":"/u/"}}}"#, "root is immutable"),
    ("etcdbackend/kept", r#"{"spec":{"endpoints":["http://b:1"]}}"#, ""),
];

pub fn the_server_accepts_good_objects_and_refuses_bad_ones_by_field(cluster: &ControlPlane) {
    check(cluster, "EtcdProxy", &proxies());
    check(cluster, "EtcdBackend", &backends());

    let long = format!("a{}", "b".repeat(40));
    for name in ["9a", &long] {
        let text = format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: {name}}}, spec: {{{OWN}}}}}"
        );
        let refusal = cluster.try_kubectl(&["create", "--dry-run=server", "-f", &cluster.write(&text)]);
        assert!(refusal.as_ref().is_err_and(|words| words.contains("must be a DNS-1035 label")), "{name}: {refusal:?}");
    }

    let text = format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: a}}, spec: {{{OWN}, nonsense: 1}}}}"
    );
    let refusal = cluster.try_kubectl(&["create", "--dry-run=server", "-f", &cluster.write(&text)]);
    assert!(refusal.as_ref().is_err_and(|words| words.contains("unknown field \"spec.nonsense\"")), "{refusal:?}");

    cluster.apply_text(&format!("{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: kept}}, spec: {{{OWN}, keyPrefix: a/}}}}"));
    cluster.apply_text(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {{name: kept}}, spec: {{{BACKEND}}}}}"
    ));
    for (object, patch, words) in CHANGES {
        let result = cluster.try_kubectl(&["patch", object, "--type=merge", "--dry-run=server", "-p", patch]);
        match (&result, words) {
            (Ok(_), "") => (),
            (Err(refusal), words) if !words.is_empty() && refusal.contains(words) => (),
            _ => panic!("{object} {patch}: wanted {words:?}, got {result:?}"),
        }
    }
    let selected = cluster.kubectl(&["get", "etcdproxies", "--field-selector", "spec.mode=DaemonSet", "-o", "name"]);
    assert_eq!(selected.trim(), "etcdproxy.etcdproxy.dev/kept");
    cluster.kubectl(&["delete", "etcdproxy/kept", "etcdbackend/kept"]);
}

/// Creates all cases at once without keeping them, and looks for each by its name.
fn check(cluster: &ControlPlane, kind: &str, cases: &[(String, &str)]) {
    let documents = cases.iter().enumerate().map(|(index, (spec, _))| {
        format!("---\n{{apiVersion: etcdproxy.dev/v1alpha1, kind: {kind}, metadata: {{name: case-{index}}}, spec: {spec}}}\n")
    });
    let path = cluster.write(&documents.collect::<String>());
    let result = cluster.try_kubectl(&["create", "--dry-run=server", "--validate=strict", "-f", &path]);
    let output = result.expect_err("some cases are refused");
    for (index, (spec, words)) in cases.iter().enumerate() {
        let name = format!("case-{index}");
        let created = output.contains(&format!("/{name} created"));
        assert_eq!(created, words.is_empty(), "{spec}: wanted {words:?}\n{output}");
        if !created {
            // A refusal names its object at its beginning, and each begins a line or follows in a list.
            let said = output.split("\nThe ").chain(output.split("\nError ")).any(|one| {
                (one.contains(&format!("\"{name}\"")) || one.contains(&format!("{name} "))) && one.contains(words)
            });
            assert!(said, "{spec}: wanted {words:?}\n{output}");
        }
    }
}
