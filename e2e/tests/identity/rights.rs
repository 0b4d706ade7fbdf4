//! A right that etcd withdraws ends within a stated time, for watches too, which etcd itself lets go on for ever.

use std::time::Instant;

use etcd_proxy_e2e::process::PATIENCE;

use crate::users::rig_with;

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
    // Bob is shown to etcd by a certificate, so that nothing of his runs out.
    let b = rig.etcdctl(&rig.authority.client_for_uri("spiffe", "spiffe://cluster/ns/b/sa/app"));
    b.ok(&["put", "k", "bobs"]);
    let bobs = b.spawn(&["watch", "k", "--rev=1"]);
    bobs.expect_stdout("bobs");
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
    rig.direct.ok(&["role", "revoke-permission", "bob", "/b/", "--prefix=true"]);
    for watch in [&watch, &wide, &bobs] {
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
    assert!(rig.withdrawn() >= 1.0);
}
