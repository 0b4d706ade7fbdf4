//! The gateway's endpoints by SRV records: their order, and what becomes of them while it runs.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_proxy::doors::Address;
use etcd_proxy::tls::{self, ClientTls};
use etcd_proxy::{config, flags, gateway};
use etcd_proxy_e2e::dns::Record;
use etcd_proxy_e2e::wait::until;
use etcd_proxy_e2e::{Authority, Etcd, NameServer, Tls};

const PLAIN: &str = "_etcd-client._tcp.example.com";
const SECURE: &str = "_etcd-client-ssl._tcp.example.com";

/// A server on `localhost` that closes each connection, and how many it had.
struct Counter {
    port: u16,
    connections: Arc<Mutex<usize>>,
}

impl Counter {
    fn start() -> Counter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let connections = Arc::<Mutex<usize>>::default();
        let counted = connections.clone();
        std::thread::spawn(move || {
            for _ in listener.incoming() {
                *counted.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            }
        });
        Counter { port, connections }
    }

    fn count(&self) -> usize {
        *self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A gateway as the command line makes it, but with a name server of ours.
fn configuration(name_server: &NameServer, words: &[&str]) -> gateway::Config {
    let words = ["gateway", "start", "--listen-addr=127.0.0.1:0", "--discovery-srv=example.com"].iter().chain(words);
    let flags = match flags::parse(words.map(Into::into), &Default::default()) {
        Ok(flags::Invocation::StartGateway { flags, .. }) => flags,
        other => panic!("{other:?}"),
    };
    let mut config = config::configure_gateway(&flags).expect("the flags are good");
    let srv = config.srv.as_mut().expect("a domain was given");
    srv.dns.name_server = Some(name_server.address());
    config
}

fn visit(gateway: &gateway::Running, times: usize) {
    let Address::Tcp(address) = &gateway.addresses[0] else { panic!("it listens on TCP") };
    for _ in 0..times {
        let mut socket = TcpStream::connect(address).expect("the gateway accepts");
        assert_eq!(socket.read(&mut [0]).expect("it ends in order"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities_and_weights_of_srv_records_decide_and_new_records_are_followed() {
    let name_server = NameServer::start();
    let servers: Vec<Counter> = (0..3).map(|_| Counter::start()).collect();
    let record = |index: usize, priority, weight| Record { priority, weight, port: servers[index].port };
    name_server.set_records(PLAIN, &[record(0, 2, 0), record(1, 1, 9), record(2, 1, 1)]);
    let config = configuration(&name_server, &["--insecure-discovery"]);
    let gateway = gateway::start(config).await.expect("the records name endpoints");
    visit(&gateway, 100);
    let counts: Vec<usize> = servers.iter().map(Counter::count).collect();
    assert_eq!((counts[0], counts[1] + counts[2]), (0, 100), "{counts:?}");
    // Nine in ten go to the first of the two: fewer than 70 come about once in a billion runs.
    assert!(counts[1] >= 70, "{counts:?}");

    // The other two are taken away while it runs.
    name_server.set_records(PLAIN, &[record(0, 2, 0)]);
    until("the new record is followed", || {
        visit(&gateway, 1);
        servers[0].count() > 0
    });
    // A name server that fails takes nothing away.
    name_server.set_failing(true);
    let questions = name_server.questions();
    until("it asks again", || name_server.questions() > questions + 1);
    visit(&gateway, 1);
    gateway.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_the_ca_does_not_vouch_for_are_left_out() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    // Members that want to see certificates have shown their own before.
    let tls = Tls { server: authority.server("server"), ca: authority.ca(), client_cert_auth: true };
    let etcd = Etcd::builder().tls(tls).start();
    let port = |address: &str| address.rsplit_once(':').expect("a port").1.parse::<u16>().expect("a number");
    let impostor = Counter::start();
    let name_server = NameServer::start();
    name_server.set(SECURE, &[port(etcd.address()), impostor.port]);
    let ca = format!("--trusted-ca-file={}", authority.ca().display());
    let mut config = configuration(&name_server, &[&ca, "--dial-timeout=1s"]);
    let gateway = gateway::start(config.clone()).await.expect("one of them is good");
    assert_eq!(gateway.endpoints, [format!("localhost:{}", port(etcd.address()))]);
    gateway.drain().await;

    // With another CA nobody is left, and the default of --endpoints is some other etcd.
    let stranger = Authority::new(&folder.path().join("stranger"));
    let tls = tls::client::Config { cacert: Some(stranger.ca()), ..Default::default() };
    let dns = config.srv.take().expect("it was there").dns;
    let tls = ClientTls::load(&tls).expect("the file is good");
    config.srv = Some(gateway::discovery::Config { dns, tls, timeout: Duration::from_secs(1) });
    let refused = gateway::start(config).await.err().expect("nobody can be trusted");
    assert_eq!(refused.to_string(), "no endpoints found");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_record_the_start_fails_with_the_names_that_were_looked_up() {
    let name_server = NameServer::start();
    let config = configuration(&name_server, &[]);
    let refused = gateway::start(config).await.err().expect("there are no records").to_string();
    assert!(refused.contains("_etcd-client-ssl._tcp") && refused.contains("example.com"), "{refused}");
}
