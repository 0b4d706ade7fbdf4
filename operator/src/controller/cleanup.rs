//! What an object leaves behind when it goes: children in another namespace, which no garbage collector finds, and keys
//! that its backend's administrator wants deleted. Nothing here can keep a namespace from going for long.

use std::time::Duration;

use kube::api::ListParams;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt};
use serde_json::Value;

use super::children::Whose;
use super::{Context, Error, apply, children, fetch, report};
use crate::api::{EtcdBackend, EtcdProxy, ReclaimPolicy};
use crate::plan::{self, Home, Object, Plan, own_part};
use crate::render::{self, Identity};

/// How soon pods that end and the purge are looked at again.
const AGAIN: Duration = Duration::from_secs(2);

/// Answers with the wait before it must be called again, or with nothing when all is done.
pub async fn clean_up(proxy: &EtcdProxy, context: &Context) -> Result<Option<Duration>, Error> {
    let object = Object::of(proxy);
    let backend = fetch::backend(proxy, context).await?;
    if !proxy.finalizers().contains(&plan::finalizer()) {
        // Somebody took it off, and may keep the object by a finalizer of another's.
        if let Some(backend) = backend.filter(|backend| context.settings.serves(&backend.spec.namespace)) {
            apply::prune_own(render::possible(&object, &Home::of(&object, Some(&backend))), &object, context).await?;
        }
        return Ok(None);
    }
    let remembered =
        proxy.status.as_ref().and_then(|status| status.workload.as_ref()).map(|workload| &workload.namespace);
    let home = match (&backend, remembered) {
        (Some(backend), _) => Home::of(&object, Some(backend)),
        (None, Some(namespace)) => Home::remembered(&object, namespace.clone()),
        // Nothing was ever deployed, or the backend took its children with it.
        (None, None) => return apply::release(proxy, context).await.map(|()| None),
    };
    if let Some(backend) = &backend
        && let Some(wait) = purge(proxy, &object, &home, backend, context).await?
    {
        return Ok(Some(wait));
    }
    apply::prune(render::possible(&object, &home), &object, context).await?;
    apply::release(proxy, context).await?;
    Ok(None)
}

/// Deletes the keys, if they shall not stay. The proxies go first, since a client that writes on would leave keys behind.
async fn purge(
    proxy: &EtcdProxy,
    object: &Object,
    home: &Home,
    backend: &EtcdBackend,
    context: &Context,
) -> Result<Option<Duration>, Error> {
    let wanted = backend.spec.keyspace.reclaim_policy == Some(ReclaimPolicy::Delete);
    let granted = proxy.spec.backend_ref.as_ref().is_some_and(|reference| reference.grant.is_some());
    if !wanted || granted {
        return Ok(None);
    }
    let keep = |why: String| async move {
        report::event(proxy, context, EventType::Warning, "CleanupBlocked", format!("the keys stay in etcd: {why}"))
            .await;
        Ok(None)
    };
    let fetched = fetch::fetch(proxy, context).await?;
    let plan: Plan = match plan::check(proxy, &fetched, &context.settings) {
        Ok(plan) => plan,
        Err(refusal) => return keep(refusal.message).await,
    };
    if let Some(other) = sharer(proxy, context).await? {
        return keep(format!("EtcdProxy {other} of this namespace uses a part of them or all of them")).await;
    }
    let Some(job) = render::purge(&plan) else {
        return keep("nothing tells whose they are".to_owned()).await;
    };
    let identity = Identity::of(&job);
    if let Some(live) = apply::get(&identity, context).await? {
        if children::whose(&live, object) != Whose::Own {
            return keep(format!("Job {}/{} is somebody else's", identity.namespace, identity.name)).await;
        }
        return match outcome(&live) {
            Outcome::Runs => Ok(Some(AGAIN)),
            Outcome::Succeeded => {
                let note = format!("deleted all keys with prefix {}", plan.prefix);
                report::event(proxy, context, EventType::Normal, "KeysPurged", note).await;
                Ok(None)
            }
            Outcome::Failed(why) => {
                let (namespace, name) = (&identity.namespace, &identity.name);
                keep(format!("Job {namespace}/{name} failed ({why}); prefix {}", plan.prefix)).await
            }
        };
    }
    let mut others = render::possible(object, home);
    others.retain(|one| *one != identity);
    let pods_left = apply::end_workload(&others, object, context).await?;
    if pods_left {
        return Ok(Some(AGAIN));
    }
    // The policy stays, by which the Job gets out to etcd.
    others.retain(|one| one.kind != "NetworkPolicy");
    apply::prune(others, object, context).await?;
    apply::put(job, &identity, object, context, None).await?;
    Ok(Some(AGAIN))
}

/// Another object of this namespace whose keys overlap: then nothing may be deleted for this one's sake.
async fn sharer(proxy: &EtcdProxy, context: &Context) -> Result<Option<String>, Error> {
    let Some(reference) = &proxy.spec.backend_ref else { return Ok(None) };
    let namespace = proxy.namespace().unwrap_or_default();
    let parameters = ListParams::default().fields(&format!("spec.backendRef.name={}", reference.name));
    let all = Api::<EtcdProxy>::namespaced(context.client.clone(), &namespace).list(&parameters).await;
    let all = all.map_err(|source| fetch::api_error("list EtcdProxies of namespace", &namespace, source))?;
    let own = own_part(&proxy.name_any(), &proxy.spec);
    let overlaps = |other: &&EtcdProxy| {
        let granted = other.spec.backend_ref.as_ref().is_some_and(|reference| reference.grant.is_some());
        let part = own_part(&other.name_any(), &other.spec);
        let stays = other.metadata.deletion_timestamp.is_none() && other.uid() != proxy.uid();
        stays && !granted && (part.starts_with(&own) || own.starts_with(&part))
    };
    Ok(all.items.iter().find(overlaps).map(ResourceExt::name_any))
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Runs,
    Succeeded,
    Failed(String),
}

fn outcome(job: &Value) -> Outcome {
    if job["status"]["succeeded"].as_i64().unwrap_or(0) > 0 {
        return Outcome::Succeeded;
    }
    let failed = job["status"]["conditions"].as_array().into_iter().flatten();
    let mut failed = failed.filter(|one| one["type"] == "Failed" && one["status"] == "True");
    match failed.next() {
        Some(condition) => Outcome::Failed(condition["message"].as_str().unwrap_or_default().to_owned()),
        None => Outcome::Runs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_job_has_succeeded_or_failed_or_still_runs() {
        assert_eq!(outcome(&json!({"status": {}})), Outcome::Runs);
        assert_eq!(outcome(&json!({"status": {"succeeded": 1}})), Outcome::Succeeded);
        let failed = json!({"status": {"failed": 3, "conditions": [
            {"type": "Failed", "status": "True", "message": "too often"},
        ]}});
        assert_eq!(outcome(&failed), Outcome::Failed("too often".to_owned()));
    }
}
