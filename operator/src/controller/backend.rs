//! `EtcdBackend`: its Secrets are checked, its users counted, and it stays as long as it is used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
use super::sweep::{self, Users};
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
    known: Arc<Users>,
) -> Result<Action, Error> {
    // Before everything was listed once nobody would seem to use it.
    proxies.wait_until_ready().await.map_err(|_| Error::Stopping)?;
    let name = backend.name_any();
    let mut naming = proxies.state();
    naming.retain(|proxy| proxy.spec.backend_ref.as_ref().is_some_and(|reference| reference.name == name));
    // Those that are deployed. Whoever is refused could else keep a backend from being deleted.
    let uses = |proxy: &EtcdProxy| proxy.status.as_ref().is_some_and(|status| status.workload.is_some());
    let users = naming.iter().filter(|proxy| uses(proxy)).count();
    let held = backend.finalizers().iter().any(|one| one == IN_USE);
    let going = backend.metadata.deletion_timestamp.is_some();
    if held != (users > 0) && (held || !going) {
        hold(&backend, &context, users > 0).await?;
    }
    if going && users == 0 {
        context.has_gone(&backend.uid().unwrap_or_default());
        known.forget(&name);
        return Ok(Action::await_change());
    }
    let users = i32::try_from(users).unwrap_or(i32::MAX);
    let before = backend.status.clone().unwrap_or_default();
    // Somebody left, or may have while no operator worked.
    let gone = known.gone(&name, &naming.iter().filter_map(|proxy| proxy.uid()).collect());
    let uid = backend.uid().unwrap_or_default();
    if context.is_first_look(&uid) || !gone.is_empty() {
        if let Err(error) = sweep::sweep(&backend, &context, &proxies).await {
            // So that the next look is the first again.
            context.has_gone(&uid);
            return Err(error);
        }
        known.swept(&name, &gone);
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
    let generation = backend.metadata.generation;
    let status = EtcdBackendStatus {
        observed_generation: generation,
        proxies: Some(users),
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

/// Tells changes of a backend that matter to its users from those of its status: the count of users changes with each of
/// them, and looking at all of them each time would be a square of their number.
#[derive(Default)]
pub struct News(Mutex<HashMap<String, Known>>);

/// Uid, generation, whether it is being deleted, and the number of its finalizers.
type Known = (Option<String>, Option<i64>, bool, usize);

impl News {
    pub fn is_news(&self, backend: &EtcdBackend) -> bool {
        let going = backend.metadata.deletion_timestamp.is_some();
        let now = (backend.uid(), backend.metadata.generation, going, backend.finalizers().len());
        // By name, so that as many stay as there ever were names.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(backend.name_any(), now.clone()) != Some(now)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_status_is_no_news_to_users() {
        let backend = |generation: i64, users: i32, more: &str| -> EtcdBackend {
            serde_yaml::from_str(&format!(
                "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {{name: b, uid: u, \
                 generation: {generation}{more}}}, spec: {{endpoints: ['http://a:1'], namespace: n, \
                 keyspace: {{root: /t/}}}}, status: {{proxies: {users}}}}}"
            ))
            .expect("it is written right")
        };
        let news = News::default();
        assert!(news.is_news(&backend(1, 0, "")), "what was never seen is news");
        assert!(!news.is_news(&backend(1, 1, "")) && !news.is_news(&backend(1, 2, "")));
        assert!(news.is_news(&backend(2, 2, "")), "another spec is");
        let going = ", deletionTimestamp: 2026-01-01T00:00:00Z";
        assert!(news.is_news(&backend(2, 2, going)) && !news.is_news(&backend(2, 1, going)));
    }
}
