//! A store that is put back to a backup while the proxy runs: nothing of what it was before is told any more.

use etcd_proxy_e2e::{Etcd, Proxy, Version};
use etcd_proxy_proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
};
use futures_util::{StreamExt, stream};
use tonic::{Status, Streaming};

use crate::raw::{Client, PATIENCE, one, warm};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_of_a_store_that_was_put_back_to_a_backup() {
    let mut etcd = Etcd::builder().version(Version::V3_7).start();
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).start();
    let (through, direct) = (Client::dial(proxy.address()).await, Client::dial(etcd.address()).await);
    let backed_up = direct.put("k", "in the backup").await.expect("it is put");

    etcd.member(0).back_up();
    let mut standing = watch(&through, 0).await;
    for _ in 0..10 {
        through.put("k", "after the backup").await.expect("it is put");
    }
    warm(&proxy, &through, &one("k", false)).await;
    warm(&proxy, &through, &one("k", true)).await;

    etcd.member(0).put_back();
    // Every client of etcd itself has lost its stream with the member.
    let lost = loop {
        if let Err(lost) = next(&mut standing).await {
            break lost;
        }
    };
    assert_eq!(lost.code(), tonic::Code::Unavailable, "{lost}");

    // Past the revision that was known before.
    for number in 0..20 {
        direct.put("other", &number.to_string()).await.expect("it is put");
    }
    let newest = direct.put("k", "after it was put back").await.expect("it is put");
    for client in [&through, &Client::dial(proxy.address()).await] {
        for _ in 0..30 {
            let answer = client.range(&one("k", false)).await.expect("a read succeeds");
            assert_eq!(answer.kvs[0].value, "after it was put back", "{answer:?}");
            assert_eq!(answer.kvs[0].mod_revision, newest, "{answer:?}");
        }
        let mut of_the_past = watch(client, backed_up + 1).await;
        let events = next(&mut of_the_past).await.expect("the stream goes on").events;
        let kv = events[0].kv.as_ref().expect("every event has one");
        assert_eq!((kv.value.as_ref(), kv.mod_revision), (&b"after it was put back"[..], newest));
    }
}

/// A watch of the key, once it is created.
async fn watch(client: &Client, start_revision: i64) -> Streaming<WatchResponse> {
    let create = WatchCreateRequest { key: "k".into(), start_revision, ..Default::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let asked = stream::iter([create]).chain(stream::pending());
    let answer = WatchClient::new(client.channel.clone()).watch(asked).await;
    let mut answer = answer.expect("the stream opens").into_inner();
    assert!(next(&mut answer).await.expect("it is answered").created);
    answer
}

async fn next(stream: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Status> {
    let answer = tokio::time::timeout(PATIENCE, stream.message()).await.expect("an answer comes in time");
    answer.map(|answer| answer.expect("the stream ends with a status"))
}
