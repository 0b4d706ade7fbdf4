//! Maintenance and health: alarms, status, hashes, snapshots, and what one member alone refuses.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, DefragmentRequest, DeleteRangeRequest, DowngradeRequest,
    HashKvRequest, HashKvResponse, HashRequest, LeaseGrantRequest, MoveLeaderRequest, PutRequest, RangeRequest,
    RequestOp, SnapshotRequest, StatusRequest, StatusResponse, TxnRequest, request_op::Request,
};

use crate::rpcs::{
    ALARM, COMPACT, DEFRAGMENT, DELETE_RANGE, DOWNGRADE, HASH, HASH_KV, HEALTH_CHECK, HEALTH_WATCH, HealthCheckRequest,
    LEASE_GRANT, MOVE_LEADER, PUT, RANGE, SNAPSHOT, STATUS, TXN,
};
use crate::side::Side;

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

pub async fn script(side: Side) {
    status(&side, "at first").await;
    for index in 0..20 {
        let request =
            PutRequest { key: format!("k/{index}").into(), value: vec![7; 1000].into(), ..Default::default() };
        side.fetch(PUT, request).await;
    }
    hashes(&side).await;
    alarms(&side).await;
    side.call("defragment", DEFRAGMENT, DefragmentRequest::default()).await;
    status(&side, "after a defragmentation").await;
    snapshot(&side).await;
    for target_id in [0, 1, side.fetch(STATUS, StatusRequest::default()).await.leader] {
        side.call(&format!("move leader to {target_id:x}"), MOVE_LEADER, MoveLeaderRequest { target_id }).await;
    }
    downgrades(&side).await;
    health(&side).await;
    // Last, since etcd 3.7 on a busy machine was seen to end soon after it.
    let cancel = DowngradeRequest { action: 2, version: String::new() };
    side.call("downgrade: cancel what was not begun", DOWNGRADE, cancel).await;
}

/// Sizes of the file depend on when pages were written, and raft's index on when etcd wrote the version of its storage.
async fn status(side: &Side, when: &str) {
    let hide = |answer: &mut StatusResponse| {
        (answer.db_size, answer.db_size_in_use) = (answer.db_size.signum(), answer.db_size_in_use.signum());
        (answer.raft_index, answer.raft_applied_index) = (1, 1);
        answer.storage_version.clear();
        answer.errors.sort();
    };
    side.masked(&format!("status {when}"), STATUS, StatusRequest::default(), hide).await;
}

async fn hashes(side: &Side) {
    // Prefixed keys have another hash; the rest of the answer is the same, whatever the hash.
    let hide = |answer: &mut HashKvResponse| answer.hash = 1;
    let without_hash = side.clone();
    let prefixed = side.differing_behind_a_namespace("the keys that are hashed carry the prefix");
    for revision in [0, 5, 21, 22, 1000, -1] {
        prefixed.call(&format!("hash of keys at {revision}"), HASH_KV, HashKvRequest { revision }).await;
        let case = format!("hash of keys at {revision}, without the hash");
        without_hash.masked(&case, HASH_KV, HashKvRequest { revision }, hide).await;
    }
    side.call("compact", COMPACT, CompactionRequest { revision: 10, physical: true }).await;
    for revision in [0, 5, 9, 10, 11] {
        prefixed.call(&format!("hash of keys at {revision}, compacted"), HASH_KV, HashKvRequest { revision }).await;
    }
    // This one covers raft's own records, in which there are times.
    side.masked("hash", HASH, HashRequest::default(), |answer| answer.hash = 1).await;
}

async fn alarms(side: &Side) {
    let member_id = side.fetch(STATUS, StatusRequest::default()).await.leader;
    // An action that is none would end the whole process of etcd.
    for (case, action, member_id, alarm) in [
        ("none yet", 0, 0, 0),
        ("take back what was not raised", 2, member_id, 1),
        ("space", 1, member_id, 1),
        ("the list", 0, 0, 0),
        ("the list of one kind", 0, 0, 1),
        ("the list of the other kind", 0, 0, 2),
        ("twice", 1, member_id, 1),
        ("of another member", 1, 77, 1),
        ("the list of two", 0, 0, 0),
        ("the list of a member", 0, 77, 0),
    ] {
        let request = AlarmRequest { action, member_id, alarm };
        // They come in the order of a Go map.
        let sort = |answer: &mut AlarmResponse| answer.alarms.sort_by_key(|alarm| alarm.member_id);
        side.masked(&format!("alarm: {case}"), ALARM, request, sort).await;
    }
    writes(side, "while there is no space").await;
    status(side, "while there is no space").await;
    health_check(side, "while there is no space").await;
    for member_id in [member_id, 77] {
        side.call("alarm: taken back", ALARM, AlarmRequest { action: 2, member_id, alarm: 1 }).await;
    }
    writes(side, "with space again").await;
    side.call("alarm: corrupt", ALARM, AlarmRequest { action: 1, member_id, alarm: 2 }).await;
    writes(side, "while corrupt").await;
    side.call("range while corrupt", RANGE, RangeRequest { key: "k/1".into(), ..Default::default() }).await;
    health_check(side, "while corrupt").await;
    side.call("alarm: corrupt taken back", ALARM, AlarmRequest { action: 2, member_id, alarm: 2 }).await;
    writes(side, "in the end").await;
}

async fn writes(side: &Side, when: &str) {
    let put = PutRequest { key: "k/1".into(), value: when.to_owned().into(), ..Default::default() };
    side.call(&format!("put {when}"), PUT, put.clone()).await;
    let success = vec![RequestOp { request: Some(Request::RequestPut(put)) }];
    side.call(&format!("txn {when}"), TXN, TxnRequest { success, ..Default::default() }).await;
    let delete = DeleteRangeRequest { key: "k/2".into(), ..Default::default() };
    side.call(&format!("delete {when}"), DELETE_RANGE, delete).await;
    side.call(&format!("grant {when}"), LEASE_GRANT, LeaseGrantRequest { ttl: 60, id: 5 }).await;
}

/// The bytes of two databases differ in the order of their pages; their number and their beginning must fit.
async fn snapshot(side: &Side) {
    const PAGE: u64 = 4096;
    let mut stream = side.open(SNAPSHOT).await;
    stream.send(&SnapshotRequest::default());
    stream.half_close();
    let answers = stream.rest_unseen("snapshot: its end").await;
    let (checksum, pages) = answers.split_last().expect("a snapshot ends with its checksum");
    let (mut received, mut fits) = (0, true);
    let total = pages.first().map_or(0, |first| first.remaining_bytes + first.blob.len() as u64);
    for answer in pages {
        received += answer.blob.len() as u64;
        fits &= received + answer.remaining_bytes == total;
    }
    // A bbolt file begins with the number and the kind of its first page, and then its magic.
    let start = pages.first().map(|first| &first.blob[..24]);
    let said = format!(
        "fits {fits}, {} beside whole pages, begins {start:02x?}, ends with {} and {} to come",
        received % PAGE,
        checksum.blob.len(),
        checksum.remaining_bytes
    );
    side.note("snapshot: its sum", said);
}

async fn downgrades(side: &Side) {
    let older = match side.version {
        Version::V3_5 => "3.4.0",
        Version::V3_6 => "3.5.0",
        Version::V3_7 => "3.6.0",
    };
    for action in [0, 9] {
        for version in ["", "nonsense", "3", "3.1.0", older, "3.99.0", "4.0.0"] {
            let request = DowngradeRequest { action, version: version.to_owned() };
            side.call(&format!("downgrade: {action} {version:?}"), DOWNGRADE, request).await;
        }
    }
    for version in ["", "nonsense", "3.1.0", "3.99.0"] {
        let request = DowngradeRequest { action: 1, version: version.to_owned() };
        side.call(&format!("downgrade: begin to {version:?}"), DOWNGRADE, request).await;
    }
}

async fn health_check(side: &Side, when: &str) {
    side.call(&format!("health {when}"), HEALTH_CHECK, HealthCheckRequest::default()).await;
}

async fn health(side: &Side) {
    health_check(side, "in the end").await;
    for service in ["etcdserverpb.KV", "nothing", "grpc.health.v1.Health"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        side.call(&format!("health of {service}"), HEALTH_CHECK, request.clone()).await;
        let mut stream = side.open(HEALTH_WATCH).await;
        stream.send(&request);
        stream.half_close();
        stream.next(&format!("health of {service}, watched")).await;
    }
    let mut stream = side.open(HEALTH_WATCH).await;
    stream.send(&HealthCheckRequest::default());
    stream.half_close();
    stream.next("health, watched").await;
}
