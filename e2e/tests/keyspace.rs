//! `etcd-proxy keyspace` on a real etcd: who claims a part of the keys first has it, and a purge takes what it must.

use std::process::{Command, Output};

use etcd_proxy_e2e::{Etcd, programs};

fn keyspace(etcd: &Etcd, arguments: &[&str]) -> Output {
    let endpoints = format!("--endpoints={}", etcd.endpoints());
    let mut command = Command::new(programs::etcd_proxy());
    command.arg("keyspace").arg(arguments[0]).arg(endpoints).args(&arguments[1..]);
    command.output().expect("etcd-proxy can be started")
}

const KEY: &str = "--claim-key=/t/.claims/team";

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn keys_are_claimed_once_and_purged_by_their_owner_only() {
    let etcd = Etcd::start();
    let claim = |whose: &str| keyspace(&etcd, &["claim", KEY, &format!("--claim-value={whose}")]);
    assert!(claim("cluster/one").status.success());
    assert!(claim("cluster/one").status.success(), "the owner may come again");
    let refused = claim("cluster/two");
    assert_eq!(refused.status.code(), Some(3), "{}", words(&refused));
    assert!(words(&refused).contains("/t/.claims/team holds \"cluster/one\""), "{}", words(&refused));

    let etcdctl = etcd.etcdctl();
    for number in 0..1200 {
        // More than are deleted at a time, in few calls.
        if number % 100 == 0 {
            let puts: String = (number..number + 100).map(|key| format!("put /t/team/x/{key} v\n")).collect();
            let outcome = etcdctl.run_with(&["txn"], &format!("\n{puts}\n\n"));
            assert_eq!(outcome.code, 0, "{outcome:?}");
        }
    }
    etcdctl.ok(&["put", "/t/team/y/kept", "v"]);
    etcdctl.ok(&["put", "/t/team2/x/kept", "v"]);
    let purge = |prefix: &str, whose: &str| {
        let (prefix, whose) = (format!("--prefix={prefix}"), format!("--claim-value={whose}"));
        keyspace(&etcd, &["purge", &prefix, "--claimed-prefix=/t/team/", KEY, &whose])
    };
    let first = purge("/t/team/x/", "cluster/one");
    assert!(first.status.success() && words(&first).contains("deleted 1200 keys"), "{}", words(&first));
    assert!(!words(&first).contains("and the claim"), "another part of the namespace still has keys");
    assert_eq!(claim("cluster/two").status.code(), Some(3));
    let other = purge("/t/team/y/", "cluster/two");
    assert!(!words(&other).contains("and the claim"), "a claim is given back by its owner only: {}", words(&other));
    let last = purge("/t/team/y/", "cluster/one");
    assert!(words(&last).contains("and the claim"), "{}", words(&last));
    assert!(claim("cluster/two").status.success(), "what was given back can be claimed anew");
    let left = etcdctl.ok(&["get", "", "--prefix", "--keys-only"]);
    let left: Vec<&str> = left.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(left, ["/t/.claims/team", "/t/team2/x/kept"]);

    let everything = keyspace(&etcd, &["purge", "--prefix=", "--claimed-prefix=", KEY, "--claim-value=a"]);
    assert!(!everything.status.success(), "an empty prefix would be all of etcd");
}
