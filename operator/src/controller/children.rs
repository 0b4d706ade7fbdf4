//! Any child by its identity, and whether a live one is what was rendered.

use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::Value;

use crate::plan::{HOME_LABEL_NAME, HOME_LABEL_NAMESPACE, HOME_LABEL_OWNER, Object};
use crate::render::{Identity, MANAGER};

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

/// Whose child a live object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The object's.
    Own,
    /// One's that had this very name and is gone: its deletion left children behind, or they are still being deleted.
    Predecessors,
    Others,
}

/// By its labels. Two objects of one name cannot be there at a time, so whoever else had it is gone.
pub fn whose(live: &Value, object: &Object) -> Whose {
    let label = |name: &str| live["metadata"]["labels"][name].as_str();
    match label(HOME_LABEL_OWNER) {
        Some(uid) if uid == object.uid => Whose::Own,
        Some(_)
            if label("app.kubernetes.io/managed-by") == Some(MANAGER)
                && label(HOME_LABEL_NAMESPACE) == Some(&object.namespace)
                && label(HOME_LABEL_NAME) == Some(&object.name) =>
        {
            Whose::Predecessors
        }
        _ => Whose::Others,
    }
}

/// Whether a live object is the child of this object or of one that had its name before.
pub fn is_ours(live: &Value, object: &Object) -> bool {
    whose(live, object) != Whose::Others
}

pub fn is_going(live: &Value) -> bool {
    !live["metadata"]["deletionTimestamp"].is_null()
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
    fn what_is_labelled_for_somebody_else_is_never_ours() {
        let object = Object { namespace: "team".to_owned(), name: "x".to_owned(), uid: "new".to_owned() };
        let child = |namespace: &str, uid: &str, manager: &str| {
            json!({"metadata": {"labels": {
                "app.kubernetes.io/managed-by": manager, HOME_LABEL_NAMESPACE: namespace, HOME_LABEL_NAME: "x",
                HOME_LABEL_OWNER: uid,
            }}})
        };
        for (live, wanted) in [
            (child("team", "new", MANAGER), Whose::Own),
            (child("team", "old", MANAGER), Whose::Predecessors),
            (child("other", "old", MANAGER), Whose::Others),
            (child("team", "old", "somebody"), Whose::Others),
            (json!({"metadata": {"name": "x"}}), Whose::Others),
        ] {
            assert_eq!(whose(&live, &object), wanted, "{live}");
        }
    }

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
