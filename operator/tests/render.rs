//! What is rendered for every mode and field: the proxy's own parser reads the arguments, and Kubernetes' own types the
//! objects.

use std::collections::BTreeMap;

use etcd_proxy::flags::{self, Flags, Invocation, LimitFlags};
use etcd_proxy::rules::{methods::METHODS, tenant::policy};
use etcd_proxy_operator::api::{self, EtcdBackend, EtcdProxy};
use etcd_proxy_operator::plan::{self, Fetched, Found, Plan, Settings};
use etcd_proxy_operator::render::{self, Cluster, Identity};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, Service, ServiceAccount, Volume};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// A certificate without a name and its key; what a fetched Secret would hold.
fn secret() -> Found {
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    let certificate = parameters.self_signed(&key).expect("a key can sign").pem().into_bytes();
    Found::Data(BTreeMap::from([
        ("tls.crt".to_owned(), certificate.clone()),
        ("tls.key".to_owned(), key.serialize_pem().into_bytes()),
        ("ca.crt".to_owned(), certificate),
        ("username".to_owned(), b"proxy".to_vec()),
        ("password".to_owned(), b"never-shown".to_vec()),
    ]))
}

fn proxy(spec: &str) -> EtcdProxy {
    let text = format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: x, namespace: team, uid: u}}, \
         spec: {spec}}}"
    );
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{spec}: {error}"))
}

fn plan(spec: &str) -> Plan {
    plan_with(spec, "")
}

/// On a backend with more in its spec.
fn plan_with(spec: &str, more: &str) -> Plan {
    let proxy = proxy(spec);
    let backend: EtcdBackend = serde_yaml::from_str(&format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {{name: shared, uid: b}}, spec: {{{more}\
         endpoints: ['https://etcd:2379'], namespace: backend, keyspace: {{root: /t/}}, tls: {{secretRef: {{name: c}}}}, \
         allowedNamespaces: {{names: [team]}}, proxy: {{image: theirs:1, priorityClassName: high, \
         nodeSelector: {{a: b}}, tolerations: [{{operator: Exists}}]}}, \
         grants: [{{name: old, prefix: /old/, namespaces: [team], access: ReadOnly}}]}}}}",
    ))
    .expect("the backend is written right");
    let backend = proxy.spec.backend_ref.is_some().then_some(backend);
    let objects = plan::references(&proxy, backend.as_ref()).into_iter().map(|key| (key, secret())).collect();
    let settings = Settings { cluster_uid: "cluster-uid".to_owned(), ..Settings::with_image("ours:1") };
    let fetched = Fetched { backend, objects, namespace_uid: "namespace-uid".to_owned(), ..Fetched::default() };
    plan::check(&proxy, &fetched, &settings).unwrap_or_else(|refusal| panic!("{spec}: {refusal:?}"))
}

fn objects(plan: &Plan) -> Vec<Value> {
    render::render(plan, &Cluster { domain: "cluster.local".to_owned(), same_node: true })
}

/// What kubelet makes of an argument: two dollar signs are one, and one before a bracket begins a variable.
fn expanded(text: &str) -> String {
    let variables = [("POD_IP", "10.1.2.3"), ("HOST_IP", "192.168.0.1"), ("UPSTREAM_USER", "proxy")];
    let (mut made, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        made += before;
        let variable = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        rest = match (after.strip_prefix('$'), variable) {
            (Some(after), _) => {
                made.push('$');
                after
            }
            (None, Some((name, after))) => {
                let known = variables.iter().find(|(known, _)| *known == name);
                made += &known.map_or_else(|| format!("$({name})"), |(_, value)| (*value).to_owned());
                after
            }
            (None, None) => {
                made.push('$');
                after
            }
        };
    }
    made + rest
}

/// What the proxy makes of its arguments, with the variables filled in as Kubernetes does.
fn parsed(container: &Value) -> Flags {
    let arguments = container["args"].as_array().expect("the container has arguments").iter();
    let arguments = arguments.map(|argument| expanded(argument.as_str().expect("an argument is text")).into());
    let invocation = flags::parse(arguments, &BTreeMap::new());
    let Ok(Invocation::Start { flags, warnings }) = invocation else { panic!("{container:#}: refused") };
    assert!(warnings.is_empty(), "{warnings:?}");
    let warnings = flags.check().unwrap_or_else(|refusal| panic!("{container:#}: {refusal:?}"));
    assert!(warnings.is_empty(), "nothing that is rendered is without effect: {warnings:?}");
    *flags
}

fn pod(plan: &Plan) -> Value {
    let all = objects(plan);
    let workload = all.into_iter().find(|object| object["apiVersion"] == "apps/v1").expect("there is a workload");
    workload["spec"]["template"]["spec"].clone()
}

fn flags_of(spec: &str) -> Flags {
    parsed(&pod(&plan(spec))["containers"][0])
}

const OWN: &str = "upstream: {endpoints: ['http://a:1', 'http://b:2']}";
const CLEAR: &str = "tls: {source: Disabled, insecure: true}";

#[test]
fn each_field_becomes_the_flag_that_it_means() {
    let flags = flags_of(&format!("{{{OWN}, keyPrefix: app/, port: 3000, metrics: {{port: 3001}}, drainSeconds: 7}}"));
    assert_eq!(flags.listen_addr, "0.0.0.0:3000");
    assert_eq!(flags.metrics_addr, ["http://0.0.0.0:3001"]);
    assert_eq!(flags.endpoints, ["http://a:1", "http://b:2"]);
    assert_eq!(flags.namespace, b"app/");
    assert_eq!(flags.drain_timeout.as_secs(), 7);
    assert_eq!(flags.advertise_client_url, "https://x.team.svc:3000");
    assert_eq!(flags.tenancy.api_profile, "tenant", "a prefix keeps its clients inside");
    assert!(flags.cert_file.is_some() && flags.key_file.is_some() && flags.trusted_ca_file.is_some());

    let flags = flags_of(&format!("{{{OWN}, {CLEAR}, api: {{compact: Ignore}}}}"));
    assert_eq!(flags.tenancy.api_profile, "full", "without a prefix there is nothing to keep clients in");
    assert_eq!(flags.tenancy.api_compact, "ignore");
    assert!(!flags.serves_tls());

    let flags = flags_of(&format!("{{{OWN}, tls: {{clientAuth: None}}, api: {{profile: ReadOnly}}}}"));
    assert!(flags.cert_file.is_some() && flags.trusted_ca_file.is_none());
    assert_eq!(flags.tenancy.api_profile, "read-only");

    let flags = flags_of(&format!(
        "{{{OWN}, limits: {{connections: 5, streamsPerConnection: 6, requestBytes: 2048, watchLogBytes: 65536}}}}"
    ));
    assert_eq!((flags.max_connections, flags.max_concurrent_streams), (5, 6));
    assert_eq!((flags.max_send_bytes, flags.watch_log_max_bytes), (2048, 65536));

    let flags = flags_of(&format!(
        "{{{OWN}, keyPrefix: a/, limits: {{streams: 1, watches: 2, concurrentRequests: 3, requestsPerSecond: 4, \
         requestBurst: 5, receivedBytesPerSecond: 6000000000, sentBytesPerSecond: 7000, answerBytes: 8000, keys: 9, \
         storedBytes: 10000, perConnection: {{watches: 11, requestsPerSecond: 12, receivedBytesPerSecond: 13000, \
         sentBytesPerSecond: 14000}}}}}}"
    ));
    let limits = LimitFlags {
        tenant_max_streams: 1,
        tenant_max_watches: 2,
        tenant_max_concurrent_requests: 3,
        tenant_max_requests_per_second: 4,
        tenant_request_burst: 5,
        tenant_max_received_bytes_per_second: 6_000_000_000,
        tenant_max_sent_bytes_per_second: 7000,
        tenant_max_answer_bytes: 8000,
        tenant_max_keys: 9,
        tenant_max_stored_bytes: 10_000,
        connection_max_watches: 11,
        connection_max_requests_per_second: 12,
        connection_max_received_bytes_per_second: 13_000,
        connection_max_sent_bytes_per_second: 14_000,
        ..Flags::default().tenant_limits
    };
    assert_eq!(flags.tenant_limits, limits);

    let flags = flags_of(&format!("{{{OWN}, api: {{allow: [Maintenance/HashKV], deny: [Lock/Lock, KV/Txn]}}}}"));
    assert_eq!(flags.tenancy.api_allow, ["Maintenance/HashKV"]);
    assert_eq!(flags.tenancy.api_deny, ["Lock/Lock", "KV/Txn"]);

    let registered = "registration: {prefix: here, ttlSeconds: 9, advertise: HostIP}";
    let flags = flags_of(&format!("{{{OWN}, {CLEAR}, hostPort: 4000, {registered}}}"));
    assert_eq!((flags.resolver_prefix.as_str(), flags.resolver_ttl), ("here", 9));
    assert_eq!(flags.advertise_client_url, "http://192.168.0.1:4000");
    let flags = flags_of(&format!("{{{OWN}, {CLEAR}, registration: {{advertise: PodIP}}}}"));
    assert_eq!(flags.advertised(), "http://10.1.2.3:2379");
    // What a client reads in the member list is a name that the certificate has.
    let named = plan(&format!("{{{OWN}, registration: {{}}}}"));
    assert_eq!(parsed(&pod(&named)["containers"][0]).advertised(), "https://10-1-2-3.x-pods.team.svc:2379");
    let names = &named.managed.as_ref().expect("its certificate is managed").names;
    assert!(names.contains(&"*.x-pods.team.svc".to_owned()), "{names:?}");

    for prefix in ["$(POD_IP)/", "$$(POD_IP)/", "$$$(UPSTREAM_USER)/", "a$b$$c$/", "--listen-addr=x y/"] {
        let flags = flags_of(&format!("{{{OWN}, keyPrefix: '{prefix}', registration: {{prefix: '{prefix}x'}}}}"));
        assert_eq!(flags.namespace, prefix.as_bytes(), "Kubernetes fills in nothing of what stands in a prefix");
        assert_eq!(flags.resolver_prefix, format!("{prefix}x"));
    }
}

#[test]
fn every_file_that_a_flag_names_is_mounted() {
    let tls = "upstream: {endpoints: ['https://a:1'], tls: {secretRef: {name: c}, caRef: {kind: ConfigMap, name: m, key: ca.crt}}}";
    let secret = "tls: {source: Secret, secretRef: {name: s}, clientCARef: {kind: Secret, name: cc, key: ca.crt}}";
    for spec in [
        format!("{{{OWN}}}"),
        format!("{{{tls}}}"),
        format!("{{{tls}, {secret}}}"),
        "{upstream: {endpoints: ['https://a:1'], auth: {secretRef: {name: u}}}}".to_owned(),
        "{mode: Deployment, backendRef: {name: shared}}".to_owned(),
        "{backendRef: {name: shared, grant: old}}".to_owned(),
    ] {
        let pod = pod(&plan(&spec));
        let flags = parsed(&pod["containers"][0]);
        let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("it mounts").clone();
        let mut files =
            vec![&flags.cert, &flags.key, &flags.cacert, &flags.cert_file, &flags.key_file, &flags.trusted_ca_file];
        files.push(&flags.login.password_file);
        for file in files.into_iter().flatten() {
            let folder = file.parent().expect("a file stands in a folder").display().to_string();
            let mount = mounts.iter().find(|mount| mount["mountPath"] == folder.as_str());
            let mount = mount.unwrap_or_else(|| panic!("{spec}: {folder} is not mounted"));
            let volumes = pod["volumes"].as_array().expect("it has volumes");
            assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{spec}: {mount} has no volume");
        }
    }
}

#[test]
fn the_proxys_own_user_and_the_name_of_etcd_come_from_the_spec() {
    let own = "{upstream: {endpoints: ['https://a:1'], tls: {serverName: etcd.example}, auth: {secretRef: {name: u}}}}";
    let pod = pod(&plan(own));
    let flags = parsed(&pod["containers"][0]);
    assert_eq!(flags.tls_server_name, "etcd.example");
    assert_eq!((flags.login.name(), flags.login.name_and_password()), ("proxy", None));
    let name = json!({"name": "UPSTREAM_USER", "valueFrom": {"secretKeyRef": {"name": "u", "key": "username"}}});
    assert_eq!(pod["containers"][0]["env"], json!([name]));
    read_back::<Container>(&pod["containers"][0]);
    assert!(!pod.to_string().contains("never-shown"), "the password stands nowhere: {pod:#}");

    let shared = plan_with("{mode: Sidecar, backendRef: {name: shared}}", "auth: {secretRef: {name: u}}, ");
    let claim = shared.workload.as_ref().and(shared.claim.as_ref()).expect("it claims its keys");
    let container = render::container::claim(&shared.workload.as_ref().expect("it has pods").proxy, claim);
    assert_eq!(container["env"], json!([name]), "a claim is made as that user too");
    let arguments: Vec<&str> = container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(arguments.contains(&"--password-file=/etc/etcd-proxy/upstream-user/password"), "{arguments:?}");
    etcd_proxy::keyspace::check(arguments.iter().skip(1).map(Into::into)).expect("the proxy knows these flags");
    read_back::<Container>(&container);
    let sidecar = &shared.sidecar.as_ref().expect("there is a sidecar").proxy;
    let flags = parsed(&render::container::sidecar(sidecar, "http://127.0.0.1:2379"));
    assert!(flags.login.name().is_empty(), "a tenant's pod never sees the backend's user");
}

#[test]
fn of_two_limits_the_lesser_holds() {
    let limits = "limits: {perProxy: {watches: 100, keys: 5, perConnection: {watches: 7}}}, ";
    let wanted = "limits: {watches: 50, keys: 6, streams: 3, perConnection: {requestsPerSecond: 8}}";
    let shared = plan_with(&format!("{{mode: Sidecar, {wanted}, backendRef: {{name: shared}}}}"), limits);
    let flags = parsed(&pod(&shared)["containers"][0]).tenant_limits;
    assert_eq!((flags.tenant_max_watches, flags.tenant_max_keys, flags.tenant_max_streams), (50, 5, 3));
    assert_eq!((flags.connection_max_watches, flags.connection_max_requests_per_second), (7, 8));
    let sidecar = &shared.sidecar.as_ref().expect("there is a sidecar").proxy;
    let flags = parsed(&render::container::sidecar(sidecar, "http://127.0.0.1:2379")).tenant_limits;
    assert_eq!(flags.tenant_max_keys, 0, "what is stored is counted where the prefix is");
}

#[test]
fn the_methods_that_a_spec_may_name_are_the_proxys() {
    let known: Vec<&str> = METHODS.iter().map(|method| method.path).collect();
    for name in api::METHODS {
        let found = policy::method_named(name).unwrap_or_else(|| panic!("the proxy has no {name}"));
        assert!(found.path.ends_with(&format!(".{name}")));
    }
    assert_eq!(api::METHODS.len(), known.len(), "{known:?}");
}

#[test]
fn a_backend_decides_what_a_tenant_must_not() {
    let plan = plan("{mode: Deployment, backendRef: {name: shared}}");
    assert_eq!(plan.prefix, "/t/team/x/");
    assert_eq!(plan.home.namespace, "backend");
    let pod = pod(&plan);
    assert_eq!(pod["containers"][0]["image"], "theirs:1");
    assert_eq!(pod["priorityClassName"], "high");
    assert_eq!(pod["nodeSelector"], json!({"a": "b"}));
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    let flags = flags_of("{backendRef: {name: shared, grant: old}}");
    assert_eq!((flags.namespace.as_slice(), flags.tenancy.api_profile.as_str()), (b"/old/".as_slice(), "read-only"));
    for object in objects(&plan) {
        let owner = &object["metadata"]["ownerReferences"][0]["kind"];
        let expected = if object["metadata"]["namespace"] == "team" { "EtcdProxy" } else { "EtcdBackend" };
        assert_eq!(owner, expected, "an owner stands in the same namespace or in none: {object:#}");
    }
}

#[test]
fn what_a_tenant_annotates_stays_in_its_namespace() {
    let annotated = |spec: &str| -> Vec<String> {
        let all = objects(&plan(spec)).into_iter().filter(|object| object["metadata"]["annotations"]["a"] == "b");
        all.map(|object| format!("{}/{}", object["metadata"]["namespace"], object["kind"]).replace('"', "")).collect()
    };
    let service = "mode: Deployment, service: {annotations: {a: b}}";
    assert_eq!(annotated(&format!("{{{service}, backendRef: {{name: shared}}}}")), ["team/Service"]);
    assert_eq!(annotated(&format!("{{{service}, {OWN}}}")), ["team/Service"]);
}

/// Both are read by the proxy's program, so the words and flags must be those that it knows.
#[test]
fn keys_of_a_namespace_are_claimed_first_and_purged_by_a_job_if_asked() {
    let one = plan("{mode: Deployment, backendRef: {name: shared}}");
    let claim = pod(&one)["initContainers"][0].clone();
    read_back::<Container>(&claim);
    let arguments: Vec<&str> = claim["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for wanted in
        ["--claim-key=/t/.claims/team", "--claim-value=cluster-uid/namespace-uid", "--endpoints=https://etcd:2379"]
    {
        assert!(arguments.contains(&wanted), "{arguments:?}");
    }
    etcd_proxy::keyspace::check(arguments.iter().skip(1).map(Into::into)).expect("the proxy knows these flags");

    let job = render::purge(&one).expect("its keys are its own");
    read_back::<Job>(&job);
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    let arguments: Vec<&str> = container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(arguments.contains(&"--prefix=/t/team/x/") && arguments.contains(&"--claimed-prefix=/t/team/"));
    etcd_proxy::keyspace::check(arguments.iter().skip(1).map(Into::into)).expect("the proxy knows these flags");
    assert!(render::possible(&one.object, &one.home).contains(&Identity::of(&job)), "it is cleaned up");

    let granted = plan("{backendRef: {name: shared, grant: old}}");
    assert!(pod(&granted)["initContainers"].is_null(), "keys of a grant belong to several");
    assert!(render::purge(&granted).is_none(), "and always stay");
    assert!(render::purge(&plan(&format!("{{{OWN}, keyPrefix: a/}}"))).is_none(), "an etcd of one's own is not purged");
}

#[test]
fn a_sidecar_listens_on_loopback_and_on_a_backend_is_a_client_of_the_tenants_proxies() {
    let own = plan(&format!("{{mode: Sidecar, {OWN}, tls: {{source: Disabled}}}}"));
    assert!(objects(&own).is_empty(), "there is nothing beside the pods of applications");
    let proxy = &own.sidecar.as_ref().expect("there is a sidecar").proxy;
    let container = render::container::sidecar(proxy, &own.endpoints[0]);
    assert_eq!(parsed(&container).listen_addr, "127.0.0.1:2379");
    assert_eq!(container["restartPolicy"], "Always");
    read_back::<Container>(&container);

    let chained = plan("{mode: Sidecar, backendRef: {name: shared}}");
    let proxy = &chained.sidecar.as_ref().expect("there is a sidecar").proxy;
    let flags = parsed(&render::container::sidecar(proxy, &chained.endpoints[0]));
    assert_eq!(flags.endpoints, ["https://x.team.svc:2379"]);
    assert!(flags.namespace.is_empty(), "the prefix is put on where the credential is");
    let volumes = render::container::volumes(proxy);
    assert_eq!(volumes[0]["secret"]["secretName"], "x-client");
    volumes.iter().for_each(read_back::<Volume>);
    assert_eq!(parsed(&pod(&chained)["containers"][0]).namespace, b"/t/team/x/");
}

/// A policy is judged by the labels of pods, and DNS by the port of its server's pod.
#[test]
fn the_policy_lets_out_whoever_asks_etcd_and_in_whoever_may_ask() {
    let one = plan("{mode: Deployment, backendRef: {name: shared}, metrics: {port: 9000}}");
    let policy = objects(&one).into_iter().find(|object| object["kind"] == "NetworkPolicy").expect("there is one");
    let spec = &policy["spec"];
    let covers = |pod: &Value| {
        let labels = &pod["metadata"]["labels"];
        spec["podSelector"]["matchLabels"].as_object().unwrap().iter().all(|(key, value)| labels[key] == *value)
    };
    let workload = objects(&one).into_iter().find(|object| object["kind"] == "Deployment").expect("there is one");
    let job = render::purge(&one).expect("its keys are its own");
    assert!(covers(&workload["spec"]["template"]) && covers(&job["spec"]["template"]), "{policy:#}");
    let tcp = |port: i32| json!({"port": port, "protocol": "TCP"});
    let team = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team"}}}]);
    assert_eq!(spec["ingress"], json!([{"from": team, "ports": [tcp(2379)]}, {"ports": [tcp(9000)]}]));
    for port in [53, 5353] {
        let dns = spec["egress"][0]["ports"].as_array().expect("DNS has ports");
        assert!(dns.contains(&tcp(port)) && dns.contains(&json!({"port": port, "protocol": "UDP"})), "{dns:?}");
    }
    assert_eq!(spec["egress"][1], json!({"ports": [tcp(2379)]}));
}

#[test]
fn every_object_is_what_kubernetes_knows_and_can_be_pruned() {
    for spec in [
        format!("{{{OWN}}}"),
        format!("{{{OWN}, {CLEAR}, hostPort: 4000, service: {{traffic: NodeOnly, annotations: {{a: b}}}}}}"),
        format!(
            "{{mode: Deployment, {OWN}, resources: {{requests: {{cpu: 1, memory: 64Mi}}}}, tolerations: [{{key: a, effect: NoSchedule}}], updateStrategy: {{maxSurge: 25%, maxUnavailable: 1}}}}"
        ),
        "{mode: Deployment, backendRef: {name: shared}}".to_owned(),
        "{mode: Sidecar, backendRef: {name: shared}}".to_owned(),
    ] {
        let plan = plan(&spec);
        let possible = render::possible(&plan.object, &plan.home);
        for object in objects(&plan) {
            assert!(
                possible.contains(&Identity::of(&object)),
                "{spec}: {:?} would never be pruned",
                Identity::of(&object)
            );
            match object["kind"].as_str().expect("an object has a kind") {
                "DaemonSet" => read_back::<DaemonSet>(&object),
                "Deployment" => read_back::<Deployment>(&object),
                "Service" => read_back::<Service>(&object),
                "ServiceAccount" => read_back::<ServiceAccount>(&object),
                "NetworkPolicy" => read_back::<NetworkPolicy>(&object),
                "PodDisruptionBudget" => read_back::<PodDisruptionBudget>(&object),
                other => panic!("{other} is rendered and not read back here"),
            }
        }
    }
}

/// Nothing of the object is lost on the way through its type, so no field is misspelt.
fn read_back<T: Serialize + DeserializeOwned>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{object:#}: {error}"));
    let again = serde_json::to_value(typed).expect("what was JSON is JSON");
    assert_eq!(strip_empty(&again), strip_empty(object));
}

fn strip_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| **value != json!([]))
            .map(|(key, value)| (key.clone(), strip_empty(value)))
            .collect(),
        Value::Array(items) => items.iter().map(strip_empty).collect(),
        other => other.clone(),
    }
}
