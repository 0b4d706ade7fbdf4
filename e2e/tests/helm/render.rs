//! What the chart renders, and what it refuses.

use std::collections::BTreeSet;

use etcd_proxy_e2e::programs;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::helm::{Helm, values_files};
use crate::schemas::Schemas;

/// The versions of Kubernetes that we promise to work with.
const VERSIONS: [&str; 5] = ["1.33.0", "1.34.0", "1.35.0", "1.36.0", "1.37.0"];

pub fn lint_has_nothing_to_say(helm: &Helm) {
    let chart = Helm::chart().display().to_string();
    for file in values_files() {
        let said = helm.expect(&["lint", "--strict", "--quiet", &chart, "-f", &file]);
        assert_eq!(said.trim(), "", "{} lint with {file}", helm.name);
    }
}

pub fn rendering_twice_gives_the_same_bytes(helm: &Helm) {
    for file in values_files() {
        let render = || helm.template(&["-f", &file]).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(render(), render(), "{} with {file}", helm.name);
    }
}

pub fn both_helms_render_the_same_objects() {
    let [four, three] = Helm::both();
    for file in values_files() {
        let all =
            |helm: &Helm| -> BTreeSet<String> { helm.objects(&["-f", &file]).iter().map(Value::to_string).collect() };
        assert_eq!(all(&four), all(&three), "{file}");
    }
}

pub fn a_typo_in_the_values_is_refused_by_name(helm: &Helm) {
    let refused = |value: &str, word: &str| {
        let error = helm.template(&["--set", "image.repository=a", "--set", value]).expect_err(value);
        assert!(error.contains(word), "{} {value}: {error}", helm.name);
    };
    refused("replica=3", "replica");
    refused("rbac.profil=backends", "profil");
    refused("rbac.profile=everything", "profile");
    refused("metrics.port=80", "port");
    refused("injection.mode=hook", "mode");
    refused("injection.webhook.port=443", "port");
    refused("maxConcurrentRollouts=0", "maxConcurrentRollouts");
    refused("image.digest=latest", "digest");
    refused("extraArgs={run}", "extraArgs");
    refused("proxies[0].name=Registry,proxies[0].spec.mode=Deployment", "name");
    refused("backends[0].name=a,backends[0].spec.endpoints={http://a:1}", "keyspace");
}

pub fn what_cannot_work_is_refused_with_what_would_be_right(helm: &Helm) {
    let error = helm.template(&[]).expect_err("there is no image to run");
    assert!(error.contains("image.repository is needed"), "{error}");
    let error = helm.template(&["--set", "image.repository=a", "--kube-version=1.32.0"]);
    assert!(error.expect_err("1.32 is too old").contains("1.33"));
    let backend = "backends[0].name=a,backends[0].spec.endpoints={http://a:1},backends[0].spec.namespace=a,\
                   backends[0].spec.keyspace.root=/a/";
    let error = helm.template(&["--set", "image.repository=a,rbac.profile=namespaced", "--set", backend]);
    assert!(error.expect_err("nobody would look after it").contains("the operator knows no EtcdBackends"));
}

pub fn every_value_is_known_to_the_schema_and_every_other_is_not() {
    let read = |name: &str| std::fs::read_to_string(Helm::chart().join(name)).expect("the chart has it");
    let values: Value = serde_yaml::from_str(&read("values.yaml")).expect("the values are YAML");
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("the schema is JSON");
    same_names(&values, &schema, "");
    assert!(!read("values.schema.json").contains("\"$ref\": \"http"), "a schema needs no network");
}

fn same_names(values: &Value, schema: &Value, path: &str) {
    let Some(properties) = schema["properties"].as_object() else { return };
    assert_eq!(schema["additionalProperties"], false, "{path} takes names that mean nothing");
    let known: BTreeSet<&String> = properties.keys().filter(|name| *name != "global").collect();
    let given: BTreeSet<&String> = values.as_object().expect("an object").keys().collect();
    assert_eq!(known, given, "{path}");
    for (name, value) in values.as_object().expect("an object") {
        same_names(value, &properties[name], &format!("{path}.{name}"));
    }
}

fn rules(objects: &[Value], kind: &str) -> Vec<(Value, Value)> {
    let named = |object: &&Value| object["kind"] == kind;
    let rules = |object: &Value| object["rules"].as_array().cloned().expect("a role has rules");
    objects
        .iter()
        .filter(named)
        .flat_map(|object| rules(object).into_iter().map(|rule| (object["metadata"]["namespace"].clone(), rule)))
        .collect()
}

fn touches(rule: &Value, resource: &str) -> bool {
    rule["resources"].as_array().is_some_and(|resources| resources.iter().any(|one| one == resource))
}

fn writes(rule: &Value) -> bool {
    let harmless = ["get", "list", "watch"];
    rule["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|verb| !harmless.iter().any(|one| verb == one)))
}

fn operators_flags(objects: &[Value]) -> Vec<String> {
    let operator = objects.iter().find(|one| one["kind"] == "Deployment").expect("there is an operator");
    let arguments = &operator["spec"]["template"]["spec"]["containers"][0]["args"];
    let arguments = arguments.as_array().expect("it has arguments");
    arguments.iter().map(|one| one.as_str().expect("arguments are texts").to_owned()).collect()
}

pub fn policies_are_named_after_their_release_and_each_binding_has_its_policy() {
    let [helm, _] = Helm::both();
    let set = "image.repository=a,injection.mode=policy,policy.requireUse=true";
    let all = helm.objects(&["--set", set]);
    let names = |kind: &str| -> BTreeSet<String> {
        let found = all.iter().filter(|one| one["kind"] == kind);
        found.map(|one| one["metadata"]["name"].as_str().expect("objects have names").to_owned()).collect()
    };
    for (kind, count) in [("MutatingAdmissionPolicy", 1), ("ValidatingAdmissionPolicy", 2)] {
        let policies = names(kind);
        assert_eq!(policies.len(), count, "{kind}: {policies:?}");
        assert!(policies.iter().all(|name| name.ends_with(".etcd-proxy.etcd-proxy-system")), "{policies:?}");
        let bindings = all.iter().filter(|one| one["kind"] == format!("{kind}Binding"));
        let bound = bindings.map(|one| one["spec"]["policyName"].as_str().expect("it names one").to_owned());
        assert_eq!(bound.collect::<BTreeSet<_>>(), policies, "{kind}");
    }
    let off = helm.objects(&["--set", "image.repository=a,injection.mode=off"]);
    assert!(!off.iter().any(|one| one["kind"].as_str().is_some_and(|kind| kind.contains("Admission"))));
}

pub fn profiles_keep_secrets_and_workloads_where_they_belong() {
    let [helm, _] = Helm::both();
    let image = "image.repository=a";
    // The first is what the cluster's tests run the operator with, word by word.
    let committed =
        std::fs::read_to_string(programs::repository().join("deploy/rbac/cluster.yaml")).expect("it is there");
    let committed = committed.split("\n---\n").next().expect("a file has a first document");
    let committed: Value = serde_yaml::from_str(committed).expect("it is YAML");
    let all = helm.objects(&["--set", image]);
    let everywhere: Vec<Value> = all.iter().filter(|one| one["kind"] == "ClusterRole").cloned().collect();
    assert!(everywhere.iter().any(|role| role["rules"] == committed["rules"]), "the profile cluster is another");

    let flags = "rbac.profile=backends,rbac.backendNamespaces={etcd,more},rbac.tenantNamespaces={team-a}";
    let backends = helm.objects(&["--set", image, "--set", flags]);
    for (_, rule) in rules(&backends, "ClusterRole") {
        assert!(!touches(&rule, "secrets"), "Secrets of all namespaces: {rule}");
        for workload in ["deployments", "daemonsets", "serviceaccounts"] {
            assert!(!(touches(&rule, workload) && writes(&rule)), "workloads anywhere can mount any Secret: {rule}");
        }
    }
    let namespaces = |resource: &str| -> BTreeSet<String> {
        let roles = rules(&backends, "Role").into_iter().filter(|(_, rule)| touches(rule, resource));
        roles.map(|(namespace, _)| namespace.as_str().expect("a Role has a namespace").to_owned()).collect()
    };
    assert_eq!(namespaces("deployments"), ["etcd", "more"].map(str::to_owned).into());
    assert_eq!(namespaces("secrets"), ["etcd", "more", "team-a"].map(str::to_owned).into());
    let arguments = operators_flags(&backends);
    assert!(arguments.contains(&"--inline-upstream=false".to_owned()), "{arguments:?}");
    assert!(!arguments.iter().any(|flag| flag.starts_with("--backend-namespaces")), "tenants get Secrets");

    // Without tenants who get Secrets, the operator knows that it may write none.
    let flags = "rbac.profile=backends,rbac.backendNamespaces={etcd,more}";
    let without = helm.objects(&["--set", image, "--set", flags]);
    assert!(operators_flags(&without).contains(&"--backend-namespaces=etcd,more".to_owned()));
    for (_, rule) in rules(&without, "ClusterRole") {
        assert!(!touches(&rule, "secrets") && !touches(&rule, "deployments"), "not even to look at: {rule}");
    }

    let flags = "rbac.profile=namespaced,rbac.namespaces={team-a,team-b},crds.enabled=false";
    let namespaced = helm.objects(&["--set", image, "--set", flags]);
    assert!(operators_flags(&namespaced).contains(&"--watch-namespaces=team-a,team-b".to_owned()));
    for object in &namespaced {
        assert!(object["metadata"]["namespace"].is_string(), "nothing of the whole cluster: {object}");
    }
    for (_, rule) in rules(&namespaced, "Role") {
        assert!(!touches(&rule, "namespaces") && !touches(&rule, "etcdbackends"), "these have no namespace: {rule}");
    }
    let places: BTreeSet<String> = rules(&namespaced, "Role")
        .into_iter()
        .filter(|(_, rule)| touches(rule, "secrets"))
        .map(|(namespace, _)| namespace.as_str().expect("a Role has a namespace").to_owned())
        .collect();
    assert_eq!(places, ["team-a", "team-b"].map(str::to_owned).into());

    // An administrator's half and a team's make the whole, and the team's needs no rights in the cluster.
    let half = |scope: &str| helm.objects(&["--set", image, "--set", &format!("resourceScope={scope}")]);
    let (cluster, namespace) = (half("cluster"), half("namespace"));
    assert_eq!(cluster.len() + namespace.len(), all.len());
    for object in &namespace {
        assert!(object["metadata"]["namespace"].is_string(), "{object}");
    }
    // Releases in two namespaces must not fight over what has no namespace.
    let names = |objects: &[Value]| -> BTreeSet<String> {
        let ours = objects.iter().filter(|one| one["metadata"]["namespace"].is_null());
        let ours = ours.filter(|one| one["kind"] != "CustomResourceDefinition");
        ours.map(|one| format!("{} {}", one["kind"], one["metadata"]["name"])).collect()
    };
    let other = helm.objects(&["--set", image, "-n", "elsewhere"]);
    assert!(names(&all).is_disjoint(&names(&other)));
}

pub fn every_container_is_restricted_and_every_object_is_labelled() {
    let [helm, _] = Helm::both();
    let mut pods = 0;
    for file in values_files() {
        for object in helm.objects(&["-f", &file]) {
            if object["metadata"]["name"].as_str().is_some_and(|name| name.contains("extra") || name.contains("more")) {
                // Whoever adds objects labels them.
                continue;
            }
            let labels = &object["metadata"]["labels"];
            for label in ["name", "instance", "version", "managed-by", "part-of"] {
                assert!(labels[format!("app.kubernetes.io/{label}")].is_string(), "{label} of {object}");
            }
            let pod = match object["kind"].as_str() {
                Some("Deployment") => &object["spec"]["template"]["spec"],
                Some("Pod") => &object["spec"],
                _ => continue,
            };
            pods += 1;
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            for container in pod["containers"].as_array().expect("a pod has containers") {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false);
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
                assert_eq!(context["readOnlyRootFilesystem"], true);
            }
        }
    }
    assert!(pods >= values_files().len(), "{pods}");
}

pub fn what_is_rendered_satisfies_the_servers_own_schemas_and_the_server(cluster: &ControlPlane) {
    let schemas = Schemas::of(cluster);
    let [helm, _] = Helm::both();
    for namespace in ["etcd-proxy-system", "team-a", "team-b"] {
        // Of the release before, one may be there already.
        let _ = cluster.try_kubectl(&["create", "namespace", namespace]);
    }
    for file in values_files() {
        for version in VERSIONS {
            let text = helm.template(&["-f", &file, "--kube-version", version]).expect("it renders");
            if version == VERSIONS[0] || version == VERSIONS[4] {
                schemas.check(&text);
            }
        }
        // Stronger than schemas: defaults, CEL, admission. The kinds of others are not served here.
        let objects = helm.objects(&["-f", &file]);
        let ours = objects.into_iter().filter(|one| one["apiVersion"] != "monitoring.coreos.com/v1").collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": Value::Array(ours)});
        let path = cluster.write(&list.to_string());
        cluster.kubectl(&["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", &path]);
    }
    // The schemas are strict: else the above would say little.
    let text = helm.template(&["--set", "image.repository=a"]).expect("it renders");
    let wrong = text.replace("enableServiceLinks:", "enableServiceLink:");
    assert_ne!(wrong, text);
    let complaint = schemas.try_check(&wrong).expect_err("a field that does not exist is refused");
    assert!(complaint.contains("enableServiceLink"), "{complaint}");
}
