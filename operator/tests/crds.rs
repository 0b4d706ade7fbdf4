//! The committed definitions and their documentation are what the code says.

use std::fmt::Write;
use std::path::Path;

use etcd_proxy_operator::api;
use serde_json::Value;

#[test]
fn the_committed_definitions_are_current() {
    current("deploy/crds/etcdproxy.dev.yaml", &api::definitions_yaml());
}

#[test]
fn the_documentation_of_the_fields_is_current() {
    current("docs/crd.md", &documentation());
}

#[test]
fn every_field_has_a_description() {
    for definition in api::definitions() {
        let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        each_field("spec", spec, &mut |path, field, _| {
            assert!(field["description"].is_string(), "{}: {path} has no description", definition["metadata"]["name"]);
        });
    }
}

/// Compares a file of the repository with what it should be, or writes it if `UPDATE_DOCS` is set.
fn current(path: &str, wanted: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, wanted).expect("the file can be written");
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(found == wanted, "{path} is stale; run UPDATE_DOCS=1 cargo test -p etcd-proxy-operator --test crds");
}

fn documentation() -> String {
    let mut text =
        "<!-- Made from operator/src/api; `UPDATE_DOCS=1 cargo test -p etcd-proxy-operator --test crds` writes \
                    it anew. -->\n\n# EtcdProxy and EtcdBackend\n\nThe fields of the two kinds of API group \
                    `etcdproxy.dev/v1alpha1`. `kubectl explain etcdproxy.spec` shows the same, and \
                    `deploy/examples/` has objects to begin with.\n"
            .to_owned();
    for definition in api::definitions() {
        let kind = definition["spec"]["names"]["kind"].as_str().expect("a definition has a kind");
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let about = schema["description"].as_str().expect("a kind is described");
        write!(text, "\n## {kind}\n\n{about}\n\n| Field | Type | Default | Meaning |\n|---|---|---|---|\n").unwrap();
        each_field("spec", &schema["properties"]["spec"], &mut |path, field, required| {
            let default = match &field["default"] {
                Value::Null if required => "required".to_owned(),
                Value::Null => String::new(),
                Value::Object(_) => String::new(),
                default => format!("`{default}`"),
            };
            let meaning = field["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
            writeln!(text, "| `{path}` | {} | {default} | {meaning} |", type_of(field)).unwrap();
        });
        let mut rules = Vec::new();
        collect_rules("spec", &schema["properties"]["spec"], &mut rules);
        text += "\nThe API server refuses an object with one of these messages:\n\n";
        for (path, message) in rules {
            writeln!(text, "- `{path}`: {message}").unwrap();
        }
    }
    text
}

/// More than these are for `kubectl explain`, and would make a row that nobody reads.
const MOST_CHOICES: usize = 12;

fn type_of(field: &Value) -> String {
    if let Some(choices) = field["enum"].as_array() {
        if choices.len() > MOST_CHOICES {
            return format!("one of {} names", choices.len());
        }
        return choices.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    }
    if field["x-kubernetes-int-or-string"] == true {
        return "number or text".to_owned();
    }
    match field["type"].as_str().unwrap_or_default() {
        "array" => format!("list of {}", type_of(&field["items"])),
        "object" if field["additionalProperties"].is_object() => "map".to_owned(),
        other => other.to_owned(),
    }
}

fn each_field(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value, bool)) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, field) in properties {
        let path = format!("{path}.{name}");
        let required = schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
        visit(&path, field, required);
        each_field(&path, field, visit);
        each_field(&format!("{path}[]"), &field["items"], visit);
    }
}

fn collect_rules(path: &str, schema: &Value, rules: &mut Vec<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        rules.push((path.to_owned(), rule["message"].as_str().unwrap_or_default().to_owned()));
    }
    if schema["items"].is_object() {
        collect_rules(&format!("{path}[]"), &schema["items"], rules);
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        collect_rules(&format!("{path}.{name}"), field, rules);
    }
}
