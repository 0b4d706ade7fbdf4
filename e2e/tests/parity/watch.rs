//! Watch: everything that a client may ask of a watch stream, in an order in which only one answer is right.
//!
//! What etcd leaves to chance is not compared: in which order it serves several watches of one revision, and how it
//! packs events of the past into messages.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RequestOp, TxnRequest,
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, request_op::Request,
    watch_request::RequestUnion,
};

use crate::rpcs::{COMPACT, DELETE_RANGE, LEASE_GRANT, LEASE_REVOKE, PUT, TXN, WATCH};
use crate::side::Side;
use crate::stream::Stream;

/// Short, so that the chapter need not wait the ten minutes of the default.
const PROGRESS_INTERVAL: &str = "1s";

pub fn flags(version: Version) -> Vec<String> {
    let name = if version == Version::V3_5 {
        "experimental-watch-progress-notify-interval"
    } else {
        "watch-progress-notify-interval"
    };
    vec![format!("--{name}={PROGRESS_INTERVAL}")]
}

pub async fn script(side: Side) {
    created(&side).await;
    ids(&side).await;
    ranges(&side).await;
    live_events(&side).await;
    filters_and_previous_values(&side).await;
    many_watches(&side).await;
    the_past(&side).await;
    the_future(&side).await;
    progress(&side).await;
    fragments(&side).await;
    odd_messages(&side).await;
    ends(&side).await;
    compactions(&side).await;
}

type Watch = Stream<WatchRequest, WatchResponse>;

fn create(request: WatchCreateRequest) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
}

fn on(key: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

fn cancel(watch_id: i64) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) }
}

fn progress_request() -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) }
}

/// Writes without recording, and returns the revision that this made.
async fn put(side: &Side, key: &str, value: &str) -> i64 {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    side.fetch(PUT, request).await.header.expect("etcd's answers have a header").revision
}

async fn delete(side: &Side, key: &str, end: &str) {
    let request =
        DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() };
    side.fetch(DELETE_RANGE, request).await;
}

async fn txn(side: &Side, requests: Vec<Request>) {
    let success = requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    side.fetch(TXN, TxnRequest { success, ..Default::default() }).await;
}

fn put_op(key: &str, value: &str) -> Request {
    Request::RequestPut(PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() })
}

fn delete_op(key: &str, end: &str) -> Request {
    Request::RequestDeleteRange(DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..Default::default()
    })
}

/// A watch whose answer to the create request is recorded.
async fn watch(side: &Side, case: &str, request: WatchCreateRequest) -> Watch {
    let mut stream = side.open(WATCH).await;
    stream.send(&create(request));
    stream.next(&format!("{case}: created")).await;
    stream
}

async fn created(side: &Side) {
    drop(watch(side, "in an empty store", on("a", "")).await);
    put(side, "a", "1").await;
    drop(watch(side, "after a put", on("a", "")).await);
    drop(watch(&side.with("hasleader", "true"), "with a leader required", on("a", "")).await);
    drop(watch(&side.on_a_new_connection().await, "on another connection", on("a", "")).await);
}

async fn ids(side: &Side) {
    let mut stream = side.open(WATCH).await;
    for (case, watch_id) in [
        ("the first", 0),
        ("the second", 0),
        ("an id of my own", 2),
        ("it is not given twice", 0),
        ("the same id twice", 2),
        ("an id that was given", 0),
        ("a large one", i64::MAX),
        ("the same large one", i64::MAX),
        ("a negative one", -7),
        ("the one that says there is none", -1),
        ("after all these", 0),
    ] {
        stream.send(&create(WatchCreateRequest { watch_id, ..on("a", "b") }));
        stream.next(&format!("ids: {case}")).await;
    }
    for id in [1, 2, i64::MAX, -7] {
        stream.send(&cancel(id));
        stream.next(&format!("ids: cancel {id}")).await;
    }
    // Nothing answers these, so the answer to the create after them must be next.
    for id in [1, 77, -3] {
        stream.send(&cancel(id));
    }
    stream.send(&create(WatchCreateRequest { watch_id: 2, ..on("a", "b") }));
    stream.next("ids: an id is used again; cancels of unknown ids say nothing").await;
    stream.send(&create(on("a", "b")));
    stream.next("ids: none of the cancelled ones is given again").await;
    for id in [0, 2, 3, 4, 5, 6, 7, 8] {
        stream.send(&cancel(id));
    }
    stream.send(&create(WatchCreateRequest { watch_id: 99, ..on("z", "") }));
    while stream.next("ids: the rest is cancelled").await.is_some_and(|answer| answer.watch_id != 99) {}
}

async fn ranges(side: &Side) {
    let ranges = [
        ("a", ""),
        ("", ""),
        ("\0", ""),
        ("\0", "\0"),
        ("", "\0"),
        ("", "b"),
        ("a", "\0"),
        ("b", "a"),
        ("a", "a"),
        ("a", "a\0"),
        ("\0", "\0\0"),
        ("z", "\0"),
        ("a", "\u{ff}"),
    ];
    for (key, end) in ranges {
        let case = format!("watch {key:?} to {end:?}");
        let mut stream = watch(side, &case, on(key, end)).await;
        stream.send(&create(WatchCreateRequest { watch_id: 50, ..on("the barrier", "") }));
        stream.next(&format!("{case}: after it, a barrier or its cancel")).await;
        let mut seen = 1;
        for written in ["\0", "\0\0", "a", "a\0", "b", "\u{ff}", "the barrier"] {
            put(side, written, "v").await;
            seen += usize::from(covers(key, end, written));
        }
        stream.several(&format!("{case}: what it sees"), seen).await;
        stream.send(&create(WatchCreateRequest { watch_id: 51, ..on("the barrier", "") }));
        stream.next(&format!("{case}: nothing else")).await;
    }
}

/// Whether a watch sees a key: etcd takes an empty key for the key zero, and the end zero for no end.
fn covers(key: &str, end: &str, written: &str) -> bool {
    let key = if key.is_empty() { "\0" } else { key };
    match end {
        "" => key == written,
        "\0" => key <= written,
        _ => key <= written && written < end,
    }
}

/// Each write is awaited before the next, so each message has one right form.
async fn live_events(side: &Side) {
    delete(side, "\0", "\0").await;
    side.fetch(LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: 7 }).await;
    let mut stream = watch(side, "live", on("l", "m")).await;
    put(side, "l", "1").await;
    stream.next("live: a put").await;
    put(side, "l", "2").await;
    stream.next("live: an update").await;
    put(side, "l", "").await;
    stream.next("live: an empty value").await;
    put(side, "elsewhere", "").await;
    delete(side, "l", "").await;
    stream.next("live: a delete").await;
    delete(side, "l", "").await;
    txn(side, vec![put_op("l/3", "3"), put_op("l/1", "1"), put_op("elsewhere", "x"), put_op("l/2", "2")]).await;
    stream.next("live: several puts in one revision").await;
    txn(
        side,
        vec![delete_op("l/", "l/2"), put_op("l/2", "two"), put_op("l/1", "again?")].into_iter().take(2).collect(),
    )
    .await;
    stream.next("live: a delete and a put in one revision").await;
    delete(side, "l", "m").await;
    stream.next("live: a delete of several").await;
    for key in ["l/b", "l/a", "elsewhere"] {
        side.fetch(PUT, PutRequest { key: key.into(), lease: 7, ..Default::default() }).await;
        if key != "elsewhere" {
            stream.next("live: a put with a lease").await;
        }
    }
    side.fetch(LEASE_REVOKE, LeaseRevokeRequest { id: 7 }).await;
    stream.next("live: the lease is revoked").await;
    let nested =
        TxnRequest { success: vec![RequestOp { request: Some(put_op("l/n", "nested")) }], ..Default::default() };
    txn(side, vec![put_op("l/o", "outer"), Request::RequestTxn(nested)]).await;
    stream.next("live: a nested transaction").await;
    put(side, "l/big", &"x".repeat(1 << 20)).await;
    stream.next("live: a value of a MiB").await;
    stream.send(&cancel(0));
    stream.next("live: cancelled").await;
    stream.send(&create(on("l", "m")));
    stream.next("live: watched again").await;
    put(side, "l", "again").await;
    stream.next("live: only the new watch hears of it").await;
}

async fn filters_and_previous_values(side: &Side) {
    delete(side, "\0", "\0").await;
    let mut stream = side.open(WATCH).await;
    let filters: [&[i32]; 6] = [&[], &[0], &[1], &[0, 1], &[0, 0], &[7]];
    let mut id = 0;
    for filter in filters {
        for prev_kv in [false, true] {
            id += 1;
            stream.send(&create(WatchCreateRequest { watch_id: id, filters: filter.into(), prev_kv, ..on("f", "g") }));
            stream.next(&format!("filters {filter:?}, prev {prev_kv}: created")).await;
        }
    }
    stream.send(&create(WatchCreateRequest { watch_id: 100, ..on("the barrier", "") }));
    stream.next("filters: the barrier").await;
    put(side, "f", "1").await;
    // Of twelve watches ten let puts through unless 0 (no puts) is among their filters.
    stream.several("filters: a put", 6).await;
    put(side, "f", "2").await;
    stream.several("filters: an update", 6).await;
    delete(side, "f", "").await;
    stream.several("filters: a delete", 8).await;
    txn(side, vec![put_op("f/1", "1"), put_op("f/2", "2")]).await;
    stream.several("filters: two puts", 6).await;
    txn(side, vec![delete_op("f/1", ""), put_op("f/3", "3"), put_op("f/2", "two")]).await;
    stream.several("filters: a delete among puts", 10).await;
    put(side, "the barrier", "").await;
    stream.next("filters: nothing else").await;
}

async fn many_watches(side: &Side) {
    delete(side, "\0", "\0").await;
    let mut stream = side.open(WATCH).await;
    for index in 0..100 {
        let request = if index % 2 == 0 { on("m", "n") } else { on("m", "") };
        stream.send(&create(WatchCreateRequest { prev_kv: index % 3 == 0, ..request }));
    }
    for index in 0..100 {
        stream.next(&format!("many: created {index}")).await;
    }
    put(side, "m", "1").await;
    stream.several("many: all see it", 100).await;
    put(side, "m/1", "1").await;
    stream.several("many: half of them see it", 50).await;
    let mut others = Vec::new();
    for index in 0..10 {
        let other = side.on_a_new_connection().await;
        others.push(watch(&other, &format!("many: on connection {index}"), on("m", "n")).await);
    }
    txn(side, vec![put_op("m", "2"), put_op("m/2", "2")]).await;
    stream.several("many: all see a transaction, some one event and some two", 100).await;
    for other in &mut others {
        other.next("many: the other connections see it").await;
    }
    for id in 0..99 {
        stream.send(&cancel(id));
        stream.next(&format!("many: cancel {id}")).await;
    }
    put(side, "m", "3").await;
    stream.next("many: one is left").await;
}

/// Watches from revisions that are past. Events come in batches as etcd pleases, so they are compared one by one.
async fn the_past(side: &Side) {
    delete(side, "\0", "\0").await;
    let first = put(side, "p/1", "1").await;
    put(side, "q", "1").await;
    txn(side, vec![put_op("p/2", "2"), put_op("p/3", "3")]).await;
    put(side, "p/1", "one").await;
    delete(side, "p/2", "").await;
    let last = put(side, "p/4", "4").await;
    for (case, request, events) in [
        ("from the first", WatchCreateRequest { start_revision: first, ..on("p", "q") }, 6),
        ("from the second", WatchCreateRequest { start_revision: first + 1, ..on("p", "q") }, 5),
        ("from the last", WatchCreateRequest { start_revision: last, ..on("p", "q") }, 1),
        ("one key", WatchCreateRequest { start_revision: first, ..on("p/1", "") }, 2),
        ("with previous values", WatchCreateRequest { start_revision: first, prev_kv: true, ..on("p", "q") }, 6),
        (
            "deletes only",
            WatchCreateRequest { start_revision: first, filters: vec![0], prev_kv: true, ..on("p", "q") },
            1,
        ),
        ("puts only", WatchCreateRequest { start_revision: first, filters: vec![1], ..on("p", "q") }, 5),
        ("everything", WatchCreateRequest { start_revision: first, ..on("\0", "\0") }, 7),
    ] {
        let mut stream = watch(side, &format!("past, {case}"), request).await;
        stream.events(&format!("past, {case}"), events).await;
        put(side, "p/1", case).await;
        if case != "deletes only" && case != "from the last" {
            stream.events(&format!("past, {case}: and on into the present"), 1).await;
        }
        drop(stream);
    }
    for start_revision in [-1, -5, i64::MIN] {
        let case = format!("past, revision {start_revision}");
        let mut stream = watch(side, &case, WatchCreateRequest { start_revision, ..on("p", "q") }).await;
        stream.send(&create(on("p", "q")));
        stream.next(&format!("{case}: after it")).await;
    }
}

async fn the_future(side: &Side) {
    delete(side, "\0", "\0").await;
    let now = put(side, "t", "now").await;
    let mut stream =
        watch(side, "future, three on", WatchCreateRequest { start_revision: now + 3, ..on("t", "") }).await;
    stream.send(&create(WatchCreateRequest { start_revision: now + 1, ..on("t", "") }));
    stream.next("future, the next: created").await;
    stream.send(&create(WatchCreateRequest { start_revision: i64::MAX, ..on("t", "") }));
    stream.next("future, never: created").await;
    stream.send(&create(on("t", "")));
    stream.next("future, now: created").await;
    for (value, watches) in [("1", 2), ("2", 2), ("3", 3), ("4", 3)] {
        put(side, "t", value).await;
        stream.several(&format!("future, put {value}"), watches).await;
    }
}

async fn progress(side: &Side) {
    let mut stream = side.open(WATCH).await;
    stream.send(&progress_request());
    stream.send(&create(on("g", "")));
    while stream.next("progress asked for without a watch").await.is_some_and(|answer| !answer.created) {}
    stream.send(&progress_request());
    stream.next("progress asked for with one watch").await;
    put(side, "g", "1").await;
    stream.next("progress: an event").await;
    put(side, "elsewhere", "1").await;
    stream.send(&progress_request());
    stream.next("progress after a write elsewhere").await;
    for index in 0..20 {
        stream.send(&create(on(if index % 2 == 0 { "g" } else { "h" }, "")));
        stream.next(&format!("progress: created {index}")).await;
    }
    put(side, "elsewhere", "2").await;
    for _ in 0..3 {
        stream.send(&progress_request());
        stream.next("progress with many watches").await;
    }
    put(side, "h", "1").await;
    stream.several("progress: events", 10).await;
    stream.send(&progress_request());
    stream.next("progress after events").await;
    drop(stream);

    // One that asks to be told, and one that does not.
    put(side, "n", "1").await;
    let mut stream = watch(side, "notified", WatchCreateRequest { progress_notify: true, ..on("n", "") }).await;
    stream.next("notified: in time, of the revision").await;
    put(side, "elsewhere", "3").await;
    // The first may have been on its way when the write was made.
    let newest = put(side, "elsewhere", "4").await;
    while stream.fetch().await.header.is_some_and(|header| header.revision < newest) {}
    stream.next("notified: of a later revision").await;
    let filtered = WatchCreateRequest { progress_notify: true, filters: vec![0, 1], prev_kv: true, ..on("n", "") };
    let mut stream = watch(side, "notified though filtered", filtered).await;
    stream.next("notified though filtered").await;
    let future = WatchCreateRequest { progress_notify: true, start_revision: newest + 1000, ..on("n", "") };
    let mut stream = watch(side, "notified in the future", future).await;
    stream.send(&create(WatchCreateRequest { progress_notify: true, ..on("n", "") }));
    stream.next("notified in the future, and now: created").await;
    stream.next("notified now, and not in the future").await;
}

async fn fragments(side: &Side) {
    delete(side, "\0", "\0").await;
    let mut first = 0;
    for index in 0..5 {
        let revision = put(side, &format!("x/{index}"), &"x".repeat(1_000_000 + index)).await;
        if index == 0 {
            first = revision;
        }
    }
    for fragment in [false, true] {
        let case = format!("five MB of the past, fragment {fragment}");
        let request = WatchCreateRequest { start_revision: first, fragment, ..on("x", "y") };
        let mut stream = watch(side, &case, request).await;
        stream.events(&case, 5).await;
    }
    // One revision of more than a message may hold, were it not that etcd cuts it.
    let previous = WatchCreateRequest { prev_kv: true, fragment: true, ..on("x", "y") };
    let mut cut = watch(side, "a large delete, in fragments", previous.clone()).await;
    let mut whole = watch(side, "a large delete, whole", WatchCreateRequest { fragment: false, ..previous }).await;
    delete(side, "x", "y").await;
    while cut.next("a large delete, in fragments").await.is_some_and(|answer| answer.fragment) {}
    whole.next("a large delete, whole").await;
}

async fn odd_messages(side: &Side) {
    let mut stream = side.open(WATCH).await;
    stream.send(&WatchRequest::default());
    stream.send(&create(on("o", "")));
    stream.next("a request that is none is passed over").await;
    stream.send_raw(b"\xfa\x3f\x01x");
    stream.send(&create(on("o", "")));
    stream.next("a field that nobody knows is passed over").await;
    // The last of several members counts.
    stream.send_raw(b"\x12\x02\x08\x00\x1a\x00");
    stream.next("a cancel and a progress request in one").await;
    stream.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest::default())) });
    stream.next("an empty create request").await;
}

async fn ends(side: &Side) {
    let mut stream = watch(side, "half-closed", on("e", "")).await;
    stream.half_close();
    put(side, "e", "1").await;
    stream.next("half-closed: events still come").await;
    put(side, "e", "2").await;
    stream.next("half-closed: and again").await;
    let mut stream = side.open(WATCH).await;
    stream.send(&create(on("e", "")));
    stream.send(&create(on("e", "")));
    stream.half_close();
    stream.next("half-closed at once: created").await;
    stream.next("half-closed at once: both").await;
    put(side, "e", "3").await;
    stream.several("half-closed at once: events", 2).await;
    let timed = side.with("grpc-timeout", "1S").with_either_end_of_a_deadline();
    let mut stream = watch(&timed, "a watch with a timeout", on("e", "")).await;
    stream.rest("a watch with a timeout").await;
}

async fn compactions(side: &Side) {
    delete(side, "\0", "\0").await;
    let first = put(side, "c", "1").await;
    let second = put(side, "c", "2").await;
    let third = put(side, "c", "3").await;
    let mut live = watch(side, "compacted, a live watch", on("c", "")).await;
    side.call("compact", COMPACT, CompactionRequest { revision: third, physical: true }).await;
    for revision in [1, first, second, third - 1] {
        let case = format!("compacted, from revision {revision}");
        let mut stream = watch(side, &case, WatchCreateRequest { start_revision: revision, ..on("c", "") }).await;
        stream.next(&format!("{case}: cancelled")).await;
        // A client that did not cancel what was cancelled already comes back for more.
        stream.send(&create(WatchCreateRequest { start_revision: revision, ..on("c", "") }));
        stream.next(&format!("{case}: once more, created")).await;
        stream.next(&format!("{case}: once more, cancelled")).await;
        stream.send(&create(WatchCreateRequest { start_revision: third, ..on("c", "") }));
        stream.next(&format!("{case}: what is left, created")).await;
        stream.events(&format!("{case}: what is left"), 1).await;
    }
    put(side, "c", "4").await;
    live.next("compacted: a live watch lives on").await;
}
