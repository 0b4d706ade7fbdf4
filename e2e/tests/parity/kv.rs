//! Range and RangeStream: every kind of range, order, filter, limit and revision.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
};

use crate::rpcs::{COMPACT, DELETE_RANGE, LEASE_GRANT, PUT, RANGE, RANGE_STREAM};
use crate::side::Side;

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

pub async fn script(side: Side) {
    both(&side, "an empty store", everything()).await;
    seed(&side).await;
    ranges(&side).await;
    orders(&side).await;
    revision_filters(&side).await;
    revisions(&side, "before a compaction").await;
    side.call("compact", COMPACT, CompactionRequest { revision: 9, physical: true }).await;
    revisions(&side, "after a compaction").await;
    large_answers(&side).await;
}

/// The same request as a Range and as a RangeStream, which versions before 3.7 do not know.
async fn both(side: &Side, case: &str, request: RangeRequest) {
    side.call(&format!("range: {case}"), RANGE, request.clone()).await;
    side.call(&format!("range stream: {case}"), RANGE_STREAM, request).await;
}

fn everything() -> RangeRequest {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

/// Sixteen revisions whose keys differ in every order that a Range can sort by.
async fn seed(side: &Side) {
    side.call("grant", LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: 7 }).await;
    let puts: &[(&[u8], &str, i64)] = &[
        (b"d", "first", 0),
        (b"a", "9", 7),
        (b"b", "zz", 0),
        (b"c", "", 0),
        (b"b", "yy", 7),
        (b"b/1", "5", 0),
        (b"b/2", "5", 0),
        (b"a\0", "after a", 0),
        (b"\xff", "last", 0),
        (b"\xff\xff", "very last", 7),
        (b"\0", "first of all", 0),
        (b"\xc3\x28", "\u{1F980}", 0),
    ];
    for (key, value, lease) in puts {
        let request =
            PutRequest { key: key.to_vec().into(), value: (*value).into(), lease: *lease, ..Default::default() };
        side.call(&format!("put {:?}", String::from_utf8_lossy(key)), PUT, request).await;
    }
    side.call("delete", DELETE_RANGE, DeleteRangeRequest { key: "c".into(), ..Default::default() }).await;
    side.call("put again", PUT, PutRequest { key: "c".into(), value: "new".into(), ..Default::default() }).await;
}

async fn ranges(side: &Side) {
    let ranges: &[(&[u8], &[u8])] = &[
        (b"a", b""),
        (b"nothing", b""),
        (b"a", b"c"),
        (b"a", b"d\0"),
        (b"c", b"a"),
        (b"a", b"a"),
        (b"a", b"\0"),
        (b"b/", b"b0"),
        (b"\0", b"\0"),
        (b"\0", b""),
        (b"\0", b"b"),
        (b"", b""),
        (b"", b"\0"),
        (b"", b"b"),
        (b"z", b"\0"),
        (b"\xff", b"\0"),
        (b"\xff", b"\xff\xff"),
        (b"\xff\xff\xff", b"\0"),
        (b"a", b"\0\0"),
        (b"a", b"\xff"),
        (b"\xc3", b"\xc4"),
    ];
    type Change = fn(&mut RangeRequest);
    let changes: &[(&str, Change)] = &[
        ("plain", |_| ()),
        ("count only", |request| request.count_only = true),
        ("keys only", |request| request.keys_only = true),
        ("count and keys only", |request| (request.count_only, request.keys_only) = (true, true)),
        ("serializable", |request| request.serializable = true),
        ("limit 1", |request| request.limit = 1),
        ("limit 3, keys only", |request| (request.limit, request.keys_only) = (3, true)),
        ("limit 1, count only", |request| (request.limit, request.count_only) = (1, true)),
        ("limit 1000", |request| request.limit = 1000),
        ("limit -1", |request| request.limit = -1),
        ("limit of the least number", |request| request.limit = i64::MIN),
    ];
    for (key, end) in ranges {
        for (name, change) in changes {
            let mut request =
                RangeRequest { key: key.to_vec().into(), range_end: end.to_vec().into(), ..Default::default() };
            change(&mut request);
            both(side, &format!("{} to {}, {name}", key.escape_ascii(), end.escape_ascii()), request).await;
        }
    }
}

async fn orders(side: &Side) {
    // A target that is none ends the whole process of etcd 3.5.
    let targets: &[i32] =
        if side.version == Version::V3_5 { &[0, 1, 2, 3, 4] } else { &[-1, 0, 1, 2, 3, 4, 5, i32::MIN] };
    for sort_order in [-1, 0, 1, 2, 3, i32::MAX] {
        for &sort_target in targets {
            for limit in [0, 2] {
                let request = RangeRequest { sort_order, sort_target, limit, ..everything() };
                both(side, &format!("order {sort_order}, target {sort_target}, limit {limit}"), request).await;
            }
        }
    }
    let request = RangeRequest { key: "a".into(), sort_order: 2, sort_target: 4, ..Default::default() };
    both(side, "one key in an order", request).await;
    let request = RangeRequest { key: "c".into(), range_end: "a".into(), sort_order: 9, ..Default::default() };
    both(side, "an inverted range in no order", request).await;
}

async fn revision_filters(side: &Side) {
    for bound in [-1, 0, 1, 5, 9, 15, 16, i64::MAX] {
        for (name, request) in [
            ("min mod", RangeRequest { min_mod_revision: bound, ..everything() }),
            ("max mod", RangeRequest { max_mod_revision: bound, ..everything() }),
            ("min create", RangeRequest { min_create_revision: bound, ..everything() }),
            ("max create", RangeRequest { max_create_revision: bound, ..everything() }),
            ("max mod with a limit", RangeRequest { max_mod_revision: bound, limit: 2, ..everything() }),
            ("min create, count only", RangeRequest { min_create_revision: bound, count_only: true, ..everything() }),
        ] {
            both(side, &format!("{name} {bound}"), request).await;
        }
    }
    let request = RangeRequest { min_mod_revision: 9, max_mod_revision: 4, ..everything() };
    both(side, "a minimum above the maximum", request).await;
    let request =
        RangeRequest { min_mod_revision: 3, max_create_revision: 12, sort_order: 2, sort_target: 3, ..everything() };
    both(side, "filters and an order", request).await;
}

async fn revisions(side: &Side, when: &str) {
    for revision in (-2..=18).chain([1000, i64::MAX, i64::MIN]) {
        for (name, request) in [
            ("", RangeRequest { revision, ..everything() }),
            (", serializable", RangeRequest { revision, serializable: true, ..everything() }),
            (", one key", RangeRequest { revision, key: "b".into(), ..Default::default() }),
            (", a key that was gone", RangeRequest { revision, key: "c".into(), ..Default::default() }),
        ] {
            both(side, &format!("{when}, revision {revision}{name}"), request).await;
        }
    }
}

/// More than one HTTP/2 frame, and more than one message of a RangeStream.
async fn large_answers(side: &Side) {
    for index in 0..6 {
        let key = format!("large/{index}");
        let value = vec![b'a' + index; 1 << 20];
        side.fetch(PUT, PutRequest { key: key.into(), value: value.into(), ..Default::default() }).await;
    }
    let large = RangeRequest { key: "large/".into(), range_end: "large0".into(), ..Default::default() };
    both(side, "six MiB", large.clone()).await;
    both(side, "six MiB, keys only", RangeRequest { keys_only: true, ..large.clone() }).await;
    both(side, "six MiB, the other way round", RangeRequest { sort_order: 2, ..large }).await;
    for index in 0..3000 {
        let key = format!("many/{index:05}");
        side.fetch(PUT, PutRequest { key: key.into(), value: "v".into(), ..Default::default() }).await;
    }
    let many = RangeRequest { key: "many/".into(), range_end: "many0".into(), ..Default::default() };
    both(side, "three thousand keys", many.clone()).await;
    both(side, "three thousand keys, limited", RangeRequest { limit: 2500, ..many.clone() }).await;
    both(side, "three thousand keys, counted", RangeRequest { count_only: true, ..many.clone() }).await;
    both(side, "three thousand keys, by value", RangeRequest { sort_order: 1, sort_target: 4, ..many }).await;
}
