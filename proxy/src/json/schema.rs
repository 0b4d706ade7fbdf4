//! Which RPC a path is, and what its messages are: read off etcd's own descriptors, so that no RPC is named here.

use std::collections::HashMap;

use etcd_proxy_proto::FILE_DESCRIPTOR_SET;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, Value};

/// One RPC that may be called by path.
#[derive(Clone, Debug)]
pub struct Route {
    /// `/etcdserverpb.KV/Range`.
    pub grpc_path: String,
    /// Every path that leads here, etcd's preferred one first.
    pub paths: Vec<String>,
    pub input: MessageDescriptor,
    pub output: MessageDescriptor,
    /// Whether the client sends any number of messages.
    pub takes_stream: bool,
    /// Whether the answer is any number of messages.
    pub gives_stream: bool,
}

/// Every RPC of etcd's, by path.
#[derive(Debug)]
pub struct Schema {
    routes: Vec<Route>,
    by_path: HashMap<String, usize>,
}

/// The option that says where etcd's gateway serves an RPC.
const HTTP_OPTION: &str = "google.api.http";
/// Services that are part of the descriptors and not of etcd's API have another package.
const PACKAGES: [&str; 3] = ["etcdserverpb", "v3lockpb", "v3electionpb"];

impl Schema {
    pub fn of_etcd() -> Self {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the test of proto keeps the descriptors good");
        let services = pool.services().filter(|service| PACKAGES.contains(&service.package_name()));
        let routes: Vec<Route> = services
            .flat_map(|service| service.methods().map(|method| route(&pool, &method)).collect::<Vec<_>>())
            .collect();
        let by_path = routes.iter().enumerate();
        let by_path =
            by_path.flat_map(|(index, route)| route.paths.iter().map(move |path| (path.clone(), index))).collect();
        Self { routes, by_path }
    }

    pub fn find(&self, path: &str) -> Option<&Route> {
        self.by_path.get(path).map(|index| &self.routes[*index])
    }

    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

fn route(pool: &DescriptorPool, method: &MethodDescriptor) -> Route {
    let service = method.parent_service();
    let mut paths = bound_paths(pool, method);
    if paths.is_empty() {
        // etcd gives no path to what its gateway does not serve; this one is as the others are.
        paths.push(format!("/v3/{}/{}", service.name().to_lowercase(), method.name().to_lowercase()));
    }
    Route {
        grpc_path: format!("/{}/{}", service.full_name(), method.name()),
        paths,
        input: method.input(),
        output: method.output(),
        takes_stream: method.is_client_streaming(),
        gives_stream: method.is_server_streaming(),
    }
}

/// The paths of the method's HTTP rule and of its additional bindings. etcd binds by POST with the whole body only.
fn bound_paths(pool: &DescriptorPool, method: &MethodDescriptor) -> Vec<String> {
    let Some(option) = pool.get_extension_by_name(HTTP_OPTION) else { return Vec::new() };
    let options = method.options();
    if !options.has_extension(&option) {
        return Vec::new();
    }
    let rule = options.get_extension(&option);
    let Some(rule) = rule.as_message() else { return Vec::new() };
    let additional = rule.get_field_by_name("additional_bindings");
    let additional = additional.as_deref().and_then(Value::as_list).unwrap_or_default();
    let rules = std::iter::once(rule).chain(additional.iter().filter_map(Value::as_message));
    rules.filter_map(posted).collect()
}

fn posted(rule: &DynamicMessage) -> Option<String> {
    Some(rule.get_field_by_name("post")?.as_str()?.to_owned()).filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use prost_reflect::Kind;

    use super::*;
    use crate::rules::methods::METHODS;

    #[test]
    fn every_rpc_of_etcd_has_a_path_and_no_path_has_two() {
        let schema = Schema::of_etcd();
        let etcds = METHODS.iter().filter(|method| !method.path.starts_with("/grpc."));
        for method in etcds {
            let route = schema.routes().iter().find(|route| route.grpc_path == method.path);
            let route = route.unwrap_or_else(|| panic!("{} has no path", method.path));
            for path in &route.paths {
                assert_eq!(schema.find(path).map(|found| &found.grpc_path), Some(&route.grpc_path), "{path}");
                assert!(path.starts_with("/v3/"), "{path}");
            }
        }
        let paths: usize = schema.routes().iter().map(|route| route.paths.len()).sum();
        assert_eq!(paths, schema.by_path.len());
        for (path, rpc) in [
            ("/v3/kv/range", "/etcdserverpb.KV/Range"),
            ("/v3/kv/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
            ("/v3/maintenance/transfer-leadership", "/etcdserverpb.Maintenance/MoveLeader"),
            ("/v3/lock/lock", "/v3lockpb.Lock/Lock"),
            // etcd's gateway has no path for it.
            ("/v3/kv/rangestream", "/etcdserverpb.KV/RangeStream"),
        ] {
            assert_eq!(schema.find(path).map(|route| route.grpc_path.as_str()), Some(rpc), "{path}");
        }
    }

    #[test]
    fn etcds_messages_hold_only_what_is_written_and_read_here_in_the_order_of_their_numbers() {
        let schema = Schema::of_etcd();
        let mut waiting: Vec<MessageDescriptor> =
            schema.routes().iter().flat_map(|route| [route.input.clone(), route.output.clone()]).collect();
        let mut seen: Vec<String> = Vec::new();
        while let Some(message) = waiting.pop() {
            if seen.iter().any(|name| name == message.full_name()) {
                continue;
            }
            seen.push(message.full_name().to_owned());
            let mut declared = None;
            for field in message.fields() {
                let name = field.full_name().to_owned();
                assert!(!field.is_map() && !field.is_group(), "{name}");
                assert!(!matches!(field.kind(), Kind::Float | Kind::Double), "{name}");
                // The gateway writes fields as they are declared, and `encode` by number.
                let place = field.path().last().copied();
                assert!(declared < place, "{name} is not declared in the order of the numbers");
                declared = place;
                if let Kind::Message(inner) = field.kind() {
                    assert!(!inner.full_name().starts_with("google."), "{name}");
                    waiting.push(inner);
                }
            }
        }
        assert!(seen.len() > 60, "{}", seen.len());
    }
}
