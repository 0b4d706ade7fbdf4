//! The victim: a tenant with keys, a lease, a lock and an election, and whether it still has all of them.

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{
    AlarmRequest, AuthUserListRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, MemberListRequest, PutRequest,
    RangeRequest, auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
    lease_client::LeaseClient, maintenance_client::MaintenanceClient,
};
use etcd_proxy_proto::v3electionpb::{CampaignRequest, LeaderKey, election_client::ElectionClient};
use etcd_proxy_proto::v3lockpb::{LockRequest, lock_client::LockClient};
use tonic::transport::Channel;

/// Stands in each of the victim's keys and names, and in nothing else.
pub const SECRET: &str = "TOPSECRET";
/// Stands in each of its values.
pub const VALUE: &str = "HIDDENVALUE";
/// Longer than any test takes.
const TTL_SECONDS: i64 = 600;

/// What the attacker knows of its victim, which is everything: isolation must not depend on secrets.
#[derive(Clone, Debug)]
pub struct Loot {
    pub prefix: Vec<u8>,
    /// As etcd knows them.
    pub key: Vec<u8>,
    pub lock_name: Vec<u8>,
    pub lock_key: Vec<u8>,
    pub election_name: Vec<u8>,
    pub leader: LeaderKey,
    pub lease: i64,
    /// Of etcd's only member.
    pub member: u64,
}

/// What etcd holds of the victim, and what everybody shares.
#[derive(Debug, PartialEq)]
pub struct State {
    keys: Vec<(Bytes, Bytes, i64)>,
    lease_keys: Vec<Bytes>,
    members: Vec<(u64, String)>,
    users: Vec<String>,
    alarms: usize,
}

/// Gives the victim what it has, by its own way in; `own` is how a key is called there.
pub async fn settle(direct: &Channel, way: &Channel, prefix: &[u8], strips: bool) -> Loot {
    let spelled = |key: &str| if strips { key.as_bytes().to_vec() } else { [prefix, key.as_bytes()].concat() };
    let absolute = |key: &[u8]| if strips { [prefix, key].concat() } else { key.to_vec() };
    let granted = LeaseClient::new(way.clone()).lease_grant(LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 }).await;
    let lease = granted.expect("the victim gets a lease").into_inner().id;
    let key = spelled(&format!("{SECRET}-key"));
    for (key, lease) in [(key.clone(), lease), (spelled(&format!("{SECRET}-other")), 0)] {
        let put = PutRequest { key: key.into(), value: VALUE.into(), lease, ..PutRequest::default() };
        KvClient::new(way.clone()).put(put).await.expect("the victim writes");
    }
    let lock_name = spelled(&format!("{SECRET}-lock"));
    let lock = LockRequest { name: lock_name.clone().into(), lease };
    let lock = LockClient::new(way.clone()).lock(lock).await.expect("the victim locks").into_inner();
    let election_name = spelled(&format!("{SECRET}-election"));
    let campaign = CampaignRequest { name: election_name.clone().into(), lease, value: VALUE.into() };
    let campaign = ElectionClient::new(way.clone()).campaign(campaign).await.expect("the victim is elected");
    let leader = campaign.into_inner().leader.expect("who is elected has a key");
    let members = ClusterClient::new(direct.clone()).member_list(MemberListRequest::default()).await;
    let member = members.expect("etcd has members").into_inner().members[0].id;
    Loot {
        prefix: prefix.to_vec(),
        key: absolute(&key),
        lock_name: absolute(&lock_name),
        lock_key: absolute(&lock.key),
        election_name: absolute(&election_name),
        leader: LeaderKey { name: absolute(&leader.name).into(), key: absolute(&leader.key).into(), ..leader },
        lease,
        member,
    }
}

/// Looks at etcd itself.
pub async fn state(direct: &Channel, loot: &Loot, attacker: &[u8]) -> State {
    let range = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
    let answer = KvClient::new(direct.clone()).range(range).await.expect("etcd answers").into_inner();
    let holds = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
    // A prefix may hold the other: what the attacker writes into its own is no harm done to the one around it.
    let is_attackers = |key: &[u8]| attacker.len() > loot.prefix.len() && key.starts_with(attacker);
    let mine = |key: &[u8]| key.starts_with(&loot.prefix) && holds(key) && !is_attackers(key);
    let keys = answer.kvs.into_iter().filter(|kv| mine(&kv.key)).map(|kv| (kv.key, kv.value, kv.lease)).collect();
    let question = LeaseTimeToLiveRequest { id: loot.lease, keys: true };
    let lease = LeaseClient::new(direct.clone()).lease_time_to_live(question).await.expect("etcd answers");
    let members = ClusterClient::new(direct.clone()).member_list(MemberListRequest::default()).await;
    let users = AuthClient::new(direct.clone()).user_list(AuthUserListRequest::default()).await;
    let alarms = MaintenanceClient::new(direct.clone()).alarm(AlarmRequest::default()).await;
    // etcd lists them in no order.
    let mut lease_keys = lease.into_inner().keys;
    lease_keys.sort();
    State {
        keys,
        lease_keys,
        members: members.expect("etcd has members").into_inner().members.into_iter().map(|m| (m.id, m.name)).collect(),
        users: users.expect("etcd answers").into_inner().users,
        alarms: alarms.expect("etcd answers").into_inner().alarms.len(),
    }
}
