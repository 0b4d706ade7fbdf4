//! What each tenant with a quota has stored, kept by a watch: everything under its prefix is read once, in pages, and
//! then each event says what it adds and what it takes away.
//!
//! So the proxy holds two numbers and no keys. They are behind by what etcd has not told yet: a tenant can go over its
//! quota by what its clients write, through all proxies, in that time, which is milliseconds while etcd is well. While
//! etcd cannot be watched the last numbers stand, and before the first reading has ended nothing is refused.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use etcd_proxy_proto::{
    etcdserverpb::{RangeRequest, ResponseHeader, WatchCreateRequest, kv_client::KvClient},
    mvccpb::{Event, KeyValue, event::EventType},
};

use crate::{
    backoff::Backoff,
    exchange::until,
    rules::{
        keys::{KeyRange, NUL},
        status::{self, Status},
        store,
        tenant::Tenant,
    },
    upstream::{
        OWN_CALL_TIMEOUT, Upstream,
        own_watch::{self, OwnWatch},
    },
};

/// Between tries to follow the prefix.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(15);
/// Keys that are read at a time: few at first, since each may be as large as a request, and more as long as they are
/// small.
const FIRST_PAGE: i64 = 64;
const LARGEST_PAGE: i64 = 1024;
/// What a page should not be larger than by much.
const PAGE_BYTES: i64 = 4 << 20;

/// Keeps the numbers of one tenant for as long as it runs.
pub async fn run(upstream: Upstream, tenant: Arc<Tenant>) {
    let range = tenant.namespace.prefix_range(&KeyRange::all());
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut known = None;
    loop {
        let outcome = async {
            let from = match known {
                Some(from) => from,
                None => {
                    let (counted, header) = count(&upstream, &tenant, &range).await?;
                    note(&tenant, counted);
                    *known.insert(header)
                }
            };
            let known = known.get_or_insert(from);
            follow(&upstream, &tenant, &range, known, &mut backoff).await
        };
        match outcome.await {
            Ok(Lost) => known = None,
            Err(status) => {
                tracing::debug!(tenant = tenant.name, error = status.message(), "the watch of a quota was interrupted");
            }
        }
        backoff.wait().await;
    }
}

/// What was to be told next is gone, or the store may be another one, so that everything has to be read again.
struct Lost;

/// Keys and bytes, or how many more of them there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stored {
    keys: i64,
    bytes: i64,
}

impl Stored {
    fn add(&mut self, other: Stored) {
        self.keys += other.keys;
        self.bytes += other.bytes;
    }
}

fn note(tenant: &Tenant, counted: Stored) {
    let stored = &tenant.usage.stored;
    stored.keys.store(counted.keys, Relaxed);
    stored.bytes.store(counted.bytes, Relaxed);
    stored.is_known.store(true, Relaxed);
}

/// Reads everything at one revision, that of the header.
async fn count(upstream: &Upstream, tenant: &Tenant, range: &KeyRange) -> Result<(Stored, ResponseHeader), Status> {
    let mut client = KvClient::new(upstream.clone()).max_decoding_message_size(upstream.limits().max_answer);
    let (mut counted, mut first) = (Stored::default(), None);
    let (mut key, mut page) = (range.key().clone(), FIRST_PAGE);
    loop {
        let request = RangeRequest {
            key: key.clone(),
            range_end: range.range_end(),
            limit: page,
            revision: first.map_or(0, |header: ResponseHeader| header.revision),
            serializable: true,
            ..RangeRequest::default()
        };
        let asked = async { client.range(request).await };
        let answer = until(Some(Instant::now() + OWN_CALL_TIMEOUT), asked).await?.into_inner();
        let header = match first {
            Some(header) => header,
            None => *first.insert(answer.header.ok_or_else(|| status::unreadable_answer("no header"))?),
        };
        let before = counted.bytes;
        answer.kvs.iter().for_each(|pair| counted.add(size(tenant, pair)));
        let (true, Some(last)) = (answer.more, answer.kvs.last()) else { return Ok((counted, header)) };
        key = [&last.key[..], NUL].concat().into();
        page = if counted.bytes - before > PAGE_BYTES { FIRST_PAGE } else { (page * 2).min(LARGEST_PAGE) };
    }
}

fn size(tenant: &Tenant, pair: &KeyValue) -> Stored {
    let key = pair.key.len().saturating_sub(tenant.namespace.prefix().len());
    Stored { keys: 1, bytes: i64::try_from(key + pair.value.len()).unwrap_or(i64::MAX) }
}

/// Applies what one watch stream tells, until it ends.
async fn follow(
    upstream: &Upstream,
    tenant: &Tenant,
    range: &KeyRange,
    known: &mut ResponseHeader,
    backoff: &mut Backoff,
) -> Result<Lost, Status> {
    // A response is applied whole or not at all, and one of several parts begins anew with the first, so it is asked for
    // in one piece.
    let request = WatchCreateRequest { prev_kv: true, ..own_watch::request(range, known.revision + 1) };
    let mut watch = OwnWatch::open(upstream, request).await?;
    while let Some(response) = watch.next().await? {
        if response.created && response.header.is_some_and(|header| store::is_before(&header, known)) {
            return Ok(Lost);
        }
        backoff.reset();
        for event in &response.events {
            let Some(change) = change(tenant, event) else { return Ok(Lost) };
            tenant.usage.stored.keys.fetch_add(change.keys, Relaxed);
            tenant.usage.stored.bytes.fetch_add(change.bytes, Relaxed);
            let revision = event.kv.as_ref().map_or(0, |pair| pair.mod_revision);
            known.revision = known.revision.max(revision);
        }
    }
    Ok(Lost)
}

/// What an event adds and takes away; none if etcd does not know any more what was there before.
fn change(tenant: &Tenant, event: &Event) -> Option<Stored> {
    let pair = event.kv.as_ref()?;
    let is_new = pair.create_revision == pair.mod_revision;
    let before = match &event.prev_kv {
        Some(before) => size(tenant, before),
        None if event.r#type() == EventType::Put && is_new => Stored::default(),
        None => return None,
    };
    let after = if event.r#type() == EventType::Put { size(tenant, pair) } else { Stored::default() };
    Some(Stored { keys: after.keys - before.keys, bytes: after.bytes - before.bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{namespace::Namespace, tenant::policy::Policy};

    #[test]
    fn events_add_and_take_away_what_they_store() {
        let tenant = Tenant::new("a", Namespace::new("/a/"), Policy::default());
        let pair = |value: &'static str, created: i64, modified: i64| KeyValue {
            key: "/a/key".into(),
            value: value.into(),
            create_revision: created,
            mod_revision: modified,
            ..KeyValue::default()
        };
        let check = |kind: EventType, pair: KeyValue, before: Option<KeyValue>, expected: Option<(i64, i64)>| {
            let event = Event { r#type: kind as i32, kv: Some(pair), prev_kv: before };
            let expected = expected.map(|(keys, bytes)| Stored { keys, bytes });
            assert_eq!(change(&tenant, &event), expected, "{event:?}");
        };
        check(EventType::Put, pair("value", 5, 5), None, Some((1, 8)));
        check(EventType::Put, pair("values", 5, 6), Some(pair("value", 5, 5)), Some((0, 1)));
        check(EventType::Delete, pair("", 0, 7), Some(pair("values", 5, 6)), Some((-1, -9)));
        // Compacted away, so nobody knows.
        check(EventType::Put, pair("values", 5, 6), None, None);
        check(EventType::Delete, pair("", 0, 7), None, None);
        // Written, deleted and written again in between.
        check(EventType::Put, pair("value", 9, 9), None, Some((1, 8)));
    }
}
