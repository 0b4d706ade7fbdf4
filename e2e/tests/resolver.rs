//! Registration with `--resolver-prefix`: proxies of ours and of etcd's kind find each other in a real etcd, and what
//! is registered is what lives.

use std::time::{Duration, Instant};

use etcd_proxy_e2e::process::PATIENCE;
use etcd_proxy_e2e::proxy::{Builder, Program};
use etcd_proxy_e2e::{Etcd, Etcdctl, Proxy, Version};
use serde_json::Value;

/// How often etcd is asked about something that it offers no event for.
const POLL: Duration = Duration::from_millis(50);

/// The shortest lease that a lone member of the harness grants, in seconds.
const SHORT_TTL: u64 = 1;

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(POLL);
    }
}

fn registering(etcd: &Etcd, ttl: u64) -> Builder {
    Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag("--resolver-prefix=proxies")
        .flag(format!("--resolver-ttl={ttl}"))
}

/// One registered key with all that etcd knows of it, if it is there.
fn pair(etcd: &Etcd, key: &str) -> Option<Value> {
    let answer: Value =
        serde_json::from_str(&etcd.etcdctl().ok(&["get", key, "-w=json"])).expect("etcdctl prints JSON");
    answer["kvs"].get(0).cloned()
}

fn own_key(proxy: &Proxy) -> String {
    format!("proxies/{}", proxy.address())
}

fn registered(etcd: &Etcd, proxy: &Proxy) -> Value {
    eventually("the proxy registers", || pair(etcd, &own_key(proxy)))
}

/// The client URLs that MemberList shows, sorted.
fn listed(through: &Etcdctl) -> Vec<String> {
    let answer: Value = serde_json::from_str(&through.ok(&["member", "list", "-w=json"])).expect("etcdctl prints JSON");
    let members = answer["members"].as_array().expect("a list of members").iter();
    let mut urls: Vec<String> =
        members.map(|member| member["clientURLs"][0].as_str().expect("a URL").to_owned()).collect();
    urls.sort();
    urls
}

#[test]
fn proxies_of_both_kinds_register_alike_and_list_each_other() {
    let etcd = Etcd::start();
    let ours = registering(&etcd, 10).start();
    let original = registering(&etcd, 10).program(Program::Etcd(Version::V3_7)).start();
    ours.expect_log("registered session with lease");

    let value = |proxy: &Proxy| {
        registered(&etcd, proxy);
        etcd.etcdctl().ok(&["get", &own_key(proxy), "--print-value-only"])
    };
    assert_eq!(value(&ours), value(&original).replace(original.address(), ours.address()));

    let mut both = vec![ours.address().to_owned(), original.address().to_owned()];
    both.sort();
    for through in [&ours, &original] {
        eventually("both list both", || (listed(&through.etcdctl()) == both).then_some(()));
    }
}

#[test]
fn a_proxy_that_is_told_to_end_takes_its_registration_back_before_it_is_gone() {
    let etcd = Etcd::start();
    let mut leaving = registering(&etcd, 600).start();
    let staying = registering(&etcd, 600).start();
    registered(&etcd, &leaving);
    registered(&etcd, &staying);
    assert_eq!(leaving.terminate(), 0);
    assert_eq!(pair(&etcd, &own_key(&leaving)), None);
    let alone = vec![staying.address().to_owned()];
    eventually("the other one no longer lists it", || (listed(&staying.etcdctl()) == alone).then_some(()));
    assert_eq!(
        etcd.etcdctl().ok(&["lease", "list"]).lines().count(),
        2,
        "a heading and the lease of the one that stays"
    );
}

#[test]
fn a_proxy_that_crashed_is_gone_when_its_ttl_is_over() {
    let etcd = Etcd::start();
    let mut crashing = registering(&etcd, SHORT_TTL).start();
    registered(&etcd, &crashing);
    crashing.process.kill();
    eventually("the registration expires", || pair(&etcd, &own_key(&crashing)).is_none().then_some(()));
}

#[test]
fn a_registration_is_renewed_for_as_long_as_the_proxy_lives() {
    let etcd = Etcd::start();
    // Long enough that a machine that has other things to do too does not let it run out.
    let proxy = registering(&etcd, 5).start();
    let first = registered(&etcd, &proxy);
    // Three renewals are a third of the TTL apart, so the fourth is beyond the life of a lease that nobody renews.
    let renewed = || etcd.members()[0].metric("etcd_debugging_lease_renewed_total").filter(|count| *count >= 4.0);
    eventually("the lease is renewed", renewed);
    assert_eq!(pair(&etcd, &own_key(&proxy)).expect("it is registered still")["lease"], first["lease"]);
}

#[test]
fn a_revoked_lease_and_a_deleted_key_are_replaced_at_once() {
    let etcd = Etcd::start();
    // With this TTL the next renewal is more than three minutes away, so the watch must have told.
    let proxy = registering(&etcd, 600).start();
    let first = registered(&etcd, &proxy);
    let lease = format!("{:x}", first["lease"].as_i64().expect("a lease"));
    etcd.etcdctl().ok(&["lease", "revoke", &lease]);
    proxy.expect_log("session expired; possible network partition or server restart");
    let second = registered(&etcd, &proxy);
    assert_ne!(second["lease"], first["lease"]);

    etcd.etcdctl().ok(&["del", &own_key(&proxy)]);
    let third = registered(&etcd, &proxy);
    assert_ne!(third["lease"], second["lease"]);
    eventually("the metric says so", || proxy.metric("etcd_proxy_registrations").filter(|count| *count == 1.0));
    assert_eq!(
        etcd.etcdctl().ok(&["lease", "list"]).lines().count(),
        2,
        "a heading and one lease, none is left behind"
    );
}

#[test]
fn a_restarted_proxy_takes_its_old_key_over() {
    let etcd = Etcd::start();
    let mut crashed = registering(&etcd, SHORT_TTL).start();
    let first = registered(&etcd, &crashed);
    crashed.process.kill();
    let again = registering(&etcd, 600).flag(format!("--listen-addr={}", crashed.address())).start();
    eventually("the key has the new lease", || {
        pair(&etcd, &own_key(&again)).filter(|now| now["lease"] != first["lease"])
    });
    let leases = || etcd.etcdctl().ok(&["lease", "list"]).lines().count();
    eventually("the old lease expires", || (leases() == 2).then_some(()));
    assert!(pair(&etcd, &own_key(&again)).is_some(), "the old lease took the key along");
}

#[test]
fn behind_a_namespace_the_registration_is_in_it() {
    let etcd = Etcd::start();
    let proxy = registering(&etcd, 10).flag("--namespace=tenant/").start();
    eventually("it is registered", || pair(&etcd, &format!("tenant/{}", own_key(&proxy))));
    assert_eq!(pair(&etcd, &own_key(&proxy)), None);
    let seen = eventually("its clients see it", || {
        Some(proxy.etcdctl().ok(&["get", &own_key(&proxy), "--keys-only"])).filter(|keys| !keys.is_empty())
    });
    assert_eq!(seen.trim(), own_key(&proxy));
}

#[test]
fn registrations_and_their_list_outlive_the_member_that_served_them() {
    let mut etcd = Etcd::builder().members(3).start();
    let first = registering(&etcd, 20).start();
    let lease = registered(&etcd, &first)["lease"].clone();
    // The proxy's own calls begin with the first member.
    etcd.member(0).kill();
    etcd.leader();
    let second = registering(&etcd, 20).start();
    let mut both = vec![first.address().to_owned(), second.address().to_owned()];
    both.sort();
    eventually("the first lists the second", || (listed(&first.etcdctl()) == both).then_some(()));
    etcd.member(0).restart();
    assert_eq!(registered(&etcd, &first)["lease"], lease, "nothing was lost, so nothing is registered anew");
}

#[test]
fn an_etcd_that_was_away_for_longer_than_the_lease_gets_the_registration_again() {
    let mut etcd = Etcd::start();
    let proxy = registering(&etcd, SHORT_TTL).start();
    registered(&etcd, &proxy);
    // While etcd is away the lease cannot be renewed, and the proxy notices by its own clock.
    etcd.member(0).pause();
    proxy.expect_log("session expired; possible network partition or server restart");
    etcd.member(0).resume();
    proxy.expect_log("registered session with lease");
    registered(&etcd, &proxy);
}
