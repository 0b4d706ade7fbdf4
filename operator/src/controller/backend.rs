//! `EtcdBackend`: its Secrets are checked, its users counted, and it stays as long as it is used.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::Store;
use kube::{Api, ResourceExt};
use serde_json::json;
use time::OffsetDateTime;

use super::conditions::{self, ACCEPTED, PROGRAMMED, READY, RESOLVED, Status, said};
use super::fetch::{self, api_error};
use super::{Context, Error, RESYNC, RESYNC_REFUSED};
use crate::api::{EtcdBackend, EtcdBackendSpec, EtcdBackendStatus, EtcdProxy, GROUP};
use crate::plan::{Fetched, check_client, check_user, upstream_references};
use crate::render::MANAGER;

/// Keeps a backend while objects use it, so that their children can still be found and deleted.
const IN_USE: &str = "etcdproxy.dev/in-use";
const HOLDER: &str = "etcd-proxy-operator-finalizer";

pub async fn reconcile(
    backend: Arc<EtcdBackend>,
    context: Arc<Context>,
    proxies: Store<EtcdProxy>,
) -> Result<Action, Error> {
    let name = backend.name_any();
    let uses = |proxy: &EtcdProxy| proxy.spec.backend_ref.as_ref().is_some_and(|reference| reference.name == name);
    let users = proxies.state().iter().filter(|proxy| uses(proxy)).count();
    let held = backend.finalizers().iter().any(|one| one == IN_USE);
    let going = backend.metadata.deletion_timestamp.is_some();
    if held != (users > 0) && (held || !going) {
        hold(&backend, &context, users > 0).await?;
    }
    if going && users == 0 {
        return Ok(Action::await_change());
    }
    let EtcdBackendSpec { namespace, tls, auth, .. } = &backend.spec;
    let objects = fetch::all(upstream_references(tls.as_ref(), auth.as_ref(), namespace), &context).await?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let fetched = Fetched { objects, now, ..Fetched::default() };
    let tls = tls.as_ref().and_then(|tls| check_client(&fetched, "spec.tls", tls, namespace).err());
    let refusal =
        tls.or_else(|| auth.as_ref().and_then(|user| check_user(&fetched, "spec.auth", user, namespace).err()));
    let resolved = match &refusal {
        None => said(RESOLVED, Status::True, "ResolvedRefs", "everything that the spec names exists and can serve"),
        Some(refusal) => said(RESOLVED, Status::False, refusal.reason, &refusal.message),
    };
    let ready = said(READY, Status::True, "Ready", "EtcdProxies can use it");
    let stages = vec![said(ACCEPTED, Status::True, "Accepted", "the spec is permitted"), resolved];
    let mut said = conditions::summarize(stages, Some(ready), refusal.is_some());
    said.retain(|one| one.kind != PROGRAMMED);
    let before = backend.status.clone().unwrap_or_default();
    let generation = backend.metadata.generation;
    let status = EtcdBackendStatus {
        observed_generation: generation,
        proxies: Some(i32::try_from(users).unwrap_or(i32::MAX)),
        conditions: conditions::stamp(said, &before.conditions, generation, &Time(Timestamp::now())),
    };
    if status != before {
        let patch = json!({
            "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "EtcdBackend",
            "metadata": {"name": name, "uid": backend.uid()}, "status": status,
        });
        let api = Api::<EtcdBackend>::all(context.client.clone());
        let written = api.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await;
        written.map_err(|source| api_error("write the status of EtcdBackend", &name, source))?;
    }
    context.succeeded(&name);
    Ok(Action::requeue(if refusal.is_some() { RESYNC_REFUSED } else { RESYNC }))
}

async fn hold(backend: &EtcdBackend, context: &Context, held: bool) -> Result<(), Error> {
    let name = backend.name_any();
    let finalizers: &[&str] = if held { &[IN_USE] } else { &[] };
    let patch = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "EtcdBackend",
        "metadata": {"name": name, "uid": backend.uid(), "finalizers": finalizers},
    });
    let api = Api::<EtcdBackend>::all(context.client.clone());
    match api.patch_metadata(&name, &PatchParams::apply(HOLDER).force(), &Patch::Apply(&patch)).await {
        Err(kube::Error::Api(status)) if !held && matches!(status.code, 404 | 409 | 422) => Ok(()),
        other => other.map(|_| ()).map_err(|source| api_error("set the finalizer of EtcdBackend", &name, source)),
    }
}
