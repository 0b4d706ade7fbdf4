//! Puts, gets and watches through one proxy and looks through another, as applications bind to them: what `helm test`
//! runs in a pod. It speaks JSON, by the HTTP client that is there for the API server.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use futures_util::{AsyncBufRead, AsyncBufReadExt as _};
use k8s_openapi::ByteString;
use kube::client::Body;
use kube::{Client, Config};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

/// The flags of `verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Folder with the binding Secret of an EtcdProxy: endpoints, ca.crt, tls.crt and tls.key
    #[arg(long)]
    pub binding: PathBuf,
    /// The same of one with other keys, which must not see those of the first
    #[arg(long)]
    pub other: Option<PathBuf>,
    /// Seconds that all of it may take; proxies that have just been made need some to start
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u16).range(1..))]
    pub timeout_seconds: u16,
}

/// How often a proxy that does not answer yet is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long one call may take, so that one that hangs shows before everything is over.
const CALL: Duration = Duration::from_secs(10);

/// Runs all steps, says each, and fails with what was wrong.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let started = Instant::now();
    let steps = steps(&flags, started);
    let all = Duration::from_secs(flags.timeout_seconds.into());
    tokio::time::timeout(all, steps).await.with_context(|| format!("not done within {all:?}"))?
}

async fn steps(flags: &Flags, started: Instant) -> anyhow::Result<()> {
    let first = Proxy::reached("the first proxy", &flags.binding).await?;
    let other = match &flags.other {
        Some(folder) => Some(Proxy::reached("the other proxy", folder).await?),
        None => None,
    };
    // No key of anybody else; an earlier run that was cut off may have left its own.
    let nonce = UNIX_EPOCH.elapsed().context("the clock stands before 1970")?.as_nanos();
    let (key, value) = (format!("etcd-proxy-verify-{nonce}"), format!("value-{nonce}"));

    let mut watch = first.watch(&key).await?;
    first.call("kv/put", json!({"key": base64(&key), "value": base64(&value)})).await?;
    println!("put {key} through {}", first.url);
    let found = first.call("kv/range", json!({"key": base64(&key)})).await?;
    ensure!(found["kvs"][0]["value"] == base64(&value), "what was put is not what was read: {found}");
    println!("read it back");
    let event = bounded("the watch", next(&mut watch)).await?;
    let event = &event["result"]["events"][0]["kv"];
    ensure!(event["key"] == base64(&key) && event["value"] == base64(&value), "the watch brought {event}");
    println!("saw it by a watch");
    if let Some(other) = &other {
        // A zero byte as key and as end means all keys.
        let all = base64("\0");
        for question in [json!({"key": base64(&key)}), json!({"key": all, "range_end": all})] {
            let seen = other.call("kv/range", question).await?;
            let keys = seen["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
            let is_ours = |one: &Value| one["key"] == base64(&key) || one["value"] == base64(&value);
            ensure!(!keys.iter().any(is_ours), "{} shows the key of another prefix", other.url);
        }
        println!("it is not to be seen through {}", other.url);
    }
    first.call("kv/deleterange", json!({"key": base64(&key)})).await?;
    println!("deleted it; all is well after {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// A proxy that is called by JSON.
struct Proxy {
    url: String,
    client: Client,
}

impl Proxy {
    /// Waits until it serves: pods, Services and Secrets come in their own time.
    async fn reached(what: &str, folder: &Path) -> anyhow::Result<Proxy> {
        let mut last = String::new();
        loop {
            let problem = match Proxy::new(folder).await {
                Ok(proxy) => match proxy.call("kv/range", json!({"key": base64("etcd-proxy-verify")})).await {
                    Ok(_) => return Ok(proxy),
                    Err(error) => format!("{error:#}"),
                },
                Err(error) => format!("{error:#}"),
            };
            if problem != last {
                eprintln!("waiting for {what}: {problem}");
                last = problem;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn new(folder: &Path) -> anyhow::Result<Proxy> {
        let path = folder.join("endpoints");
        let endpoints = tokio::fs::read_to_string(&path).await.with_context(|| format!("no {}", path.display()))?;
        let url = endpoints.split(',').next().unwrap_or_default().trim().to_owned();
        let mut config = Config::new(url.parse().with_context(|| format!("{} holds no URL", path.display()))?);
        config.default_retry = false;
        if url.starts_with("https://") {
            // Given as a file, it would come on top of the system's authorities, and our image has none.
            let path = folder.join("ca.crt");
            let authorities = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let authorities = authorities.with_context(|| format!("no certificates in {}", path.display()))?;
            config.root_cert = Some(authorities.iter().map(|one| one.to_vec()).collect());
            let file = |name: &str| Some(folder.join(name).display().to_string());
            config.auth_info.client_certificate = file("tls.crt");
            config.auth_info.client_key = file("tls.key");
        }
        let client =
            Client::try_from(config).with_context(|| format!("unusable certificates in {}", folder.display()))?;
        Ok(Proxy { url, client })
    }

    async fn call(&self, path: &str, message: Value) -> anyhow::Result<Value> {
        let what = format!("{} of {}", path, self.url);
        let text = bounded(&what, async {
            let answer = self.client.send(self.request(path, &message)?.map(Body::from)).await?;
            let status = answer.status();
            let bytes = answer.into_body().collect_bytes().await?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if status.is_success() { Ok(text) } else { bail!("{status} {text}") }
        });
        serde_json::from_str(&text.await.context(what.clone())?)
            .with_context(|| format!("{what}: the answer is not JSON"))
    }

    /// A watch of one key that etcd has confirmed.
    async fn watch(&self, key: &str) -> anyhow::Result<impl AsyncBufRead + Unpin + use<>> {
        let request = self.request("watch", &json!({"create_request": {"key": base64(key)}}))?;
        let mut lines =
            bounded("the watch", async { Ok(Box::pin(self.client.request_stream(request).await?)) }).await?;
        let created = bounded("the watch", next(&mut lines)).await?;
        ensure!(created["result"]["created"] == true, "the watch was refused: {created}");
        Ok(lines)
    }

    fn request(&self, path: &str, message: &Value) -> anyhow::Result<http::Request<Vec<u8>>> {
        Ok(http::Request::post(format!("/v3/{path}")).body(message.to_string().into_bytes())?)
    }
}

async fn next(lines: &mut (impl AsyncBufRead + Unpin)) -> anyhow::Result<Value> {
    let mut line = String::new();
    lines.read_line(&mut line).await?;
    serde_json::from_str(&line).with_context(|| format!("not JSON: {line:?}"))
}

async fn bounded<T>(what: &str, step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(CALL, step).await.with_context(|| format!("{what}: nothing within {CALL:?}"))?
}

/// As JSON has bytes; Kubernetes does the same.
fn base64(text: &str) -> Value {
    json!(ByteString(text.as_bytes().to_vec()))
}
