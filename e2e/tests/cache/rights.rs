//! Rights: what one caller may read is nothing to another, and no answer outlives the right to it.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Etcdctl, Proxy, Version};
use etcd_proxy_proto::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};
use tonic::Code;

use crate::raw::{Client, hits, prefix, warm};

/// A right that is gone may still be used for a second, and the machine may be busy.
const OUTLIVED: Duration = Duration::from_secs(5);

async fn login(client: &Client, name: &str) -> Client {
    let request = AuthenticateRequest { name: name.to_owned(), password: name.to_owned() };
    let answer = AuthClient::new(client.channel.clone()).authenticate(request).await.expect("a login");
    client.with("token", &answer.into_inner().token)
}

fn enable_auth(etcdctl: &Etcdctl) -> Etcdctl {
    for user in ["root", "reader", "stranger"] {
        etcdctl.ok(&["user", "add", &format!("{user}:{user}")]);
    }
    etcdctl.ok(&["user", "grant-role", "root", "root"]);
    etcdctl.ok(&["role", "add", "reads"]);
    etcdctl.ok(&["role", "grant-permission", "reads", "read", "k/", "k0"]);
    etcdctl.ok(&["user", "grant-role", "reader", "reads"]);
    etcdctl.ok(&["auth", "enable"]);
    etcdctl.clone().flag("--user=root:root")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_from_the_cache_outlives_the_right_to_it() {
    let etcd = Etcd::builder().flag("--bcrypt-cost=4").start();
    let proxy = Proxy::start(&etcd.endpoints());
    let client = Client::dial(proxy.address()).await;
    client.put("k/secret", "s").await.expect("a put");
    let root = enable_auth(&Etcdctl::new(Version::V3_7, etcd.endpoints()));
    let (reader, stranger) = (login(&client, "reader").await, login(&client, "stranger").await);
    let read = |serializable| prefix("k/", serializable);
    for serializable in [false, true] {
        warm(&proxy, &reader, &read(serializable)).await;
        for other in [&stranger, &client] {
            let refused = other.range(&read(serializable)).await.expect_err("etcd refuses it");
            assert!(matches!(refused.code(), Code::PermissionDenied | Code::InvalidArgument), "{refused:?}");
        }
    }
    let before = hits(&proxy);
    reader.range(&read(true)).await.expect("a right");
    reader.range(&read(false)).await.expect("a right");
    assert_eq!(hits(&proxy), before + 2.0);
    root.ok(&["role", "revoke-permission", "reads", "k/", "k0"]);
    // A linearizable read is judged anew each time.
    let refused = reader.range(&read(false)).await.expect_err("the right is gone");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let deadline = Instant::now() + OUTLIVED;
    let refused = loop {
        match reader.range(&read(true)).await {
            Ok(_) => assert!(Instant::now() < deadline, "the right was used for too long"),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_from_before_auth_was_enabled_serves_nobody_without_a_name() {
    let etcd = Etcd::builder().flag("--bcrypt-cost=4").start();
    let proxy = Proxy::start(&etcd.endpoints());
    let client = Client::dial(proxy.address()).await;
    client.put("k/secret", "s").await.expect("a put");
    for serializable in [false, true] {
        warm(&proxy, &client, &prefix("k/", serializable)).await;
    }
    enable_auth(&Etcdctl::new(Version::V3_7, etcd.endpoints()));
    let refused = client.range(&prefix("k/", false)).await.expect_err("nobody may read");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let deadline = Instant::now() + OUTLIVED;
    while client.range(&prefix("k/", true)).await.is_ok() {
        assert!(Instant::now() < deadline, "nobody may read, and it was let through");
    }
}
