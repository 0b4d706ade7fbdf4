//! The flags of what one tenant, and one connection of it, may use. Their names without `tenant-` are also the keys of
//! `limits` in the rules of `client-identity`.

use clap::Args;
use serde::Serialize;

use super::{uint32, uint64};

const LIMITS: &str = super::TENANT_LIMITS;

/// See [`super::Flags`]. Zero is without a limit, which is the default of all but the last three: what fits depends on
/// the tenant, and nobody who only replaces etcd's proxy shall be refused anything.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LimitFlags {
    /// connections that one tenant may have open to this proxy (0 for no limit)
    ///
    /// No limit, as in etcd's proxy. Calls on one too many are refused, and it is closed after a second.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_connections: u64,

    /// streams that one tenant may have under way, Lock and Campaign among them (0 for no limit)
    ///
    /// No limit, as in etcd's proxy.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_streams: u64,

    /// watches that one tenant may have (0 for no limit)
    ///
    /// No limit, as in etcd's proxy.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_watches: u64,

    /// requests, other than streams, that one tenant may have under way (0 for no limit)
    ///
    /// No limit, as in etcd's proxy.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_concurrent_requests: u64,

    /// requests that one tenant may make in a second, messages on streams among them (0 for no limit)
    ///
    /// No limit, as in etcd's proxy. Calls beyond it are refused, messages on streams wait.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_requests_per_second: u64,

    /// requests that one tenant may make at once after a pause (0 for as many as in a second)
    ///
    /// A second's worth, so that a client that starts up is not refused.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_request_burst: u64,

    /// bytes that one tenant may send to this proxy in a second (0 for no limit)
    ///
    /// No limit, as in etcd's proxy. What is beyond it waits and is not refused.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_received_bytes_per_second: u64,

    /// bytes that this proxy sends to one tenant in a second (0 for no limit)
    ///
    /// No limit, as in etcd's proxy. What is beyond it waits and is not refused.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_sent_bytes_per_second: u64,

    /// largest request of one tenant, in bytes (0 for what max-send-bytes allows)
    ///
    /// Everybody's limit.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_request_bytes: u64,

    /// largest answer to one tenant, in bytes (0 for what max-recv-bytes allows)
    ///
    /// Everybody's limit. A range that is larger has to be read in pages.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_answer_bytes: u64,

    /// keys that may be stored under the namespace of one tenant (0 for no limit)
    ///
    /// No limit, as in etcd's proxy. They are counted by a watch.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_keys: u64,

    /// bytes of keys and values that may be stored under the namespace of one tenant (0 for no limit)
    ///
    /// No limit, as in etcd's proxy. They are counted by a watch.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub tenant_max_stored_bytes: u64,

    /// watches that one connection may have (0 for no limit)
    ///
    /// No limit, as in etcd's proxy.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub connection_max_watches: u64,

    /// requests that one connection may make in a second (0 for no limit)
    ///
    /// No limit, as in etcd's proxy.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub connection_max_requests_per_second: u64,

    /// bytes that one connection may send to this proxy in a second (0 for no limit)
    ///
    /// No limit, as in etcd's proxy.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub connection_max_received_bytes_per_second: u64,

    /// bytes that this proxy sends to one connection in a second (0 for no limit)
    ///
    /// No limit, as in etcd's proxy.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "0", value_parser = uint64)]
    pub connection_max_sent_bytes_per_second: u64,

    /// requests under way at etcd for all tenants together, dealt out in turn (0 for no limit)
    ///
    /// 128 keep etcd busy. While several tenants call, none gets more than half of them, and there are fewer if etcd
    /// becomes slow (see the next flag). With a single tenant in the configuration there is no such limit.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "128", value_parser = uint64)]
    pub max_upstream_requests: u64,

    /// percent by which several tenants may slow etcd down, before fewer of their requests are let through (0 for any)
    ///
    /// 10 kept a neighbour's slowest calls far below twice their quiet time, and 50 did not. That time is measured.
    #[arg(long, help_heading = LIMITS, value_name = "uint32", default_value = "10", value_parser = uint32)]
    pub max_upstream_slowdown: u32,

    /// memory for answers that must be held whole, in bytes, for all tenants together (0 for no limit)
    ///
    /// 512 MiB. Reads behind a namespace are held until their keys are rewritten; those beyond it are refused.
    #[arg(long, help_heading = LIMITS, value_name = "uint64", default_value = "536870912", value_parser = uint64)]
    pub max_answer_memory: u64,
}
