//! Proves the harness itself on real parts, so that a failure elsewhere is a failure of the proxy.

use std::time::Instant;

use etcd_proxy_e2e::process::PATIENCE;
use etcd_proxy_e2e::proxy::Program;
use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Proxy, Tls, Version};
use etcd_proxy_proto::etcdserverpb::{RangeRequest, kv_client::KvClient};

#[test]
fn every_version_of_etcd_starts_and_keeps_a_key() {
    for version in Version::ALL {
        let etcd = Etcd::builder().version(version).start();
        etcd.etcdctl().ok(&["put", "greeting", "hello"]);
        assert_eq!(etcd.etcdctl().ok(&["get", "greeting", "--print-value-only"]), "hello");
    }
}

#[test]
fn a_cluster_of_three_survives_a_killed_member_that_comes_back_with_its_data() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.etcdctl().ok(&["put", "before", "1"]);
    let leader = etcd.leader();
    etcd.member(leader).kill();
    // A put that a dead leader takes with it is lost, so a new one has to be there first.
    let heir = etcd.leader();
    Etcdctl::new(Version::V3_7, etcd.endpoint(heir)).ok(&["put", "while away", "2"]);
    etcd.member(leader).restart();
    let returned = Etcdctl::new(Version::V3_7, etcd.endpoint(leader));
    assert_eq!(returned.ok(&["get", "", "--from-key", "--print-value-only"]), "1\n2");
}

#[test]
fn a_paused_member_answers_nothing_until_it_is_resumed() {
    let mut etcd = Etcd::start();
    let etcdctl = etcd.etcdctl().flag("--command-timeout=500ms");
    etcd.member(0).pause();
    assert_ne!(etcdctl.run(&["get", "a"]).code, 0);
    etcd.member(0).resume();
    etcd.etcdctl().ok(&["get", "a"]);
}

#[test]
fn lines_of_a_watch_are_awaited_one_after_the_other() {
    let etcd = Etcd::start();
    // It starts from the first revision, so that no put can come too early for it.
    let watch = etcd.etcdctl().spawn(&["watch", "key", "--rev=1"]);
    etcd.etcdctl().ok(&["put", "key", "one"]);
    watch.expect_stdout("PUT");
    watch.expect_stdout("one");
    etcd.etcdctl().ok(&["del", "key"]);
    watch.expect_stdout("DELETE");
}

#[test]
fn the_original_proxy_serves_logs_and_ends_as_killed() {
    let etcd = Etcd::start();
    let mut proxy = Proxy::original(&etcd.endpoints());
    proxy.etcdctl().ok(&["put", "through", "it"]);
    assert_eq!(etcd.etcdctl().ok(&["get", "through", "--print-value-only"]), "it");
    assert!(proxy.log().iter().any(|line| line["msg"] == "started gRPC proxy"));
    assert!(proxy.process.resident_bytes() > 1 << 20);
    // The kernel counts it in ticks of ten milliseconds.
    let deadline = Instant::now() + PATIENCE;
    while proxy.process.cpu_time().is_zero() {
        assert_eq!(proxy.get("/proxy/health").status, 200);
        assert!(Instant::now() < deadline, "no time is counted");
    }
    assert!(proxy.metric("etcd_grpc_proxy_cache_misses_total").is_some());
    assert_eq!(proxy.terminate(), 128 + libc::SIGTERM);
}

#[test]
fn a_proxy_that_refuses_its_flags_is_run_to_its_end() {
    let original = Proxy::builder().program(Program::Etcd(Version::V3_7));
    let outcome = original.flag("--resolver-prefix=a").run();
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("invalid resolver-ttl 0"), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generated_clients_reach_etcd() {
    let etcd = Etcd::start();
    etcd.etcdctl().ok(&["put", "k", "v"]);
    let mut kv = KvClient::new(etcd_proxy_e2e::grpc::channel(etcd.address()).await);
    let answer = kv.range(RangeRequest { key: "k".into(), ..Default::default() }).await.expect("etcd answers");
    assert_eq!(answer.into_inner().kvs[0].value.as_ref(), b"v");
}

#[test]
fn etcd_takes_our_certificates_and_refuses_foreign_expired_and_revoked_ones() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let stranger = Authority::new(&folder.path().join("stranger"));
    let revoked = authority.client("revoked", "root");
    let list = authority.revocation_list("revoked.crl", &[&revoked]);
    let tls = Tls { server: authority.server("server"), ca: authority.ca(), client_cert_auth: true };
    let etcd = Etcd::builder().tls(tls).flag(format!("--client-crl-file={}", list.display())).start();

    for client in [authority.client("named", "root"), authority.nameless_client("nameless")] {
        etcd.etcdctl().tls(&authority.ca(), Some(&client)).ok(&["get", "a"]);
    }
    let expired = authority.expired_client("expired", "root");
    let foreign = stranger.client("foreign", "root");
    for client in [None, Some(&expired), Some(&foreign), Some(&revoked)] {
        let etcdctl = etcd.etcdctl().flag("--command-timeout=1s").tls(&authority.ca(), client);
        assert_ne!(etcdctl.run(&["get", "a"]).code, 0, "{client:?}");
    }
}

#[test]
fn clients_refuse_an_expired_server_and_a_server_of_another_name() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let etcd = Etcd::start();
    for server in [authority.expired_server("expired"), authority.server_for("other", &["other.example"])] {
        let proxy = Proxy::builder()
            .program(Program::Etcd(Version::V3_7))
            .flags([
                format!("--endpoints={}", etcd.endpoints()).as_str(),
                &format!("--cert-file={}", server.cert.display()),
                &format!("--key-file={}", server.key.display()),
            ])
            .start();
        let endpoint = format!("https://{}", proxy.address());
        let outcome = Etcdctl::new(Version::V3_7, endpoint)
            .tls(&authority.ca(), None)
            .flag("--command-timeout=1s")
            .run(&["get", "a"]);
        assert_ne!(outcome.code, 0, "{outcome:?}");
    }
}
