//! Writes what was rendered, deletes what no longer is, and never touches what belongs to somebody else.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, ValidationDirective};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::children::Whose;
use super::conditions::{self, Status};
use super::fetch::{api_error, contents};
use super::rollouts::Rollouts;
use super::{Context, Error, children};
use crate::api::{EtcdProxy, GROUP};
use crate::certs::{self, Data, Issued, Stored};
use crate::plan::{Home, Managed, Object, Plan, finalizer, short_hash};
use crate::render::{self, Identity, MANAGER};

/// A manager of its own, so that applying children or status never drops the finalizer.
const HOLDER: &str = "etcd-proxy-operator-finalizer";
/// Says what was last applied, so that a field that is no longer rendered is noticed.
const RENDERED: &str = "etcdproxy.dev/rendered";

/// What stands in the cluster now.
#[derive(Debug, Default)]
pub struct Applied {
    /// The workload as the server has it.
    pub workload: Option<Value>,
    pub issued: Option<Issued>,
    /// Children that were deleted because they are no longer wanted.
    pub pruned: Vec<Identity>,
    /// The workload has an older pod template, and waits for its turn to get the newer one.
    pub queued: bool,
}

/// What stands between a new pod template and a workload whose pods serve.
pub struct Gate<'a> {
    rollouts: &'a Rollouts,
    plan: &'a Plan,
    /// The user changed the object, and is not kept waiting for others.
    changed: bool,
}

impl Gate<'_> {
    fn admits(&self, live: &Value, wanted: &Value) -> bool {
        let same = children::covers(&live["spec"]["template"], &wanted["spec"]["template"]);
        // Whoever does not serve has nothing to lose, and must not hold up those that do.
        let serves = conditions::workload(Some(live)).status == Status::True;
        self.changed || same || !serves || self.rollouts.may_begin(self.plan)
    }
}

/// Certificates first, since pods wait for their Secrets; the workload last.
pub async fn apply(plan: &Plan, proxy: &EtcdProxy, context: &Context) -> Result<Applied, Error> {
    let mut applied = Applied::default();
    let rendered = render::render(plan, &context.cluster);
    if plan.paused {
        let workload = rendered.iter().map(Identity::of).find(is_workload);
        if let Some(identity) = workload {
            applied.workload = get(&identity, context).await?;
        }
        return Ok(applied);
    }
    let observed = proxy.status.as_ref().and_then(|status| status.observed_generation);
    let changed = observed != proxy.metadata.generation;
    let mut wanted = BTreeSet::new();
    let mut secrets = Vec::new();
    if let Some(managed) = &plan.managed {
        let issued = issue(plan, managed, context).await?;
        secrets.extend(certificate_secrets(plan, &issued.stored));
        applied.issued = Some(issued);
    }
    secrets.push(binding(plan, applied.issued.as_ref()));
    for object in secrets.into_iter().chain(rendered) {
        let identity = Identity::of(&object);
        if is_workload(&identity) {
            let gate = Gate { rollouts: &context.rollouts, plan, changed };
            let put = put(object, &identity, &plan.object, context, Some(&gate)).await?;
            applied.queued = put.is_none();
            applied.workload = match put {
                Some(live) => Some(live),
                None => get(&identity, context).await?,
            };
        } else {
            put(object, &identity, &plan.object, context, None).await?;
        }
        wanted.insert(identity);
    }
    // Looked for when the object changed, and else left to what the labels' watches bring.
    if changed || context.is_first_look(&plan.object.uid) {
        let unwanted = render::possible(&plan.object, &plan.home).into_iter().filter(|one| !wanted.contains(one));
        applied.pruned = prune(unwanted.collect(), &plan.object, context).await?;
    }
    Ok(applied)
}

fn is_workload(identity: &Identity) -> bool {
    identity.api_version == "apps/v1"
}

pub async fn get(identity: &Identity, context: &Context) -> Result<Option<Value>, Error> {
    let found = children::api(&context.client, identity).get_opt(&identity.name).await;
    let found = found.map_err(|source| api_error("read", &name(identity), source))?;
    Ok(found.map(|found| serde_json::to_value(found).expect("what came as JSON goes as JSON")))
}

/// Applies one child unless it stands there already, and answers with what stands there; with nothing if the gate is shut.
pub async fn put(
    mut object: Value,
    identity: &Identity,
    parent: &Object,
    context: &Context,
    gate: Option<&Gate<'_>>,
) -> Result<Option<Value>, Error> {
    let hash = short_hash(&object.to_string());
    object["metadata"]["annotations"][RENDERED] = json!(hash);
    let live = get(identity, context).await?;
    if let Some(live) = &live {
        match children::whose(live, parent) {
            Whose::Others => return Err(Error::NameConflict { what: name(identity) }),
            Whose::Predecessors if children::is_going(live) => return Err(Error::Going { what: name(identity) }),
            // What a predecessor left becomes ours by being applied: its pods serve meanwhile.
            Whose::Predecessors | Whose::Own => (),
        }
        if children::covers(live, &object) {
            return Ok(Some(live.clone()));
        }
        if gate.is_some_and(|gate| !gate.admits(live, &object)) {
            return Ok(None);
        }
    }
    let api = children::api(&context.client, identity);
    let parameters =
        PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply(MANAGER).force() };
    let mut patched = api.patch(&identity.name, &parameters, &Patch::Apply(&object)).await;
    if live.is_some() && matches!(&patched, Err(kube::Error::Api(status)) if status.code == 422) {
        // A list that is keyed by what somebody changed, such as the port of a Service, now has their entry beside ours,
        // and the two contradict each other. Replacing the whole list is right, since the child is ours alone.
        let plain = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let replaced = api.patch(&identity.name, &plain, &Patch::Merge(&object)).await;
        replaced.map_err(|source| api_error("put right", &name(identity), source))?;
        patched = api.patch(&identity.name, &parameters, &Patch::Apply(&object)).await;
    }
    let live = patched.map_err(|source| api_error("apply", &name(identity), source))?;
    tracing::info!(child = name(identity), "applied");
    Ok(Some(serde_json::to_value(live).expect("what came as JSON goes as JSON")))
}

/// Deletes the workload among these in such a way that it stays until its pods have ended; whether it is still there.
pub async fn end_workload(children: &[Identity], parent: &Object, context: &Context) -> Result<bool, Error> {
    let mut there = false;
    for identity in children.iter().filter(|one| is_workload(one)) {
        let Some(live) = get(identity, context).await? else { continue };
        if !children::is_ours(&live, parent) {
            continue;
        }
        there = true;
        if !children::is_going(&live) {
            let deleted =
                children::api(&context.client, identity).delete(&identity.name, &DeleteParams::foreground()).await;
            match deleted {
                Err(kube::Error::Api(status)) if status.is_not_found() => (),
                other => other.map(|_| ()).map_err(|source| api_error("delete", &name(identity), source))?,
            }
        }
    }
    Ok(there)
}

/// Ends what serves an object that its backend no longer gives anything: pods, and what leads to them. Certificates stay,
/// so that its clients need no others if it is given back. Whether there was anything.
pub async fn withdraw(object: &Object, home: &Home, context: &Context) -> Result<bool, Error> {
    let mut serving = render::possible(object, home);
    serving.retain(|one| !matches!(one.kind.as_str(), "Secret" | "ConfigMap" | "Job"));
    Ok(!prune(serving, object, context).await?.is_empty())
}

/// Deletes those of the children that are there and ours.
pub async fn prune(unwanted: Vec<Identity>, parent: &Object, context: &Context) -> Result<Vec<Identity>, Error> {
    prune_those(unwanted, parent, context, children::is_ours).await
}

/// The same for an object that may be gone: what one of its name has now, made or taken over, stays.
pub async fn prune_own(unwanted: Vec<Identity>, parent: &Object, context: &Context) -> Result<Vec<Identity>, Error> {
    prune_those(unwanted, parent, context, |live, parent| children::whose(live, parent) == Whose::Own).await
}

async fn prune_those(
    unwanted: Vec<Identity>,
    parent: &Object,
    context: &Context,
    is_unwanted: fn(&Value, &Object) -> bool,
) -> Result<Vec<Identity>, Error> {
    let mut pruned = Vec::new();
    for identity in unwanted {
        // Where the operator may not write Secrets it has written none, and may not look.
        if !context.settings.tenant_secrets && identity.kind == "Secret" && identity.namespace == parent.namespace {
            continue;
        }
        // A kind that the cluster does not serve has no objects.
        let live = match get(&identity, context).await {
            Err(_) if identity.api_version == render::POD_MONITOR => continue,
            other => other?,
        };
        let Some(live) = live.filter(|live| is_unwanted(live, parent)) else { continue };
        let preconditions =
            Preconditions { uid: live["metadata"]["uid"].as_str().map(str::to_owned), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match children::api(&context.client, &identity).delete(&identity.name, &parameters).await {
            Ok(_) => {
                tracing::info!(child = name(&identity), "deleted");
                pruned.push(identity);
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => (),
            Err(source) => return Err(api_error("delete", &name(&identity), source)),
        }
    }
    Ok(pruned)
}

fn name(identity: &Identity) -> String {
    format!("{} {}/{}", identity.kind, identity.namespace, identity.name)
}

async fn issue(plan: &Plan, managed: &Managed, context: &Context) -> Result<Issued, Error> {
    let (object, home) = (&plan.object, &plan.home);
    let stored = Stored {
        ca: read_own(&home.namespace, &home.ca_secret(), object, context).await?,
        serving: read_own(&home.namespace, &home.serving_secret(), object, context).await?,
        client: if plan.client_certificate {
            read_own(&object.namespace, &object.binding(), object, context).await?
        } else {
            Data::new()
        },
    };
    Ok(certs::keep(object, managed, &stored, OffsetDateTime::now_utc())?)
}

/// A Secret of ours; one of somebody else is refused before anything is made of its contents. A predecessor's is written
/// over, and its authority not kept: whoever has a certificate of it may not be the owner of this namespace.
async fn read_own(namespace: &str, secret: &str, object: &Object, context: &Context) -> Result<Data, Error> {
    let found = Api::<Secret>::namespaced(context.client.clone(), namespace).get_opt(secret).await;
    let what = format!("Secret {namespace}/{secret}");
    match found.map_err(|source| api_error("read", &what, source))? {
        None => Ok(Data::new()),
        Some(found) => match children::whose(&json!({"metadata": found.metadata}), object) {
            Whose::Own => Ok(contents(found)),
            Whose::Predecessors => Ok(Data::new()),
            Whose::Others => Err(Error::NameConflict { what }),
        },
    }
}

fn certificate_secrets(plan: &Plan, stored: &Stored) -> [Value; 2] {
    let secret = |name: &str, kind: &str, data: &Data| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": render::metadata(plan, name), "data": encoded(data),
        })
    };
    [
        secret(&plan.home.ca_secret(), "Opaque", &stored.ca),
        secret(&plan.home.serving_secret(), "kubernetes.io/tls", &stored.serving),
    ]
}

/// The Secret for applications, in the shape that servicebinding.io describes.
fn binding(plan: &Plan, issued: Option<&Issued>) -> Value {
    let mut data = issued.map(|issued| issued.stored.client.clone()).unwrap_or_default();
    if !plan.client_certificate {
        // What is public may go where Secrets may not.
        let ca = data.remove("ca.crt").unwrap_or_default();
        return json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": render::own_metadata(plan, &plan.object.binding()),
            "data": {"endpoints": plan.endpoints.join(","), "ca.crt": String::from_utf8_lossy(&ca)},
        });
    }
    data.insert("type".to_owned(), b"etcd".to_vec());
    data.insert("provider".to_owned(), MANAGER.as_bytes().to_vec());
    data.insert("endpoints".to_owned(), plan.endpoints.join(",").into_bytes());
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "servicebinding.io/etcd",
        "metadata": render::own_metadata(plan, &plan.object.binding()), "data": encoded(&data),
    })
}

fn encoded(data: &Data) -> Value {
    data.iter()
        .map(|(key, bytes)| (key.clone(), json!(ByteString(bytes.clone()))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Puts our finalizer on an object.
pub async fn hold(proxy: &EtcdProxy, context: &Context) -> Result<(), Error> {
    if proxy.finalizers().contains(&finalizer()) {
        return Ok(());
    }
    finalizers(proxy, context, &[finalizer()]).await
}

/// Takes our finalizer off.
pub async fn release(proxy: &EtcdProxy, context: &Context) -> Result<(), Error> {
    match finalizers(proxy, context, &[]).await {
        Err(Error::Api { source: kube::Error::Api(status), .. }) if matches!(status.code, 404 | 409 | 422) => Ok(()),
        other => other,
    }
}

async fn finalizers(proxy: &EtcdProxy, context: &Context, finalizers: &[String]) -> Result<(), Error> {
    let (namespace, name) = (proxy.namespace().unwrap_or_default(), proxy.name_any());
    let api = Api::<EtcdProxy>::namespaced(context.client.clone(), &namespace);
    // With the uid, so that a namesake made meanwhile is not touched.
    let patch = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "EtcdProxy",
        "metadata": {"name": name, "namespace": namespace, "uid": proxy.uid(), "finalizers": finalizers},
    });
    let patched = api.patch_metadata(&name, &PatchParams::apply(HOLDER).force(), &Patch::Apply(&patch)).await;
    patched
        .map(|_| ())
        .map_err(|source| api_error("set the finalizer of", &format!("EtcdProxy {namespace}/{name}"), source))
}
