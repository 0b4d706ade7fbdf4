//! Whether an object may use the etcd that it names, and under which prefix.

use super::{Claim, DEFAULT_MAX_REPLICAS, DEFAULT_REPLICAS, Fetched, Object, Refusal, Settings, Stage};
use crate::api::{ClientAuth, EtcdBackendSpec, EtcdProxySpec, Grant, GrantAccess, LabelSelector, Limits};
use crate::api::{LabelSelectorOperator, Mode, RefKind};

use std::collections::BTreeMap;

/// What an object may use.
pub struct Access {
    pub endpoints: Vec<String>,
    pub prefix: String,
    pub grant: Option<GrantAccess>,
    pub claim: Option<Claim>,
    /// What the backend's administrator lets one proxy take on.
    pub limits: Limits,
}

pub fn check(object: &Object, spec: &EtcdProxySpec, fetched: &Fetched, settings: &Settings) -> Result<Access, Refusal> {
    let Some(reference) = &spec.backend_ref else { return inline(spec, settings) };
    let name = &reference.name;
    if !settings.backends {
        let message = "this operator looks after single namespaces and knows no EtcdBackends; use spec.upstream";
        return Err(refuse("UnsupportedByInstall", message.to_owned()));
    }
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
    // Before all else that may be wrong, since a grant that was taken back ends what serves by it.
    let granted = reference.grant.as_ref().map(|wanted| grant(name, backend, wanted, namespace)).transpose()?;
    check_limits(name, backend, spec)?;
    if !settings.serves(&backend.namespace) {
        let message = format!(
            "EtcdBackend {name} runs its proxies in namespace {}, where this operator has no rights; its administrator adds \
             it to --backend-namespaces, and a RoleBinding there",
            backend.namespace
        );
        return Err(refuse("BackendNamespaceNotServed", message));
    }
    let mut claim = None;
    let (prefix, grant) = match granted {
        None => {
            let root = &backend.keyspace.root;
            let covers = format!("{root}{namespace}/");
            // Without a cluster to ask there is nobody to claim for.
            if !settings.cluster_uid.is_empty() && !fetched.namespace_uid.is_empty() {
                let value = format!("{}/{}", settings.cluster_uid, fetched.namespace_uid);
                claim = Some(Claim { key: format!("{root}.claims/{namespace}"), value, covers: covers.clone() });
            }
            (format!("{covers}{}", own_part(&object.name, spec)), None)
        }
        Some(grant) => {
            let own = spec.key_prefix.clone().unwrap_or_default();
            (format!("{}{own}", grant.prefix), Some(grant.access))
        }
    };
    let limits = backend.limits.as_ref().and_then(|limits| limits.per_proxy.clone()).unwrap_or_default();
    Ok(Access { endpoints: backend.endpoints.clone(), prefix, grant, claim, limits })
}

/// What an object without a grant adds to its namespace's part of the keys.
pub fn own_part(name: &str, spec: &EtcdProxySpec) -> String {
    spec.key_prefix.clone().unwrap_or_else(|| format!("{name}/"))
}

/// Where the operator may not write Secrets beside tenants, they bring their clients' CA, and sidecars, which would need
/// a client certificate, cannot be.
pub fn check_without_secrets(spec: &EtcdProxySpec) -> Result<(), Refusal> {
    if spec.mode == Mode::Sidecar {
        let message = "spec.mode Sidecar with spec.backendRef needs a client certificate in this namespace, and this operator \
                       may not write Secrets here; use mode Deployment";
        return Err(refuse("ModeNotAllowed", message.to_owned()));
    }
    if spec.tls.client_auth == ClientAuth::Required && spec.tls.client_ca_ref.is_none() {
        let message = "this operator may not write Secrets here, so it can give you no client certificate: set \
                       spec.tls.clientCARef to a ConfigMap with the CA of certificates that you issue yourself";
        return Err(refuse("ClientCARequired", message.to_owned()));
    }
    if spec.tls.client_ca_ref.as_ref().is_some_and(|ca| ca.kind == RefKind::Secret) {
        let message = "this operator may not read Secrets here: spec.tls.clientCARef must be of kind ConfigMap";
        return Err(refuse("ClientCARequired", message.to_owned()));
    }
    Ok(())
}

fn inline(spec: &EtcdProxySpec, settings: &Settings) -> Result<Access, Refusal> {
    if !settings.inline_upstream {
        let message = "this cluster does not allow spec.upstream; use spec.backendRef with an EtcdBackend that your \
                       administrator offers (kubectl get etcdbackends)";
        return Err(refuse("InlineUpstreamForbidden", message.to_owned()));
    }
    let endpoints = spec.upstream.as_ref().map(|upstream| upstream.endpoints.clone()).unwrap_or_default();
    let prefix = spec.key_prefix.clone().unwrap_or_default();
    Ok(Access { endpoints, prefix, grant: None, claim: None, limits: Limits::default() })
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
