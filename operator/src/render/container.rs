//! The proxy's container: the only place that writes the proxy's flags.

use serde_json::{Map, Value, json};

use crate::api::{Advertise, Compact, KeyRef, Limits, Profile, RefKind};
use crate::plan::{Ca, Claim, PASSWORD, Proxy, Serving, USERNAME};

/// The container's name, by which injection also knows that a pod has one already.
pub const NAME: &str = "etcd-proxy";
/// The name of the container that claims keys; by it its end is found in a pod's status.
pub const CLAIM: &str = "claim";
/// What that ends with when the keys are another's.
pub const FOREIGN: i32 = 3;
/// The user of the image, which has no other.
pub const USER: i64 = 65532;
/// Everything that is mounted stands below. Whole directories are mounted and never single files, since those do not
/// follow when a Secret changes.
const FILES: &str = "/etc/etcd-proxy";

/// All addresses of the pod. Not `[::]`, which fails on nodes without IPv6.
const ANY: &str = "0.0.0.0";

/// How long a sidecar may take to be ready before it is started anew; applications wait for it meanwhile.
const STARTUP_PROBES: i64 = 60;

const UPSTREAM: &str = "etcd-proxy-upstream";
const UPSTREAM_CA: &str = "etcd-proxy-upstream-ca";
const UPSTREAM_USER: &str = "etcd-proxy-upstream-user";
const SERVING: &str = "etcd-proxy-serving";
const CLIENTS: &str = "etcd-proxy-clients";

/// The container of a proxy whose clients know it by `url`.
pub fn container(proxy: &Proxy, url: &str) -> Value {
    let mut ports = vec![];
    if !proxy.loopback {
        ports.push(json!({"name": "client", "containerPort": proxy.port, "protocol": "TCP"}));
    }
    ports.push(json!({"name": "metrics", "containerPort": proxy.metrics_port, "protocol": "TCP"}));
    let mut container = json!({
        "name": NAME,
        "image": proxy.image,
        "args": arguments(proxy, url),
        "ports": ports,
        "readinessProbe": probe("/readyz", proxy, 5, 2),
        "livenessProbe": probe("/livez", proxy, 10, 6),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": volume_mounts(mounts(proxy)),
    });
    let environment = environment(proxy);
    if !environment.is_empty() {
        container["env"] = json!(environment);
    }
    if let Some(resources) = &proxy.resources {
        container["resources"] = amounts(json!(resources));
    }
    container
}

/// The same as a native sidecar: started before the application, and ready first.
pub fn sidecar(proxy: &Proxy, url: &str) -> Value {
    let mut container = container(proxy, url);
    container["restartPolicy"] = json!("Always");
    container["startupProbe"] = probe("/readyz", proxy, 1, STARTUP_PROBES);
    container
}

/// Runs before a proxy on a backend, and lets it start only if the keys are its tenant's.
pub fn claim(proxy: &Proxy, claim: &Claim) -> Value {
    let mut arguments = keyspace_arguments("claim", proxy);
    arguments.push("claim-key", &claim.key);
    arguments.push("claim-value", &claim.value);
    keyspace_container(CLAIM, proxy, arguments)
}

/// Deletes the keys of an object that is gone.
pub fn purge(proxy: &Proxy, claim: &Claim) -> Value {
    let mut arguments = keyspace_arguments("purge", proxy);
    arguments.push("prefix", &proxy.prefix);
    arguments.push("claimed-prefix", &claim.covers);
    arguments.push("claim-key", &claim.key);
    arguments.push("claim-value", &claim.value);
    keyspace_container("purge", proxy, arguments)
}

fn keyspace_arguments(word: &str, proxy: &Proxy) -> Flags {
    let mut flags = Flags(vec!["keyspace".to_owned(), word.to_owned()]);
    flags.push("endpoints", proxy.endpoints.join(","));
    upstream_tls(&mut flags, proxy);
    upstream_user(&mut flags, proxy);
    flags
}

fn keyspace_container(name: &str, proxy: &Proxy, arguments: Flags) -> Value {
    let whole = container(proxy, "");
    let mut container = json!({
        "name": name,
        "image": whole["image"],
        "args": arguments.0,
        "securityContext": whole["securityContext"],
        "volumeMounts": volume_mounts(upstream_mounts(proxy)),
        // The last line says what came of it; the operator reads it in the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Some(name) = user_name(proxy) {
        container["env"] = json!([name]);
    }
    if !whole["resources"].is_null() {
        container["resources"] = whole["resources"].clone();
    }
    container
}

/// Kubernetes keeps amounts as text; a number would read as a difference for ever.
fn amounts(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.to_string()),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, amounts(value))).collect(),
        other => other,
    }
}

fn probe(path: &str, proxy: &Proxy, period: i64, failures: i64) -> Value {
    json!({
        "httpGet": {"path": path, "port": proxy.metrics_port, "scheme": "HTTP"},
        "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures,
    })
}

/// The arguments. The command that the image starts is the proxy itself.
pub fn arguments(proxy: &Proxy, url: &str) -> Vec<String> {
    let mut flags = Flags(vec!["grpc-proxy".to_owned(), "start".to_owned()]);
    let host = if proxy.loopback { "127.0.0.1" } else { ANY };
    flags.push("listen-addr", format!("{host}:{}", proxy.port));
    flags.push("metrics-addr", format!("http://{ANY}:{}", proxy.metrics_port));
    flags.push("endpoints", proxy.endpoints.join(","));
    if !proxy.prefix.is_empty() {
        flags.push("namespace", &proxy.prefix);
    }
    upstream_tls(&mut flags, proxy);
    upstream_user(&mut flags, proxy);
    if let Serving::Tls { clients, .. } = &proxy.serving {
        flags.push("cert-file", format!("{FILES}/serving/tls.crt"));
        flags.push("key-file", format!("{FILES}/serving/tls.key"));
        match clients {
            Some(Ca::WithPair(key)) => flags.push("trusted-ca-file", format!("{FILES}/serving/{key}")),
            Some(Ca::Apart(reference)) => flags.push("trusted-ca-file", format!("{FILES}/clients/{}", reference.key)),
            None => (),
        }
    }
    match &proxy.registration {
        // Clients that read the member list come back to where they are.
        None => flags.push("advertise-client-url", url),
        Some(registration) => {
            let scheme = if proxy.serving == Serving::Clear { "http" } else { "https" };
            let address = match registration.advertise {
                // The proxy makes the name of it, since Kubernetes has no variable with dashes.
                Advertise::PodDNS | Advertise::PodIP => "$(POD_IP)",
                Advertise::HostIP => "$(HOST_IP)",
            };
            flags.push("advertise-client-url", format!("{scheme}://{address}:{}", registration.port));
            if let Some(domain) = &registration.pod_domain {
                flags.push("advertise-pod-domain", domain);
            }
            flags.push("resolver-prefix", &registration.prefix);
            flags.push("resolver-ttl", registration.ttl_seconds.to_string());
        }
    }
    let profile = match proxy.profile {
        Profile::Full => "full",
        Profile::Tenant => "tenant",
        Profile::ReadOnly => "read-only",
    };
    flags.push("api-profile", profile);
    let compact = match proxy.compact {
        Compact::Deny => "deny",
        Compact::Ignore => "ignore",
        Compact::Allow => "allow",
    };
    flags.push("api-compact", compact);
    for (flag, methods) in [("api-allow", &proxy.allow), ("api-deny", &proxy.deny)] {
        if !methods.is_empty() {
            flags.push(flag, methods.join(","));
        }
    }
    limits(&mut flags, &proxy.limits);
    flags.push("drain-timeout", format!("{}s", proxy.drain_seconds));
    flags.0
}

fn upstream_tls(flags: &mut Flags, proxy: &Proxy) {
    let Some(tls) = &proxy.upstream_tls else { return };
    if tls.pair.is_some() {
        flags.push("cert", format!("{FILES}/upstream/tls.crt"));
        flags.push("key", format!("{FILES}/upstream/tls.key"));
    }
    match &tls.ca {
        Some(Ca::WithPair(key)) => flags.push("cacert", format!("{FILES}/upstream/{key}")),
        Some(Ca::Apart(reference)) => flags.push("cacert", format!("{FILES}/upstream-ca/{}", reference.key)),
        None => (),
    }
    if let Some(name) = &tls.server_name {
        flags.push("tls-server-name", name);
    }
}

/// The name comes from the Secret by a variable, since the operator may not be allowed to read it; the password by a
/// file, which follows when it changes and is seen by nobody who lists processes.
fn upstream_user(flags: &mut Flags, proxy: &Proxy) {
    if proxy.upstream_user.is_some() {
        flags.push("user", "$(UPSTREAM_USER)");
        flags.push("password-file", format!("{FILES}/upstream-user/{PASSWORD}"));
    }
}

fn limits(flags: &mut Flags, limits: &Limits) {
    // Without `..`, so that a new limit is not missed here.
    let Limits {
        connections,
        streams_per_connection,
        request_bytes,
        watch_log_bytes,
        streams,
        watches,
        concurrent_requests,
        requests_per_second,
        request_burst,
        received_bytes_per_second,
        sent_bytes_per_second,
        answer_bytes,
        keys,
        stored_bytes,
        per_connection,
    } = limits;
    let connection = per_connection.clone().unwrap_or_default();
    let wide = |limit: &Option<i32>| limit.map(i64::from);
    // All clients of these proxies are one tenant, so what a tenant may use is what they may use together.
    for (flag, limit) in [
        ("max-connections", wide(connections)),
        ("max-concurrent-streams", wide(streams_per_connection)),
        ("max-send-bytes", wide(request_bytes)),
        ("watch-log-max-bytes", wide(watch_log_bytes)),
        ("tenant-max-streams", wide(streams)),
        ("tenant-max-watches", wide(watches)),
        ("tenant-max-concurrent-requests", wide(concurrent_requests)),
        ("tenant-max-requests-per-second", wide(requests_per_second)),
        ("tenant-request-burst", wide(request_burst)),
        ("tenant-max-received-bytes-per-second", *received_bytes_per_second),
        ("tenant-max-sent-bytes-per-second", *sent_bytes_per_second),
        ("tenant-max-answer-bytes", wide(answer_bytes)),
        ("tenant-max-keys", *keys),
        ("tenant-max-stored-bytes", *stored_bytes),
        ("connection-max-watches", wide(&connection.watches)),
        ("connection-max-requests-per-second", wide(&connection.requests_per_second)),
        ("connection-max-received-bytes-per-second", connection.received_bytes_per_second),
        ("connection-max-sent-bytes-per-second", connection.sent_bytes_per_second),
    ] {
        if let Some(limit) = limit {
            flags.push(flag, limit.to_string());
        }
    }
}

struct Flags(Vec<String>);

impl Flags {
    /// Kubernetes reads a dollar sign before a bracket as a variable and two of them as one, so each is doubled, unless
    /// the variable is ours. Doubling only those before brackets would leave `$$(NAME)` a variable.
    fn push(&mut self, name: &str, value: impl AsRef<str>) {
        let value = value.as_ref();
        let is_ours = matches!(name, "advertise-client-url" | "user");
        let value = if is_ours { value.to_owned() } else { value.replace('$', "$$") };
        self.0.push(format!("--{name}={value}"));
    }
}

fn environment(proxy: &Proxy) -> Vec<Value> {
    let mut variables: Vec<Value> = user_name(proxy).into_iter().collect();
    let Some(registration) = &proxy.registration else { return variables };
    let (name, field) = match registration.advertise {
        Advertise::PodDNS | Advertise::PodIP => ("POD_IP", "status.podIP"),
        Advertise::HostIP => ("HOST_IP", "status.hostIP"),
    };
    variables.push(json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": field}}}));
    variables
}

fn user_name(proxy: &Proxy) -> Option<Value> {
    let reference = json!({"name": proxy.upstream_user.as_ref()?, "key": USERNAME});
    Some(json!({"name": "UPSTREAM_USER", "valueFrom": {"secretKeyRef": reference}}))
}

struct Mount {
    volume: &'static str,
    kind: RefKind,
    name: String,
    /// One key, where a reference names one.
    key: Option<String>,
}

impl Mount {
    fn secret(volume: &'static str, name: &str) -> Mount {
        Mount { volume, kind: RefKind::Secret, name: name.to_owned(), key: None }
    }

    fn reference(volume: &'static str, reference: &KeyRef) -> Mount {
        Mount { volume, kind: reference.kind, name: reference.name.clone(), key: Some(reference.key.clone()) }
    }

    fn path(&self) -> String {
        format!("{FILES}/{}", self.volume.trim_start_matches("etcd-proxy-"))
    }
}

fn volume_mounts(mounts: Vec<Mount>) -> Value {
    let one = |mount: Mount| json!({"name": mount.volume, "mountPath": mount.path(), "readOnly": true});
    mounts.into_iter().map(one).collect()
}

fn upstream_mounts(proxy: &Proxy) -> Vec<Mount> {
    let mut mounts = vec![];
    if let Some(tls) = &proxy.upstream_tls {
        mounts.extend(tls.pair.as_ref().map(|secret| Mount::secret(UPSTREAM, secret)));
        if let Some(Ca::Apart(reference)) = &tls.ca {
            mounts.push(Mount::reference(UPSTREAM_CA, reference));
        }
    }
    if let Some(secret) = &proxy.upstream_user {
        let key = Some(PASSWORD.to_owned());
        mounts.push(Mount { volume: UPSTREAM_USER, kind: RefKind::Secret, name: secret.clone(), key });
    }
    mounts
}

fn mounts(proxy: &Proxy) -> Vec<Mount> {
    let mut mounts = upstream_mounts(proxy);
    if let Serving::Tls { secret, clients } = &proxy.serving {
        mounts.push(Mount::secret(SERVING, secret));
        if let Some(Ca::Apart(reference)) = clients {
            mounts.push(Mount::reference(CLIENTS, reference));
        }
    }
    mounts
}

/// The volumes that the container mounts.
pub fn volumes(proxy: &Proxy) -> Vec<Value> {
    made_of(mounts(proxy))
}

/// Those of them that lead to etcd.
pub fn upstream_volumes(proxy: &Proxy) -> Vec<Value> {
    made_of(upstream_mounts(proxy))
}

fn made_of(mounts: Vec<Mount>) -> Vec<Value> {
    let volume = |mount: Mount| {
        let mut source = Map::new();
        let name = if mount.kind == RefKind::Secret { "secretName" } else { "name" };
        source.insert(name.to_owned(), json!(mount.name));
        if let Some(key) = &mount.key {
            source.insert("items".to_owned(), json!([{"key": key, "path": key}]));
        }
        let kind = if mount.kind == RefKind::Secret { "secret" } else { "configMap" };
        json!({"name": mount.volume, kind: source})
    };
    mounts.into_iter().map(volume).collect()
}
