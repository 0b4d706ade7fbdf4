//! Reads from the cluster what a plan is made of.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{Api, ResourceExt};
use time::OffsetDateTime;

use super::{Context, Error};
use crate::api::{EtcdBackend, EtcdProxy, RefKind};
use crate::plan::{Fetched, Found, ObjectKey, is_object_name, references};

pub async fn fetch(proxy: &EtcdProxy, context: &Context) -> Result<Fetched, Error> {
    if !context.settings.backends && proxy.spec.backend_ref.is_some() {
        return Ok(Fetched { now: OffsetDateTime::now_utc().unix_timestamp(), ..Fetched::default() });
    }
    let backend = backend(proxy, context).await?;
    let (mut namespace_labels, mut namespace_uid) = (BTreeMap::new(), String::new());
    if proxy.spec.backend_ref.is_some() {
        let name = proxy.namespace().unwrap_or_default();
        let found = Api::<Namespace>::all(context.client.clone()).get_opt(&name).await;
        let namespace = found.map_err(|source| api_error("read namespace", &name, source))?;
        if let Some(namespace) = namespace {
            namespace_uid = namespace.uid().unwrap_or_default();
            namespace_labels = namespace.labels().clone();
        }
    }
    let objects = all(references(proxy, backend.as_ref()), context).await?;
    Ok(Fetched { backend, namespace_labels, namespace_uid, objects, now: OffsetDateTime::now_utc().unix_timestamp() })
}

pub async fn backend(proxy: &EtcdProxy, context: &Context) -> Result<Option<EtcdBackend>, Error> {
    let Some(reference) = &proxy.spec.backend_ref else { return Ok(None) };
    if !context.settings.backends {
        // An operator of single namespaces may not even look.
        return Ok(None);
    }
    if !is_object_name(&reference.name) {
        // Nothing is called so, and asking would ask for something else.
        return Ok(None);
    }
    let found = Api::<EtcdBackend>::all(context.client.clone()).get_opt(&reference.name).await;
    found.map_err(|source| api_error("read EtcdBackend", &reference.name, source))
}

pub async fn all(keys: Vec<ObjectKey>, context: &Context) -> Result<BTreeMap<ObjectKey, Found>, Error> {
    let mut objects = BTreeMap::new();
    for key in keys {
        let found = one(&key, context).await?;
        objects.insert(key, found);
    }
    Ok(objects)
}

async fn one(key: &ObjectKey, context: &Context) -> Result<Found, Error> {
    let ObjectKey { kind, namespace, name } = key;
    if !is_object_name(name) {
        return Ok(Found::Missing);
    }
    let data = match kind {
        RefKind::Secret => {
            let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
            api.get_opt(name).await.map(|secret| secret.map(contents))
        }
        RefKind::ConfigMap => {
            let api = Api::<ConfigMap>::namespaced(context.client.clone(), namespace);
            let texts =
                |map: ConfigMap| map.data.into_iter().flatten().map(|(key, text)| (key, text.into_bytes())).collect();
            api.get_opt(name).await.map(|map| map.map(texts))
        }
    };
    match data {
        Ok(Some(data)) => Ok(Found::Data(data)),
        Ok(None) => Ok(Found::Missing),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Found::NotReadable),
        Err(source) => Err(api_error("read", &format!("{kind:?} {namespace}/{name}"), source)),
    }
}

pub fn contents(secret: Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.into_iter().flatten().map(|(key, bytes)| (key, bytes.0)).collect()
}

pub fn api_error(verb: &'static str, what: &str, source: kube::Error) -> Error {
    Error::Api { verb, what: what.to_owned(), source }
}
