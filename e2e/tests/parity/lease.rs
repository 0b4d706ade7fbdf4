//! Lease: ids and TTLs that etcd takes or refuses, keys and expiry, and the keep-alive stream in all its uses.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseLeasesResponse,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest,
};

use crate::rpcs::{LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_LEASES, LEASE_REVOKE, LEASE_TIME_TO_LIVE, PUT, RANGE};
use crate::side::Side;
use crate::wire::PATIENCE;

/// How often it is looked whether a lease has run out; etcd tells nobody.
const POLL: Duration = Duration::from_millis(50);

/// Of a lease that is to end here, but on a busy machine not before what is done with it meanwhile.
const SHORT_TTL: i64 = 4;

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

pub async fn script(side: Side) {
    grants(&side).await;
    keys(&side).await;
    keep_alives(&side).await;
    revocations(&side).await;
    expiry(&side).await;
}

async fn grants(side: &Side) {
    side.call("no leases", LEASE_LEASES, LeaseLeasesRequest::default()).await;
    // Each has another TTL, since etcd lists leases by their end.
    for (id, ttl) in [
        (1, 0),
        (2, -1),
        (3, i64::MIN),
        (4, 1),
        (5, 600),
        (5, 600),
        (5, 700),
        (-6, 800),
        (i64::MAX, 900),
        (i64::MIN, 1000),
        (7, 9_000_000_000),
        (8, 9_000_000_001),
        (9, i64::MAX),
    ] {
        side.call(&format!("grant {id} for {ttl} s"), LEASE_GRANT, LeaseGrantRequest { ttl, id }).await;
        if ttl <= 1 {
            // etcd makes it a second, which a busy machine may let pass before the leases are listed, or before this.
            side.forget(LEASE_REVOKE, LeaseRevokeRequest { id }).await;
        }
    }
    let request = LeaseGrantRequest { ttl: 500, id: 0 };
    let hide = |answer: &mut LeaseGrantResponse| answer.id = i64::from(answer.id != 0);
    let granted = side.masked("etcd chooses an id", LEASE_GRANT, request, hide).await;
    let id = granted.expect("etcd grants it").id;
    let hide = |answer: &mut LeaseLeasesResponse| {
        answer.leases.iter_mut().filter(|lease| lease.id == id).for_each(|lease| lease.id = 1);
    };
    side.masked("the leases", LEASE_LEASES, LeaseLeasesRequest::default(), hide).await;
    side.fetch(LEASE_REVOKE, LeaseRevokeRequest { id }).await;
    side.call("the leases of which etcd chose none", LEASE_LEASES, LeaseLeasesRequest::default()).await;
}

/// What is left of a TTL depends on the moment; that something is left does not. Keys come in the order of a Go map.
pub fn hide(answer: &mut LeaseTimeToLiveResponse) {
    answer.ttl = answer.ttl.signum();
    answer.keys.sort();
}

async fn keys(side: &Side) {
    for (key, lease) in [("k/2", 5), ("k/1", 5), ("\0", 5), ("other", -6)] {
        side.call("put", PUT, PutRequest { key: key.into(), lease, ..Default::default() }).await;
    }
    for id in [5, -6, 7, 0, 99, -1] {
        for keys in [false, true] {
            let request = LeaseTimeToLiveRequest { id, keys };
            side.masked(&format!("time to live of {id}, keys {keys}"), LEASE_TIME_TO_LIVE, request, hide).await;
        }
    }
    side.call("a key moves to another lease", PUT, PutRequest { key: "k/1".into(), lease: -6, ..Default::default() })
        .await;
    side.call("a key leaves its lease", PUT, PutRequest { key: "k/2".into(), ..Default::default() }).await;
    for id in [5, -6] {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        side.masked(&format!("keys of {id} afterwards"), LEASE_TIME_TO_LIVE, request, hide).await;
    }
}

async fn keep_alives(side: &Side) {
    let keep = |id| LeaseKeepAliveRequest { id };
    for id in [5, 99, 0, -6, i64::MAX] {
        let mut stream = side.open(LEASE_KEEP_ALIVE).await;
        stream.send(&keep(id));
        stream.half_close();
        stream.rest(&format!("keep {id} alive once, half-closed at once")).await;
    }
    side.call("keep alive in one breath", LEASE_KEEP_ALIVE, keep(5)).await;

    let mut stream = side.open(LEASE_KEEP_ALIVE).await;
    stream.half_close();
    stream.rest("half-closed without a request").await;

    let mut stream = side.open(LEASE_KEEP_ALIVE).await;
    for round in 0..3 {
        for id in [5, 99, -6] {
            stream.send(&keep(id));
            stream.next(&format!("keep {id} alive, answer {round}")).await;
        }
    }
    for id in [5, -6, 99, 5, 5, i64::MAX, 7] {
        stream.send(&keep(id));
    }
    stream.half_close();
    stream.rest("many at once, then half-closed").await;

    let mut streams = Vec::new();
    for index in 0..4 {
        let mut stream = side.open(LEASE_KEEP_ALIVE).await;
        stream.send(&keep(5));
        stream.next(&format!("one lease, stream {index} of many")).await;
        streams.push(stream);
    }
    // One that leaves takes nothing from the others.
    streams.remove(0).cancel();
    for stream in &mut streams {
        stream.send(&keep(5));
        stream.next("one lease, another stream left").await;
        stream.half_close();
        stream.rest("one lease, the end").await;
    }
    let mut stream = side.open(LEASE_KEEP_ALIVE).await;
    for _ in 0..500 {
        stream.send(&keep(5));
    }
    stream.half_close();
    stream.rest("five hundred at once").await;

    let mut stream = side.open(LEASE_KEEP_ALIVE).await;
    stream.send(&keep(5));
    stream.next("kept alive before its end").await;
    side.call("revoke while a stream keeps it alive", LEASE_REVOKE, LeaseRevokeRequest { id: 5 }).await;
    stream.send(&keep(5));
    stream.next("kept alive after its end").await;
    stream.half_close();
    stream.rest("the stream ends well").await;
}

async fn revocations(side: &Side) {
    for id in [5, 99, 0, -1] {
        side.call(&format!("revoke {id}, which is not there"), LEASE_REVOKE, LeaseRevokeRequest { id }).await;
    }
    side.call("revoke with keys", LEASE_REVOKE, LeaseRevokeRequest { id: -6 }).await;
    let everything = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    side.call("what is left", RANGE, everything).await;
    side.call("the leases that are left", LEASE_LEASES, LeaseLeasesRequest::default()).await;
}

async fn expiry(side: &Side) {
    side.call("grant for a few seconds", LEASE_GRANT, LeaseGrantRequest { ttl: SHORT_TTL, id: 11 }).await;
    side.call("put", PUT, PutRequest { key: "short".into(), lease: 11, ..Default::default() }).await;
    let mut stream = side.open(LEASE_KEEP_ALIVE).await;
    stream.send(&LeaseKeepAliveRequest { id: 11 });
    stream.next("kept alive while it lives").await;
    // Nobody asks for it to be renewed again.
    let deadline = Instant::now() + PATIENCE;
    while side.fetch(LEASE_TIME_TO_LIVE, LeaseTimeToLiveRequest { id: 11, keys: false }).await.ttl >= 0 {
        assert!(Instant::now() < deadline, "a lease of {SHORT_TTL} s still lives");
        tokio::time::sleep(POLL).await;
    }
    stream.send(&LeaseKeepAliveRequest { id: 11 });
    stream.next("kept alive after it ran out").await;
    side.call("its time to live", LEASE_TIME_TO_LIVE, LeaseTimeToLiveRequest { id: 11, keys: true }).await;
    side.call("its key", RANGE, RangeRequest { key: "short".into(), ..Default::default() }).await;
    side.call("put with it", PUT, PutRequest { key: "short".into(), lease: 11, ..Default::default() }).await;
}
