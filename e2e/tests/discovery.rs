//! Endpoints that come and go while the proxy runs: by the cluster's member list, and by SRV records of a name server.

use std::ffi::OsString;
use std::process::Command;

use etcd_proxy::flags::{Invocation, parse};
use etcd_proxy::{app, config};
use etcd_proxy_e2e::wait::{eventually, until};
use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, NameServer, Process, Proxy, Tls, Version, ports};
use serde_json::Value;

// === by the member list ===

#[test]
fn members_that_the_list_names_take_over_when_the_first_one_dies() {
    let mut etcd = Etcd::builder().members(3).start();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoint(0)))
        .flag("--endpoints-auto-sync-interval=1s")
        .start();
    for index in [1, 2] {
        let address = etcd.member(index).address().to_owned();
        let added = |line: &str| line.contains("endpoint added") && line.contains(&address);
        // All of them stand in one sync, in any order.
        let found = proxy
            .process
            .stderr
            .wait_for(&address)
            .or_else(|| proxy.process.stderr.all().into_iter().find(|line| added(line)));
        assert!(found.is_some(), "{address} was never added");
    }
    etcd.member(0).kill();
    etcd.leader();
    proxy.etcdctl().ok(&["put", "key", "value"]);
    assert_eq!(proxy.etcdctl().ok(&["get", "key", "--print-value-only"]), "value");
}

/// The id of the member with this name.
fn member_id(etcdctl: &Etcdctl, is_it: impl Fn(&Value) -> bool) -> String {
    let answer: Value = serde_json::from_str(&etcdctl.ok(&["member", "list", "-w=json"])).expect("etcdctl prints JSON");
    let members = answer["members"].as_array().expect("a list of members");
    let member = members.iter().find(|member| is_it(member)).expect("the member is listed");
    format!("{:x}", member["ID"].as_u64().expect("members have ids"))
}

#[test]
fn a_learner_is_no_endpoint_until_it_is_promoted_and_a_removed_member_is_none_any_more() {
    let etcd = Etcd::start();
    let first = etcd.address().to_owned();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag("--endpoints-auto-sync-interval=100ms")
        .flag("--advertise-client-url=")
        .start();

    let (client, peer) = (ports::free_address(), ports::free_address());
    let added = etcd.etcdctl().ok(&["member", "add", "late", "--learner", &format!("--peer-urls=http://{peer}")]);
    let cluster = added.lines().find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER=")).expect("etcdctl says it");
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = Command::new(Version::default().etcd());
    command.args([
        "--name=late",
        "--unsafe-no-fsync",
        "--initial-cluster-state=existing",
        &format!("--initial-cluster={}", cluster.trim_matches('"')),
        &format!("--data-dir={}", data.path().display()),
        &format!("--listen-client-urls=http://{client}"),
        &format!("--advertise-client-urls=http://{client}"),
        &format!("--listen-peer-urls=http://{peer}"),
        &format!("--initial-advertise-peer-urls=http://{peer}"),
    ]);
    let late = Process::spawn("late member", &mut command, b"");
    late.expect_stderr("ready to serve client requests");

    let id = member_id(&etcd.etcdctl(), |member| member["isLearner"] == true);
    // A learner has to be level with the leader first, which etcd tells only by refusing.
    until("the learner is promoted", || {
        let is_promoted = etcd.etcdctl().run(&["member", "promote", &id]).code == 0;
        assert!(is_promoted || !proxy.process.stderr.text().contains(&client), "a learner is an endpoint");
        is_promoted
    });
    proxy.process.expect_stderr(&client);

    let id = member_id(&etcd.etcdctl(), |member| member["name"] == "m0");
    let remove = || Etcdctl::new(Version::default(), &client).run(&["member", "remove", &id]);
    // etcd refuses it for as long as the members are new to each other.
    until("the first member is removed", || remove().code == 0);
    let gone = proxy.expect_log("endpoint removed");
    assert!(gone.to_string().contains(&first), "{gone}");
    proxy.etcdctl().ok(&["put", "key", "value"]);
}

#[test]
fn when_all_that_the_list_named_is_gone_the_configured_endpoints_are_tried_again() {
    let mut etcd = Etcd::builder().members(3).start();
    // The configured endpoints are spelled otherwise than the advertised ones, as addresses of a load balancer are.
    let configured: Vec<String> =
        etcd.members().iter().map(|member| member.address().replace("127.0.0.1", "localhost")).collect();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", configured.join(",")))
        .flag("--endpoints-auto-sync-interval=200ms")
        .flag("--health-interval=200ms")
        .start();
    proxy.expect_log("endpoint removed");
    for index in 0..3 {
        etcd.member(index).kill();
    }
    let fallback = proxy.expect_log("no endpoint can be reached, trying those that were given at first");
    assert!(configured.iter().all(|endpoint| fallback.to_string().contains(endpoint)), "{fallback}");
    for index in 0..3 {
        etcd.member(index).launch();
    }
    etcd.leader();
    proxy.etcdctl().flag("--command-timeout=30s").ok(&["put", "key", "value"]);
}

// === by SRV records ===

const SECURE: &str = "_etcd-client-ssl._tcp.cluster.example";
const PLAIN: &str = "_etcd-client._tcp.cluster.example";

/// A proxy in this process, which asks `name_server` instead of those of the machine.
async fn discovering(name_server: &NameServer, flags: &[&str]) -> app::Running {
    let mut arguments = vec!["grpc-proxy", "start", "--listen-addr=127.0.0.1:0", "--advertise-client-url="];
    arguments.extend(["--discovery-srv=cluster.example", "--health-interval=200ms", "--threads=1"]);
    arguments.extend(flags);
    let invocation = parse(arguments.into_iter().map(OsString::from), &Default::default());
    let Ok(Invocation::Start { flags, .. }) = invocation else { panic!("these flags start a proxy") };
    let mut config = config::configure(&flags).expect("the flags fit together");
    config.discovery.srv.as_mut().expect("it discovers").name_server = Some(name_server.address());
    app::start(config).await.expect("it starts")
}

/// Off the threads that the proxy of this process runs on.
async fn put(proxy: &app::Running, value: &str) -> bool {
    let etcdctl = Etcdctl::new(Version::default(), &proxy.address).flag("--command-timeout=2s");
    let value = value.to_owned();
    let outcome =
        tokio::task::spawn_blocking(move || etcdctl.run(&["put", "key", &value])).await.expect("etcdctl runs");
    if outcome.code != 0 {
        eprintln!("put: {}", outcome.stderr);
    }
    outcome.code == 0
}

fn endpoints(proxy: &app::Running) -> Vec<String> {
    proxy.endpoints.list().iter().map(|endpoint| endpoint.name.clone()).collect()
}

fn port(address: &str) -> u16 {
    address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address has a port")
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_the_records_and_stay_while_dns_fails() {
    let mut etcd = Etcd::builder().members(3).start();
    let ports: Vec<u16> = etcd.members().iter().map(|member| port(member.address())).collect();
    let dns = NameServer::start();
    dns.set(PLAIN, &ports[..1]);
    let proxy = discovering(&dns, &["--insecure-discovery"]).await;
    assert_eq!(endpoints(&proxy), [format!("http://localhost:{}", ports[0])]);
    assert!(put(&proxy, "by the first").await);

    dns.set(PLAIN, &ports[1..]);
    let moved: Vec<String> = ports[1..].iter().map(|port| format!("http://localhost:{port}")).collect();
    eventually("the endpoints are those of the new records", async || {
        let mut now = endpoints(&proxy);
        now.sort_by_key(|name| moved.iter().position(|moved| moved == name));
        now == moved
    })
    .await;
    etcd.member(0).kill();
    etcd.leader();
    eventually("the others serve", async || put(&proxy, "by another").await).await;

    dns.set_failing(true);
    let asked = dns.questions();
    eventually("the failing server was asked", async || dns.questions() >= asked + 4).await;
    assert_eq!(endpoints(&proxy).len(), 2);
    assert!(put(&proxy, "without DNS").await);
    assert!(proxy.drain().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_starts_before_dns_serves_as_soon_as_there_are_records() {
    let etcd = Etcd::start();
    let dns = NameServer::start();
    dns.set_failing(true);
    let proxy = discovering(&dns, &["--insecure-discovery"]).await;
    assert!(endpoints(&proxy).is_empty(), "the default of --endpoints is another cluster's");
    assert!(!put(&proxy, "to nobody").await);
    dns.set(PLAIN, &[port(etcd.address())]);
    dns.set_failing(false);
    eventually("the records are found", async || put(&proxy, "found").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_endpoints_whose_tls_is_good_are_taken_unless_discovery_may_be_insecure() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let tls = Tls { server: authority.server("server"), ca: authority.ca(), client_cert_auth: true };
    let secure = Etcd::builder().tls(tls).start();
    let plain = Etcd::start();
    let dns = NameServer::start();
    let (secure_port, plain_port) = (port(secure.address()), port(plain.address()));
    // A plaintext member among the secure ones fails the handshake.
    dns.set(SECURE, &[secure_port, plain_port]);
    dns.set(PLAIN, &[plain_port]);
    let client = authority.nameless_client("proxy");
    let flags = [
        format!("--cacert={}", authority.ca().display()),
        format!("--cert={}", client.cert.display()),
        format!("--key={}", client.key.display()),
    ];
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let proxy = discovering(&dns, &flags).await;
    assert_eq!(endpoints(&proxy), [format!("https://localhost:{secure_port}")]);
    assert!(put(&proxy, "over TLS").await);
    let direct = secure.etcdctl().tls(&authority.ca(), Some(&client));
    assert_eq!(direct.ok(&["get", "key", "--print-value-only"]), "over TLS");

    flags.push("--insecure-discovery");
    let insecure = discovering(&dns, &flags).await;
    assert_eq!(endpoints(&insecure).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_of_one_domain_are_told_apart_by_the_service_name_and_configured_endpoints_are_the_last_resort() {
    let etcd = Etcd::start();
    let dns = NameServer::start();
    dns.set("_etcd-client-blue._tcp.cluster.example", &[port(etcd.address())]);
    dns.set(PLAIN, &[1]);
    let proxy = discovering(&dns, &["--insecure-discovery", "--discovery-srv-name=blue"]).await;
    assert!(put(&proxy, "blue").await);

    let configured = format!("--endpoints={}", etcd.endpoints());
    let proxy = discovering(&dns, &["--insecure-discovery", "--discovery-srv-name=green", &configured]).await;
    assert_eq!(endpoints(&proxy), [etcd.endpoint(0)]);
    assert!(put(&proxy, "no records").await);
}
