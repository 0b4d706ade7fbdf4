//! A right that etcd withdraws ends within a stated time, for watches too, which etcd itself lets go on for ever.

use std::time::Instant;

use etcd_proxy_e2e::process::PATIENCE;
use etcd_proxy_e2e::{Etcd, Proxy};

use crate::users::rig_with;
use crate::{add_user, enable_auth};

/// The flag for whoever cannot wait for a minute.
const SOON: &str = "--watch-rights-interval=500ms";

#[test]
fn a_watch_ends_soon_after_the_right_to_it_for_users_of_certificates() {
    let rig = rig_with(&[SOON]);
    let (_, a) = rig.named("team-a");
    let (_, root) = rig.named("admin");
    let watch = a.spawn(&["watch", "k", "--rev=1"]);
    let narrow = a.spawn(&["watch", "other", "--rev=1"]);
    let wide = a.spawn(&["watch", "", "--prefix", "--rev=1"]);
    let kept = root.spawn(&["watch", "/a/", "--prefix", "--rev=1"]);
    // As long as there is a right, the watch goes on, whatever becomes of the token, which lives for a second.
    let deadline = Instant::now() + PATIENCE;
    for round in 0..8 {
        let value = format!("value-{round}");
        a.ok(&["put", "k", &value]);
        for watch in [&watch, &wide, &kept] {
            watch.expect_stdout(&value);
        }
        assert!(Instant::now() < deadline, "eight events take too long");
    }
    rig.direct.ok(&["role", "grant-permission", "alice", "readwrite", "/a/other"]);
    rig.direct.ok(&["role", "revoke-permission", "alice", "/a/", "--prefix=true"]);
    for watch in [&watch, &wide] {
        watch.expect_stderr("canceled by the server");
    }
    // What is still allowed goes on, and so does everybody else's.
    rig.direct.ok(&["put", "/a/k", "secret"]);
    rig.direct.ok(&["put", "/a/other", "allowed"]);
    narrow.expect_stdout("allowed");
    kept.expect_stdout("secret");
    kept.expect_stdout("allowed");
    for watch in [&watch, &wide] {
        assert!(!watch.stdout.text().contains("secret"), "{}", watch.stdout.text());
    }
}

#[test]
fn a_watch_ends_soon_after_the_right_to_it_for_users_who_log_in_themselves() {
    let etcd = Etcd::builder().flag("--bcrypt-cost=4").start();
    let direct = etcd.etcdctl();
    add_user(&direct, "alice", &["alice:secret"], "/a/");
    add_user(&direct, "bob", &["bob:secret"], "/a/");
    enable_auth(&direct);
    let root = direct.user("root:root");
    let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag(SOON).start();
    let (alice, bob) = (proxy.etcdctl().user("alice:secret"), proxy.etcdctl().user("bob:secret"));
    let watches =
        [alice.spawn(&["watch", "/a/", "--prefix", "--rev=1"]), bob.spawn(&["watch", "/a/", "--prefix", "--rev=1"])];
    // Shown twice with more than a round between, they have been asked about.
    let deadline = Instant::now() + PATIENCE;
    for value in ["first", "second", "third", "fourth"] {
        alice.ok(&["put", "/a/k", value]);
        watches.iter().for_each(|watch| drop(watch.expect_stdout(value)));
        assert!(Instant::now() < deadline, "four events take too long");
    }
    root.ok(&["user", "revoke-role", "bob", "bob"]);
    watches[1].expect_stderr("canceled by the server");
    root.ok(&["put", "/a/k", "secret"]);
    watches[0].expect_stdout("secret");
    assert!(!watches[1].stdout.text().contains("secret"), "{}", watches[1].stdout.text());
    let withdrawn = proxy.get("/proxy/metrics").metric("etcd_proxy_watches_withdrawn_total");
    assert_eq!(withdrawn, Some(1.0));
}
