//! Cluster: the members as they are, and every change that one member alone may be asked for.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
};

use crate::rpcs::{MEMBER_ADD, MEMBER_LIST, MEMBER_PROMOTE, MEMBER_REMOVE, MEMBER_UPDATE};
use crate::side::Side;

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

pub async fn script(side: Side) {
    list(&side, "at first").await;
    let own = side.fetch(MEMBER_LIST, MemberListRequest { linearizable: true }).await.members[0].id;
    refusals(&side, own).await;
    let learner = add_learner(&side).await;
    with_a_learner(&side, own, learner).await;
    list(&side, "in the end").await;
    updates(&side, own).await;
}

async fn list(side: &Side, when: &str) {
    for linearizable in [false, true] {
        let case = format!("members {when}, linearizable {linearizable}");
        side.call(&case, MEMBER_LIST, MemberListRequest { linearizable }).await;
    }
}

fn add(urls: &[&str], is_learner: bool) -> MemberAddRequest {
    MemberAddRequest { peer_ur_ls: urls.iter().map(|&url| url.to_owned()).collect(), is_learner }
}

async fn refusals(side: &Side, own: u64) {
    for is_learner in [false, true] {
        for urls in [
            &[] as &[&str],
            &[""],
            &["no url"],
            &["ftp://127.0.0.1:1"],
            &["http://127.0.0.1"],
            &["http://127.0.0.1:2380"],
            &["http://127.0.0.1:2380/path"],
            &["http://127.0.0.1:1", "http://127.0.0.1:2380"],
        ] {
            side.call(&format!("add {urls:?}, learner {is_learner}"), MEMBER_ADD, add(urls, is_learner)).await;
        }
    }
    for id in [0, 1, own] {
        side.call(&format!("promote {id:x}"), MEMBER_PROMOTE, MemberPromoteRequest { id }).await;
        side.call(&format!("remove {id:x}"), MEMBER_REMOVE, MemberRemoveRequest { id }).await;
    }
    for id in [0, 1] {
        for urls in [vec![], vec!["http://127.0.0.1:3".to_owned()], vec!["no url".to_owned()]] {
            let case = format!("update {id:x} to {urls:?}");
            side.call(&case, MEMBER_UPDATE, MemberUpdateRequest { id, peer_ur_ls: urls }).await;
        }
    }
}

/// The id of a new member is made of the time.
fn hide_learners(members: &mut [Member]) {
    members.iter_mut().filter(|member| member.is_learner).for_each(|member| member.id = 1);
    members.sort_by_key(|member| member.id);
}

async fn add_learner(side: &Side) -> u64 {
    let added = side
        .masked("add a learner", MEMBER_ADD, add(&["http://127.0.0.1:1"], true), |answer| {
            answer.member.iter_mut().for_each(|member| member.id = 1);
            hide_learners(&mut answer.members);
        })
        .await;
    added.and_then(|answer| answer.member).expect("etcd takes a learner").id
}

async fn with_a_learner(side: &Side, own: u64, id: u64) {
    let hide = |answer: &mut etcd_proxy_proto::etcdserverpb::MemberListResponse| hide_learners(&mut answer.members);
    side.masked("members with a learner", MEMBER_LIST, MemberListRequest { linearizable: true }, hide).await;
    side.call("add a second learner", MEMBER_ADD, add(&["http://127.0.0.1:4"], true)).await;
    // An id is made of the URLs and the second: the same URL alone would be refused for the one or the other.
    let taken = add(&["http://127.0.0.1:1", "http://127.0.0.1:8"], false);
    side.call("add a member beside a learner, whose URL is among its own", MEMBER_ADD, taken).await;
    side.call("promote a learner that never started", MEMBER_PROMOTE, MemberPromoteRequest { id }).await;
    let taken = MemberUpdateRequest { id, peer_ur_ls: vec!["http://127.0.0.1:2380".to_owned()] };
    side.call("update a learner to a URL that is taken", MEMBER_UPDATE, taken).await;
    let moved =
        MemberUpdateRequest { id, peer_ur_ls: vec!["http://127.0.0.1:5".to_owned(), "http://127.0.0.1:6".to_owned()] };
    side.masked("update a learner", MEMBER_UPDATE, moved, |answer| hide_learners(&mut answer.members)).await;
    side.call("remove the voter and leave the learner", MEMBER_REMOVE, MemberRemoveRequest { id: own }).await;
    side.masked("remove the learner", MEMBER_REMOVE, MemberRemoveRequest { id }, |answer| {
        hide_learners(&mut answer.members)
    })
    .await;
    side.call("remove it twice", MEMBER_REMOVE, MemberRemoveRequest { id }).await;
    side.call("promote a removed one", MEMBER_PROMOTE, MemberPromoteRequest { id }).await;
}

async fn updates(side: &Side, own: u64) {
    let moved = MemberUpdateRequest { id: own, peer_ur_ls: vec!["http://127.0.0.1:7".to_owned()] };
    side.call("update oneself", MEMBER_UPDATE, moved).await;
    list(side, "after an update").await;
}
