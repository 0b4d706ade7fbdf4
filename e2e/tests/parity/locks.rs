//! Lock and Election: who holds, who waits, who leads, and everything said to those without a session.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest};
use etcd_proxy_proto::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use etcd_proxy_proto::v3lockpb::{LockRequest, UnlockRequest};

use crate::rpcs::{CAMPAIGN, LEADER, LEASE_GRANT, LEASE_REVOKE, LOCK, OBSERVE, PROCLAIM, RANGE, RESIGN, UNLOCK};
use crate::side::Side;

/// How long an impatient client waits for what another has: long enough for its key to be seen meanwhile.
const PATIENCE: &str = "1S";

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

pub async fn script(side: Side) {
    for id in [1, 2, 3, 4] {
        side.call("grant", LEASE_GRANT, LeaseGrantRequest { ttl: 600, id }).await;
    }
    locks(&side).await;
    elections(&side).await;
    show(&side, "in the end").await;
}

async fn show(side: &Side, when: &str) {
    let request = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    side.call(&format!("keys {when}"), RANGE, request).await;
}

fn lock(name: &str, lease: i64) -> LockRequest {
    LockRequest { name: name.to_owned().into(), lease }
}

fn unlock(key: &str) -> UnlockRequest {
    UnlockRequest { key: key.to_owned().into() }
}

async fn locks(side: &Side) {
    side.call("lock", LOCK, lock("l", 1)).await;
    side.call("lock again with the same lease", LOCK, lock("l", 1)).await;
    side.call("lock another", LOCK, lock("other", 1)).await;
    side.call("lock without a name", LOCK, lock("", 2)).await;
    side.call("lock a name that ends with a slash", LOCK, lock("slash/", 2)).await;
    side.call("lock a name of zero", LOCK, lock("\0", 2)).await;
    side.call("lock with a lease that is not there", LOCK, lock("l", 99)).await;
    side.call("lock with a negative lease", LOCK, lock("l", -1)).await;
    show(side, "while there are locks").await;

    let mut waiting = side.open(LOCK).await;
    waiting.send(&lock("l", 2));
    waiting.half_close();
    wait_for_keys(side, "l/", 2).await;
    let mut last = side.open(LOCK).await;
    last.send(&lock("l", 3));
    last.half_close();
    wait_for_keys(side, "l/", 3).await;
    let impatient = side.with("grpc-timeout", PATIENCE).with_either_end_of_a_deadline();
    let mut given_up = impatient.open(LOCK).await;
    given_up.send_last(&lock("l", 4));
    wait_for_keys(side, "l/", 4).await;
    given_up.rest("wait for a lock until a deadline").await;
    // etcd takes the waiter's key away some time after it has given the waiter up.
    wait_for_keys(side, "l/", 3).await;
    let mut left = side.open(LOCK).await;
    left.send_last(&lock("l", 4));
    wait_for_keys(side, "l/", 4).await;
    left.cancel();
    // A waiter who leaves is out of the queue, be it by a reset or with its connection.
    wait_for_keys(side, "l/", 3).await;
    {
        let gone = side.on_a_new_connection().await;
        let mut gone = gone.open(LOCK).await;
        gone.send_last(&lock("l", 4));
        wait_for_keys(side, "l/", 4).await;
    }
    wait_for_keys(side, "l/", 3).await;
    side.call("unlock a key that is not there", UNLOCK, unlock("nothing")).await;
    side.call("unlock an empty key", UNLOCK, unlock("")).await;
    side.call("unlock", UNLOCK, unlock("l/1")).await;
    waiting.rest("the next has it").await;
    side.call("the holder's lease is revoked", LEASE_REVOKE, LeaseRevokeRequest { id: 2 }).await;
    last.rest("the last has it").await;
    side.call("unlock twice", UNLOCK, unlock("l/1")).await;

    side.call("grant", LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: 2 }).await;
    let mut waiting = side.open(LOCK).await;
    waiting.send(&lock("l", 2));
    waiting.half_close();
    wait_for_keys(side, "l/", 2).await;
    side.call("a waiter's lease is revoked", LEASE_REVOKE, LeaseRevokeRequest { id: 2 }).await;
    side.call("unlock the last", UNLOCK, unlock("l/3")).await;
    waiting.rest("the waiter has no session").await;
    show(side, "after the locks").await;
    // etcd makes a lease of its own, whose id is part of the key.
    let without_lease = side.masked("lock without a lease", LOCK, lock("own", 0), |answer| {
        answer.key = answer.key.slice(..4);
    });
    let key = without_lease.await.expect("etcd locks it").key;
    side.call("unlock it", UNLOCK, UnlockRequest { key }).await;
}

/// Waits until so many keys are there, since a request on its way has no other sign.
async fn wait_for_keys(side: &Side, prefix: &str, count: i64) {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    let request =
        RangeRequest { key: prefix.to_owned().into(), range_end: end.into(), count_only: true, ..Default::default() };
    let deadline = std::time::Instant::now() + crate::wire::PATIENCE;
    while side.fetch(RANGE, request.clone()).await.count != count {
        assert!(std::time::Instant::now() < deadline, "no {count} keys under {prefix}");
    }
}

fn campaign(name: &str, lease: i64, value: &str) -> CampaignRequest {
    CampaignRequest { name: name.to_owned().into(), lease, value: value.to_owned().into() }
}

fn who(name: &str) -> LeaderRequest {
    LeaderRequest { name: name.to_owned().into() }
}

fn proclaim(leader: Option<LeaderKey>, value: &str) -> ProclaimRequest {
    ProclaimRequest { leader, value: value.to_owned().into() }
}

async fn elections(side: &Side) {
    side.call("nobody leads", LEADER, who("e")).await;
    side.call("nobody leads without a name", LEADER, who("")).await;
    let mut observed = side.open(OBSERVE).await;
    observed.send(&who("e"));
    observed.half_close();
    let leader = side.call("campaign", CAMPAIGN, campaign("e", 1, "one")).await.and_then(|answer| answer.leader);
    observed.next("observe the first leader").await;
    side.call("campaign again", CAMPAIGN, campaign("e", 1, "one again")).await;
    observed.next("observe the same with another value").await;
    let spelled = side.differing_behind_a_namespace("an empty name stays as an empty field, which means the same");
    spelled.call("campaign without a name", CAMPAIGN, campaign("", 1, "x")).await;
    side.call("campaign with a lease that is not there", CAMPAIGN, campaign("e", 99, "x")).await;
    side.call("one leads", LEADER, who("e")).await;
    side.call("of a part of the name nobody is", LEADER, who("e/")).await;

    let mut waiting = side.open(CAMPAIGN).await;
    waiting.send(&campaign("e", 3, "three"));
    waiting.half_close();
    wait_for_keys(side, "e/", 2).await;
    let impatient = side.with("grpc-timeout", PATIENCE).with_either_end_of_a_deadline();
    let mut given_up = impatient.open(CAMPAIGN).await;
    given_up.send_last(&campaign("e", 4, "four"));
    wait_for_keys(side, "e/", 3).await;
    given_up.rest("campaign until a deadline").await;
    wait_for_keys(side, "e/", 2).await;

    side.call("proclaim", PROCLAIM, proclaim(leader.clone(), "two")).await;
    observed.next("observe a proclamation").await;
    side.call("proclaim nothing", PROCLAIM, proclaim(leader.clone(), "")).await;
    observed.next("observe nothing proclaimed").await;
    side.call("proclaim without a leader", PROCLAIM, proclaim(None, "x")).await;
    side.call("proclaim with an empty leader", PROCLAIM, proclaim(Some(LeaderKey::default()), "x")).await;
    let stranger = leader.clone().map(|leader| LeaderKey { rev: leader.rev + 1, ..leader });
    side.call("proclaim of another revision", PROCLAIM, proclaim(stranger.clone(), "x")).await;
    let without_lease = leader.clone().map(|leader| LeaderKey { lease: 99, ..leader });
    side.call("proclaim without a session", PROCLAIM, proclaim(without_lease.clone(), "x")).await;
    for (case, leader) in [
        ("nobody", None),
        ("an empty leader", Some(LeaderKey::default())),
        ("another", stranger),
        ("no session", without_lease),
    ] {
        side.call(&format!("resign: {case}"), RESIGN, ResignRequest { leader }).await;
    }
    side.call("resign", RESIGN, ResignRequest { leader: leader.clone() }).await;
    waiting.rest("the next leads").await;
    observed.next("observe the next").await;
    side.call("resign twice", RESIGN, ResignRequest { leader: leader.clone() }).await;
    side.call("proclaim after resigning", PROCLAIM, proclaim(leader, "x")).await;
    side.call("the next leads", LEADER, who("e")).await;
    side.call("its lease is revoked", LEASE_REVOKE, LeaseRevokeRequest { id: 3 }).await;
    side.call("nobody leads again", LEADER, who("e")).await;
    side.call("a new leader", CAMPAIGN, campaign("e", 4, "four")).await;
    observed.next("observe the new leader").await;
    let mut late = side.open(OBSERVE).await;
    late.send(&who("e"));
    late.half_close();
    late.next("observe from now on").await;
    let timed = side.with("grpc-timeout", "500m").with_either_end_of_a_deadline();
    timed.call("observe until a deadline", OBSERVE, who("nobody")).await;
}
