//! LeaseLeases behind a namespace: the leases of the whole cluster, less those that hold only other people's keys.

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{LeaseLeasesResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::HeaderMap;
use prost::Message as _;

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

/// Leases that etcd is asked about at the same time.
const CONCURRENT_QUESTIONS: usize = 32;

/// A lease without keys is nobody's yet and is shown, so that a client finds the lease that it was just granted.
/// One whose keys the caller may not read, or that holds keys but none in the namespace, is not.
pub async fn list(
    upstream: &Upstream,
    namespace: &Namespace,
    caller: &Caller,
    method: &'static Method,
) -> Result<(HeaderMap, Bytes), Status> {
    let answer = upstream.call(caller, method, framing::frame(&[])).await?;
    let collected = answer.collect(upstream.limits().max_answer).await?;
    let headers = collected.headers.clone();
    let mut response = LeaseLeasesResponse::decode(collected.into_message()?).map_err(status::unreadable_answer)?;
    let questions = stream::iter(std::mem::take(&mut response.leases)).map(|lease| async move {
        let mine = is_ours(upstream, namespace, caller, lease.id).await?;
        Ok::<_, Status>(mine.then_some(lease))
    });
    let kept: Vec<_> = questions.buffered(CONCURRENT_QUESTIONS).try_collect().await?;
    response.leases = kept.into_iter().flatten().collect();
    Ok((headers, response.encode_to_vec().into()))
}

async fn is_ours(upstream: &Upstream, namespace: &Namespace, caller: &Caller, lease: i64) -> Result<bool, Status> {
    let method = methods::find("/etcdserverpb.Lease/LeaseTimeToLive").expect("a row of the table");
    let question = LeaseTimeToLiveRequest { id: lease, keys: true };
    let answer = upstream.call(caller, method, framing::frame(&question.encode_to_vec())).await?;
    let collected = answer.collect(upstream.limits().max_answer).await?;
    if collected.code() == Code::PermissionDenied {
        return Ok(false);
    }
    let response = LeaseTimeToLiveResponse::decode(collected.into_message()?).map_err(status::unreadable_answer)?;
    // A lease that expired between the two questions has no TTL.
    let alive = response.ttl >= 0;
    Ok(alive && (response.keys.is_empty() || response.keys.iter().any(|key| namespace.strip_key(key).is_some())))
}
