//! The proxies that serve the same cluster: this one registers itself under a lease, and knows the others.
//!
//! Keys and values are those of etcd's naming package for Go, `<prefix>/<address>` with a JSON value, so that proxies of
//! both kinds see each other and Go clients resolve them by `etcd://`.

mod registration;
mod roster;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use etcd_proxy_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    drain,
    metrics::Metrics,
    rules::{
        keys::{KeyRange, prefix_end},
        namespace::Namespace,
    },
    upstream::Upstream,
};

/// How this proxy registers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shared by all proxies of the cluster.
    pub prefix: String,
    /// How long the registration outlives a proxy that crashed.
    pub ttl_seconds: i64,
    pub this: Proxy,
}

/// A proxy as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Where its clients reach it, as it was told to advertise.
    pub address: String,
    /// The name of its machine.
    pub name: String,
}

/// The proxies that are registered, as of a revision of the store.
#[derive(Debug, Default)]
pub struct Registered {
    /// Before the first answer of etcd there is none.
    revision: i64,
    by_key: BTreeMap<Bytes, Proxy>,
}

/// More proxies than one cluster has. It keeps junk that someone writes under the prefix from filling the memory, and
/// ten thousand of usual size fit into the 4 MiB that gRPC clients take by default.
const MAX_REGISTERED: usize = 10_000;

/// Registers this proxy until the drain begins, and follows who is registered.
pub fn start(
    config: Config,
    upstream: &Upstream,
    namespace: &Namespace,
    metrics: &Arc<Metrics>,
    drain: drain::Watcher,
) -> (watch::Receiver<Registered>, [JoinHandle<()>; 2]) {
    let (registered, receiver) = watch::channel(Registered::default());
    let all = Bytes::from(format!("{}/", config.prefix));
    let range = namespace.prefix_range(&KeyRange::of_watch(all.clone(), prefix_end(&all)));
    let key = namespace.prefix_key(&Bytes::from(format!("{}/{}", config.prefix, config.this.address)));
    let follow = tokio::spawn(roster::run(upstream.clone(), range, registered));
    let register =
        tokio::spawn(registration::run(config, upstream.clone(), key, receiver.clone(), metrics.clone(), drain));
    (receiver, [follow, register])
}

impl Registered {
    /// Everyone who can be reached somewhere, in the order of their keys.
    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.by_key.values().filter(|proxy| !proxy.address.is_empty())
    }

    /// Whether a key that was written at `written` is known to be gone.
    fn lost(&self, key: &Bytes, written: i64) -> bool {
        self.revision >= written && !self.by_key.contains_key(key)
    }

    fn put(&mut self, pair: KeyValue) {
        match Record::read(&pair.value) {
            Ok(proxy) if self.by_key.len() < MAX_REGISTERED || self.by_key.contains_key(&pair.key) => {
                self.by_key.insert(pair.key, proxy);
            }
            Ok(proxy) => {
                tracing::warn!(
                    addr = proxy.address,
                    most = MAX_REGISTERED,
                    "leaving out a registered proxy, there are too many"
                );
            }
            Err(error) => {
                tracing::warn!(key = %pair.key.escape_ascii(), %error, "unmarshal endpoint update failed");
            }
        }
    }

    fn delete(&mut self, key: &Bytes) {
        self.by_key.remove(key);
    }
}

/// What stands in etcd: `Update` of etcd's naming package, whose spelling comes from gRPC's first resolvers.
#[derive(Serialize, Deserialize)]
struct Record {
    /// 0 for "added"; removal is the end of the key.
    #[serde(rename = "Op", default)]
    operation: u8,
    #[serde(rename = "Addr", default)]
    address: String,
    /// Any JSON to the naming package; proxies put a text there that is itself JSON.
    #[serde(rename = "Metadata", default)]
    metadata: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    name: String,
}

impl Record {
    fn write(proxy: &Proxy) -> Bytes {
        let metadata = serde_json::json!({ "name": proxy.name }).to_string();
        let record = Record { operation: 0, address: proxy.address.clone(), metadata: metadata.into() };
        serde_json::to_vec(&record).expect("numbers and texts have a JSON form").into()
    }

    /// An entry that some other program registered may have no metadata, or other; it is shown under its address.
    fn read(value: &[u8]) -> Result<Proxy, serde_json::Error> {
        // By way of a map, as serde would take a list for the fields in their order, which Go does not.
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(value)?;
        let record = Record::deserialize(serde_json::Value::Object(fields))?;
        let metadata = record.metadata.as_str().and_then(|text| serde_json::from_str::<Metadata>(text).ok());
        let name = metadata.map(|metadata| metadata.name).filter(|name| !name.is_empty());
        Ok(Proxy { name: name.unwrap_or_else(|| record.address.clone()), address: record.address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(address: &str, name: &str) -> Proxy {
        Proxy { address: address.into(), name: name.into() }
    }

    #[test]
    fn records_that_are_damaged_are_read_or_refused() {
        let records: [&[u8]; 3] = [
            br#"{"Op":0,"Addr":"http://127.0.0.1:23790","Metadata":"{\"name\":\"host\"}"}"#,
            br#"{"Op":0,"Addr":"a:1","Metadata":{"name":["x"],"y":1e9}}"#,
            br#"["a"]"#,
        ];
        crate::foreign::damaged(&records, |bytes| Record::read(bytes).map(|proxy| Record::write(&proxy)));
    }

    #[test]
    fn a_record_is_spelled_as_etcds_naming_package_spells_it() {
        let written = Record::write(&proxy("127.0.0.1:23790", "host-1"));
        assert_eq!(&written[..], br#"{"Op":0,"Addr":"127.0.0.1:23790","Metadata":"{\"name\":\"host-1\"}"}"#);
        assert_eq!(Record::read(&written).expect("our own"), proxy("127.0.0.1:23790", "host-1"));
    }

    #[test]
    fn records_of_others_are_read_as_far_as_they_go() {
        for (value, expected) in [
            (r#"{"Op":0,"Addr":"a:1","Metadata":null}"#, Some(proxy("a:1", "a:1"))),
            (r#"{"Op":0,"Addr":"a:1","Metadata":{"weight":3}}"#, Some(proxy("a:1", "a:1"))),
            (r#"{"Addr":"a:1","Metadata":"{\"name\":\"\"}"}"#, Some(proxy("a:1", "a:1"))),
            ("junk", None),
            ("[]", None),
        ] {
            assert_eq!(Record::read(value.as_bytes()).ok(), expected, "{value}");
        }
    }

    fn pair(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ..KeyValue::default()
        }
    }

    #[test]
    fn a_registration_is_lost_only_when_a_newer_revision_is_without_it() {
        let key = Bytes::from_static(b"p/a:1");
        let mut registered = Registered { revision: 6, ..Registered::default() };
        assert!(!registered.lost(&key, 7), "what is seen is older than the registration");
        registered.revision = 7;
        registered.put(pair("p/a:1", r#"{"Op":0,"Addr":"a:1"}"#));
        assert!(!registered.lost(&key, 7));
        registered.delete(&key);
        assert!(registered.lost(&key, 7));
    }

    #[test]
    fn junk_under_the_prefix_does_not_fill_the_memory() {
        let mut registered = Registered::default();
        for number in 0..MAX_REGISTERED + 5 {
            registered.put(pair(&format!("p/{number:05}"), r#"{"Op":0,"Addr":"a:1"}"#));
        }
        assert_eq!(registered.proxies().count(), MAX_REGISTERED);
        registered.put(pair("p/00000", r#"{"Op":0,"Addr":"b:1"}"#));
        assert_eq!(registered.proxies().next().expect("the first").address, "b:1");
        registered.put(pair("p/00000", "no record"));
        assert_eq!(
            registered.proxies().next().expect("the first").address,
            "b:1",
            "what cannot be read changes nothing"
        );
    }
}
