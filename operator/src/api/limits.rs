//! What a proxy takes on at most: asked for by a tenant, and bounded by the administrator of a backend.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one proxy takes on at most. Each proxy counts by itself, so that several take on that many times as much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Client connections at a time; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections: Option<i32>,
    /// Calls and watches that one connection may have open at a time; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub streams_per_connection: Option<i32>,
    /// Largest request that is sent to etcd, in bytes; 1.5 MiB if absent, which is etcd's own limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 104_857_600))]
    pub request_bytes: Option<i32>,
    /// Events that one shared watch keeps for slower clients, in bytes; 4 MiB if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 65_536, max = 1_073_741_824))]
    pub watch_log_bytes: Option<i32>,
    /// Streams under way at a time, Lock and Campaign among them; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub streams: Option<i32>,
    /// Watches at a time; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub watches: Option<i32>,
    /// Requests other than streams under way at a time; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub concurrent_requests: Option<i32>,
    /// Requests in a second, messages on streams among them; no limit if absent. Calls beyond it are refused, messages wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub requests_per_second: Option<i32>,
    /// Requests at once after a pause; as many as in a second if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub request_burst: Option<i32>,
    /// Bytes that clients may send in a second; no limit if absent. What is beyond it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024))]
    pub received_bytes_per_second: Option<i64>,
    /// Bytes that are sent to clients in a second; no limit if absent. What is beyond it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024))]
    pub sent_bytes_per_second: Option<i64>,
    /// Largest answer, in bytes; no limit if absent. A range that is larger has to be read in pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 2_147_483_647))]
    pub answer_bytes: Option<i32>,
    /// Keys that may be stored under the prefix, counted over all proxies; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub keys: Option<i64>,
    /// Bytes of keys and values that may be stored under the prefix, counted over all proxies; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024))]
    pub stored_bytes: Option<i64>,
    /// What a single connection may use of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_connection: Option<ConnectionLimits>,
}

/// What a single connection may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionLimits {
    /// Watches at a time; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub watches: Option<i32>,
    /// Requests in a second; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub requests_per_second: Option<i32>,
    /// Bytes that it may send in a second; no limit if absent. What is beyond it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024))]
    pub received_bytes_per_second: Option<i64>,
    /// Bytes that are sent to it in a second; no limit if absent. What is beyond it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024))]
    pub sent_bytes_per_second: Option<i64>,
}

impl Limits {
    /// The lesser of each of two.
    pub fn and(&self, other: &Limits) -> Limits {
        Limits {
            connections: lesser(&self.connections, &other.connections),
            streams_per_connection: lesser(&self.streams_per_connection, &other.streams_per_connection),
            request_bytes: lesser(&self.request_bytes, &other.request_bytes),
            watch_log_bytes: lesser(&self.watch_log_bytes, &other.watch_log_bytes),
            streams: lesser(&self.streams, &other.streams),
            watches: lesser(&self.watches, &other.watches),
            concurrent_requests: lesser(&self.concurrent_requests, &other.concurrent_requests),
            requests_per_second: lesser(&self.requests_per_second, &other.requests_per_second),
            request_burst: lesser(&self.request_burst, &other.request_burst),
            received_bytes_per_second: lesser(&self.received_bytes_per_second, &other.received_bytes_per_second),
            sent_bytes_per_second: lesser(&self.sent_bytes_per_second, &other.sent_bytes_per_second),
            answer_bytes: lesser(&self.answer_bytes, &other.answer_bytes),
            keys: lesser(&self.keys, &other.keys),
            stored_bytes: lesser(&self.stored_bytes, &other.stored_bytes),
            per_connection: match (&self.per_connection, &other.per_connection) {
                (Some(one), Some(other)) => Some(one.and(other)),
                (one, other) => one.clone().or_else(|| other.clone()),
            },
        }
    }
}

impl ConnectionLimits {
    fn and(&self, other: &ConnectionLimits) -> ConnectionLimits {
        ConnectionLimits {
            watches: lesser(&self.watches, &other.watches),
            requests_per_second: lesser(&self.requests_per_second, &other.requests_per_second),
            received_bytes_per_second: lesser(&self.received_bytes_per_second, &other.received_bytes_per_second),
            sent_bytes_per_second: lesser(&self.sent_bytes_per_second, &other.sent_bytes_per_second),
        }
    }
}

fn lesser<T: Copy + Ord>(one: &Option<T>, other: &Option<T>) -> Option<T> {
    (*one).into_iter().chain(*other).min()
}
