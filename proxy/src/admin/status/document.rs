//! The document that the status page and `etcd-proxy top` are made of. Counts only grow while the process lives, so that
//! two documents make a rate; times are seconds since 1970.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    pub version: String,
    pub etcd_api_version: String,
    /// Of the machine; in a container, of the Pod.
    pub name: String,
    /// Where clients are served.
    pub listen_address: String,
    pub now: f64,
    pub started: f64,
    pub draining: bool,
    pub ready: bool,
    pub not_ready_because: Vec<String>,
    pub endpoints: Vec<Endpoint>,
    pub tenants: Vec<Tenant>,
    pub clients: Clients,
    pub watches: Watches,
    pub cache: Cache,
    pub leases: Leases,
    pub registration: Registration,
    pub certificates: Vec<Certificate>,
    /// Newest first.
    pub refusals: Vec<Refusal>,
    pub process: Process,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: String,
    pub state: String,
    /// The id of the member, in hexadecimal as etcdctl writes it, once it has told.
    pub member: Option<String>,
    pub answered: u64,
    pub errors: u64,
    /// Calls without an answer.
    pub failures: u64,
    /// How long all answers together let wait.
    pub seconds: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    pub name: String,
    pub profile: String,
    /// Whether it is kept within a prefix of its own; which one is nobody's business here.
    pub has_namespace: bool,
    pub refused: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clients {
    pub connections: i64,
    pub handshakes_failed: u64,
    pub calls: u64,
    pub calls_failed: u64,
    pub calls_under_way: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watches {
    /// Watch RPCs of clients.
    pub streams: i64,
    /// Watches of clients.
    pub clients: i64,
    /// Watches on etcd: those that are shared, and those of clients that catch up.
    pub upstream: i64,
    pub shared: i64,
    pub own: i64,
    /// Client watches that are served from a watch of a wider range.
    pub contained: i64,
    pub falls: u64,
    pub resumes: u64,
    pub events_received: u64,
    pub events_delivered: u64,
    pub log_bytes: i64,
    pub log_max_bytes: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    pub enabled: bool,
    pub hits: i64,
    pub misses: i64,
    pub merged: u64,
    pub ranges: i64,
    pub keys: i64,
    pub bytes: i64,
    pub max_bytes: i64,
    pub drops: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Leases {
    pub kept_alive: i64,
    pub streams: i64,
    pub received: u64,
    pub sent: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// 1 with `--resolver-prefix`, else 0.
    pub wanted: i64,
    pub held: i64,
    /// How many proxies are registered.
    pub known: u64,
    /// The first of them.
    pub proxies: Vec<Proxy>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Proxy {
    pub name: String,
    pub address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// `clients` or `etcd`.
    pub side: String,
    /// `cert`, `ca` or `crl`.
    pub role: String,
    pub file: String,
    pub subject: String,
    pub not_after: Option<f64>,
    pub days_left: Option<f64>,
    /// Why the newest content of the file is not in use.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    pub at: f64,
    pub tenant: String,
    pub reason: String,
    pub what: String,
    /// How many equal ones there were.
    pub count: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub memory_limit_bytes: Option<u64>,
    pub threads: u64,
    pub descriptors: u64,
    pub max_descriptors: Option<u64>,
}
