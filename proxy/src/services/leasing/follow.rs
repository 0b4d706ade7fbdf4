//! Follows the leasing keys of all owners by one watch: who is asked to give one up, and which are gone.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_proxy_proto::{
    etcdserverpb::{
        WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
    },
    mvccpb::event::EventType,
};
use http::HeaderValue;
use prost::Message as _;
use tokio::time::timeout;

use super::table::Table;
use crate::{
    backoff::Backoff,
    exchange::send_all,
    rules::{
        caller::Caller,
        framing::{self, Decoder},
        keys::KeyRange,
        leasing::{Prefix, REVOKE},
        status::{self, Status},
    },
    upstream::{Answer, Upstream, endpoint::Endpoint},
};

/// Between tries to open the watch again.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// How often a quiet stream is asked how far it is, so that what it resumes at is not compacted meanwhile.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How long the answer may take. Writers wait for what a member that hangs does not tell us.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// The id under which etcd answers how far a whole stream is.
const PROGRESS: i64 = -1;

/// Events were compacted before they were seen.
pub struct Missed;

/// Tells the table what happens to leasing keys from a revision on, until something of it cannot be had.
pub async fn run(upstream: &Upstream, prefix: &Prefix, table: &Table, mut next_revision: i64) -> Missed {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut avoid = Vec::new();
    loop {
        match follow(upstream, prefix, table, &mut next_revision, &mut backoff, &mut avoid).await {
            Ok(Missed) => return Missed,
            Err(status) => tracing::debug!(error = status.message(), "the watch on leasing keys was interrupted"),
        }
        backoff.wait().await;
    }
}

async fn follow(
    upstream: &Upstream,
    prefix: &Prefix,
    table: &Table,
    next_revision: &mut i64,
    backoff: &mut Backoff,
    avoid: &mut Vec<Arc<Endpoint>>,
) -> Result<Missed, Status> {
    let mut caller = Caller::proxy();
    // A member that lost its leader would show nothing for as long as that lasts; it ends the stream instead.
    caller.metadata.insert("hasleader", HeaderValue::from_static("true"));
    let avoided = std::mem::take(avoid);
    let opening = upstream.open(&caller, "/etcdserverpb.Watch/Watch", &avoided);
    let duplex = timeout(ANSWER_WITHIN, opening).await.map_err(|_| status::broken("a watch that does not open"))??;
    let endpoint = duplex.endpoint.clone();
    let (mut send, answer) = duplex.split();
    let silent = || status::broken(format!("{} does not answer", endpoint.name));
    let beginning = async {
        // The sending half stays open: the watch lives as long as it.
        send_all(&mut send, create(&prefix.all_stored(), *next_revision)).await.map_err(status::broken)?;
        answer.await
    };
    let mut answer = match timeout(ANSWER_WITHIN, beginning).await {
        Ok(answer) => answer?,
        Err(_) => {
            avoid.push(endpoint.clone());
            return Err(silent());
        }
    };
    let mut decoder = Decoder::new(upstream.limits().max_answer);
    let mut asked = false;
    loop {
        let patience = if asked { ANSWER_WITHIN } else { ASK_EVERY };
        match timeout(patience, next(&mut answer, &mut decoder)).await {
            Ok(response) => {
                let response = response?;
                asked = false;
                backoff.reset();
                if response.compact_revision > 0 {
                    return Ok(Missed);
                }
                if response.canceled {
                    return Err(status::broken(response.cancel_reason));
                }
                apply(prefix, table, next_revision, response);
            }
            Err(_) if asked => {
                avoid.push(endpoint.clone());
                return Err(silent());
            }
            Err(_) => {
                asked = true;
                send_all(&mut send, ask_progress()).await.map_err(status::broken)?;
            }
        }
    }
}

async fn next(answer: &mut Answer, decoder: &mut Decoder) -> Result<WatchResponse, Status> {
    loop {
        if let Some(message) = decoder.next().map_err(status::unreadable_answer)? {
            return WatchResponse::decode(message.bytes).map_err(status::unreadable_answer);
        }
        match answer.body.data().await {
            Some(data) => decoder.push(&data?),
            None => return Err(status::broken("the watch stream ended")),
        }
    }
}

fn apply(prefix: &Prefix, table: &Table, next_revision: &mut i64, response: WatchResponse) {
    for event in response.events {
        let is_deleted = event.r#type() == EventType::Delete;
        let Some(leasing) = event.kv else { continue };
        *next_revision = (*next_revision).max(leasing.mod_revision + 1);
        let Some(key) = prefix.key_of_stored(&leasing.key) else { continue };
        if is_deleted {
            table.deleted(&key, leasing.mod_revision);
        } else if leasing.value == REVOKE {
            table.revoked(&key, leasing.create_revision, leasing.lease);
        }
    }
    if response.watch_id == PROGRESS
        && let Some(header) = response.header
    {
        *next_revision = (*next_revision).max(header.revision + 1);
    }
}

fn create(range: &KeyRange, start_revision: i64) -> Bytes {
    let request = WatchCreateRequest {
        key: range.key().clone(),
        range_end: range.range_end(),
        start_revision,
        ..WatchCreateRequest::default()
    };
    framed(RequestUnion::CreateRequest(request))
}

fn ask_progress() -> Bytes {
    framed(RequestUnion::ProgressRequest(WatchProgressRequest {}))
}

fn framed(request: RequestUnion) -> Bytes {
    framing::frame(&WatchRequest { request_union: Some(request) }.encode_to_vec())
}
