//! Reviews as the API server sends them, and what it makes of the answers.

use super::*;
use crate::inject::HASH;

fn sidecar() -> SidecarStatus {
    SidecarStatus {
        config_hash: "h1".to_owned(),
        position: "First".to_owned(),
        container: json!({"name": container::NAME, "image": "i"}),
        volumes: vec![json!({"name": "etcd-proxy-upstream", "secret": {"secretName": "s"}})],
        outdated_pods: None,
    }
}

fn question(pod: Value) -> Question {
    let review = json!({"kind": "AdmissionReview", "request": {"uid": "u-1", "namespace": "team", "object": pod}});
    Question::read(review.to_string().as_bytes()).expect("it is a review")
}

/// What the patch of an answer says, by path.
fn patched(answer: &Value) -> Vec<(String, Value)> {
    assert_eq!((&answer["response"]["uid"], &answer["response"]["allowed"]), (&json!("u-1"), &json!(true)));
    let patch: ByteString = serde_json::from_value(answer["response"]["patch"].clone()).expect("it has a patch");
    let operations: Vec<Value> = serde_json::from_slice(&patch.0).expect("the patch is JSON");
    let one =
        |operation: Value| (operation["path"].as_str().unwrap_or_default().to_owned(), operation["value"].clone());
    operations.into_iter().map(one).collect()
}

#[test]
fn a_pod_that_asks_gets_what_the_command_would_put_in() {
    let pod = json!({
        "metadata": {"generateName": "app-", "labels": {LABEL: "x"}, "annotations": {"a": "b"}},
        "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "setup"}], "volumes": [{"name": "data"}]},
    });
    let asked = question(pod.clone());
    assert_eq!((asked.wanted(), asked.namespace.as_str()), (Some("x"), "team"));
    let mut wanted = pod;
    put(&mut wanted, &sidecar());
    let patch = patched(&asked.patch(&sidecar()));
    assert_eq!(patch.len(), 3);
    for (path, value) in patch {
        assert_eq!(Some(&value), wanted.pointer(&path), "{path}");
    }
}

#[test]
fn what_a_pod_has_not_is_added() {
    let asked = question(json!({"metadata": {"labels": {LABEL: "x"}}, "spec": {"containers": []}}));
    let patch = patched(&asked.patch(&sidecar()));
    let annotations = patch.iter().find(|(path, _)| path == "/metadata/annotations").map(|(_, value)| value);
    assert_eq!(annotations, Some(&json!({HASH: "h1"})));
}

#[test]
fn a_pod_that_does_not_ask_or_has_it_already_is_let_through_as_it_is() {
    let plain = question(json!({"metadata": {}, "spec": {"containers": []}}));
    let done = question(json!({
        "metadata": {"labels": {LABEL: "x"}}, "spec": {"initContainers": [{"name": container::NAME}]},
    }));
    for asked in [plain, done] {
        assert_eq!(asked.wanted(), None);
        let answer = asked.allow();
        assert_eq!(answer["response"], json!({"uid": "u-1", "allowed": true}));
    }
}

#[test]
fn a_refusal_says_what_was_looked_for_and_where() {
    let asked = question(json!({"metadata": {"labels": {LABEL: "nope"}}, "spec": {}}));
    let refused = asked.refuse();
    assert_eq!(refused["response"]["allowed"], json!(false));
    let message = refused["response"]["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("asks for EtcdProxy nope, but namespace team has none of that name"), "{message}");
    assert_eq!(asked.fail("timed out")["response"]["allowed"], json!(false));
}

#[test]
fn a_pod_that_would_share_its_proxy_with_the_node_or_cannot_run_it_is_refused() {
    let pod = |spec: Value| question(json!({"metadata": {"labels": {LABEL: "x"}}, "spec": spec}));
    for (spec, words) in [
        (json!({"hostNetwork": true}), "would serve the whole node"),
        (json!({"os": {"name": "windows"}}), "runs on Linux only"),
        (json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), "runs on Linux only"),
    ] {
        let asked = pod(spec.clone());
        let refused = asked.cannot(asked.unsuitable().expect("it can have no sidecar"));
        assert_eq!(refused["response"]["allowed"], json!(false));
        let message = refused["response"]["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("asks for EtcdProxy x, but ") && message.contains(words), "{message}");
        assert_eq!(question(json!({"metadata": {}, "spec": spec})).unsuitable(), None, "it does not ask");
    }
    for spec in [
        json!({"hostNetwork": false, "os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "linux"}}),
        json!({"nodeSelector": "nonsense", "os": 3}),
        json!({}),
    ] {
        assert_eq!(pod(spec.clone()).unsuitable(), None, "{spec}");
    }
}

#[test]
fn what_is_no_review_is_an_error() {
    for text in ["", "[]", "{}", r#"{"request": 3}"#, r#"{"request": {"uid": "u"}}"#, r#"{"request": {"object": {}}}"#]
    {
        Question::read(text.as_bytes()).expect_err(text);
    }
    for pod in [json!(3), json!({"metadata": {}, "spec": []}), json!({"metadata": {"annotations": "a"}, "spec": {}})] {
        let review = json!({"request": {"uid": "u", "object": pod}}).to_string();
        Question::read(review.as_bytes()).expect_err(&review);
    }
}
