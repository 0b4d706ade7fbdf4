//! The two kinds: `EtcdProxy`, which a tenant owns, and `EtcdBackend`, which an administrator owns. What the API server
//! itself can check is checked by the schema and its CEL rules; `plan` checks what needs a second object.
//!
//! Doc comments are what `kubectl explain` shows, so they speak to the user. Defaults stand in the schema only where a
//! rule or a reader needs them: each is a difference that a GitOps tool reports to somebody.

mod backend;
mod limits;
mod proxy;
mod schema;
mod shared;
mod status;

pub use backend::{AllowedNamespaces, BackendLimits, EtcdBackend, EtcdBackendSpec, EtcdBackendStatus, Grant, Keyspace};
pub use backend::{
    GrantAccess, LabelSelector, LabelSelectorOperator, LabelSelectorRequirement, ProxyPods, ReclaimPolicy,
};
pub use limits::{ConnectionLimits, Limits};
pub use proxy::{Advertise, Api, BackendRef, ClientAuth, Compact, EtcdProxy, EtcdProxySpec, Metrics, Mode};
pub use proxy::{NetworkPolicyMode, PodMonitorMode, Position, Profile, Registration, ServiceSettings, ServingTls};
pub use proxy::{Sidecar, TlsSource, Traffic, UpdateStrategy, Upstream};
pub use schema::METHODS;
pub use shared::TolerationOperator;
pub use shared::{ClientTls, KeyRef, NameRef, Quantity, RefKind, Resources, Toleration, TolerationEffect, UserRef};
pub use status::{Binding, Certificates, Condition, EtcdProxyStatus, SidecarStatus, Workload};

use kube::CustomResourceExt;
use serde_json::Value;

/// The API group; it is also the domain of all labels, annotations and finalizers.
pub const GROUP: &str = "etcdproxy.dev";
pub const VERSION: &str = "v1alpha1";

/// The custom resource definitions as they are installed.
pub fn definitions() -> Vec<Value> {
    [EtcdProxy::crd(), EtcdBackend::crd()]
        .into_iter()
        .map(|definition| {
            let mut value = serde_json::to_value(definition).expect("a definition is plain JSON");
            strip_null(&mut value);
            value
        })
        .collect()
}

/// The definitions as one YAML file.
pub fn definitions_yaml() -> String {
    let documents = definitions().into_iter().map(|definition| {
        let text = serde_yaml::to_string(&definition).expect("a definition is plain YAML");
        format!("---\n{text}")
    });
    format!("# Printed by `etcd-proxy-operator crd`; a test keeps it current.\n{}", documents.collect::<String>())
}

/// The derive lets every optional field be null; a null that is stored means nothing and hides what was not set.
fn strip_null(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            if let Some(Value::Array(choices)) = map.get_mut("enum") {
                choices.retain(|choice| !choice.is_null());
            }
            map.values_mut().for_each(strip_null);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_null),
        _ => (),
    }
}
