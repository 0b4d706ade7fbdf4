//! Whether the store is still the one that the logs are of.
//!
//! A store that was put back to a backup has another past: what a log remembers has not happened there, and what happens
//! now happens at revisions that the log has seen already. etcd's own clients lose their streams when that is done, and
//! so do those of a feed that finds it.

use std::{future::pending, time::Duration};

use etcd_proxy_proto::etcdserverpb::{RangeRequest, ResponseHeader};
use futures_util::future::BoxFuture;
use prost::Message as _;

use super::{Parts, StreamEnd, Task};
use crate::rules::{
    framing,
    keys::KeyRange,
    methods,
    status::{self, Code, Status},
    store, wire,
};

/// How long one question of a feed's own may take; etcd itself gives a linearizable read up after some seven seconds.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before a question is asked again that etcd could not answer, for want of a leader mostly.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What is known of the store, from the headers of one feed.
#[derive(Default)]
pub struct Lineage {
    /// The cluster's id; zero while nothing has been heard.
    cluster: u64,
    /// The newest term.
    term: u64,
    doubt: Option<Doubt>,
}

/// A question whose answer tells whether the store went back.
struct Doubt {
    /// What was known before it was asked.
    known: ResponseHeader,
    answer: BoxFuture<'static, Option<ResponseHeader>>,
}

impl Lineage {
    /// Takes in a header. Says whether it is another cluster's, which every restored store is that has another token.
    pub fn is_of_another(&mut self, header: &ResponseHeader) -> bool {
        if header.cluster_id == 0 {
            return false;
        }
        let cluster = if self.cluster == 0 { header.cluster_id } else { self.cluster };
        self.cluster = header.cluster_id;
        cluster != header.cluster_id
    }

    /// Notes with which header a log is taken up again that knows everything up to `covered`. A member may just be
    /// behind; only what the cluster agrees upon tells.
    pub fn note_resumed(&mut self, header: &ResponseHeader, covered: i64, parts: &Parts, range: &KeyRange) {
        self.note_term(header);
        let known = ResponseHeader { cluster_id: self.cluster, revision: covered, raft_term: self.term, ..*header };
        if self.doubt.is_none() && store::is_before(header, &known) {
            self.doubt = Some(Doubt { known, answer: Box::pin(newest(parts.clone(), range.clone())) });
        }
    }

    /// Notes the term of a header.
    pub fn note_term(&mut self, header: &ResponseHeader) {
        self.term = self.term.max(header.raft_term);
    }

    /// Returns when a doubt has been resolved, and says whether the store has gone back.
    pub async fn resolved(&mut self) -> bool {
        let Some(doubt) = &mut self.doubt else { return pending().await };
        let newest = doubt.answer.as_mut().await;
        let has_gone_back = newest.is_some_and(|newest| store::is_before(&newest, &doubt.known));
        self.doubt = None;
        has_gone_back
    }
}

/// How far the store is by the word of a majority, asked until there is an answer; nothing if etcd refuses to tell, as
/// where a right was withdrawn.
async fn newest(parts: Parts, range: KeyRange) -> Option<ResponseHeader> {
    loop {
        let request = RangeRequest { key: range.key().clone(), count_only: true, ..RangeRequest::default() };
        match parts.ask(request).await {
            Ok(header) => return Some(header),
            Err(status)
                if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument) =>
            {
                return None;
            }
            Err(status) => tracing::debug!(%status, "how far the store is could not be asked"),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

impl Task {
    /// Ends everything, since the store is another one, or was put back to what it had been.
    pub(super) fn gone_back(&self) -> StreamEnd {
        tracing::warn!("the store is not the one that is watched, or has gone back; all watches on it end");
        self.parts.seen.forget();
        StreamEnd::Refused(status::store_went_back())
    }
}

impl Parts {
    /// Asks etcd for what is on a key, with the namespace, of which only the header matters.
    pub async fn ask(&self, request: RangeRequest) -> Result<ResponseHeader, Status> {
        let method = methods::find("/etcdserverpb.KV/Range").expect("a row of the table");
        let question = framing::frame(&request.encode_to_vec());
        let limit = self.upstream.limits().max_answer;
        let answer = tokio::time::timeout(ASK_TIMEOUT, async {
            self.upstream.call(&self.caller, method, question).await?.collect(limit).await?.into_message()
        });
        let message = answer.await.map_err(|_| status::deadline_exceeded())??;
        let header = wire::last_bytes(&message, 1).map_err(status::unreadable_answer)?;
        ResponseHeader::decode(header).map_err(status::unreadable_answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster_id: u64, revision: i64, raft_term: u64) -> ResponseHeader {
        ResponseHeader { cluster_id, member_id: 1, revision, raft_term }
    }

    #[test]
    fn another_cluster_is_told_by_its_id() {
        let mut lineage = Lineage::default();
        let heard = [header(0, 9, 9), header(7, 9, 9), header(7, 8, 8), header(0, 9, 9), header(7, 10, 9)];
        assert!(heard.iter().all(|header| !lineage.is_of_another(header)));
        assert!(lineage.is_of_another(&header(8, 20, 10)));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_resolved_while_nothing_is_in_doubt() {
        let waited = tokio::time::timeout(Duration::from_secs(3600), Lineage::default().resolved()).await;
        assert!(waited.is_err());
    }
}
