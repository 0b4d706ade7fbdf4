//! What one client asks of its Watch stream is no other client's business, though the proxy may serve both from one.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    CompactionRequest, PutRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_request::RequestUnion,
};

use crate::rpcs::{COMPACT, PUT, WATCH};
use crate::side::Side;
use crate::stream::Stream;

pub fn flags(_: Version) -> Vec<String> {
    Vec::new()
}

pub async fn script(side: Side) {
    let mut revision = 0;
    for value in ["1", "2", "3", "4"] {
        let request = PutRequest { key: "k".into(), value: value.into(), ..Default::default() };
        revision = side.fetch(PUT, request).await.header.expect("etcd's answers have a header").revision;
    }
    let mut quiet = watch(&side, "k", 0, "a quiet watch").await;
    progress(&mut quiet, "with nobody else").await;

    let _future = watch(&side, "k", revision + 1000, "a watch of the future").await;
    let _other_future = watch(&side, "other", i64::MAX, "a watch of no time").await;
    progress(&mut quiet, "beside watches of the future").await;

    side.call("compact", COMPACT, CompactionRequest { revision, physical: true }).await;
    // None of these cancels what etcd has cancelled.
    for key in ["k", "other"] {
        let mut compacted = watch(&side, key, 1, "a watch of what is compacted").await;
        compacted.next("it is cancelled").await;
        progress(&mut quiet, "beside a watch that was compacted").await;
    }
    let fresh = watch(&side, "late", revision, "a watch of what is left, beside one of what is compacted");
    let (_compacted, mut fresh) = tokio::join!(compacted_one(&side), fresh);
    side.fetch(PUT, PutRequest { key: "late".into(), ..Default::default() }).await;
    fresh.next("it sees what comes").await;

    // What was before the first event that is left has gone, though another watch has been told.
    let mut told = watch_with_previous(&side, 0, "a watch that is told what was before").await;
    let request = PutRequest { key: "k".into(), value: "4 again".into(), ..Default::default() };
    let revision = side.fetch(PUT, request).await.header.expect("etcd's answers have a header").revision;
    told.next("it is told").await;
    quiet.next("another is not").await;
    side.call("compact again", COMPACT, CompactionRequest { revision, physical: true }).await;
    let mut asks_late = watch_with_previous(&side, revision, "a watch that asks after the compaction").await;
    asks_late.next("it is told as much as etcd knows").await;

    let mut gone = watch(&side, "k", 0, "a client that goes away").await;
    gone.cancel();
    side.fetch(PUT, PutRequest { key: "k".into(), value: "5".into(), ..Default::default() }).await;
    quiet.next("an event after another left").await;
    progress(&mut quiet, "in the end").await;
    what_passed_the_proxy_by(&side).await;
}

/// What is shared holds what happened, not how etcd would tell it now.
async fn what_passed_the_proxy_by(side: &Side) {
    let etcd = side.at_etcd().await;
    let _standing = watch_with_previous(side, 0, "a watch that stands").await;
    let mut revisions = Vec::new();
    for key in ["k", "k", "elsewhere", "elsewhere"] {
        let request = PutRequest { key: side.key_in_etcd(key), value: "past it".into(), ..Default::default() };
        revisions.push(etcd.fetch(PUT, request).await.header.expect("etcd's answers have a header").revision);
    }
    let mut of_the_past = watch(side, "k", revisions[1], "a watch of what has passed").await;
    of_the_past.next("its header tells how far the store is").await;

    etcd.fetch(COMPACT, CompactionRequest { revision: revisions[1], physical: true }).await;
    let mut at_it = watch_with_previous(side, revisions[1], "a watch of what was compacted to by others").await;
    at_it.next("it is told as much as etcd knows").await;
    etcd.fetch(COMPACT, CompactionRequest { revision: revisions[2], physical: true }).await;
    let mut before_it = watch(side, "k", revisions[1], "a watch of what others have compacted").await;
    before_it.next("it is cancelled").await;
}

type Watch = Stream<WatchRequest, WatchResponse>;

fn create(key: &str, start_revision: i64) -> WatchRequest {
    made_of(WatchCreateRequest { key: key.to_owned().into(), start_revision, ..Default::default() })
}

fn made_of(request: WatchCreateRequest) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
}

async fn watch(side: &Side, key: &str, start_revision: i64, case: &str) -> Watch {
    begin(side, &create(key, start_revision), case).await
}

async fn watch_with_previous(side: &Side, start_revision: i64, case: &str) -> Watch {
    let request = WatchCreateRequest { key: "k".into(), start_revision, prev_kv: true, ..Default::default() };
    begin(side, &made_of(request), case).await
}

async fn begin(side: &Side, request: &WatchRequest, case: &str) -> Watch {
    let mut stream = side.on_a_new_connection().await.open(WATCH).await;
    stream.send(request);
    stream.next(case).await;
    stream
}

/// A watch of what is compacted, on the range that another asks for at the same time.
async fn compacted_one(side: &Side) -> Watch {
    let mut stream = side.on_a_new_connection().await.open(WATCH).await;
    stream.send(&create("late", 1));
    stream.fetch().await;
    stream
}

async fn progress(stream: &mut Watch, case: &str) {
    stream.send(&WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) });
    stream.next(&format!("progress {case}")).await;
}
