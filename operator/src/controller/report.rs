//! Tells in status, events and metrics what came of an object. Written only when it differs from what stands there.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};

use super::apply::Applied;
use super::conditions::{self, ACCEPTED, Counts, EXPIRING, PROGRAMMED, READY, RESOLVED, Said, Status, said};
use super::fetch::api_error;
use super::pods::{self, Trouble};
use super::{Context, Error};
use crate::api::{Binding, Certificates, EtcdProxy, EtcdProxyStatus, GROUP, Workload};
use crate::plan::{Expiring, Object, Plan, Refusal, Stage};
use crate::render::{self, MANAGER};

/// How long pods get to become ready before they are asked what keeps them; most need less.
pub const TROUBLE_AFTER: Duration = Duration::from_secs(10);

/// An object that cannot be deployed as it is. What is deployed of it stays, unless it was withdrawn.
pub async fn refused(proxy: &EtcdProxy, context: &Context, refusal: &Refusal, withdrawn: bool) -> Result<(), Error> {
    let failed = |kind| said(kind, Status::False, refusal.reason, &refusal.message);
    let stages = match refusal.stage {
        Stage::Accepted => vec![failed(ACCEPTED)],
        Stage::ResolvedRefs => vec![accepted(), failed(RESOLVED)],
    };
    let mut status = proxy.status.clone().unwrap_or_default();
    if withdrawn {
        let EtcdProxyStatus { certificates, conditions, .. } = status;
        status = EtcdProxyStatus { certificates, conditions, ..EtcdProxyStatus::default() };
    }
    status.observed_generation = proxy.metadata.generation;
    context.rollouts.ended(&Object::of(proxy));
    write(proxy, context, status, conditions::summarize(stages, None, true)).await
}

/// A plan that the cluster did not take. It is tried again, so the generation does not count as observed.
pub async fn failed(proxy: &EtcdProxy, context: &Context, plan: &Plan, error: &Error) -> Result<(), Error> {
    let reason = match error {
        Error::NameConflict { .. } => "NameConflict",
        Error::Going { .. } => "ApplyConflict",
        Error::Api { source: kube::Error::Api(status), .. } => match status.code {
            409 => "ApplyConflict",
            403 if status.message.contains("exceeded quota") => "QuotaExceeded",
            403 => "Forbidden",
            _ => "ApplyFailed",
        },
        _ => "ApplyFailed",
    };
    let message = match error {
        Error::NameConflict { what } => {
            format!("{what} exists and is not this EtcdProxy's; delete it, or give the EtcdProxy another name")
        }
        other => other.to_string(),
    };
    let mut status = proxy.status.clone().unwrap_or_default();
    status.key_prefix = Some(plan.prefix.clone());
    let stages = vec![accepted(), resolved(), said(PROGRAMMED, Status::False, reason, message)];
    write(proxy, context, status, conditions::summarize(stages, None, reason == "NameConflict")).await
}

/// A plan that stands in the cluster; whether everything is ready.
pub async fn applied(proxy: &EtcdProxy, context: &Context, plan: &Plan, applied: Applied) -> Result<bool, Error> {
    let Applied { workload, issued, pruned, queued } = applied;
    let programmed = if plan.paused {
        said(PROGRAMMED, Status::Unknown, "Paused", "spec.paused is true: what runs is left as it is")
    } else if queued {
        let message = "newer pods wait until those of other EtcdProxies are ready; the present ones serve";
        said(PROGRAMMED, Status::Unknown, "RolloutQueued", message)
    } else {
        said(PROGRAMMED, Status::True, "Programmed", "everything that this generation needs was applied")
    };
    let mut ready = match (&plan.workload, &plan.sidecar) {
        (Some(_), _) => conditions::workload(workload.as_ref()),
        (None, _) => said(
            READY,
            Status::True,
            "InjectionReady",
            format!("pods with the label {GROUP}/inject: {} get the proxy", plan.object.name),
        ),
    };
    let before = proxy.status.clone().unwrap_or_default();
    if ready.status == Status::False
        && conditions::false_for(&before.conditions, READY, Timestamp::now()).is_some_and(|long| long >= TROUBLE_AFTER)
        && let Some(Trouble { reason, message }) = pods::trouble(plan, context).await
    {
        ready = Said { reason, message: format!("{}; {message}", ready.message), ..ready };
    }
    let is_ready = ready.status == Status::True;
    if plan.paused || (is_ready && !queued) {
        context.rollouts.ended(&plan.object);
    }
    let certificates = issued.as_ref().map(|issued| Certificates {
        serving_not_after: time(issued.serving_not_after),
        client_not_after: time(issued.client_not_after),
    });
    if let Some(issued) = &issued {
        context.metrics.certificates(&plan.object, issued.serving_not_after, issued.client_not_after);
    }
    // One event for all: of several with one reason Kubernetes shows the first.
    if let Some(renewed) = issued.as_ref().map(|issued| &issued.renewed).filter(|renewed| !renewed.is_empty()) {
        event(proxy, context, EventType::Normal, "CertificateIssued", format!("issued {}", renewed.join(", "))).await;
    }
    for child in &pruned {
        event(
            proxy,
            context,
            EventType::Normal,
            "ResourcePruned",
            format!("deleted {} {}/{}", child.kind, child.namespace, child.name),
        )
        .await;
    }
    let mut sidecar = render::sidecar(plan);
    if let Some(sidecar) = &mut sidecar {
        sidecar.outdated_pods = pods::outdated(plan, &sidecar.config_hash, context).await;
    }
    let counts = workload.as_ref().map(Counts::of);
    let count = |of: fn(Counts) -> i64| counts.map(|counts| i32::try_from(of(counts)).unwrap_or(i32::MAX));
    let status = EtcdProxyStatus {
        observed_generation: proxy.metadata.generation,
        key_prefix: Some(plan.prefix.clone()),
        endpoints: Some(plan.endpoints.clone()),
        binding: plan.client_certificate.then(|| Binding { name: plan.object.binding() }),
        workload: plan.workload.as_ref().map(|wanted| Workload {
            kind: if wanted.replicas.is_some() { "Deployment" } else { "DaemonSet" }.to_owned(),
            namespace: plan.home.namespace.clone(),
            name: plan.home.base.clone(),
        }),
        selector: plan.workload.as_ref().map(|_| render::selector_text(&plan.object)),
        replicas: count(|counts| counts.desired),
        ready_replicas: count(|counts| counts.ready),
        available_replicas: count(|counts| counts.available),
        updated_replicas: count(|counts| counts.updated),
        image: plan
            .workload
            .as_ref()
            .map(|workload| &workload.proxy)
            .or(plan.sidecar.as_ref().map(|sidecar| &sidecar.proxy))
            .map(|proxy| proxy.image.clone()),
        certificates: certificates.or(before.certificates.filter(|_| plan.managed.is_some())),
        sidecar,
        conditions: before.conditions,
    };
    let mut all = conditions::summarize(vec![accepted(), resolved(), programmed], Some(ready), false);
    if let Some(Expiring { reason, message }) = &plan.expiring {
        all.push(said(EXPIRING, Status::True, reason, message));
    }
    write(proxy, context, status, all).await?;
    Ok(is_ready)
}

fn accepted() -> Said {
    said(ACCEPTED, Status::True, "Accepted", "the spec is permitted")
}

fn resolved() -> Said {
    said(RESOLVED, Status::True, "ResolvedRefs", "everything that the spec names exists and can serve")
}

fn time(seconds: i64) -> Option<Time> {
    Timestamp::from_second(seconds).ok().map(Time)
}

async fn write(
    proxy: &EtcdProxy,
    context: &Context,
    mut status: EtcdProxyStatus,
    said: Vec<Said>,
) -> Result<(), Error> {
    let before = proxy.status.clone().unwrap_or_default();
    status.conditions = conditions::stamp(said, &before.conditions, proxy.metadata.generation, &Time(Timestamp::now()));
    for condition in conditions::turned(&before.conditions, &status.conditions) {
        let good = condition.kind == READY && condition.status == "True";
        let kind = if good { EventType::Normal } else { EventType::Warning };
        event(proxy, context, kind, &condition.reason, condition.message.clone()).await;
    }
    let ready = status.conditions.iter().any(|condition| condition.kind == READY && condition.status == "True");
    context.metrics.ready(&Object::of(proxy), ready);
    if status == before {
        return Ok(());
    }
    let (namespace, name) = (proxy.namespace().unwrap_or_default(), proxy.name_any());
    let patch: Value = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "EtcdProxy",
        "metadata": {"name": name, "namespace": namespace, "uid": proxy.uid()},
        "status": status,
    });
    let api = Api::<EtcdProxy>::namespaced(context.client.clone(), &namespace);
    match api.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        // It went while we worked; there is nothing to tell any more.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(api_error("write the status of", &format!("EtcdProxy {namespace}/{name}"), source)),
    }
}

/// An event that cannot be written is no reason to stop.
pub async fn event(proxy: &EtcdProxy, context: &Context, kind: EventType, reason: &str, note: String) {
    /// What the API server takes as a note.
    const MAX_NOTE: usize = 1000;
    let note = note.chars().take(MAX_NOTE).collect();
    let event = Event {
        type_: kind,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &proxy.object_ref(&())).await {
        tracing::warn!(%error, reason, "an event could not be written");
    }
}
