//! Whether an object may use the etcd that it names, and under which prefix.

use super::{DEFAULT_MAX_REPLICAS, DEFAULT_REPLICAS, Fetched, Object, Refusal, Settings, Stage};
use crate::api::{EtcdBackendSpec, EtcdProxySpec, Grant, GrantAccess, LabelSelector, LabelSelectorOperator, Mode};

use std::collections::BTreeMap;

/// What an object may use.
pub struct Access {
    pub endpoints: Vec<String>,
    pub prefix: String,
    pub grant: Option<GrantAccess>,
}

pub fn check(object: &Object, spec: &EtcdProxySpec, fetched: &Fetched, settings: &Settings) -> Result<Access, Refusal> {
    let Some(reference) = &spec.backend_ref else { return inline(spec, settings) };
    let name = &reference.name;
    let Some(backend) = fetched.backend.as_ref().map(|backend| &backend.spec) else {
        return Err(refuse(
            "BackendNotFound",
            format!("spec.backendRef names EtcdBackend {name}, which does not exist"),
        ));
    };
    let namespace = &object.namespace;
    if !is_allowed(backend, namespace, &fetched.namespace_labels) {
        let message = format!(
            "EtcdBackend {name} does not allow namespace {namespace}; its administrator lists namespaces in \
             spec.allowedNamespaces"
        );
        return Err(refuse("NamespaceNotAllowed", message));
    }
    check_limits(name, backend, spec)?;
    let (prefix, grant) = match &reference.grant {
        None => {
            let own = spec.key_prefix.clone().unwrap_or_else(|| format!("{}/", object.name));
            (format!("{}{namespace}/{own}", backend.keyspace.root), None)
        }
        Some(wanted) => {
            let grant = grant(name, backend, wanted, namespace)?;
            let own = spec.key_prefix.clone().unwrap_or_default();
            (format!("{}{own}", grant.prefix), Some(grant.access))
        }
    };
    Ok(Access { endpoints: backend.endpoints.clone(), prefix, grant })
}

fn inline(spec: &EtcdProxySpec, settings: &Settings) -> Result<Access, Refusal> {
    if !settings.inline_upstream {
        let message = "this cluster does not allow spec.upstream; use spec.backendRef with an EtcdBackend that your \
                       administrator offers (kubectl get etcdbackends)";
        return Err(refuse("InlineUpstreamForbidden", message.to_owned()));
    }
    let endpoints = spec.upstream.as_ref().map(|upstream| upstream.endpoints.clone()).unwrap_or_default();
    Ok(Access { endpoints, prefix: spec.key_prefix.clone().unwrap_or_default(), grant: None })
}

fn check_limits(name: &str, backend: &EtcdBackendSpec, spec: &EtcdProxySpec) -> Result<(), Refusal> {
    let limits = backend.limits.clone().unwrap_or_default();
    if let Some(modes) = limits.modes.filter(|modes| !modes.contains(&spec.mode)) {
        let message = format!("EtcdBackend {name} allows spec.mode {modes:?}, and not {:?}", spec.mode);
        return Err(refuse("ModeNotAllowed", message));
    }
    let most = limits.max_replicas.unwrap_or(DEFAULT_MAX_REPLICAS);
    let wanted = spec.replicas.unwrap_or(DEFAULT_REPLICAS);
    if spec.mode != Mode::DaemonSet && wanted > most {
        let message = format!("spec.replicas is {wanted}, and EtcdBackend {name} allows {most}");
        return Err(refuse("ReplicasExceedLimit", message));
    }
    Ok(())
}

fn grant<'a>(name: &str, backend: &'a EtcdBackendSpec, wanted: &str, namespace: &str) -> Result<&'a Grant, Refusal> {
    let grants = backend.grants.as_deref().unwrap_or_default();
    let found = grants.iter().find(|grant| grant.name == wanted && grant.namespaces.iter().any(|one| one == namespace));
    // One answer for both, so that nobody learns the names of others' grants.
    found.ok_or_else(|| {
        refuse("GrantNotFound", format!("EtcdBackend {name} has no grant {wanted} for namespace {namespace}"))
    })
}

fn is_allowed(backend: &EtcdBackendSpec, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    let Some(allowed) = &backend.allowed_namespaces else { return false };
    let by_name = allowed.names.iter().flatten().any(|name| name == namespace);
    by_name || allowed.selector.as_ref().is_some_and(|selector| selects(selector, labels))
}

/// As Kubernetes matches a label selector.
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let exact = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    exact
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed = |value: &String| requirement.values.iter().flatten().any(|one| one == value);
            match requirement.operator {
                LabelSelectorOperator::In => value.is_some_and(listed),
                LabelSelectorOperator::NotIn => !value.is_some_and(listed),
                LabelSelectorOperator::Exists => value.is_some(),
                LabelSelectorOperator::DoesNotExist => value.is_none(),
            }
        })
}

fn refuse(reason: &'static str, message: String) -> Refusal {
    Refusal { stage: Stage::Accepted, reason, message }
}
