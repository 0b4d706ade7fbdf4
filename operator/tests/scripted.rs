//! The operator against an API server that does what a script says: conflicts, throttling, a watch that is too old, and
//! a lease that somebody else takes. The rest of that server is a map from paths to objects.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Response, StatusCode, Uri};
use etcd_proxy_operator::admin::Metrics;
use etcd_proxy_operator::controller::{self, Context, Scope};
use etcd_proxy_operator::leader::{Leadership, Timing};
use etcd_proxy_operator::plan::{Home, Object, Settings};
use etcd_proxy_operator::render::Cluster;
use futures_util::FutureExt;
use kube::{Client, Config};
use serde_json::{Value, json};

/// How long a loaded machine may need for what takes a second or two.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/system/leases/operator";
const PROXY: &str = "/apis/etcdproxy.dev/v1alpha1/namespaces/team/etcdproxies/x";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/team/deployments/x";

/// An answer that is given once, to the first request that fits.
struct Fault {
    method: Method,
    /// The end of the path.
    path: &'static str,
    watch: bool,
    status: u16,
    body: Value,
}

fn fault(method: Method, path: &'static str, status: u16, reason: &str) -> Fault {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": format!("scripted: {reason}"),
        "reason": reason, "code": status, "details": {"retryAfterSeconds": 1},
    });
    Fault { method, path, watch: false, status, body }
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Value>,
    faults: VecDeque<Fault>,
    /// What is put into the store when the next watch of EtcdProxies begins.
    on_watch: Option<(String, Value)>,
    /// `METHOD path` of every request, with `WATCH` for watches.
    requests: Vec<String>,
    version: u64,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Store>>);

impl Server {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start(&self) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let routes = axum::Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let config = Config::new(format!("http://{address}").parse().expect("an address makes a URL"));
        Client::try_from(config).expect("a plain client needs nothing")
    }

    fn put(&self, path: &str, object: Value) {
        self.store().objects.insert(path.to_owned(), object);
    }

    fn script(&self, fault: Fault) {
        self.store().faults.push_back(fault);
    }

    fn count(&self, request: &str) -> usize {
        self.store().requests.iter().filter(|one| *one == request).count()
    }

    /// Waits until the server holds what is wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&Store) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.store()) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.store().requests);
            tokio::time::sleep(POLL).await;
        }
    }

    fn run_operator(&self, client: Client) -> tokio::task::JoinHandle<()> {
        let cluster = Cluster { domain: "cluster.local".to_owned(), same_node: true };
        let settings = Settings::with_image("image:1");
        let context = Context::new(client, settings, cluster, Arc::new(Metrics::new()), "test".to_owned(), 1);
        let never = futures_util::future::pending::<()>().shared();
        tokio::spawn(controller::run(Arc::new(context), Scope::Cluster, never))
    }
}

async fn answer(State(server): State<Server>, method: Method, uri: Uri, body: Bytes) -> Response<Body> {
    let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default());
    let watch = query.contains("watch=");
    let mut store = server.store();
    let word = if watch { "WATCH" } else { method.as_str() };
    store.requests.push(format!("{word} {path}"));
    if watch
        && path.ends_with("/etcdproxies")
        && let Some((path, object)) = store.on_watch.take()
    {
        store.objects.insert(path, object);
    }
    let fits = |fault: &Fault| fault.method == method && fault.watch == watch && path.ends_with(fault.path);
    if let Some(at) = store.faults.iter().position(fits) {
        let fault = store.faults.remove(at).expect("it was found there");
        return respond(fault.status, &fault.body);
    }
    if watch {
        // Nothing ever happens on it.
        return Response::new(Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>()));
    }
    store.version += 1;
    let version = store.version.to_string();
    let object = path.strip_suffix("/status").unwrap_or(&path).to_owned();
    match method {
        Method::GET => {
            let plural = path.rsplit('/').next().unwrap_or_default();
            if COLLECTIONS.contains(&plural) {
                let of_this = |one: &&String| one.rsplit('/').nth(1) == Some(plural);
                let items: Vec<&Value> =
                    store.objects.iter().filter(|(path, _)| of_this(path)).map(|(_, one)| one).collect();
                let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
                return respond(200, &list);
            }
            match store.objects.get(&object) {
                Some(found) => respond(200, found),
                None => respond(404, &fault(method, "", 404, "NotFound").body),
            }
        }
        Method::PATCH | Method::PUT | Method::POST => {
            let mut given: Value = serde_json::from_slice(&body).unwrap_or_default();
            let path = match (&method, given["metadata"]["name"].as_str()) {
                (&Method::POST, Some(name)) => format!("{object}/{name}"),
                _ => object,
            };
            given["metadata"]["resourceVersion"] = json!(version);
            let mut kept =
                if method == Method::PATCH { store.objects.remove(&path).unwrap_or_default() } else { Value::Null };
            merge(&mut kept, &given);
            store.objects.insert(path, kept.clone());
            respond(if method == Method::POST { 201 } else { 200 }, &kept)
        }
        Method::DELETE => match store.objects.remove(&object) {
            Some(gone) => respond(200, &gone),
            None => respond(404, &fault(method, "", 404, "NotFound").body),
        },
        _ => respond(405, &Value::Null),
    }
}

const COLLECTIONS: [&str; 9] = [
    "etcdproxies",
    "etcdbackends",
    "namespaces",
    "services",
    "deployments",
    "daemonsets",
    "networkpolicies",
    "poddisruptionbudgets",
    "pods",
];

fn merge(kept: &mut Value, given: &Value) {
    match (kept, given) {
        (Value::Object(kept), Value::Object(given)) => {
            for (key, value) in given {
                merge(kept.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (kept, given) => *kept = given.clone(),
    }
}

fn respond(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).expect("the script has valid codes");
    let json = "application/json".parse().expect("it is a header's value");
    response.headers_mut().insert("content-type", json);
    response
}

fn proxy() -> Value {
    json!({
        "apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdProxy",
        "metadata": {"name": "x", "namespace": "team", "uid": "u-1", "generation": 1, "resourceVersion": "1"},
        "spec": {"mode": "Deployment", "upstream": {"endpoints": ["http://etcd:2379"]}},
    })
}

fn condition(store: &Store, kind: &str) -> Value {
    let status = store.objects.get(PROXY).map(|proxy| proxy["status"]["conditions"].clone()).unwrap_or_default();
    let mut all = status.as_array().cloned().unwrap_or_default().into_iter();
    all.find(|one| one["type"] == kind).unwrap_or_default()
}

#[tokio::test]
async fn a_write_that_meets_a_conflict_or_is_throttled_is_made_again() {
    let server = Server::default();
    server.put(PROXY, proxy());
    server.script(fault(Method::PATCH, "/services/x", 429, "TooManyRequests"));
    server.script(fault(Method::PATCH, "/deployments/x", 409, "Conflict"));
    let client = server.start().await;
    let operator = server.run_operator(client);
    server.until("the conflict is told", |store| condition(store, "Programmed")["reason"] == "ApplyConflict").await;
    server.until("everything is applied", |store| condition(store, "Programmed")["status"] == "True").await;
    assert!(server.store().faults.is_empty(), "both faults were met");
    assert!(server.store().objects.contains_key(DEPLOYMENT));
    operator.abort();
}

#[tokio::test]
async fn what_a_lost_watch_did_not_tell_is_found_by_listing_anew() {
    let server = Server::default();
    let gone = json!({"type": "ERROR", "object": fault(Method::GET, "", 410, "Expired").body});
    let of_watch = |path| Fault { method: Method::GET, path, watch: true, status: 200, body: gone.clone() };
    server.script(of_watch("/etcdproxies"));
    server.script(of_watch("/etcdproxies"));
    // It comes while nobody sees it: after the first list, and no watch ever tells of it.
    server.store().on_watch = Some((PROXY.to_owned(), proxy()));
    let client = server.start().await;
    let operator = server.run_operator(client);
    server.until("the object is found", |store| store.objects.contains_key(DEPLOYMENT)).await;
    // Two watch EtcdProxies: the controller of each kind. Both list again.
    let list = "GET /apis/etcdproxy.dev/v1alpha1/etcdproxies";
    server.until("both list again", |store| store.requests.iter().filter(|one| *one == list).count() >= 4).await;
    operator.abort();
}

#[tokio::test]
async fn an_error_that_lasts_is_met_at_longer_and_longer_intervals() {
    let server = Server::default();
    server.put(PROXY, proxy());
    for _ in 0..3 {
        server.script(fault(Method::PATCH, "/deployments/x", 403, "Forbidden"));
    }
    let client = server.start().await;
    let started = Instant::now();
    let operator = server.run_operator(client);
    server.until("it is refused", |store| condition(store, "Programmed")["reason"] == "Forbidden").await;
    server.until("it is applied at last", |store| store.objects.contains_key(DEPLOYMENT)).await;
    // Waits of one, two and four seconds lie between the four attempts.
    assert!(started.elapsed() >= Duration::from_secs(7), "{:?}", started.elapsed());
    operator.abort();
}

/// Labels of a child of `team/x` of this uid.
fn labels(uid: &str) -> Value {
    json!({
        "app.kubernetes.io/name": "etcd-proxy", "app.kubernetes.io/managed-by": "etcd-proxy-operator",
        "etcdproxy.dev/namespace": "team", "etcdproxy.dev/name": "x", "etcdproxy.dev/owner-uid": uid,
    })
}

#[tokio::test]
async fn a_name_never_leads_to_another_object() {
    let server = Server::default();
    let mut proxy = proxy();
    let tls = json!({"secretRef": {"name": "../../backend/secrets/theirs?x="}});
    proxy["spec"]["upstream"] = json!({"endpoints": ["https://etcd:2379"], "tls": tls});
    server.put(PROXY, proxy);
    let client = server.start().await;
    let operator = server.run_operator(client);
    server.until("it is missed", |store| condition(store, "ResolvedRefs")["reason"] == "SecretNotFound").await;
    assert!(!server.store().requests.iter().any(|one| one.contains("theirs")), "{:?}", server.store().requests);
    operator.abort();
}

#[tokio::test]
async fn what_an_object_of_the_same_name_left_is_taken_over_but_not_its_authority() {
    let server = Server::default();
    server.put(PROXY, proxy());
    let metadata = |name: &str| json!({"name": name, "namespace": "team", "uid": "kept", "labels": labels("u-0")});
    server
        .put(DEPLOYMENT, json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("x"), "spec": {}}));
    let ca = "/api/v1/namespaces/team/secrets/x-ca";
    let old = json!({"serving.crt": "b2xk"});
    server.put(ca, json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata("x-ca"), "data": old}));
    // This one is still on its way out.
    let service = "/api/v1/namespaces/team/services/x";
    let mut going = metadata("x");
    going["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    server.put(service, json!({"apiVersion": "v1", "kind": "Service", "metadata": going, "spec": {}}));
    let client = server.start().await;
    let operator = server.run_operator(client);
    server.until("it waits", |store| condition(store, "Programmed")["reason"] == "ApplyConflict").await;
    assert!(server.store().objects[PROXY]["status"]["conditions"].to_string().contains("still being deleted"));
    server.store().objects.remove(service);
    server.until("everything is applied", |store| condition(store, "Programmed")["status"] == "True").await;
    let deployment = server.store().objects[DEPLOYMENT].clone();
    assert_eq!(deployment["metadata"]["labels"]["etcdproxy.dev/owner-uid"], "u-1");
    assert_eq!(deployment["metadata"]["uid"], "kept", "it was not made anew");
    assert_ne!(server.store().objects[ca]["data"]["serving.crt"], "b2xk");
    operator.abort();
}

/// A backend of these namespaces, and what a tenant's object has in the namespace of its proxies.
fn with_backend(server: &Server, allowed: &[&str], base: &str) -> [String; 2] {
    server.put(
        "/apis/etcdproxy.dev/v1alpha1/etcdbackends/shared",
        json!({
            "apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdBackend",
            "metadata": {"name": "shared", "uid": "b-1", "generation": 1, "resourceVersion": "1"},
            "spec": {
                "endpoints": ["http://etcd:2379"], "namespace": "backend", "keyspace": {"root": "/t/"},
                "allowedNamespaces": {"names": allowed},
            },
        }),
    );
    let owner =
        json!([{"apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdBackend", "name": "shared", "uid": "b-1"}]);
    [("apps/v1", "Deployment", "apis/apps/v1"), ("v1", "Service", "api/v1")].map(|(version, kind, group)| {
        let path = format!("/{group}/namespaces/backend/{}s/{base}", kind.to_lowercase());
        let metadata = json!({
            "name": base, "namespace": "backend", "uid": kind, "labels": labels("u-1"), "ownerReferences": owner,
        });
        server.put(&path, json!({"apiVersion": version, "kind": kind, "metadata": metadata}));
        path
    })
}

/// What the proxies of `team/x` are called where their backend is.
fn base() -> String {
    let object = Object { namespace: "team".to_owned(), name: "x".to_owned(), uid: "u-1".to_owned() };
    let backend = serde_json::from_value(json!({
        "apiVersion": "etcdproxy.dev/v1alpha1", "kind": "EtcdBackend", "metadata": {"name": "shared"},
        "spec": {"endpoints": ["http://etcd:2379"], "namespace": "backend", "keyspace": {"root": "/t/"}},
    }));
    Home::of(&object, Some(&backend.expect("it is written right"))).base
}

#[tokio::test]
async fn proxies_of_an_object_that_went_without_its_finalizer_are_found_and_deleted() {
    let server = Server::default();
    let children = with_backend(&server, &["team"], &base());
    let client = server.start().await;
    let operator = server.run_operator(client);
    server.until("they go", |store| children.iter().all(|path| !store.objects.contains_key(path))).await;
    operator.abort();
}

#[tokio::test]
async fn proxies_of_a_namespace_that_may_no_longer_are_deleted() {
    let server = Server::default();
    let children = with_backend(&server, &["other"], &base());
    let mut proxy = proxy();
    proxy["spec"] = json!({"mode": "Deployment", "backendRef": {"name": "shared"}, "paused": true});
    proxy["metadata"]["finalizers"] = json!(["etcdproxy.dev/cleanup"]);
    proxy["status"] = json!({"workload": {"kind": "Deployment", "namespace": "backend", "name": base()}});
    server.put(PROXY, proxy);
    let client = server.start().await;
    let operator = server.run_operator(client);
    server.until("it is refused", |store| condition(store, "Accepted")["reason"] == "NamespaceNotAllowed").await;
    for path in children {
        assert!(!server.store().objects.contains_key(&path), "{path} serves on");
    }
    operator.abort();
}

fn timing() -> Timing {
    Timing { lease_seconds: 4, renew_seconds: 3, retry_seconds: 1 }
}

fn leadership(client: &Client, name: &str) -> Leadership {
    Leadership::new(client.clone(), "system", "operator", name.to_owned(), timing())
}

#[tokio::test]
async fn a_leader_outlives_a_conflict_and_ends_when_another_holds_the_lease() {
    let server = Server::default();
    let client = server.start().await;
    let leader = leadership(&client, "one");
    let unmade = "/namespaces/system/leases";
    server.script(fault(Method::POST, unmade, 409, "AlreadyExists"));
    leader.acquire().await;
    assert_eq!(server.store().objects[LEASE]["spec"]["holderIdentity"], "one");

    server.script(fault(Method::PUT, "/leases/operator", 409, "Conflict"));
    let renewed = server.count(&format!("PUT {LEASE}"));
    let holding = leader.hold();
    let other = async {
        server
            .until("it is renewed again after a conflict", |store| {
                store.requests.iter().filter(|one| **one == format!("PUT {LEASE}")).count() >= renewed + 3
            })
            .await;
        server.store().objects.get_mut(LEASE).expect("it is there")["spec"]["holderIdentity"] = json!("two");
    };
    let both = async { futures_util::join!(holding, other) };
    tokio::time::timeout(PATIENCE, both).await.expect("who has lost the lease ends");
}

#[tokio::test]
async fn a_leader_that_cannot_renew_ends_before_another_may_begin() {
    let server = Server::default();
    let client = server.start().await;
    let leader = leadership(&client, "one");
    leader.acquire().await;
    for _ in 0..10 {
        server.script(fault(Method::GET, "/leases/operator", 500, "InternalError"));
    }
    let started = Instant::now();
    tokio::time::timeout(PATIENCE, leader.hold()).await.expect("it gives up");
    assert!(started.elapsed() >= Duration::from_secs(3), "not before its time: {:?}", started.elapsed());
}

#[tokio::test]
async fn a_lease_that_was_given_back_is_taken_at_once() {
    let server = Server::default();
    let client = server.start().await;
    let first = leadership(&client, "one");
    first.acquire().await;
    first.release().await.expect("the server takes it");
    tokio::time::timeout(PATIENCE, leadership(&client, "two").acquire()).await.expect("it is free");
    assert_eq!(server.store().objects[LEASE]["spec"]["holderIdentity"], "two");
}
