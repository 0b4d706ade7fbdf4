//! The server's own OpenAPI as JSON schemas for kubeconform, made strict: a field that is not described is refused.

use std::process::Command;

use etcd_proxy_e2e::programs;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;

/// The groups whose kinds the chart renders.
const GROUPS: [&str; 8] = [
    "api/v1",
    "apis/apps/v1",
    "apis/admissionregistration.k8s.io/v1",
    "apis/apiextensions.k8s.io/v1",
    "apis/etcdproxy.dev/v1alpha1",
    "apis/networking.k8s.io/v1",
    "apis/policy/v1",
    "apis/rbac.authorization.k8s.io/v1",
];

pub struct Schemas {
    folder: tempfile::TempDir,
}

impl Schemas {
    pub fn of(cluster: &ControlPlane) -> Schemas {
        let folder = tempfile::TempDir::with_prefix("etcd-proxy-schemas-").expect("a temporary folder can be made");
        for group in GROUPS {
            let text = cluster.kubectl(&["get", "--raw", &format!("/openapi/v3/{group}")]);
            let document: Value = serde_json::from_str(&text).expect("OpenAPI is JSON");
            let mut all = document["components"]["schemas"].clone();
            for (name, schema) in all.as_object_mut().expect("schemas have names") {
                // What describes schemas has properties that are called as if it were one itself.
                if !name.ends_with(".JSONSchemaProps") {
                    make_strict(schema);
                }
            }
            for (name, schema) in all.as_object().expect("schemas have names") {
                for kind in schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                    let text = |field: &str| kind[field].as_str().unwrap_or_default().to_lowercase();
                    // kubeconform takes the version for the group where there is none.
                    let group = if text("group").is_empty() { text("version") } else { text("group") };
                    let file = folder.path().join(format!("{}-{group}-{}.json", text("kind"), text("version")));
                    let whole = json!({
                        "$ref": format!("#/components/schemas/{name}"), "components": {"schemas": &all},
                    });
                    std::fs::write(file, whole.to_string()).expect("the file can be written");
                }
            }
        }
        Schemas { folder }
    }

    pub fn check(&self, text: &str) {
        self.try_check(text).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Runs kubeconform; the kinds of the Prometheus operator are not this server's.
    pub fn try_check(&self, text: &str) -> Result<(), String> {
        let file = self.folder.path().join("rendered.yaml");
        std::fs::write(&file, text).expect("the file can be written");
        let location = "{{ .ResourceKind }}-{{ .Group }}-{{ .ResourceAPIVersion }}.json";
        let output = Command::new(programs::tool("kubeconform").join("kubeconform"))
            .args(["-strict", "-summary", "-skip=ServiceMonitor,PodMonitor", "-schema-location"])
            .arg(self.folder.path().join(location))
            .arg(&file)
            .output()
            .expect("kubeconform can be started");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(said) }
    }
}

/// Refuses fields that a schema does not name, where it names some.
fn make_strict(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let is_closed = map.get("properties").is_some_and(Value::is_object)
                && !map.contains_key("additionalProperties")
                && map.get("x-kubernetes-preserve-unknown-fields") != Some(&json!(true));
            map.values_mut().for_each(make_strict);
            if is_closed {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_strict),
        _ => (),
    }
}
