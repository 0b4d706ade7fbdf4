//! Makes the cluster be what the objects say: fetch, check, issue, apply, report, for one object at a time and as often
//! as anything that belongs to it changes.

mod apply;
mod backend;
mod children;
mod cleanup;
mod conditions;
mod fetch;
pub(crate) mod pods;
mod report;
mod rollouts;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, future::Shared};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::{EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;

use crate::admin::Metrics;
use crate::api::{EtcdBackend, EtcdProxy};
use crate::plan::{self, HOME_LABEL_NAME, HOME_LABEL_NAMESPACE, Home, Object, Settings, Stage};
use crate::render::{Cluster, MANAGER};
use apply::Applied;
use rollouts::Rollouts;
use sweep::Users;

/// Objects worked on at a time; more would be a burst on the API server and make nothing ready sooner.
const CONCURRENCY: u16 = 8;
/// Changes that come together, as the many of one rollout do, are answered once.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// How often an object is looked at although nothing happened: Secrets are not watched, since that would need the right
/// to list all of them. It also bounds how late a certificate is renewed.
const RESYNC: Duration = Duration::from_secs(300);
/// The same while something that an object names is missing, so that creating it helps soon.
const RESYNC_REFUSED: Duration = Duration::from_secs(15);
/// The waits after errors: doubled each time, from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(300);

/// What every reconciliation needs.
pub struct Context {
    pub client: Client,
    pub settings: Settings,
    pub cluster: Cluster,
    pub metrics: Arc<Metrics>,
    recorder: Recorder,
    rollouts: Rollouts,
    /// Objects whose turn it is; taken once, when the controllers start.
    woken: Mutex<Option<mpsc::Receiver<ObjectRef<EtcdProxy>>>>,
    /// How often each object failed in a row, by namespace and name; held for a lookup only.
    failures: Mutex<HashMap<String, u32>>,
    /// The uids of objects that were looked at before; held for a lookup only. As many as there are objects.
    seen: Mutex<HashSet<String>>,
}

impl Context {
    pub fn new(
        client: Client,
        settings: Settings,
        cluster: Cluster,
        metrics: Arc<Metrics>,
        pod: String,
        max_rollouts: usize,
    ) -> Context {
        let reporter = Reporter { controller: "etcdproxy.dev/operator".to_owned(), instance: Some(pod) };
        let recorder = Recorder::new(client.clone(), reporter);
        let (rollouts, woken) = Rollouts::new(max_rollouts);
        Context {
            client,
            settings,
            cluster,
            metrics,
            recorder,
            rollouts,
            woken: Mutex::new(Some(woken)),
            failures: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// Whether this process has not applied the object yet: another version of the operator may have.
    fn is_first_look(&self, uid: &str) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned())
    }

    /// An object is gone, or is to be looked at as if it had never been.
    fn has_gone(&self, uid: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn succeeded(&self, key: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(key);
        self.metrics.backing_off.set(i64::try_from(failures.len()).unwrap_or(i64::MAX));
    }

    /// How long to wait after one more failure.
    fn failed(&self, key: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(key.to_owned()).or_default();
        let wait = wait_after(*count, key);
        *count += 1;
        self.metrics.backing_off.set(i64::try_from(failures.len()).unwrap_or(i64::MAX));
        wait
    }
}

/// Doubled with each failure, and a little different for each object, so that those that failed together do not come
/// back together.
fn wait_after(failures: u32, key: &str) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(failures)).min(LAST_WAIT);
    let spread = u32::from_str_radix(&plan::short_hash(key)[8..], 16).unwrap_or(0);
    doubled + doubled * spread / 1024
}

/// What went wrong while the cluster was read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {verb} {what}: {source}")]
    Api { verb: &'static str, what: String, source: kube::Error },
    #[error("cannot issue certificates: {0}")]
    Certificates(#[from] rcgen::Error),
    #[error("{what} exists and belongs to someone else")]
    NameConflict { what: String },
    #[error("{what} of the EtcdProxy that had this name before is still being deleted")]
    Going { what: String },
    #[error("nothing is listed any more, since the operator ends")]
    Stopping,
}

/// Where the operator looks; it has rights nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// EtcdProxies everywhere and their children everywhere.
    Cluster,
    /// EtcdProxies everywhere, all on backends whose proxies run in these namespaces.
    Backends(Vec<String>),
    /// EtcdProxies of these namespaces, with an etcd of their own.
    Namespaces(Vec<String>),
}

/// Runs all controllers until `stop`, and what is being worked on to its end.
pub async fn run(context: Arc<Context>, scope: Scope, stop: Shared<impl Future<Output = ()> + Send + Sync + 'static>) {
    let homes: Vec<Option<String>> = match &scope {
        Scope::Cluster | Scope::Backends(_) => vec![None],
        Scope::Namespaces(namespaces) => namespaces.iter().cloned().map(Some).collect(),
    };
    let woken = context.woken.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut woken = woken.map(|woken| {
        futures_util::stream::unfold(woken, async |mut woken| {
            let object = woken.recv().await?;
            Some((object, woken))
        })
    });
    let mut running = Vec::new();
    let mut store = None;
    for home in homes {
        let mut controller = proxies(&context, home.as_deref(), &scope);
        // Whoever is called need not be this controller's; looking at one more object does no harm.
        if let Some(woken) = woken.take() {
            controller = controller.reconcile_on(woken);
        }
        store.get_or_insert_with(|| controller.store());
        let running_one =
            controller.graceful_shutdown_on(stop.clone()).run(reconcile, again, context.clone()).for_each(|_| async {});
        running.push(running_one);
    }
    let backends = async {
        if let (Some(store), Scope::Cluster | Scope::Backends(_)) = (store, &scope) {
            backends(context.clone(), store, stop.clone()).await;
        }
    };
    futures_util::join!(futures_util::future::join_all(running), backends);
}

fn config() -> Config {
    Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY)
}

/// All objects of a kind, or those of one namespace.
fn within<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        None => Api::all(client.clone()),
        Some(namespace) => Api::namespaced(client.clone(), namespace),
    }
}

fn proxies(context: &Context, home: Option<&str>, scope: &Scope) -> Controller<EtcdProxy> {
    let client = &context.client;
    let mut proxies = Controller::new(within::<EtcdProxy>(client, home), watcher::Config::default());
    let store = proxies.store();
    let ours = || watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    proxies = proxies.with_config(config()).watches(within::<Service>(client, home), ours(), parent);
    let children: Vec<Option<&str>> = match scope {
        Scope::Backends(namespaces) => namespaces.iter().map(|namespace| Some(namespace.as_str())).collect(),
        Scope::Cluster | Scope::Namespaces(_) => vec![home],
    };
    for namespace in children {
        proxies = proxies
            .watches(within::<Deployment>(client, namespace), ours(), parent)
            .watches(within::<DaemonSet>(client, namespace), ours(), parent)
            .watches(within::<NetworkPolicy>(client, namespace), ours(), parent)
            .watches(within::<PodDisruptionBudget>(client, namespace), ours(), parent);
    }
    if matches!(scope, Scope::Namespaces(_)) {
        return proxies;
    }
    let (of_backend, of_namespace, news) = (store.clone(), store, backend::News::default());
    proxies
        .watches(Api::<EtcdBackend>::all(client.clone()), watcher::Config::default(), move |backend| {
            if !news.is_news(&backend) {
                return Vec::new();
            }
            let name = backend.name_any();
            let uses = |proxy: &EtcdProxy| proxy.spec.backend_ref.as_ref().is_some_and(|backend| backend.name == name);
            those(&of_backend, uses)
        })
        .watches(Api::<Namespace>::all(client.clone()), watcher::Config::default(), move |namespace| {
            let name = namespace.name_any();
            let lives =
                |proxy: &EtcdProxy| proxy.namespace().as_deref() == Some(&name) && proxy.spec.backend_ref.is_some();
            those(&of_namespace, lives)
        })
}

fn those(store: &Store<EtcdProxy>, wanted: impl Fn(&EtcdProxy) -> bool) -> Vec<ObjectRef<EtcdProxy>> {
    store.state().iter().filter(|proxy| wanted(proxy)).map(|proxy| ObjectRef::from_obj(&**proxy)).collect()
}

async fn backends(
    context: Arc<Context>,
    store: Store<EtcdProxy>,
    stop: Shared<impl Future<Output = ()> + Send + Sync + 'static>,
) {
    let client = context.client.clone();
    let controller = Controller::new(Api::<EtcdBackend>::all(client.clone()), watcher::Config::default());
    let (known, noted) = (Arc::<Users>::default(), controller.store());
    let users = known.clone();
    controller
        .with_config(config())
        .watches(Api::<EtcdProxy>::all(client), watcher::Config::default(), move |proxy| {
            let backend = ObjectRef::new(&proxy.spec.backend_ref.as_ref()?.name);
            if noted.get(&backend).is_some() {
                users.note(&backend.name, &proxy);
            }
            Some(backend)
        })
        .graceful_shutdown_on(stop)
        .run(
            move |backend, context| backend::reconcile(backend, context, store.clone(), known.clone()),
            |backend: Arc<EtcdBackend>, error: &Error, context: Arc<Context>| {
                tracing::warn!(backend = backend.name_any(), %error, "an EtcdBackend could not be looked after");
                Action::requeue(context.failed(&backend.name_any()))
            },
            context,
        )
        .for_each(|_| async {})
        .await;
}

/// The object that a child belongs to, by its labels, whichever namespace it lives in.
fn parent<K: ResourceExt>(child: K) -> Option<ObjectRef<EtcdProxy>> {
    let labels = child.labels();
    let (namespace, name) = (labels.get(HOME_LABEL_NAMESPACE)?, labels.get(HOME_LABEL_NAME)?);
    Some(ObjectRef::new(name).within(namespace))
}

async fn reconcile(proxy: Arc<EtcdProxy>, context: Arc<Context>) -> Result<Action, Error> {
    let started = Instant::now();
    let key = key(&proxy);
    let result = reconcile_now(&proxy, &context).await;
    let outcome = if result.is_ok() { "ok" } else { "error" };
    context.metrics.reconciled("EtcdProxy", outcome, started.elapsed());
    if result.is_ok() {
        context.succeeded(&key);
    }
    result
}

fn again(proxy: Arc<EtcdProxy>, error: &Error, context: Arc<Context>) -> Action {
    let wait = context.failed(&key(&proxy));
    tracing::warn!(proxy = key(&proxy), %error, wait_seconds = wait.as_secs(), "an EtcdProxy could not be brought up to date");
    Action::requeue(wait)
}

fn key(proxy: &EtcdProxy) -> String {
    format!("{}/{}", proxy.namespace().unwrap_or_default(), proxy.name_any())
}

async fn reconcile_now(proxy: &EtcdProxy, context: &Context) -> Result<Action, Error> {
    if proxy.metadata.deletion_timestamp.is_some() {
        if let Some(wait) = cleanup::clean_up(proxy, context).await? {
            return Ok(Action::requeue(wait));
        }
        context.rollouts.ended(&Object::of(proxy));
        context.has_gone(&Object::of(proxy).uid);
        context.metrics.forget(&Object::of(proxy));
        return Ok(Action::await_change());
    }
    // Where backends are not known nothing is deployed for their users, and nothing has to be cleaned up.
    if proxy.spec.backend_ref.is_some() && context.settings.backends {
        apply::hold(proxy, context).await?;
    }
    let fetched = fetch::fetch(proxy, context).await?;
    let plan = match plan::check(proxy, &fetched, &context.settings) {
        Ok(plan) => plan,
        Err(refusal) => {
            // Whatever the status says: the proxies of a predecessor serve too.
            let withdrawn = refusal.withdraws();
            let served = |backend: &&EtcdBackend| context.settings.serves(&backend.spec.namespace);
            if let Some(backend) = fetched.backend.as_ref().filter(|_| withdrawn).filter(served) {
                let object = Object::of(proxy);
                if apply::withdraw(&object, &Home::of(&object, Some(backend)), context).await? {
                    let note = format!("the proxies were deleted: {}", refusal.message);
                    report::event(proxy, context, EventType::Warning, "AccessWithdrawn", note).await;
                }
            }
            report::refused(proxy, context, &refusal, withdrawn).await?;
            let wait = if refusal.stage == Stage::ResolvedRefs { RESYNC_REFUSED } else { RESYNC };
            return Ok(Action::requeue(wait));
        }
    };
    let applied: Applied = match apply::apply(&plan, proxy, context).await {
        Ok(applied) => applied,
        Err(error) => {
            report::failed(proxy, context, &plan, &error).await?;
            return Err(error);
        }
    };
    let ready = report::applied(proxy, context, &plan, applied).await?;
    let conditions = proxy.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let unready = conditions::false_for(conditions, conditions::READY, Timestamp::now()).filter(|_| !ready);
    Ok(Action::requeue(if ready { RESYNC } else { look_again_after(unready.unwrap_or_default()) }))
}

/// Pods tell nobody that they have found another reason for not being ready, so they are looked at now and then: seldom
/// where that has lasted, or an etcd that is away would keep the API server busy with all its proxies.
fn look_again_after(unready: Duration) -> Duration {
    (unready / 2).clamp(RESYNC_REFUSED, RESYNC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_been_ready_for_long_is_looked_at_seldom() {
        assert_eq!(look_again_after(Duration::ZERO), RESYNC_REFUSED);
        assert_eq!(look_again_after(Duration::from_secs(120)), Duration::from_secs(60));
        assert_eq!(look_again_after(Duration::from_secs(86400)), RESYNC);
    }

    #[test]
    fn waits_double_to_a_bound_and_differ_by_object() {
        assert!(wait_after(0, "a/b") >= FIRST_WAIT);
        assert!(wait_after(3, "a/b") >= FIRST_WAIT * 8);
        assert!(wait_after(40, "a/b") <= LAST_WAIT * 5 / 4);
        assert_ne!(wait_after(5, "a/b"), wait_after(5, "a/c"));
    }
}
