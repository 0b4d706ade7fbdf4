//! What a greedy tenant costs its neighbour on the same proxy and the same etcd. The figures are printed, with
//! `--nocapture`; what is asserted is only that nobody is refused or lost who keeps to his limits.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use etcd_proxy_e2e::{Authority, Pair, Proxy, grpc};
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
const SECONDS: u64 = 3;

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

fn tls(authority: &Authority, client: &Pair) -> Arc<ClientConfig> {
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

async fn channel(proxy: &Proxy, tls: &Arc<ClientConfig>) -> Channel {
    let (address, tls) = (proxy.address().to_owned(), tls.clone());
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

/// All of them, in a thread of their own, so that they do not hold up whoever measures.
fn greedy_clients(proxy: &Proxy, tls: Arc<ClientConfig>, greed: Arc<Greed>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for connection in 0..GREEDY_CONNECTIONS {
            let channel = channel(proxy, &tls).await;
            for client in 0..GREEDY / GREEDY_CONNECTIONS {
                let number = (client * GREEDY_CONNECTIONS + connection) as u64;
                clients.spawn(greedy_client(channel.clone(), number, greed.clone()));
            }
        }
        while let Some(client) = clients.join_next().await {
            client.expect("a greedy client is served or refused, and nothing else");
        }
    });
}

#[test]
fn a_thousand_greedy_clients_do_not_keep_their_neighbour_from_being_served() {
    let seconds = std::env::var("ISOLATION_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let port = Port::open(RULES, |_| Vec::new());
    let Port { proxy, etcd, authority, .. } = &port;
    let modest_tls = tls(authority, &authority.client("modest", "modest"));
    let greedy_tls = tls(authority, &authority.client("greedy", "greedy"));
    let greed: Arc<Greed> = Arc::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let [quiet, quiet_direct, loud, loud_direct] = std::thread::scope(|scope| {
        runtime.block_on(async {
            let modest = channel(proxy, &modest_tls).await;
            // What the greedy cost one who asks etcd itself is not the proxy's doing: they share the disk and the cores.
            let direct = grpc::channel(etcd.address()).await;
            measure(&modest, 1).await;
            let quiet = measure(&modest, seconds).await;
            let quiet_direct = measure(&direct, seconds).await;
            scope.spawn(|| greedy_clients(proxy, greedy_tls, greed.clone()));
            // Until they are at it.
            while greed.refused.load(Relaxed) < GREEDY as u64 {
                measure(&modest, 1).await;
            }
            let loud = measure(&modest, seconds).await;
            let loud_direct = measure(&direct, seconds).await;
            greed.over.store(true, Relaxed);
            [quiet, quiet_direct, loud, loud_direct]
        })
    });
    let (served, refused) = (greed.served.load(Relaxed), greed.refused.load(Relaxed));
    assert!(served > 0 && refused > 0, "{served} calls of the greedy tenant were served and {refused} refused");
    println!("| the neighbour's Put | p50 | p99 | calls |\n|---|---|---|---|");
    for (when, measured) in [
        ("alone", quiet),
        ("alone, at etcd itself", quiet_direct),
        ("beside the greedy clients", loud),
        ("beside the greedy clients, at etcd itself", loud_direct),
    ] {
        println!("| {when} | {:?} | {:?} | {} |", measured.0, measured.1, measured.2);
    }
    let times = |loud: Duration, quiet: Duration| loud.as_secs_f64() / quiet.as_secs_f64();
    println!("p99 beside {GREEDY} clients is {:.2} times that alone", times(loud.1, quiet.1));
    println!("at etcd itself it is {:.2} times", times(loud_direct.1, quiet_direct.1));
    println!("greedy: {served} served, {refused} refused");
}
