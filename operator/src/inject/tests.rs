//! YAML in, YAML out.

use super::*;

const PROXY: &str = "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {name: local}, spec: {mode: Sidecar, \
                     upstream: {endpoints: ['https://a:1'], tls: {secretRef: {name: c}}}, tls: {source: Disabled}}}";

fn settings() -> Settings {
    Settings::with_image("i:1")
}

fn injected(text: &str) -> Result<Vec<Value>, String> {
    let mut documents = read(&format!("---\n{PROXY}\n---\n{text}\n"))?;
    inject(&mut documents, &settings())?;
    Ok(documents)
}

fn template_of(pod: &str) -> String {
    format!("{{metadata: {{labels: {{etcdproxy.dev/inject: local}}}}, spec: {pod}}}")
}

#[test]
fn every_kind_that_makes_pods_is_injected() {
    let template = template_of("{containers: [{name: app}]}");
    for (document, path) in [
        (format!("{{kind: Deployment, spec: {{template: {template}}}}}"), "/spec/template/spec"),
        (
            format!("{{kind: CronJob, spec: {{jobTemplate: {{spec: {{template: {template}}}}}}}}}"),
            "/spec/jobTemplate/spec/template/spec",
        ),
        (format!("{{kind: Pod, {}", &template[1..]), "/spec"),
    ] {
        let documents = injected(&document).expect("it can be injected");
        let pod = documents[1].pointer(path).expect("the pod is there");
        assert_eq!(pod["initContainers"][0]["name"], container::NAME, "{document}");
        assert_eq!(pod["initContainers"][0]["restartPolicy"], "Always");
        assert_eq!(pod["volumes"][0]["secret"]["secretName"], "c");
    }
}

#[test]
fn a_pod_that_can_have_no_sidecar_is_told_so() {
    let pod = template_of("{hostNetwork: true, containers: [{name: app}]}");
    let refused = injected(&format!("{{kind: Deployment, metadata: {{name: web}}, spec: {{template: {pod}}}}}"));
    let words = "Deployment web asks for EtcdProxy local by the label etcdproxy.dev/inject, but a proxy beside a pod with \
                 hostNetwork would serve the whole node";
    assert!(refused.as_ref().is_err_and(|error| error.contains(words)), "{refused:?}");
}

#[test]
fn what_does_not_ask_is_left_as_it_is() {
    let text = "{kind: Deployment, spec: {template: {metadata: {labels: {a: b}}, spec: {containers: []}}}}";
    assert_eq!(injected(text).expect("it is read")[1..], read(text).expect("it is read"));
}

#[test]
fn other_init_containers_and_volumes_stay_and_twice_is_as_once() {
    let pod = template_of("{initContainers: [{name: first}], volumes: [{name: data}], containers: [{name: app}]}");
    let once = injected(&format!("{{kind: Pod, {}", &pod[1..])).expect("it can be injected");
    let names: Vec<&str> =
        once[1]["spec"]["initContainers"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, [container::NAME, "first"]);
    assert_eq!(once[1]["spec"]["volumes"].as_array().unwrap().len(), 2);
    let mut twice = once.clone();
    assert_eq!(inject(&mut twice, &settings()), Ok(1));
    assert_eq!(twice, once);
}

#[test]
fn what_must_be_looked_for_in_the_cluster_is_known() {
    let asks =
        |name: &str| format!("{{kind: Pod, metadata: {{namespace: n, labels: {{{LABEL}: {name}}}}}, spec: {{}}}}");
    let documents = read(&format!("---\n{PROXY}\n---\n{}\n---\n{}\n", asks("local"), asks("other"))).unwrap();
    let missing: Vec<_> = missing(&documents).into_iter().collect();
    assert_eq!(missing, [(Some("n".to_owned()), "other".to_owned())]);
}

#[test]
fn a_proxy_that_is_missing_or_no_sidecar_is_an_error_that_says_so() {
    let pod = "{kind: Pod, metadata: {name: p, labels: {etcdproxy.dev/inject: other}}, spec: {}}";
    let error = injected(pod).expect_err("there is no such proxy");
    assert!(error.contains("Pod p asks for EtcdProxy other"), "{error}");
    let mut documents = read("{kind: EtcdProxy, apiVersion: etcdproxy.dev/v1alpha1, metadata: {name: x}, spec: {upstream: {endpoints: ['http://a:1']}}}").unwrap();
    let error = inject(&mut documents, &settings()).expect_err("it is no sidecar");
    assert!(error.contains("want Sidecar"), "{error}");
}
