//! A kind of one's own and its objects, created and deleted over HTTP as a patient controller would: what fails is tried
//! again, and what was done already is fine.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::{ApiServer, Etcd, http};
use serde_json::{Value, json};

/// The objects that come and go.
pub const COUNT: usize = 1000;

/// How long one object may take: an election and a restart of everything behind it, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two attempts, as client-go has it at first.
const PAUSE: Duration = Duration::from_millis(100);

const KIND: &str = "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, \
    metadata: {name: things.example.dev}, spec: {group: example.dev, scope: Namespaced, \
    names: {kind: Thing, plural: things, singular: thing}, versions: [{name: v1, served: true, storage: true, \
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}";

pub struct Things {
    address: String,
}

impl Things {
    pub fn define(server: &ApiServer) -> Things {
        server.apply(KIND);
        server.kubectl(&["wait", "--for=condition=Established", "crd/things.example.dev", "--timeout=60s"]);
        let things = Things { address: server.address().to_owned() };
        // The definition is established a moment before its objects are served.
        things.persist("the list", || http::get(&things.address, things.path()), |status| status == 200);
        things
    }

    /// Deletes the definition, and with it what is left of the objects.
    pub fn undefine(&self, server: &ApiServer) {
        server.kubectl(&["delete", "crd/things.example.dev", "--timeout=90s"]);
    }

    pub fn path(&self) -> &'static str {
        "/apis/example.dev/v1/namespaces/default/things"
    }

    pub fn create(&self, name: &str) {
        let thing = json!({
            "apiVersion": "example.dev/v1", "kind": "Thing", "metadata": {"name": name}, "spec": {"size": 1},
        });
        // An attempt whose answer was lost may have been done.
        let ask = || http::post(&self.address, self.path(), &thing.to_string());
        self.persist(name, ask, |status| matches!(status, 201 | 409));
    }

    pub fn delete(&self, name: &str) {
        let path = format!("{}/{name}", self.path());
        self.persist(name, || http::delete(&self.address, &path), |status| matches!(status, 200 | 404));
    }

    /// The names of all, by a list that must be no older than its question.
    pub fn names(&self) -> Vec<String> {
        let answer = self.persist("the list", || http::get(&self.address, self.path()), |status| status == 200);
        let list: Value = serde_json::from_str(&answer.body).expect("the server answers in JSON");
        let items = list["items"].as_array().expect("a list has items").iter();
        items.map(|item| item["metadata"]["name"].as_str().expect("a thing has a name").to_owned()).collect()
    }

    /// The names of all as they stand in etcd. The server puts a slash before its own prefix.
    pub fn keys(&self, etcd: &Etcd, namespace: &str) -> Vec<String> {
        let prefix = format!("{namespace}/registry/example.dev/things/default/");
        let keys = etcd.etcdctl().ok(&["get", &prefix, "--prefix", "--keys-only"]);
        keys.lines().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    fn persist(
        &self,
        what: &str,
        ask: impl Fn() -> std::io::Result<http::Answer>,
        is_good: impl Fn(u16) -> bool,
    ) -> http::Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask();
            match answer {
                Ok(answer) if is_good(answer.status) => return answer,
                other => assert!(Instant::now() < deadline, "{what}: {other:?}"),
            }
            std::thread::sleep(PAUSE);
        }
    }
}
