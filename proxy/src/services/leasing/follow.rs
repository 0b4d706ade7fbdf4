//! Follows the leasing keys of all owners by one watch: who is asked to give one up, and which are gone.

use std::{sync::Arc, time::Duration};

use etcd_proxy_proto::{
    etcdserverpb::{RangeRequest, ResponseHeader, WatchResponse, kv_client::KvClient},
    mvccpb::event::EventType,
};
use tokio::time::timeout;

use super::table::Table;
use crate::{
    backoff::Backoff,
    rules::{
        leasing::{Prefix, REVOKE},
        status::{self, Status},
        store,
    },
    upstream::{
        OWN_CALL_TIMEOUT, Upstream,
        endpoint::Endpoint,
        own_watch::{self, Opening},
    },
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

/// Why what happens to leasing keys is not known any more.
pub enum Missed {
    /// Events were compacted before they were seen.
    Compacted,
    /// The store is another one, or was put back to a backup.
    WentBack,
}

/// Tells the table what happens to leasing keys after what is known of the store, until something of it cannot be had.
pub async fn run(upstream: &Upstream, prefix: &Prefix, table: &Table, mut known: ResponseHeader) -> Missed {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut avoid = Vec::new();
    loop {
        match follow(upstream, prefix, table, &mut known, &mut backoff, &mut avoid).await {
            Ok(missed) => return missed,
            Err(status) => tracing::debug!(error = status.message(), "the watch on leasing keys was interrupted"),
        }
        backoff.wait().await;
    }
}

async fn follow(
    upstream: &Upstream,
    prefix: &Prefix,
    table: &Table,
    known: &mut ResponseHeader,
    backoff: &mut Backoff,
    avoid: &mut Vec<Arc<Endpoint>>,
) -> Result<Missed, Status> {
    let avoided = std::mem::take(avoid);
    let opening = timeout(ANSWER_WITHIN, Opening::new(upstream, &avoided));
    let opening = opening.await.map_err(|_| status::broken("a watch that does not open"))??;
    let endpoint = opening.endpoint().clone();
    let silent = || status::broken(format!("{} does not answer", endpoint.name));
    let beginning = opening.create(own_watch::request(&prefix.all_stored(), known.revision + 1));
    let mut watch = match timeout(ANSWER_WITHIN, beginning).await {
        Ok(watch) => watch?,
        Err(_) => {
            avoid.push(endpoint.clone());
            return Err(silent());
        }
    };
    let mut asked = false;
    loop {
        let patience = if asked { ANSWER_WITHIN } else { ASK_EVERY };
        match timeout(patience, watch.response()).await {
            Ok(response) => {
                let response = response?;
                asked = false;
                backoff.reset();
                if response.compact_revision > 0 {
                    return Ok(Missed::Compacted);
                }
                if response.created {
                    // Keys are read at revisions of which no leasing key tells.
                    let newest = ResponseHeader { revision: known.revision.max(table.newest_revision()), ..*known };
                    let may_be = response.header.is_some_and(|header| store::is_before(&header, &newest));
                    if may_be && has_gone_back(upstream, prefix, &newest).await? {
                        return Ok(Missed::WentBack);
                    }
                }
                if response.canceled {
                    return Err(status::broken(response.cancel_reason));
                }
                apply(prefix, table, known, response);
            }
            Err(_) if asked => {
                avoid.push(endpoint.clone());
                return Err(silent());
            }
            Err(_) => {
                asked = true;
                watch.ask_progress().await?;
            }
        }
    }
}

/// Whether it is the store that is behind and not only a member.
async fn has_gone_back(upstream: &Upstream, prefix: &Prefix, known: &ResponseHeader) -> Result<bool, Status> {
    let request = RangeRequest { key: prefix.all_stored().key().clone(), count_only: true, ..Default::default() };
    let mut client = KvClient::new(upstream.clone());
    let answer = timeout(OWN_CALL_TIMEOUT, client.range(request));
    let answer = answer.await.map_err(|_| status::deadline_exceeded())??.into_inner();
    Ok(answer.header.is_some_and(|header| store::is_before(&header, known)))
}

fn apply(prefix: &Prefix, table: &Table, known: &mut ResponseHeader, response: WatchResponse) {
    if let Some(header) = &response.header {
        known.raft_term = known.raft_term.max(header.raft_term);
    }
    for event in response.events {
        let is_deleted = event.r#type() == EventType::Delete;
        let Some(leasing) = event.kv else { continue };
        known.revision = known.revision.max(leasing.mod_revision);
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
        known.revision = known.revision.max(header.revision);
    }
}
