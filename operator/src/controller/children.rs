//! Any child by its identity, and whether a live one is what was rendered.

use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::Value;

use crate::plan::HOME_LABEL_OWNER;
use crate::render::Identity;

/// The way to one kind of children in one namespace.
pub fn api(client: &Client, identity: &Identity) -> Api<DynamicObject> {
    let (group, version) = identity.api_version.split_once('/').unwrap_or(("", &identity.api_version));
    let plural = match identity.kind.as_str() {
        "NetworkPolicy" => "networkpolicies".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    let kind = GroupVersionKind::gvk(group, version, &identity.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &plural);
    Api::namespaced_with(client.clone(), &identity.namespace, &resource)
}

/// Whether a live object is a child of the object with this uid.
pub fn belongs_to(live: &Value, uid: &str) -> bool {
    live["metadata"]["labels"][HOME_LABEL_OWNER] == uid
}

/// Whether all that is wanted stands in the live object. The server adds defaults and drops what is empty.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| covers(live.get(key).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| covers(live, wanted))
        }
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (Value::Null, Value::Object(wanted)) => wanted.is_empty(),
        (live, wanted) => live == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_of_the_server_are_no_difference_and_all_else_is() {
        let live = json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "type": "ClusterIP"}, "status": {}});
        assert!(covers(&live, &json!({"spec": {"ports": [{"port": 1}], "empty": []}})));
        for wanted in [
            json!({"spec": {"ports": [{"port": 2}]}}),
            json!({"spec": {"ports": []}}),
            json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}),
            json!({"spec": {"selector": {"a": "b"}}}),
        ] {
            assert!(!covers(&live, &wanted), "{wanted}");
        }
    }
}
