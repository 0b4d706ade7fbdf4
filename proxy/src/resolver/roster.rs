//! Follows who is registered: reads the prefix once, then a watch tells what changes.

use std::time::Duration;

use etcd_proxy_proto::{
    etcdserverpb::{RangeRequest, WatchResponse, kv_client::KvClient},
    mvccpb::event::EventType,
};
use tokio::sync::watch;

use super::{MAX_REGISTERED, Registered};
use crate::{
    backoff::Backoff,
    exchange::until,
    rules::{
        keys::KeyRange,
        status::{self, Status},
    },
    upstream::{
        OWN_CALL_TIMEOUT, Upstream,
        own_watch::{self, OwnWatch},
    },
};

/// Between tries to follow the prefix.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// Follows the prefix for as long as it runs. While etcd cannot be reached, what was seen last is what there is.
pub async fn run(upstream: Upstream, range: KeyRange, registered: watch::Sender<Registered>) {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut known = false;
    loop {
        let outcome = async {
            if !known {
                load(&upstream, &range, &registered).await?;
                known = true;
            }
            follow(&upstream, &range, &registered, &mut backoff).await
        };
        match outcome.await {
            Ok(Compacted) => known = false,
            Err(status) => tracing::debug!(error = status.message(), "endpoints watch interrupted"),
        }
        backoff.wait().await;
    }
}

/// The revisions after the last one seen are gone, so the prefix has to be read again.
struct Compacted;

async fn load(upstream: &Upstream, range: &KeyRange, registered: &watch::Sender<Registered>) -> Result<(), Status> {
    let limit = upstream.limits().max_answer;
    let mut client = KvClient::new(upstream.clone()).max_decoding_message_size(limit);
    let request = RangeRequest {
        key: range.key().clone(),
        range_end: range.range_end(),
        limit: i64::try_from(MAX_REGISTERED).unwrap_or(i64::MAX),
        serializable: true,
        ..RangeRequest::default()
    };
    let asked = async { client.range(request).await };
    let answer = until(Some(std::time::Instant::now() + OWN_CALL_TIMEOUT), asked).await?.into_inner();
    let revision = answer.header.ok_or_else(|| status::unreadable_answer("no header"))?.revision;
    let mut loaded = Registered { revision, ..Registered::default() };
    for pair in answer.kvs {
        loaded.put(pair);
    }
    registered.send_replace(loaded);
    Ok(())
}

/// Applies what one watch stream tells, until it ends.
async fn follow(
    upstream: &Upstream,
    range: &KeyRange,
    registered: &watch::Sender<Registered>,
    backoff: &mut Backoff,
) -> Result<Compacted, Status> {
    let start_revision = registered.borrow().revision + 1;
    let mut watch = OwnWatch::open(upstream, own_watch::request(range, start_revision)).await?;
    while let Some(response) = watch.next().await? {
        backoff.reset();
        apply(registered, response);
    }
    Ok(Compacted)
}

fn apply(registered: &watch::Sender<Registered>, response: WatchResponse) {
    if response.events.is_empty() {
        return;
    }
    registered.send_modify(|registered| {
        for event in response.events {
            let deleted = event.r#type() == EventType::Delete;
            let Some(pair) = event.kv else { continue };
            registered.revision = registered.revision.max(pair.mod_revision);
            if deleted {
                registered.delete(&pair.key);
            } else {
                registered.put(pair);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use etcd_proxy_proto::mvccpb::{Event, KeyValue};

    use super::*;

    fn event(deleted: bool, key: &'static str, revision: i64) -> Event {
        let value = Bytes::from(format!(r#"{{"Op":0,"Addr":"{key}"}}"#));
        let pair =
            KeyValue { key: Bytes::from_static(key.as_bytes()), value, mod_revision: revision, ..KeyValue::default() };
        Event { r#type: i32::from(deleted), kv: Some(pair), prev_kv: None }
    }

    #[test]
    fn events_add_and_remove_and_move_the_revision_on() {
        let (sender, receiver) = watch::channel(Registered { revision: 4, ..Registered::default() });
        apply(
            &sender,
            WatchResponse { events: vec![event(false, "a", 5), event(false, "b", 5)], ..WatchResponse::default() },
        );
        apply(&sender, WatchResponse { events: vec![event(true, "a", 8)], ..WatchResponse::default() });
        let registered = receiver.borrow();
        assert_eq!(registered.proxies().map(|proxy| proxy.address.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(registered.revision, 8);
    }
}
