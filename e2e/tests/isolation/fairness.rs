//! What a greedy tenant costs its neighbour on the same proxy and the same etcd, and at etcd itself. The figures are
//! printed, with `--nocapture`; what is asserted is only that nobody is refused or lost who keeps to his limits, and that
//! the proxy lets through less while it slows etcd down.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use etcd_proxy_e2e::{Authority, Pair, grpc, http, ports, process::PATIENCE};
use etcd_proxy_proto::etcdserverpb::{PutRequest, kv_client::KvClient};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};
use tonic::{Code, transport::Channel};

use crate::port::Port;

/// Clients of the greedy tenant, each with one call under way at any time, and their connections.
const GREEDY: usize = 1000;
const GREEDY_CONNECTIONS: usize = 20;
/// How long the neighbour's calls are measured, each time; `ISOLATION_SECONDS` makes it longer.
const SECONDS: u64 = 1;

/// The greedy one has no limits: only its turns at etcd are in its way.
const UNLIMITED: &str = "
client-identity:
- name: greedy
  identities: [{common-name: greedy}]
  namespace: /greedy/
- name: modest
  identities: [{common-name: modest}]
  namespace: /modest/
";

const RULES: &str = "
client-identity:
- name: greedy
  identities: [{common-name: greedy}]
  namespace: /greedy/
  limits: {max-requests-per-second: 200, request-burst: 20}
- name: modest
  identities: [{common-name: modest}]
  namespace: /modest/
max-upstream-requests: 8
";

pub fn tls(authority: &Authority, client: &Pair) -> Arc<ClientConfig> {
    let certificates = |path: &Path| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).expect("a file").map(|found| found.expect("a certificate")).collect()
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&authority.ca()) {
        roots.add(certificate).expect("a good authority");
    }
    let key = PrivateKeyDer::from_pem_file(&client.key).expect("a key");
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&client.cert), key)
        .expect("the key fits the certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

pub async fn channel(address: &str, tls: &Arc<ClientConfig>) -> Channel {
    let (address, tls) = (address.to_owned(), tls.clone());
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (address, tls) = (address.clone(), tls.clone());
        async move {
            let socket = TcpStream::connect(&address).await?;
            socket.set_nodelay(true)?;
            let name = ServerName::try_from("127.0.0.1").expect("an address is a name to TLS");
            Ok::<_, std::io::Error>(TokioIo::new(TlsConnector::from(tls).connect(name, socket).await?))
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://proxy");
    endpoint.connect_with_connector(connector).await.expect("the proxy can be reached")
}

fn put(key: String) -> PutRequest {
    PutRequest { key: key.into(), value: vec![b'v'; 100].into(), ..PutRequest::default() }
}

/// The 50th and 99th of a hundred calls, of those made one after the other for some seconds.
async fn measure(modest: &Channel, seconds: u64) -> (Duration, Duration, usize) {
    let mut kv = KvClient::new(modest.clone());
    let (started, mut times) = (Instant::now(), Vec::new());
    while started.elapsed() < Duration::from_secs(seconds) {
        let call = Instant::now();
        kv.put(put(format!("k{}", times.len() % 100))).await.expect("who keeps to his limits is served");
        times.push(call.elapsed());
        // A client that has other things to do as well.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100], times.len())
}

/// What became of the calls of the greedy tenant.
#[derive(Default)]
struct Greed {
    served: AtomicU64,
    refused: AtomicU64,
    over: AtomicBool,
}

/// One call after the other; who is refused comes again after about as long as patient clients wait, not all at once.
async fn greedy_client(channel: Channel, number: u64, greed: Arc<Greed>) {
    let mut kv = KvClient::new(channel);
    let mut pause = Duration::from_millis(number % 1000);
    while !greed.over.load(Relaxed) {
        tokio::time::sleep(pause).await;
        match kv.put(put(format!("k{number}"))).await {
            Ok(_) => {
                greed.served.fetch_add(1, Relaxed);
                pause = Duration::ZERO;
            }
            Err(status) if status.code() == Code::ResourceExhausted => {
                greed.refused.fetch_add(1, Relaxed);
                pause = Duration::from_millis(750 + number * 7919 % 500);
            }
            Err(status) => panic!("{status:?}"),
        }
    }
}

/// How many clients without limits there are: a thousand where it is measured, and fewer among the other tests, which they
/// would slow down beyond what those have patience for.
fn unlimited() -> usize {
    if std::env::var_os("ISOLATION_SECONDS").is_some() { GREEDY } else { GREEDY / 10 }
}

/// All of them, in a thread of their own, so that they do not hold up whoever measures. Without TLS they ask etcd itself.
fn greedy_clients(address: &str, tls: Option<&Arc<ClientConfig>>, count: usize, greed: &Arc<Greed>) {
    // Real clients have cores of their own: these shall take theirs from nobody who is measured.
    // SAFETY: the call takes numbers only; zero is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for connection in 0..GREEDY_CONNECTIONS {
            let channel = match tls {
                Some(tls) => channel(address, tls).await,
                None => grpc::channel(address).await,
            };
            for client in 0..count / GREEDY_CONNECTIONS {
                let number = (client * GREEDY_CONNECTIONS + connection) as u64;
                clients.spawn(greedy_client(channel.clone(), number, greed.clone()));
            }
        }
        while let Some(client) = clients.join_next().await {
            client.expect("a greedy client is served or refused, and nothing else");
        }
    });
}

fn seconds() -> u64 {
    std::env::var("ISOLATION_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS)
}

fn show(rows: &[(&str, (Duration, Duration, usize))]) {
    println!("| the neighbour's Put | p50 | p99 | calls |\n|---|---|---|---|");
    for (when, measured) in rows {
        println!("| {when} | {:?} | {:?} | {} |", measured.0, measured.1, measured.2);
    }
}

#[test]
fn a_thousand_greedy_clients_do_not_keep_their_neighbour_from_being_served() {
    let port = Port::open(RULES, |_| Vec::new());
    let Port { proxy, authority, .. } = &port;
    let modest_tls = tls(authority, &authority.client("modest", "modest"));
    let greedy_tls = tls(authority, &authority.client("greedy", "greedy"));
    let greed: Arc<Greed> = Arc::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let [quiet, loud] = std::thread::scope(|scope| {
        runtime.block_on(async {
            let modest = channel(proxy.address(), &modest_tls).await;
            measure(&modest, 1).await;
            let quiet = measure(&modest, seconds()).await;
            scope.spawn(|| greedy_clients(proxy.address(), Some(&greedy_tls), GREEDY, &greed));
            // Until they are at it.
            while greed.refused.load(Relaxed) < GREEDY as u64 {
                measure(&modest, 1).await;
            }
            let loud = measure(&modest, seconds()).await;
            greed.over.store(true, Relaxed);
            [quiet, loud]
        })
    });
    let (served, refused) = (greed.served.load(Relaxed), greed.refused.load(Relaxed));
    assert!(served > 0 && refused > 0, "{served} calls of the greedy tenant were served and {refused} refused");
    show(&[("alone", quiet), ("beside greedy clients with limits", loud)]);
}

#[test]
fn clients_without_limits_wait_for_their_turns_while_their_neighbour_is_there() {
    let metrics = ports::free_address();
    let port = Port::open(UNLIMITED, |_| vec![format!("--metrics-addr=http://{metrics}")]);
    let Port { proxy, etcd, authority, .. } = &port;
    let modest_tls = tls(authority, &authority.client("modest", "modest"));
    let greedy_tls = tls(authority, &authority.client("greedy", "greedy"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let limit = || {
        let answer = http::get(&metrics, "/proxy/metrics").expect("an answer");
        answer.metric("etcd_proxy_upstream_requests_limit").expect("the limit is shown")
    };
    // Beside a thousand clients that ask `address`, and how many calls of these were served in a second.
    let beside = |address: &str, greedy_tls: Option<&Arc<ClientConfig>>, modest: &Channel| {
        let greed: Arc<Greed> = Arc::default();
        std::thread::scope(|scope| {
            scope.spawn(|| greedy_clients(address, greedy_tls, unlimited(), &greed));
            runtime.block_on(async {
                while greed.served.load(Relaxed) < unlimited() as u64 {
                    measure(modest, 1).await;
                }
                let before = greed.served.load(Relaxed);
                let started = Instant::now();
                let loud = measure(modest, seconds()).await;
                let rate = (greed.served.load(Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
                let limit = limit();
                greed.over.store(true, Relaxed);
                (loud, rate, limit)
            })
        })
    };
    let (modest, direct) =
        runtime.block_on(async { (channel(proxy.address(), &modest_tls).await, grpc::channel(etcd.address()).await) });
    let alone = |modest: &Channel| {
        runtime.block_on(async {
            measure(modest, 1).await;
            measure(modest, seconds()).await
        })
    };
    assert!((limit() - 128.0).abs() < 0.5, "who is alone is not held back");
    let (quiet, quiet_direct) = (alone(&modest), alone(&direct));
    let (loud, rate, limit) = beside(proxy.address(), Some(&greedy_tls), &modest);
    let (loud_direct, rate_direct, _) = beside(etcd.address(), None, &direct);
    assert!(limit < 128.0, "{limit} calls may be under way though a thousand wait");
    show(&[
        ("alone", quiet),
        ("alone, at etcd itself", quiet_direct),
        ("beside the greedy clients", loud),
        ("with all of them at etcd itself", loud_direct),
    ]);
    let times = |loud: Duration, quiet: Duration| loud.as_secs_f64() / quiet.as_secs_f64();
    println!("p99 beside {} clients is {:.2} times that alone", unlimited(), times(loud.1, quiet.1));
    println!("at etcd itself it is {:.2} times", times(loud_direct.1, quiet_direct.1));
    println!("greedy calls in a second: {rate:.0} with {limit} let through at a time, {rate_direct:.0} at etcd itself");
}

/// What a thousand clients get done in a second who have etcd for themselves, by these rules.
fn alone_with(rules: &str) -> f64 {
    let port = Port::open(rules, |_| Vec::new());
    let greedy_tls = tls(&port.authority, &port.authority.client("greedy", "greedy"));
    let greed: Arc<Greed> = Arc::default();
    std::thread::scope(|scope| {
        scope.spawn(|| greedy_clients(port.proxy.address(), Some(&greedy_tls), unlimited(), &greed));
        let deadline = Instant::now() + PATIENCE;
        while greed.served.load(Relaxed) < unlimited() as u64 {
            assert!(Instant::now() < deadline, "{} calls were served", greed.served.load(Relaxed));
            std::thread::sleep(Duration::from_millis(10));
        }
        let (before, started) = (greed.served.load(Relaxed), Instant::now());
        std::thread::sleep(Duration::from_secs(seconds()));
        let rate = (greed.served.load(Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
        greed.over.store(true, Relaxed);
        rate
    })
}

#[test]
fn who_has_etcd_for_himself_is_served_with_turns_as_without() {
    let (with, without) = (alone_with(UNLIMITED), alone_with(&format!("{UNLIMITED}max-upstream-requests: 0\n")));
    println!("alone: {with:.0} calls in a second with turns, {without:.0} without");
}
