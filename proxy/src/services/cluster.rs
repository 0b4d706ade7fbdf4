//! The Cluster service: who the members are, as this proxy's clients should see them.
//!
//! A proxy that advertises an address shows proxies where etcd would show its members, so that clients which follow the
//! member list keep to proxies. Whether the list may be seen, and whether there is a quorum to vouch for it, is etcd's
//! to say: the real MemberList is asked each time, and only its members are exchanged.

use std::time::Instant;

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{Member, MemberListResponse};
use prost::Message as _;
use tokio::sync::watch;

use super::calls;
use crate::{
    exchange::{Outcome, Replies, Requests, until},
    resolver::{Proxy, Registered},
    rules::{
        caller::Caller,
        framing,
        methods::Method,
        status::{self, Status},
        tenant::policy::Profile,
    },
    upstream::{Collected, Upstream},
};

/// What MemberList answers.
#[derive(Clone)]
pub struct Cluster {
    /// Without one, etcd's own members are shown.
    advertised: Option<Advertised>,
}

/// The proxies that are shown instead of etcd's members.
#[derive(Clone)]
pub struct Advertised {
    /// Shown while no registered one is known.
    pub this: Proxy,
    pub registered: Option<watch::Receiver<Registered>>,
}

impl Cluster {
    pub fn new(advertised: Option<Advertised>) -> Self {
        Self { advertised }
    }

    pub async fn member_list(
        &self,
        upstream: &Upstream,
        caller: &Caller,
        method: &'static Method,
        mut requests: Requests,
        mut replies: Replies,
        deadline: Option<Instant>,
    ) -> Outcome {
        let called = async {
            let body = requests.collect().await?;
            upstream.call(caller, method, body).await
        };
        // Behind a profile nobody sees etcd's own members.
        let members = match &self.advertised {
            Some(advertised) => Some(advertised.members()),
            None if caller.tenant().policy.profile() != Profile::Full => Some(Vec::new()),
            None => None,
        };
        let Some(members) = members else {
            return match until(deadline, called).await {
                Ok(answer) => calls::pass(answer, replies).await,
                Err(status) => Ok(calls::fail(replies, &status)),
            };
        };
        let exchanged = until(deadline, async {
            let collected = called.await?.collect(upstream.limits().max_answer).await?;
            exchange(collected, members)
        });
        let answered = tokio::select! {
            biased;
            answered = exchanged => answered,
            gone = replies.gone() => return Err(gone),
        };
        let answer = match answered {
            Ok(answer) => answer,
            Err(status) => return Ok(calls::fail(replies, &status)),
        };
        let code = answer.code();
        if let Some(message) = answer.message {
            replies.begin(answer.headers)?;
            replies.data(framing::frame(&message)).await?;
        }
        replies.finish(answer.trailers);
        Ok(code)
    }
}

/// etcd's answer with the proxies for its members. A refusal stays as it is.
fn exchange(answer: Collected, members: Vec<Member>) -> Result<Collected, Status> {
    let Some(message) = answer.message else { return Ok(answer) };
    let response = MemberListResponse::decode(message).map_err(status::unreadable_answer)?;
    let shown = MemberListResponse { header: response.header, members };
    Ok(Collected { message: Some(Bytes::from(shown.encode_to_vec())), ..answer })
}

impl Advertised {
    /// In the order of their ids, as etcd lists its members; an address that is registered twice is one proxy.
    fn members(&self) -> Vec<Member> {
        let registered = self.registered.as_ref().map(watch::Receiver::borrow);
        let mut members: Vec<Member> =
            registered.iter().flat_map(|registered| registered.proxies()).map(member).collect();
        if members.is_empty() {
            members.push(member(&self.this));
        }
        members.sort_by_key(|member| member.id);
        members.dedup_by_key(|member| member.id);
        members
    }
}

fn member(proxy: &Proxy) -> Member {
    Member {
        id: id(&proxy.address),
        name: proxy.name.clone(),
        client_ur_ls: vec![proxy.address.clone()],
        ..Member::default()
    }
}

/// An id that stays the same for an address, whoever shows it: FNV-1a, whose result is the same in every version of
/// this program. 0 means "no member" to etcd.
fn id(address: &str) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    address.bytes().fold(0xcbf2_9ce4_8422_2325, hash).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_published_hash_and_never_zero() {
        assert_eq!(id(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(id("a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(id("127.0.0.1:23790"), id("127.0.0.1:23791"));
    }

    #[test]
    fn a_proxy_that_knows_no_registered_one_shows_itself() {
        let this = Proxy { address: "127.0.0.1:23790".into(), name: "host".into() };
        let (_sender, registered) = watch::channel(Registered::default());
        for registered in [None, Some(registered)] {
            let members = Advertised { this: this.clone(), registered }.members();
            assert_eq!(members.len(), 1);
            assert_eq!(
                (members[0].name.as_str(), &members[0].client_ur_ls[..]),
                ("host", &["127.0.0.1:23790".to_owned()][..])
            );
        }
    }
}
