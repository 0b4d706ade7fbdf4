//! The session's lease: nothing is shown when it may be over, to nobody whom etcd would judge, and all of it is given up
//! in the end.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Forwarder, Proxy};
use etcd_proxy_proto::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient, kv_client::KvClient};
use tonic::{Code, Request, metadata::MetadataValue};

use super::parts::*;

/// Short, so that tests see its end. etcd takes no less with its usual election timeout.
const TTL: &str = "--leasing-ttl=2";

fn lease_of(etcd: &Etcd) -> String {
    let listed = etcd.etcdctl().ok(&["lease", "list"]);
    listed.lines().nth(1).unwrap_or_else(|| panic!("no lease in {listed:?}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_slept_through_the_end_of_its_lease_shows_nothing_of_before() {
    let etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[TTL]).await;
    let other = leasing(&etcd.endpoints(), &[]).await;
    let (client, writer) = (Client::of(&proxy).await, Client::of(&other).await);
    for round in 0..2 {
        let (old, new) = (format!("old {round}"), format!("new {round}"));
        client.put("k", &old).await;
        eventually("the key is owned", || async {
            let before = hits(&proxy);
            client.get("k").await;
            hits(&proxy) > before
        })
        .await;
        proxy.process.signal(libc::SIGSTOP);
        // It waits until etcd has ended the lease, since the owner cannot be asked.
        writer.put("k", &new).await;
        // Asked while it sleeps, and so the first thing that it sees.
        let asked = tokio::spawn({
            let client = client.clone();
            async move { client.value("k").await }
        });
        proxy.process.signal(libc::SIGCONT);
        assert_eq!(asked.await.expect("it answers").as_deref(), Some(&*new));
        assert_eq!(client.value("k").await.as_deref(), Some(&*new));
        proxy.expect_log("leasing session began");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_without_etcd_until_the_lease_may_be_over_and_then_fail() {
    let etcd = Etcd::start();
    let hop = Forwarder::start(etcd.address());
    let endpoint = format!("http://{}", hop.address());
    let proxy = leasing(&endpoint, &[TTL, "--health-interval=200ms", "--health-timeout=200ms"]).await;
    let (client, past) = (Client::of(&proxy).await, Client::past(&etcd).await);
    past.put("k", "old").await;
    client.get("k").await;
    let frozen = Instant::now();
    hop.freeze();
    let brief = client.within(BRIEFLY);
    let mut served = 0;
    loop {
        match brief.range(one("k")).await {
            Ok(answer) => {
                served += 1;
                assert_eq!(value_of(&answer).as_deref(), Some("old"));
                // What was granted or renewed before lasts no longer than this.
                assert!(frozen.elapsed() < Duration::from_secs(3), "served {served} times, for too long");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(status) => break assert!(served > 0, "never served: {status:?}"),
        }
    }
    eventually("etcd has ended the lease", || async { leased(&past).await.is_empty() }).await;
    past.put("k", "new").await;
    hop.thaw();
    eventually("etcd is asked again", || async {
        match brief.range(one("k")).await {
            Ok(answer) => value_of(&answer).as_deref() == Some("new") || panic!("stale: {answer:?}"),
            Err(_) => false,
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_an_operator_revokes_is_over_when_etcd_tells() {
    let etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[]).await;
    let (client, past) = (Client::of(&proxy).await, Client::past(&etcd).await);
    past.put("k", "old").await;
    client.get("k").await;
    etcd.etcdctl().ok(&["lease", "revoke", &lease_of(&etcd)]);
    past.put("k", "new").await;
    eventually("the news arrives", || async { client.value("k").await.as_deref() == Some("new") }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_drains_gives_its_keys_up_and_one_that_lost_its_watch_to_compaction_begins_anew() {
    let etcd = Etcd::start();
    let hop = Forwarder::start(etcd.address());
    let mut proxy = leasing(&format!("http://{}", hop.address()), &["--health-interval=200ms"]).await;
    let other = leasing(&etcd.endpoints(), &[]).await;
    let (client, another, past) = (Client::of(&proxy).await, Client::of(&other).await, Client::past(&etcd).await);
    client.get("k").await;
    hop.close();
    for value in ["1", "2", "3"] {
        past.put("other", value).await;
    }
    let revision = past.put("other", "4").await.header.expect("a header").revision;
    etcd.etcdctl().ok(&["compact", &revision.to_string()]);
    hop.reopen();
    another.put("k", "v").await;
    assert_eq!(client.value("k").await.as_deref(), Some("v"));

    client.get("k2").await;
    assert_eq!(proxy.terminate(), 0);
    assert!(!leased(&past).await.contains(&"k2".to_owned()));
    another.put("k2", "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_auth_on_every_reader_is_judged_by_etcd() {
    let etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[TTL]).await;
    let client = Client::of(&proxy).await;
    client.put("k", "secret").await;
    client.get("k").await;
    let before = hits(&proxy);
    client.get("k").await;
    assert_eq!(hits(&proxy) - before, 1.0);
    let root = etcd.etcdctl();
    for command in [
        &["user", "add", "root:pw"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "mallory:pw"],
        &["auth", "enable"],
    ] {
        root.ok(command);
    }
    // Strangers are served until this is noticed, and no longer than a TTL.
    let enabled = Instant::now();
    eventually("strangers are turned away", || async {
        match client.range(one("k")).await {
            Ok(_) => false,
            Err(status) => {
                assert_eq!(
                    (status.code(), status.message()),
                    (Code::InvalidArgument, "etcdserver: user name is empty")
                );
                true
            }
        }
    })
    .await;
    assert!(enabled.elapsed() < Duration::from_secs(5), "{:?}", enabled.elapsed());

    let hits_before = hits(&proxy);
    let channel = etcd_proxy_e2e::grpc::channel(proxy.address()).await;
    for (user, allowed) in [("root", true), ("mallory", false)] {
        let request = AuthenticateRequest { name: user.to_owned(), password: "pw".to_owned() };
        let answer = AuthClient::new(channel.clone()).authenticate(request).await.expect("the password is right");
        let token: MetadataValue<_> = answer.into_inner().token.parse().expect("a token");
        let mut reading = Request::new(one("k"));
        reading.metadata_mut().insert("token", token.clone());
        let mut writing = Request::new(put("k", "written"));
        writing.metadata_mut().insert("token", token);
        let mut kv = KvClient::new(channel.clone());
        let read = kv.range(reading).await.map(drop).map_err(|status| status.code());
        let written = kv.put(writing).await.map(drop).map_err(|status| status.code());
        let expected = if allowed { Ok(()) } else { Err(Code::PermissionDenied) };
        assert_eq!((read, written), (expected, expected), "{user}");
    }
    assert_eq!(hits(&proxy), hits_before, "nobody was served from memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_bounded_and_goes_to_what_is_read() {
    let etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[TTL, "--leasing-max-bytes=65536"]).await;
    let client = Client::of(&proxy).await;
    let metric = |proxy: &Proxy, name: &str| proxy.metric(name).expect("it is there");
    let value = "x".repeat(4000);
    let mut most = 0.0_f64;
    for number in 0..40 {
        let key = format!("k{number}");
        client.put(&key, &value).await;
        assert_eq!(client.value(&key).await.as_deref(), Some(&*value));
        most = most.max(metric(&proxy, "etcd_proxy_leasing_bytes"));
    }
    // At the end it may be less: room is made when most of it is taken.
    assert!(most > 40_000.0 && most < 75_000.0, "{most}");
    // A value that would take most of the room is not kept.
    client.put("large", &"x".repeat(30_000)).await;
    // What is read no more makes room for what is.
    eventually("the new key is owned", || async {
        let before = hits(&proxy);
        client.get("new").await;
        client.get("new").await;
        hits(&proxy) > before
    })
    .await;
    let before = hits(&proxy);
    client.get("large").await;
    client.get("large").await;
    assert_eq!(hits(&proxy), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_etcd_is_put_back_to_a_backup_that_knows_its_lease() {
    let mut etcd = Etcd::start();
    let proxy = leasing(&etcd.endpoints(), &[]).await;
    let client = Client::of(&proxy).await;
    client.put("k", "in the backup").await;
    let lease = lease_of(&etcd);
    etcd.member(0).back_up();
    for _ in 0..10 {
        client.put("k", "after the backup").await;
    }
    eventually("the key is owned", || async {
        let before = hits(&proxy);
        client.get("k").await;
        hits(&proxy) > before
    })
    .await;
    etcd.member(0).put_back();
    proxy.expect_log("etcd was put back to an older state");
    eventually("nothing is shown of before", || async { client.value("k").await.as_deref() == Some("in the backup") })
        .await;
    eventually("the old lease is given up", || async { !etcd.etcdctl().ok(&["lease", "list"]).contains(&lease) }).await;
    proxy.expect_log("leasing session began");
}
