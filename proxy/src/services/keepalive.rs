//! LeaseKeepAlive: each request is answered by a renewal, and nothing is renewed that no client asked for.

use crate::{
    exchange::{Outcome, Replies, Requests},
    rules::caller::Caller,
    upstream::Upstream,
};

use super::calls;

pub struct KeepAlives {
    upstream: Upstream,
}

impl KeepAlives {
    pub fn new(upstream: Upstream) -> Self {
        Self { upstream }
    }

    pub async fn serve(&self, caller: &Caller, requests: Requests, replies: Replies) -> Outcome {
        calls::forward_unknown(&self.upstream, caller, "/etcdserverpb.Lease/LeaseKeepAlive", requests, replies).await
    }
}
