//! What EtcdProxies leave behind that went without a clean-up, since somebody took their finalizer off: their pods would
//! serve for ever, with the backend's credential.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, ResourceExt};

use super::fetch::api_error;
use super::{Context, Error, apply};
use crate::api::{EtcdBackend, EtcdProxy};
use crate::plan::{HOME_LABEL_NAME, HOME_LABEL_NAMESPACE, HOME_LABEL_OWNER, Home, Object};
use crate::render::{self, MANAGER};

/// Services that are read at a time.
const PAGE: u32 = 500;

/// The uids of the EtcdProxies that name each backend, also of those that are gone and have not been swept after. A
/// number of them would not tell of one that went while another came.
#[derive(Default)]
pub struct Users(Mutex<HashMap<String, HashSet<String>>>);

impl Users {
    /// Notes an object that names a backend which exists, so that as many stay as there are.
    pub fn note(&self, backend: &str, proxy: &EtcdProxy) {
        let uid = proxy.uid().unwrap_or_default();
        self.lock().entry(backend.to_owned()).or_default().insert(uid);
    }

    /// Those that were noted and are not here any more.
    pub fn gone(&self, backend: &str, here: &HashSet<String>) -> Vec<String> {
        let mut users = self.lock();
        let noted = users.entry(backend.to_owned()).or_default();
        noted.extend(here.iter().cloned());
        noted.difference(here).cloned().collect()
    }

    /// Forgets those of a backend that have been swept after.
    pub fn swept(&self, backend: &str, gone: &[String]) {
        if let Some(noted) = self.lock().get_mut(backend) {
            noted.retain(|uid| !gone.contains(uid));
        }
    }

    /// Forgets a backend.
    pub fn forget(&self, backend: &str) {
        self.lock().remove(backend);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, HashSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes what is left in a backend's namespace of objects that are gone.
pub async fn sweep(backend: &EtcdBackend, context: &Context, proxies: &Store<EtcdProxy>) -> Result<(), Error> {
    let uid = backend.uid().unwrap_or_default();
    let services = Api::<Service>::namespaced(context.client.clone(), &backend.spec.namespace);
    let ours = format!("app.kubernetes.io/managed-by={MANAGER}");
    let mut parameters = ListParams::default().labels(&ours).limit(PAGE);
    let mut left: BTreeMap<String, Object> = BTreeMap::new();
    loop {
        let page = services.list_metadata(&parameters).await;
        let page = page.map_err(|source| api_error("list Services of namespace", &backend.spec.namespace, source))?;
        let here = page.items.iter().filter(|one| one.owner_references().iter().any(|owner| owner.uid == uid));
        let parents = here.filter_map(|one| {
            let label = |name: &str| one.labels().get(name).cloned();
            let (namespace, name) = (label(HOME_LABEL_NAMESPACE)?, label(HOME_LABEL_NAME)?);
            Some(Object { namespace, name, uid: label(HOME_LABEL_OWNER)? })
        });
        let gone = |one: &Object| {
            let named = proxies.get(&ObjectRef::new(&one.name).within(&one.namespace));
            !named.is_some_and(|named| keeps(&named, one, backend))
        };
        left.extend(parents.filter(gone).map(|one| (one.uid.clone(), one)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => break,
        }
    }
    for object in left.into_values() {
        let what = format!("EtcdProxy {}/{}", object.namespace, object.name);
        let named = Api::<EtcdProxy>::namespaced(context.client.clone(), &object.namespace);
        let named = named.get_opt(&object.name).await.map_err(|source| api_error("read", &what, source))?;
        if named.is_some_and(|named| keeps(&named, &object, backend)) {
            continue;
        }
        let mut children = render::possible(&object, &Home::of(&object, Some(backend)));
        // By its Services it is found, so they go last, and a sweep that broke off is taken up again.
        children.sort_by_key(|one| one.kind == "Service");
        let pruned = apply::prune_own(children, &object, context).await?;
        tracing::warn!(
            proxy = what,
            children = pruned.len(),
            "deleted what an EtcdProxy without its finalizer had left"
        );
    }
    Ok(())
}

/// Whether an object that is there keeps what one of its name has at a backend: it is that one, or takes over from it.
fn keeps(named: &EtcdProxy, object: &Object, backend: &EtcdBackend) -> bool {
    let uses = named.spec.backend_ref.as_ref().is_some_and(|reference| reference.name == backend.name_any());
    uses || named.uid().as_ref() == Some(&object.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(uid: &str, spec: &str) -> EtcdProxy {
        let text = format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: x, namespace: n, uid: {uid}}}, \
             spec: {spec}}}"
        );
        serde_yaml::from_str(&text).expect("it is written right")
    }

    #[test]
    fn one_that_went_while_another_came_is_missed() {
        let users = Users::default();
        let here = |uids: &[&str]| uids.iter().map(|&uid| uid.to_owned()).collect::<HashSet<String>>();
        assert!(users.gone("b", &here(&["one"])).is_empty());
        let brief = proxy("brief", "{backendRef: {name: b}}");
        users.note("b", &brief);
        let mut gone = users.gone("b", &here(&["two"]));
        gone.sort();
        assert_eq!(gone, ["brief", "one"]);
        assert_eq!(users.gone("b", &here(&["two"])).len(), 2, "until it was swept after them");
        users.swept("b", &gone);
        assert!(users.gone("b", &here(&["two"])).is_empty());
        users.forget("b");
        assert!(users.gone("b", &here(&[])).is_empty());
    }

    #[test]
    fn what_a_namesake_cannot_take_over_is_not_kept_for_it() {
        let text = "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {name: b}, spec: {endpoints: \
                    ['http://a:1'], namespace: n, keyspace: {root: /t/}}}";
        let backend: EtcdBackend = serde_yaml::from_str(text).expect("it is written right");
        let object = Object { namespace: "n".to_owned(), name: "x".to_owned(), uid: "old".to_owned() };
        assert!(keeps(&proxy("old", "{backendRef: {name: b}}"), &object, &backend));
        assert!(keeps(&proxy("new", "{backendRef: {name: b}}"), &object, &backend));
        assert!(!keeps(&proxy("new", "{backendRef: {name: other}}"), &object, &backend));
        assert!(!keeps(&proxy("new", "{upstream: {endpoints: ['http://a:1']}}"), &object, &backend));
    }
}
