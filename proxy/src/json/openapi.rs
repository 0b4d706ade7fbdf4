//! `/openapi.json`: what can be asked by which path, for people and for generators of clients, made from the descriptors.

use std::collections::BTreeMap;

use etcd_proxy_proto::ETCD_VERSION;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::schema::{Route, Schema};

/// The document as text.
pub fn document(schema: &Schema) -> String {
    let mut messages = BTreeMap::new();
    let mut paths = Map::new();
    for route in schema.routes() {
        note(&route.input, &mut messages);
        note(&route.output, &mut messages);
        for (index, path) in route.paths.iter().enumerate() {
            paths.insert(path.clone(), json!({ "post": operation(route, index) }));
        }
    }
    let mut schemas: Map<String, Value> =
        messages.iter().map(|(name, message)| (name.clone(), object(message))).collect();
    schemas.insert(ERROR.to_owned(), error());
    let document = json!({
        "openapi": "3.0.3",
        "info": {
            "title": "etcd",
            "version": ETCD_VERSION,
            "description": "etcd's gRPC API as JSON. Bytes, such as keys and values, are base64; 64-bit numbers are \
                            strings; what is not set is left out. A stream is one JSON object in each line.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "The token that /v3/auth/authenticate gives.",
            } },
        },
        "security": [{}, { "token": [] }],
    });
    document.to_string()
}

const ERROR: &str = "google.rpc.Status";

fn operation(route: &Route, index: usize) -> Value {
    let rpc = route.grpc_path.trim_start_matches('/');
    let (service, method) = rpc.rsplit_once('/').unwrap_or(("", rpc));
    let service = service.rsplit('.').next().unwrap_or_default();
    let again = if index == 0 { String::new() } else { (index + 1).to_string() };
    let input = reference(&route.input);
    let output = if route.gives_stream {
        json!({ "type": "object", "properties": { "result": reference(&route.output), "error": reference_to(ERROR) } })
    } else {
        reference(&route.output)
    };
    let (takes, gives) = (route.takes_stream, route.gives_stream);
    let input_form = if takes { "One or more JSON objects, one after the other." } else { "One JSON object." };
    let output_form = if gives { "One JSON object in each line." } else { "One JSON object." };
    json!({
        "operationId": format!("{service}_{method}{again}"),
        "tags": [service],
        "summary": rpc,
        "requestBody": { "required": true, "description": input_form, "content": content(input) },
        "responses": {
            "200": { "description": output_form, "content": content(output) },
            "default": { "description": "What went wrong.", "content": content(reference_to(ERROR)) },
        },
    })
}

fn content(schema: Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

/// A message and all that stand in it.
fn note(message: &MessageDescriptor, messages: &mut BTreeMap<String, MessageDescriptor>) {
    if messages.insert(message.full_name().to_owned(), message.clone()).is_some() {
        return;
    }
    for field in message.fields() {
        if let Kind::Message(inner) = field.kind() {
            note(&inner, messages);
        }
    }
}

fn object(message: &MessageDescriptor) -> Value {
    let properties: Map<String, Value> =
        message.fields().map(|field| (field.name().to_owned(), property(&field))).collect();
    json!({ "type": "object", "properties": properties })
}

fn property(field: &FieldDescriptor) -> Value {
    let one = match field.kind() {
        Kind::Message(message) => reference(&message),
        Kind::Enum(names) => {
            let names: Vec<String> = names.values().map(|value| value.name().to_owned()).collect();
            json!({ "type": "string", "enum": names })
        }
        Kind::Bytes => json!({ "type": "string", "format": "byte" }),
        Kind::String => json!({ "type": "string" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Double | Kind::Float => json!({ "type": "number" }),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({ "type": "string", "format": "int64" }),
        Kind::Uint64 | Kind::Fixed64 => json!({ "type": "string", "format": "uint64" }),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({ "type": "integer", "format": "int32" }),
        Kind::Uint32 | Kind::Fixed32 => json!({ "type": "integer", "format": "int64" }),
    };
    if field.is_list() { json!({ "type": "array", "items": one }) } else { one }
}

fn error() -> Value {
    json!({
        "type": "object",
        "properties": {
            "code": { "type": "integer", "format": "int32", "description": "A gRPC code." },
            "message": { "type": "string" },
        },
    })
}

fn reference(message: &MessageDescriptor) -> Value {
    reference_to(message.full_name())
}

fn reference_to(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of a value.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str() {
                        Some(target) if name == "$ref" => found.push(target),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => (),
        }
    }

    #[test]
    fn the_document_has_every_path_and_refers_to_nothing_that_it_lacks() {
        let schema = Schema::of_etcd();
        let text = document(&schema);
        let document: Value = serde_json::from_str(&text).expect("it is JSON");
        for path in schema.routes().iter().flat_map(|route| &route.paths) {
            assert!(document["paths"][path]["post"]["operationId"].is_string(), "{path}");
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100, "{}", found.len());
        for target in found {
            let pointer = target.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some_and(Value::is_object), "{target}");
        }
        let mut ids: Vec<&str> = document["paths"]
            .as_object()
            .expect("paths")
            .values()
            .filter_map(|path| path["post"]["operationId"].as_str())
            .collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "an operation's name is its own");
        let key = &document["components"]["schemas"]["mvccpb.KeyValue"]["properties"];
        assert_eq!(key["key"], json!({ "type": "string", "format": "byte" }));
        assert_eq!(key["lease"], json!({ "type": "string", "format": "int64" }));
    }
}
