//! Why pods are not ready, in a sentence: what a person would look for with `kubectl describe pod`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::Context;
use crate::inject;
use crate::plan::Plan;
use crate::render::{self, container};

/// Pods that are looked at; those of one workload fail alike.
const LOOKED_AT: u32 = 20;

/// What is wrong with pods that do not become ready.
#[derive(Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: &'static str,
    pub message: String,
}

/// Looks for the first pod that tells why. Without the right to list pods there is nothing to tell.
pub async fn trouble(plan: &Plan, context: &Context) -> Option<Trouble> {
    let api = Api::<Pod>::namespaced(context.client.clone(), &plan.home.namespace);
    let parameters = ListParams::default().labels(&render::selector_text(&plan.object)).limit(LOOKED_AT);
    let pods = api.list(&parameters).await.ok()?;
    let living = pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    // One that says that the keys are another's says more than one that is not there yet.
    living.filter_map(of_pod).max_by_key(|trouble| trouble.reason == FOREIGN_CLAIM)
}

const FOREIGN_CLAIM: &str = "ForeignClaim";

/// Pods of applications that are counted at a time, and pages of them that are looked at; a status says what is worth
/// restarting, and more than that nobody restarts by hand.
const PAGE: u32 = 500;
const PAGES: usize = 20;

/// How many pods run with another sidecar than this. Without the right to list pods nobody knows.
pub async fn outdated(plan: &Plan, config_hash: &str, context: &Context) -> Option<i32> {
    let api = Api::<Pod>::namespaced(context.client.clone(), &plan.object.namespace);
    let asking = format!("{}={}", inject::LABEL, plan.object.name);
    let mut parameters = ListParams::default().labels(&asking).limit(PAGE);
    let mut outdated = 0;
    for _ in 0..PAGES {
        let pods = api.list_metadata(&parameters).await.ok()?;
        outdated += pods.items.iter().filter(|pod| is_outdated(pod.annotations(), config_hash)).count();
        match pods.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => break,
        }
    }
    Some(i32::try_from(outdated).unwrap_or(i32::MAX))
}

/// A pod without a sidecar was never given one, or was given it by hand, and is not counted.
fn is_outdated(annotations: &BTreeMap<String, String>, config_hash: &str) -> bool {
    annotations.get(inject::HASH).is_some_and(|has| has != config_hash)
}

/// What one pod says of itself.
pub fn of_pod(pod: &Pod) -> Option<Trouble> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    if let Some(trouble) = containers.clone().find_map(|one| of_container(&name, one)) {
        return Some(trouble);
    }
    let unscheduled =
        status.conditions.iter().flatten().find(|one| one.type_ == "PodScheduled" && one.status == "False");
    if let Some(condition) = unscheduled {
        let why = condition.message.as_deref().unwrap_or("no node was found");
        let message = format!("pod {name} has no node: {why}");
        return Some(Trouble { reason: "MinimumReplicasUnavailable", message });
    }
    let runs = |one: &ContainerStatus| one.state.as_ref().is_some_and(|state| state.running.is_some()) && !one.ready;
    status.container_statuses.iter().flatten().any(runs).then(|| Trouble {
        reason: "UpstreamUnavailable",
        message: format!(
            "pod {name} runs and is not ready: its proxy reaches no etcd member that answers, or its certificates cannot \
             serve; `kubectl logs -n {} {name}` says which",
            pod.namespace().unwrap_or_default()
        ),
    })
}

fn of_container(pod: &str, status: &ContainerStatus) -> Option<Trouble> {
    let ended = |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    let failed = ended(&status.state).or_else(|| ended(&status.last_state)).filter(|end| end.exit_code != 0);
    let said = failed.as_ref().and_then(|end| end.message.as_deref()).and_then(|text| text.trim().lines().last());
    if status.name == container::CLAIM && failed.as_ref().is_some_and(|end| end.exit_code == container::FOREIGN) {
        let message = said.unwrap_or("the keys belong to another cluster or namespace").to_owned();
        return Some(Trouble { reason: FOREIGN_CLAIM, message });
    }
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let why = waiting.and_then(|waiting| waiting.reason.as_deref())?;
    // These two are the usual beginning of a pod.
    if matches!(why, "PodInitializing" | "ContainerCreating") && failed.is_none() {
        return None;
    }
    let detail =
        waiting.and_then(|waiting| waiting.message.as_deref()).map(|text| format!(" ({text})")).unwrap_or_default();
    let last = said.map(|said| format!("; it ended with: {said}")).unwrap_or_default();
    let message = format!("pod {pod}: container {} waits: {why}{detail}{last}", status.name);
    Some(Trouble { reason: "MinimumReplicasUnavailable", message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(status: Value) -> Option<(String, String)> {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "status": status});
        let pod: Pod = serde_json::from_value(pod).expect("it is a pod");
        of_pod(&pod).map(|trouble| (trouble.reason.to_owned(), trouble.message))
    }

    fn container(name: &str, state: Value, last: Value) -> Value {
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last})
    }

    #[test]
    fn a_sidecar_of_another_version_is_outdated() {
        let with = |hash: &str| BTreeMap::from([(inject::HASH.to_owned(), hash.to_owned())]);
        assert!(is_outdated(&with("old"), "new"));
        assert!(!is_outdated(&with("new"), "new") && !is_outdated(&BTreeMap::new(), "new"));
    }

    #[test]
    fn what_keeps_a_pod_from_being_ready_is_told() {
        let image = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
        let ended = json!({"terminated": {"exitCode": 3, "message": "belongs to another\n"}});
        let crash = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let wrong = json!({"terminated": {"exitCode": 1, "message": "first\nbad flag\n"}});
        let none = json!({});
        for (status, reason, words) in [
            (
                json!({"containerStatuses": [container("etcd-proxy", image, none.clone())]}),
                "MinimumReplicasUnavailable",
                "ImagePullBackOff (no such image)",
            ),
            (
                json!({"initContainerStatuses": [container("claim", ended, none.clone())]}),
                "ForeignClaim",
                "belongs to another",
            ),
            (
                json!({"containerStatuses": [container("etcd-proxy", crash, wrong)]}),
                "MinimumReplicasUnavailable",
                "it ended with: bad flag",
            ),
            (
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}),
                "MinimumReplicasUnavailable",
                "0/2 nodes",
            ),
            (
                json!({"containerStatuses": [container("etcd-proxy", json!({"running": {}}), none)]}),
                "UpstreamUnavailable",
                "reaches no etcd",
            ),
        ] {
            let (found, message) = told(status.clone()).unwrap_or_else(|| panic!("{status}: something is wrong"));
            assert_eq!(found, reason, "{status}");
            assert!(message.contains(words), "{message}");
        }
        let starting = json!({"waiting": {"reason": "ContainerCreating"}});
        assert_eq!(told(json!({"containerStatuses": [container("etcd-proxy", starting, json!({}))]})), None);
    }
}
