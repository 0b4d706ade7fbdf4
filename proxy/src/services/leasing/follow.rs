//! Follows the leasing keys of all owners by one watch: who is asked to give one up, and which are gone.

use std::{sync::Arc, time::Duration};

use etcd_proxy_proto::{etcdserverpb::WatchResponse, mvccpb::event::EventType};
use tokio::time::timeout;

use super::table::Table;
use crate::{
    backoff::Backoff,
    rules::{
        leasing::{Prefix, REVOKE},
        status::{self, Status},
    },
    upstream::{
        Upstream,
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
    let avoided = std::mem::take(avoid);
    let opening = timeout(ANSWER_WITHIN, Opening::new(upstream, &avoided));
    let opening = opening.await.map_err(|_| status::broken("a watch that does not open"))??;
    let endpoint = opening.endpoint().clone();
    let silent = || status::broken(format!("{} does not answer", endpoint.name));
    let beginning = opening.create(own_watch::request(&prefix.all_stored(), *next_revision));
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
                watch.ask_progress().await?;
            }
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
