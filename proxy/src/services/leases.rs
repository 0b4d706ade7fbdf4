//! LeaseLeases behind a namespace: the leases of the whole cluster, less those that hold only other people's keys.
//!
//! Where leases belong to somebody, `own` knows them by their ids.

pub mod own;

use std::sync::Arc;

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{LeaseLeasesResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::HeaderMap;
use prost::Message as _;
use tokio::sync::Semaphore;

use crate::{
    rules::{
        caller::Caller,
        framing,
        methods::{self, Method},
        namespace::Namespace,
        status::{self, Code, Status},
    },
    upstream::Upstream,
};

/// Questions that all lists under way may have open at a time, so that those who list leases do not crowd out other
/// calls: each costs etcd one look into memory, and a follower one call to its leader besides.
const CONCURRENT_QUESTIONS: usize = 32;
/// The leases that a cluster may have before a list behind a namespace is refused. One small request must not set off
/// any number of others; ten thousand questions keep an etcd on loopback busy for half a second.
const MAX_LEASES: usize = 10_000;

/// Lists the leases of one namespace.
#[derive(Clone)]
pub struct Leases {
    questions: Arc<Semaphore>,
}

impl Default for Leases {
    fn default() -> Self {
        Self { questions: Arc::new(Semaphore::new(CONCURRENT_QUESTIONS)) }
    }
}

impl Leases {
    /// A lease without keys is nobody's yet and is shown, so that a client finds the lease that it was just granted.
    /// One whose keys the caller may not read, or that holds keys but none in the namespace, is not.
    pub async fn list(
        &self,
        upstream: &Upstream,
        caller: &Caller,
        method: &'static Method,
        request: Bytes,
    ) -> Result<(HeaderMap, Bytes), Status> {
        let caller = &*caller.uncompressed();
        let answer = upstream.call(caller, method, framing::frame(&request)).await?;
        let collected = answer.collect(upstream.limits().max_answer).await?;
        let headers = collected.headers.clone();
        let mut response = LeaseLeasesResponse::decode(collected.into_message()?).map_err(status::unreadable_answer)?;
        if response.leases.len() > MAX_LEASES {
            return Err(status::too_many_leases(response.leases.len(), MAX_LEASES));
        }
        let questions = stream::iter(std::mem::take(&mut response.leases)).map(|lease| async move {
            let _turn = self.questions.acquire().await;
            let mine = is_ours(upstream, caller, lease.id).await?;
            Ok::<_, Status>(mine.then_some(lease))
        });
        let kept: Vec<_> = questions.buffered(CONCURRENT_QUESTIONS).try_collect().await?;
        response.leases = kept.into_iter().flatten().collect();
        Ok((headers, response.encode_to_vec().into()))
    }
}

async fn is_ours(upstream: &Upstream, caller: &Caller, lease: i64) -> Result<bool, Status> {
    let method = methods::find("/etcdserverpb.Lease/LeaseTimeToLive").expect("a row of the table");
    let question = LeaseTimeToLiveRequest { id: lease, keys: true };
    let answer = upstream.call(caller, method, framing::frame(&question.encode_to_vec())).await?;
    let collected = answer.collect(upstream.limits().max_answer).await?;
    if collected.code() == Code::PermissionDenied {
        return Ok(false);
    }
    let response = LeaseTimeToLiveResponse::decode(collected.into_message()?).map_err(status::unreadable_answer)?;
    Ok(is_shown(&response, caller.namespace()))
}

/// A lease that expired between the two questions has no TTL.
fn is_shown(lease: &LeaseTimeToLiveResponse, namespace: &Namespace) -> bool {
    lease.ttl >= 0 && (lease.keys.is_empty() || lease.keys.iter().any(|key| namespace.strip_key(key).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_shown_to_the_namespaces_that_have_a_key_on_it_and_an_empty_one_to_all() {
        let namespace = Namespace::new("ns/");
        let check = |ttl: i64, keys: &[&'static str], expected: bool| {
            let keys = keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
            let lease = LeaseTimeToLiveResponse { ttl, keys, ..LeaseTimeToLiveResponse::default() };
            assert_eq!(is_shown(&lease, &namespace), expected, "{lease:?}");
        };
        check(5, &["ns/a"], true);
        check(5, &["other", "ns/a"], true);
        check(5, &["other"], false);
        check(5, &["ns", "ns/"], false);
        check(0, &[], true);
        check(-1, &[], false);
    }
}
