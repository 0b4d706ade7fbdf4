//! The Rust client, etcd-client, through the proxy. One line on stdout per check that held; on the first that does not,
//! a sentence on stderr and exit code 1.
//!
//! The environment says where things are: PROXY and ETCD are addresses (host:port, ETCD several with commas), CA, CERT
//! and KEY are PEM files, and NAMESPACE is the prefix that the proxy puts before every key.

use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

use etcd_client::{
    CampaignResponse, Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Event, EventType,
    GetOptions, Identity, KeyValue, LockOptions, ProclaimOptions, PutOptions, ResignOptions, SortOrder, SortTarget,
    TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse, WatchStream,
};

/// Bounds one check. It only has to be longer than a loaded two-core machine needs.
const PATIENCE: Duration = Duration::from_secs(40);

/// The shortest that a cluster with etcd's default election timeout grants.
const TTL_SECONDS: i64 = 2;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// A client through the proxy, and one past it.
struct Parts {
    proxy: Client,
    etcd: Client,
    namespace: String,
}

#[tokio::main]
async fn main() {
    let mut parts = match Parts::connect().await {
        Ok(parts) => parts,
        Err(error) => fail("the client connects", &error.to_string()),
    };
    macro_rules! check {
        ($proves:literal, $run:ident) => {
            match tokio::time::timeout(PATIENCE, $run(&mut parts)).await {
                Ok(Ok(())) => println!("ok {}", $proves),
                Ok(Err(error)) => fail($proves, &error.to_string()),
                Err(_) => fail($proves, &format!("it took longer than {PATIENCE:?}")),
            }
        };
    }
    check!("keys are put, read and deleted below the namespace", keys);
    check!("transactions compare and act below the namespace", transactions);
    check!("a watch tells every change of its range and no other", watches);
    check!("a progress request is answered for the stream", progress);
    check!("what was compacted is refused to watches, with the revision that is left", compaction);
    check!("a lease outlives its time while it is kept, and takes its keys with it", leases);
    check!("a lock of the server keeps the next one waiting until it is freed", locks);
    check!("an election of the server has one leader, and observers see each", elections);
    check!("errors are those of etcd", errors);
}

fn fail(proves: &str, why: &str) -> ! {
    eprintln!("FAILED {proves}: {why}");
    std::process::exit(1);
}

// === the checks ===

async fn keys(parts: &mut Parts) -> Result {
    let first = parts.proxy.put("kv/a", "1", None).await?.header().ok_or("no header")?.revision();
    parts.proxy.put("kv/b", "2", None).await?;
    parts.etcd.put("kv/c", "outside", None).await?;
    equal("the value in etcd", parts.direct("kv/a").await?, "1")?;
    let down = GetOptions::new().with_prefix().with_sort(SortTarget::Key, SortOrder::Descend);
    equal("the keys", texts(parts.proxy.get("kv/", Some(down)).await?.kvs())?, ["kv/b=2", "kv/a=1"])?;
    let all = GetOptions::new().with_all_keys().with_count_only();
    equal("the count of all", parts.proxy.get("", Some(all)).await?.count(), 2)?;
    let put = parts.proxy.put("kv/a", "3", Some(PutOptions::new().with_prev_key())).await?;
    equal("the previous", text(put.prev_key().ok_or("no previous key")?)?, "kv/a=1")?;
    let old = GetOptions::new().with_revision(first);
    equal("the old value", texts(parts.proxy.get("kv/a", Some(old)).await?.kvs())?, ["kv/a=1"])?;
    let deleted = parts.proxy.delete("", Some(DeleteOptions::new().with_all_keys().with_prev_key())).await?;
    equal("the deleted", texts(deleted.prev_kvs())?, ["kv/a=3", "kv/b=2"])?;
    equal("the stranger", parts.etcd.get("kv/c", None).await?.count(), 1)
}

async fn transactions(parts: &mut Parts) -> Result {
    let create = || {
        Txn::new()
            .when([Compare::create_revision("txn/a", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("txn/a", "1", None), TxnOp::get("txn/a", None)])
            .or_else([TxnOp::txn(Txn::new().and_then([TxnOp::delete("txn/a", None), TxnOp::get("txn/a", None)]))])
    };
    let won = parts.proxy.txn(create()).await?;
    equal("the first succeeds", won.succeeded(), true)?;
    match &won.op_responses()[1] {
        TxnOpResponse::Get(get) => equal("the key that was read", texts(get.kvs())?, ["txn/a=1"])?,
        other => return Err(format!("the answer to a get is {other:?}").into()),
    }
    equal("the value in etcd", parts.direct("txn/a").await?, "1")?;
    let lost = parts.proxy.txn(create()).await?;
    equal("the second succeeds", lost.succeeded(), false)?;
    match &lost.op_responses()[0] {
        TxnOpResponse::Txn(inner) => equal("the answers of the inner", inner.op_responses().len(), 2),
        other => Err(format!("the answer to a transaction is {other:?}").into()),
    }
}

async fn watches(parts: &mut Parts) -> Result {
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut stream = parts.proxy.watch("w/", Some(options)).await?;
    equal("the first message creates", next(&mut stream).await?.created(), true)?;
    parts.etcd.put("w/a", "outside", None).await?;
    parts.etcd.put(format!("{}w/a", parts.namespace), "1", None).await?;
    parts.proxy.put("w/a", "2", None).await?;
    let last = parts.proxy.delete("w/a", None).await?.header().ok_or("no header")?.revision();
    let expected = ["put w/a=1", "put w/a=2 was 1", "delete w/a was 2"];
    equal("the events", events(&mut stream, 3).await?, expected)?;

    // A second watch on the same stream, with an id that the client chose.
    stream.watch("w/a", Some(WatchOptions::new().with_start_revision(last - 1).with_watch_id(77))).await?;
    let created = next(&mut stream).await?;
    equal("the id", (created.created(), created.watch_id()), (true, 77))?;
    equal("the replayed", events(&mut stream, 2).await?, ["put w/a=2", "delete w/a"])?;
    stream.cancel(77).await?;
    let cancelled = next(&mut stream).await?;
    equal("the cancelled", (cancelled.canceled(), cancelled.watch_id()), (true, 77))
}

async fn progress(parts: &mut Parts) -> Result {
    let mut stream = parts.proxy.watch("progress", None).await?;
    equal("the first message creates", next(&mut stream).await?.created(), true)?;
    let put = parts.proxy.put("progress", "1", None).await?.header().ok_or("no header")?.revision();
    equal("the event", events(&mut stream, 1).await?, ["put progress=1"])?;
    // A member that lags may answer with an older revision, so it is asked until it is level.
    loop {
        stream.request_progress().await?;
        let answer = next(&mut stream).await?;
        equal("the answer", (answer.watch_id(), answer.events().len()), (-1, 0))?;
        if answer.header().ok_or("no header")?.revision() >= put {
            return Ok(());
        }
    }
}

async fn compaction(parts: &mut Parts) -> Result {
    let first = parts.proxy.put("compact", "1", None).await?.header().ok_or("no header")?.revision();
    let last = parts.proxy.put("compact", "2", None).await?.header().ok_or("no header")?.revision();
    parts.proxy.compact(last, None).await?;
    let mut stream = parts.proxy.watch("compact", Some(WatchOptions::new().with_start_revision(first))).await?;
    equal("the first message creates", next(&mut stream).await?.created(), true)?;
    let refused = next(&mut stream).await?;
    equal("the refusal", (refused.canceled(), refused.compact_revision()), (true, last))
}

async fn leases(parts: &mut Parts) -> Result {
    let lease = parts.proxy.lease_grant(TTL_SECONDS, None).await?.id();
    parts.proxy.put("leased", "1", Some(PutOptions::new().with_lease(lease))).await?;
    let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
    let left = parts.proxy.lease_time_to_live(lease, Some(options)).await?;
    equal("the keys", left.keys(), [b"leased"])?;
    equal("the granted time", left.granted_ttl(), TTL_SECONDS)?;
    let mut watch = parts.proxy.watch("leased", None).await?;
    equal("the first message creates", next(&mut watch).await?.created(), true)?;

    let (mut keeper, mut answers) = parts.proxy.lease_keep_alive(lease).await?;
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    for _ in 0..9 {
        tick.tick().await;
        keeper.keep_alive().await?;
        let answer = answers.message().await?.ok_or("the keep-alive ended")?;
        equal("the kept time", (answer.id(), answer.ttl()), (lease, TTL_SECONDS))?;
    }
    equal("the value in etcd", parts.direct("leased").await?, "1")?;
    equal("the event", events(&mut watch, 1).await?, ["delete leased"])?;
    keeper.keep_alive().await?;
    let answer = answers.message().await?.ok_or("the keep-alive ended")?;
    equal("the time of a lease that is gone", answer.ttl(), 0)
}

async fn locks(parts: &mut Parts) -> Result {
    let mine = parts.proxy.lease_grant(60, None).await?.id();
    let theirs = parts.proxy.lease_grant(60, None).await?.id();
    let held = parts.proxy.lock("locked", Some(LockOptions::new().with_lease(mine))).await?;
    let key = String::from_utf8(held.key().to_vec())?;
    equal("the lock's key begins with its name", key.starts_with("locked/"), true)?;
    let kvs = parts.etcd.get(format!("{}{key}", parts.namespace), None).await?;
    equal("the lease in etcd", kvs.kvs()[0].lease(), mine)?;
    let mut rival = parts.proxy.clone();
    let waiting = tokio::spawn(async move { rival.lock("locked", Some(LockOptions::new().with_lease(theirs))).await });
    // The rival waits once its key is there beside ours.
    while parts.holders("locked/").await? < 2 {}
    equal("two hold the lock", waiting.is_finished(), false)?;
    parts.proxy.unlock(key.as_str()).await?;
    let next = waiting.await??;
    equal("both have one key", next.key() == key.as_bytes(), false)?;
    parts.proxy.lease_revoke(theirs).await?;
    equal("the holders in etcd", parts.holders("locked/").await?, 0)
}

async fn elections(parts: &mut Parts) -> Result {
    let lease = parts.proxy.lease_grant(60, None).await?.id();
    let won = parts.proxy.campaign("elected", "me", lease).await?;
    let leader = |won: &CampaignResponse| won.leader().cloned().ok_or("no leader");
    let key = leader(&won)?.key_str()?.to_owned();
    equal("the name", leader(&won)?.name_str()?.to_owned(), "elected")?;
    equal("the leader in etcd", parts.direct(&key).await?, "me")?;
    let mut observer = parts.proxy.observe("elected").await?;
    let observed = observer.message().await?.ok_or("the observer ended")?;
    equal("the observed", text(observed.kv().ok_or("no key")?)?, format!("{key}=me"))?;
    parts.proxy.proclaim("still me", Some(ProclaimOptions::new().with_leader(leader(&won)?))).await?;
    let observed = observer.message().await?.ok_or("the observer ended")?;
    equal("the observed", text(observed.kv().ok_or("no key")?)?, format!("{key}=still me"))?;
    let told = parts.proxy.leader("elected").await?;
    equal("the leader", text(told.kv().ok_or("no key")?)?, format!("{key}=still me"))?;
    parts.proxy.resign(Some(ResignOptions::new().with_leader(leader(&won)?))).await?;
    equal("the leaders in etcd", parts.holders("elected/").await?, 0)
}

async fn errors(parts: &mut Parts) -> Result {
    refused(parts.proxy.put("", "v", None).await, "etcdserver: key is not provided")?;
    let future = GetOptions::new().with_revision(1 << 40);
    refused(parts.proxy.get("kv/a", Some(future)).await, "etcdserver: mvcc: required revision is a future revision")?;
    let leased = PutOptions::new().with_lease(4711);
    refused(parts.proxy.put("kv/a", "v", Some(leased)).await, "etcdserver: requested lease not found")?;
    refused(parts.proxy.leader("nobody").await, "election: no leader")
}

// === what the checks are made of ===

impl Parts {
    async fn connect() -> Result<Parts> {
        Ok(Parts {
            proxy: client(&setting("PROXY")?).await?,
            etcd: client(&setting("ETCD")?).await?,
            namespace: setting("NAMESPACE")?,
        })
    }

    async fn direct(&mut self, key: &str) -> Result<String> {
        let answer = self.etcd.get(format!("{}{key}", self.namespace), None).await?;
        let kv = answer.kvs().first().ok_or_else(|| format!("etcd has no key {}{key}", self.namespace))?;
        Ok(kv.value_str()?.to_owned())
    }

    /// How many keys etcd has below a prefix.
    async fn holders(&mut self, prefix: &str) -> Result<i64> {
        let options = GetOptions::new().with_prefix().with_count_only();
        Ok(self.etcd.get(format!("{}{prefix}", self.namespace), Some(options)).await?.count())
    }
}

fn setting(name: &str) -> Result<String> {
    std::env::var(name).map_err(|error| format!("the environment variable {name}: {error}").into())
}

async fn client(addresses: &str) -> Result<Client> {
    let endpoints: Vec<String> = addresses.split(',').map(|address| format!("https://{address}")).collect();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(std::fs::read(setting("CA")?)?))
        .identity(Identity::from_pem(std::fs::read(setting("CERT")?)?, std::fs::read(setting("KEY")?)?))
        .domain_name("localhost");
    Ok(Client::connect(endpoints, Some(ConnectOptions::new().with_tls(tls))).await?)
}

async fn next(stream: &mut WatchStream) -> Result<WatchResponse> {
    Ok(stream.message().await?.ok_or("the watch ended")?)
}

async fn events(stream: &mut WatchStream, count: usize) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    while texts.len() < count {
        for event in next(stream).await?.events() {
            texts.push(event_text(event)?);
        }
    }
    Ok(texts)
}

fn event_text(event: &Event) -> Result<String> {
    let kv = event.kv().ok_or("an event without a key")?;
    let mut words = match event.event_type() {
        EventType::Put => format!("put {}", text(kv)?),
        EventType::Delete => format!("delete {}", kv.key_str()?),
    };
    if let Some(before) = event.prev_kv() {
        words += &format!(" was {}", before.value_str()?);
    }
    Ok(words)
}

fn text(kv: &KeyValue) -> Result<String> {
    Ok(format!("{}={}", kv.key_str()?, kv.value_str()?))
}

fn texts(kvs: &[KeyValue]) -> Result<Vec<String>> {
    kvs.iter().map(text).collect()
}

fn equal<G: PartialEq<W> + Debug, W: Debug>(what: &str, got: G, want: W) -> Result {
    if got == want { Ok(()) } else { Err(format!("{what}: {got:?}, and should be {want:?}").into()) }
}

fn refused<T: Debug>(answer: std::result::Result<T, etcd_client::Error>, text: &str) -> Result {
    match answer {
        Err(etcd_client::Error::GRpcStatus(status)) => equal("the error", status.message(), text),
        other => Err(format!("{other:?} where the error {text:?} should be").into()),
    }
}
