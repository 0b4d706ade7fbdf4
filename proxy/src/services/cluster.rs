//! The Cluster service: who the members are, as this proxy's clients should see them.

use std::time::Instant;

use super::calls;
use crate::{
    exchange::{Outcome, Replies, Requests, until},
    rules::{caller::Caller, methods::Method},
    upstream::Upstream,
};

/// What MemberList answers.
#[derive(Clone)]
pub struct Cluster {}

impl Cluster {
    pub async fn member_list(
        &self,
        upstream: &Upstream,
        caller: &Caller,
        method: &'static Method,
        mut requests: Requests,
        replies: Replies,
        deadline: Option<Instant>,
    ) -> Outcome {
        let answer = until(deadline, async {
            let body = requests.collect().await?;
            upstream.call(caller, method, body).await
        });
        match answer.await {
            Ok(answer) => calls::pass(answer, replies).await,
            Err(status) => Ok(calls::fail(replies, &status)),
        }
    }
}
