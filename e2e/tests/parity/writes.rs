//! Put, DeleteRange and Compact: combinations that etcd takes or refuses, sizes around its limits, and what they leave.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
};

use crate::rpcs::{COMPACT, DELETE_RANGE, LEASE_GRANT, LEASE_TIME_TO_LIVE, PUT, RANGE};
use crate::side::{NAMESPACE, Side};

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

pub async fn script(side: Side) {
    side.call("grant", LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: 7 }).await;
    puts(&side).await;
    deletes(&side).await;
    sizes(&side).await;
    compactions(&side).await;
    show(&side, "in the end").await;
}

async fn show(side: &Side, case: &str) {
    let request = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    side.call(&format!("what is there {case}"), RANGE, request).await;
}

/// Every combination of the flags of a Put, on a key that is there and on one that is not.
async fn puts(side: &Side) {
    for key in ["", "k", "fresh", "\0", "\u{ff}"] {
        for value in ["", "v"] {
            for lease in [0, 7, 8, -1] {
                for flags in 0..8 {
                    let (prev_kv, ignore_value, ignore_lease) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
                    // A fresh key stays fresh only if nothing was put, so it gets a name of its own each time.
                    let key = if key == "fresh" { format!("fresh/{value}/{lease}/{flags}") } else { key.to_owned() };
                    let case = format!(
                        "put {key:?} {value:?} lease {lease}, prev {prev_kv}, ignores {ignore_value} {ignore_lease}"
                    );
                    let request =
                        PutRequest { key: key.into(), value: value.into(), lease, prev_kv, ignore_value, ignore_lease };
                    side.call(&case, PUT, request).await;
                }
            }
        }
    }
    let ttl = LeaseTimeToLiveRequest { id: 7, keys: true };
    side.masked("keys of the lease", LEASE_TIME_TO_LIVE, ttl, crate::lease::hide).await;
    show(side, "after puts").await;
}

async fn deletes(side: &Side) {
    for key in ["d1", "d2", "d3", "d3/1", "d3/2", "d4", "e"] {
        side.fetch(PUT, PutRequest { key: key.into(), value: key.into(), ..Default::default() }).await;
    }
    let ranges: &[(&str, &str)] = &[
        ("", ""),
        ("", "\0"),
        ("", "z"),
        ("nothing", ""),
        ("d4", "d3"),
        ("d4", "d4"),
        ("d1", ""),
        ("d1", ""),
        ("d2", "d3"),
        ("d3/", "d30"),
        ("d4", "\0"),
        ("fresh/", "fresh0"),
        ("\0", ""),
        ("\0", "\0"),
        ("\0", "\0"),
    ];
    for (key, end) in ranges {
        for prev_kv in [false, true] {
            let request = DeleteRangeRequest { key: (*key).into(), range_end: (*end).into(), prev_kv };
            side.call(&format!("delete {key:?} to {end:?}, prev {prev_kv}"), DELETE_RANGE, request).await;
            side.fetch(PUT, PutRequest { key: format!("d3/{prev_kv}").into(), ..Default::default() }).await;
        }
    }
    show(side, "after deletes").await;
}

/// etcd takes a request of 1.5 MiB, and a gRPC message of 2 MiB, refusing what lies between with words of its own.
async fn sizes(side: &Side) {
    const MIB: usize = 1 << 20;
    const LIMIT: usize = 3 * MIB / 2;
    let put = |key: &str, size: usize| PutRequest {
        key: key.to_owned().into(),
        value: vec![7; size].into(),
        ..Default::default()
    };
    for size in [MIB, LIMIT - 100, LIMIT + 1000, 8 * MIB / 5, 2 * MIB - 100] {
        side.call(&format!("put of {size} bytes"), PUT, put("big", size)).await;
    }
    let grown = side.differing_behind_a_namespace("the prefix counts, and etcd names the size of what it got");
    for size in [2 * MIB, 21 * MIB / 10, 3 * MIB, 5 * MIB] {
        grown.call(&format!("put of {size} bytes"), PUT, put("big", size)).await;
    }
    // Around the limits the message is measured on the wire: 11 bytes around this key and value, plus the prefix.
    for (name, limit) in [("request", LIMIT), ("message", 2 * MIB)] {
        for off in [-2_i64, -1, 0, 1, 2] {
            let around = [1 + 1 + 3, 1 + 3].iter().sum::<usize>();
            let size = (limit - around).saturating_add_signed(isize::try_from(off).expect("a small number"));
            grown.call(&format!("put {off} over the limit of a {name}"), PUT, put("big", size)).await;
        }
    }
    let long_key = PutRequest { key: vec![b'k'; 64 * 1024].into(), ..Default::default() };
    side.call("put of a key of 64 KiB", PUT, long_key.clone()).await;
    side.call("range of a key of 64 KiB", RANGE, RangeRequest { key: long_key.key, ..Default::default() }).await;
    assert!(NAMESPACE.len() < 100, "the sizes above leave so much room");
}

async fn compactions(side: &Side) {
    let now = side.fetch(RANGE, RangeRequest { key: "k".into(), ..Default::default() }).await;
    let now = now.header.expect("etcd's answers have a header").revision;
    for revision in [i64::MIN, -1, 0, 1, 5, 5, 4, 6, now + 1, now - 1, now, now, i64::MAX] {
        for physical in [false, true] {
            let case = format!("compact {revision}, physical {physical}");
            side.call(&case, COMPACT, CompactionRequest { revision, physical }).await;
        }
    }
    for revision in [5, now - 1, now, now + 1] {
        let request = RangeRequest { key: "k".into(), revision, ..Default::default() };
        side.call(&format!("range at {revision} after all compactions"), RANGE, request).await;
    }
}
