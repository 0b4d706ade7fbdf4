//! One EtcdProxy as a person wants to see it. Pure.

use std::fmt::Write;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::api::{Condition, EtcdProxy, Mode};
use crate::controller::pods;
use crate::inject;

fn condition<'a>(proxy: &'a EtcdProxy, kind: &str) -> Option<&'a Condition> {
    proxy.status.as_ref()?.conditions.iter().find(|one| one.kind == kind)
}

pub fn is_ready(proxy: &EtcdProxy) -> bool {
    condition(proxy, "Ready").is_some_and(|ready| ready.status == "True")
}

/// What keeps a pod from being ready.
pub fn trouble(pod: &Pod) -> Option<String> {
    pods::of_pod(pod).map(|trouble| trouble.message)
}

/// The whole picture; what is wrong stands last, where the eye ends.
pub fn draw(proxy: &EtcdProxy, pods: &Result<Vec<Pod>, String>) -> String {
    let status = proxy.status.clone().unwrap_or_default();
    let mut text = String::new();
    let etcd = match (&proxy.spec.backend_ref, &proxy.spec.upstream) {
        (Some(backend), _) => format!("EtcdBackend {}", backend.name),
        (None, Some(upstream)) => upstream.endpoints.join(", "),
        (None, None) => "no etcd".to_owned(),
    };
    let mark = if is_ready(proxy) { "✓" } else { "✗" };
    let place = proxy.namespace().unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{mark} {place}/{}  {:?} before {etcd}", proxy.name_any(), proxy.spec.mode);
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "    {name:<12} {value}");
        }
    };
    line("prefix", status.key_prefix.as_deref().unwrap_or_default());
    line("endpoint", &status.endpoints.clone().unwrap_or_default().join(", "));
    line("binding", &status.binding.as_ref().map(|one| format!("Secret {}", one.name)).unwrap_or_default());
    line("image", status.image.as_deref().unwrap_or_default());
    if let Some(workload) = &status.workload {
        let number = |count: Option<i32>| count.unwrap_or_default();
        let counts = format!(
            "{} {}/{}: {} wanted, {} updated, {} available",
            workload.kind,
            workload.namespace,
            workload.name,
            number(status.replicas),
            number(status.updated_replicas),
            number(status.available_replicas)
        );
        line("workload", &counts);
    }
    if let Some(certificates) = &status.certificates {
        let until = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.as_ref().map_or_else(|| "never".to_owned(), |time| time.0.to_string())
        };
        let ends = format!(
            "serving until {}, client until {}",
            until(&certificates.serving_not_after),
            until(&certificates.client_not_after)
        );
        line("certificates", &ends);
    }
    match pods {
        Err(why) => line("pods", why),
        Ok(pods) if pods.is_empty() && proxy.spec.mode == Mode::Sidecar => {
            line("pods", &format!("none asks yet; the label is {}: {}", inject::LABEL, proxy.name_any()));
        }
        Ok(pods) => {
            for (index, pod) in pods.iter().enumerate() {
                line(if index == 0 { "pods" } else { "" }, &of_pod(pod, proxy));
            }
        }
    }
    let all = status.conditions.iter();
    let told = all.filter(|one| match one.kind.as_str() {
        "Ready" => one.status != "True",
        "CertificateExpiring" => one.status == "True",
        "Programmed" => matches!(one.reason.as_str(), "Paused" | "RolloutQueued"),
        _ => false,
    });
    for one in told {
        let _ = writeln!(text, "    {} is {}: {}: {}", one.kind, one.status, one.reason, one.message);
    }
    if status.conditions.is_empty() {
        text += "    no operator has looked at it yet; `kubectl etcdproxy check` says whether one runs\n";
    }
    text
}

fn of_pod(pod: &Pod, proxy: &EtcdProxy) -> String {
    let status = pod.status.as_ref();
    let ready = status.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let mut text = format!("{}  {node}  {phase}{}", pod.name_any(), if ready { ", ready" } else { "" });
    let current = proxy.status.as_ref().and_then(|status| status.sidecar.as_ref()).map(|sidecar| &sidecar.config_hash);
    if let (Some(current), Some(has)) = (current, pod.annotations().get(inject::HASH))
        && current != has
    {
        text += "; its sidecar is outdated, restart it when it suits";
    }
    if !ready && let Some(why) = trouble(pod) {
        text += &format!("\n                 {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn proxy(status: serde_json::Value) -> EtcdProxy {
        let object = json!({
            "apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdProxy", "metadata": {"name": "x", "namespace": "team"},
            "spec": {"mode": "Deployment", "backendRef": {"name": "shared"}}, "status": status,
        });
        serde_json::from_value(object).expect("it is an EtcdProxy")
    }

    fn ready(status: &str, reason: &str, message: &str) -> serde_json::Value {
        json!({"type": "Ready", "status": status, "reason": reason, "message": message,
               "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn what_serves_is_drawn_with_its_place() {
        let proxy = proxy(json!({
            "keyPrefix": "/t/team/x/", "endpoints": ["https://x.team.svc:2379"], "replicas": 2, "updatedReplicas": 2,
            "availableReplicas": 2, "workload": {"kind": "Deployment", "namespace": "backend", "name": "p-1"},
            "conditions": [ready("True", "Ready", "")],
        }));
        let pod = json!({
            "metadata": {"name": "p-1-a"}, "spec": {"nodeName": "node-7", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let text = draw(&proxy, &Ok(vec![serde_json::from_value(pod).expect("it is a pod")]));
        for wanted in [
            "✓ team/x  Deployment before EtcdBackend shared",
            "/t/team/x/",
            "Deployment backend/p-1: 2 wanted, 2 updated, 2 available",
            "p-1-a  node-7  Running, ready",
        ] {
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_stands_in_the_picture() {
        let refused = proxy(json!({"conditions": [ready("False", "NamespaceNotAllowed", "ask the administrator")]}));
        let text = draw(&refused, &Err("you may not list pods".to_owned()));
        assert!(text.starts_with('✗') && text.contains("you may not list pods"), "{text}");
        assert!(text.contains("Ready is False: NamespaceNotAllowed: ask the administrator"), "{text}");
        let unseen = draw(&proxy(json!({})), &Ok(vec![]));
        assert!(unseen.contains("no operator has looked at it yet"), "{unseen}");
    }
}
