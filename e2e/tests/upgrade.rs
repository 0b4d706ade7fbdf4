//! An etcd that is upgraded behind a running proxy, as docs/upgrade.md tells it: member by member, to the next minor version.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_proxy_e2e::{Etcd, Proxy, Version, http};

/// How long a member, and then the cluster, may take to be of the new version on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a version is looked at; etcd offers no event for it, and takes some seconds to find out itself.
const POLL: Duration = Duration::from_millis(100);
/// How many keys are written at least, so that some are while members change.
const MIN_WRITES: usize = 20;

fn until_cluster_version(etcd: &Etcd, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    let is = |address: &str| {
        http::get(address, "/version").is_ok_and(|answer| answer.body.contains(&format!("\"etcdcluster\":\"{wanted}")))
    };
    while !etcd.members().iter().all(|member| is(member.address())) {
        assert!(Instant::now() < deadline, "the cluster is not of version {wanted}");
        std::thread::sleep(POLL);
    }
}

/// Ends the writer, also when something else has failed.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn etcd_3_5_becomes_3_6_behind_the_proxy_and_a_watch_loses_nothing() {
    upgraded(Version::V3_5, Version::V3_6, "3.6");
}

#[test]
fn etcd_3_6_becomes_3_7_behind_the_proxy_and_a_watch_loses_nothing() {
    upgraded(Version::V3_6, Version::V3_7, "3.7");
}

fn upgraded(from: Version, to: Version, name: &str) {
    let mut etcd = Etcd::builder().version(from).members(3).start();
    let proxy = Proxy::start(&etcd.endpoints());
    let etcdctl = proxy.etcdctl();
    let watch = etcdctl.spawn(&["watch", "--prefix", "key-"]);
    // The watch has begun when it shows what is written after it.
    let begun = Instant::now() + PATIENCE;
    while !watch.stdout.text().contains("key-begin") {
        assert!(Instant::now() < begun, "the watch does not begin");
        etcdctl.ok(&["put", "key-begin", "0"]);
        std::thread::sleep(POLL);
    }
    let done = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        // A write that a changing member may have taken is written again, which the watch may show twice.
        let writer = scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) || number < MIN_WRITES {
                if proxy.etcdctl().run(&["put", &format!("key-{number:06}"), "x"]).code == 0 {
                    number += 1;
                }
            }
            number
        });
        let end = Done(&done);
        for index in 0..3 {
            let member = etcd.member(index);
            member.stop();
            member.upgrade(to);
            member.restart();
        }
        until_cluster_version(&etcd, name);
        drop(end);
        writer.join().expect("the writer does not panic")
    });
    let last = format!("key-{:06}", written - 1);
    assert!(watch.stdout.wait_for(&last).is_some(), "the last write is not shown: {}", watch.stderr.text());
    let shown = watch.stdout.text();
    let mut keys: Vec<&str> = shown.lines().filter(|line| line.starts_with("key-0")).collect();
    keys.dedup();
    let expected: Vec<String> = (0..written).map(|number| format!("key-{number:06}")).collect();
    assert_eq!(keys, expected);
    let read = etcdctl.ok(&["get", "--prefix", "key-0", "--keys-only", "--limit=1000000"]);
    assert_eq!(read.lines().filter(|line| !line.is_empty()).count(), written, "everything is still there");
}
