//! The kubectl plugin, `kubectl etcdproxy`: what is deployed where, why it is not ready, and what to do about it. It is
//! this program under the name `kubectl-etcdproxy`, and has the rights of whoever calls it, not the operator's.

mod check;
mod draw;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config, ResourceExt};

use crate::api::{EtcdProxy, Mode};
use crate::inject;
use crate::plan::Settings;
use crate::render::container;

/// The file name by which kubectl finds the plugin.
pub const NAME: &str = "kubectl-etcdproxy";

/// Shows what became of EtcdProxies, and checks what they need.
#[derive(Debug, Parser)]
#[command(name = "kubectl etcdproxy", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Namespace; the kubeconfig's if absent
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    context: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draw what is deployed where, and why it is not ready
    Status {
        /// Name of an EtcdProxy; all of the namespace if absent
        name: Option<String>,
        /// EtcdProxies of all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Check the installation and every EtcdProxy, with a remedy for what is wrong; exits with 1 if something is
    Check {
        /// Namespace of the operator
        #[arg(long, default_value = "etcd-proxy-system")]
        operator_namespace: String,
    },
    /// Put the sidecar into the pods that ask for it; EtcdProxies that no file has are read from the cluster
    Inject {
        /// Files with pods, or what makes pods; - is stdin
        #[arg(short, long = "filename", required = true)]
        filename: Vec<PathBuf>,
        /// Image of the proxy where an EtcdProxy of a file does not name one
        #[arg(long, env = "ETCD_PROXY_OPERATOR_IMAGE", default_value = "etcd-proxy")]
        image: String,
    },
    /// Print the logs of all proxies of an EtcdProxy, each line with its pod
    Logs {
        /// Name of the EtcdProxy
        name: String,
        /// Go on with what is logged from now on
        #[arg(short, long)]
        follow: bool,
        /// Lines of each pod from the end
        #[arg(long, default_value_t = 100)]
        tail: i64,
    },
}

/// Pods of one EtcdProxy that are shown; a person reads no more.
const MAX_PODS: u32 = 500;

/// Obeys; whether all is well.
pub async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let options = KubeConfigOptions { context: arguments.context, ..KubeConfigOptions::default() };
    let config = match options.context {
        None => Config::infer().await.context("cannot find the cluster; is there a kubeconfig?")?,
        Some(_) => Config::from_kubeconfig(&options).await.context("cannot read the kubeconfig")?,
    };
    let namespace = arguments.namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)?;
    match arguments.command {
        Command::Status { name, all_namespaces } => status(&client, &namespace, name, all_namespaces).await,
        Command::Check { operator_namespace } => check::run(&client, &operator_namespace).await,
        Command::Inject { filename, image } => put_sidecars(&client, &namespace, &filename, image).await,
        Command::Logs { name, follow, tail } => logs(&client, &namespace, &name, follow, tail).await,
    }
}

async fn status(client: &Client, namespace: &str, name: Option<String>, all: bool) -> anyhow::Result<bool> {
    let api: Api<EtcdProxy> = if all { Api::all(client.clone()) } else { Api::namespaced(client.clone(), namespace) };
    let proxies = match name {
        Some(name) => vec![find(client, namespace, &name).await?],
        None => api.list(&ListParams::default()).await.map_err(explain)?.items,
    };
    if proxies.is_empty() {
        let place = if all { "this cluster".to_owned() } else { format!("namespace {namespace}") };
        println!("there are no EtcdProxies in {place}");
    }
    let mut well = true;
    for proxy in proxies {
        let pods = pods(client, &proxy).await;
        print!("{}", draw::draw(&proxy, &pods));
        well &= draw::is_ready(&proxy);
    }
    Ok(well)
}

async fn find(client: &Client, namespace: &str, name: &str) -> anyhow::Result<EtcdProxy> {
    let api = Api::<EtcdProxy>::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await.map_err(explain)?;
    found.with_context(|| {
        format!("namespace {namespace} has no EtcdProxy {name}; `kubectl get etcdproxies -A` shows all")
    })
}

/// What the API server's refusal most often means.
fn explain(error: kube::Error) -> anyhow::Error {
    match &error {
        kube::Error::Api(status) if status.code == 404 => {
            anyhow::anyhow!("this cluster does not know EtcdProxies: apply deploy/crds first ({})", status.message)
        }
        _ => error.into(),
    }
}

/// The pods that run an EtcdProxy, or why they cannot be seen.
async fn pods(client: &Client, proxy: &EtcdProxy) -> Result<Vec<Pod>, String> {
    let status = proxy.status.clone().unwrap_or_default();
    let own = proxy.namespace().unwrap_or_default();
    let mut found = Vec::new();
    let mut places = Vec::new();
    if let (Some(workload), Some(selector)) = (&status.workload, &status.selector) {
        places.push((workload.namespace.clone(), selector.clone()));
    }
    if proxy.spec.mode == Mode::Sidecar {
        places.push((own, format!("{}={}", inject::LABEL, proxy.name_any())));
    }
    for (namespace, selector) in places {
        let parameters = ListParams::default().labels(&selector).limit(MAX_PODS);
        match Api::<Pod>::namespaced(client.clone(), &namespace).list(&parameters).await {
            Ok(pods) => found.extend(pods.items),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return Err(format!("you may not list pods in namespace {namespace}, where they run"));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(found)
}

async fn put_sidecars(client: &Client, namespace: &str, files: &[PathBuf], image: String) -> anyhow::Result<bool> {
    let mut documents = inject::read_files(files).map_err(anyhow::Error::msg)?;
    let own = documents.len();
    for (wanted_in, wanted) in inject::missing(&documents) {
        let place = wanted_in.as_deref().unwrap_or(namespace);
        let mut proxy = serde_json::to_value(find(client, place, &wanted).await?)?;
        if wanted_in.is_none() {
            // The pods name no namespace, and are for this one.
            proxy["metadata"]["namespace"].take();
        }
        documents.push(proxy);
    }
    let injected = inject::inject(&mut documents, &Settings::with_image(image)).map_err(anyhow::Error::msg)?;
    documents.truncate(own);
    eprintln!("injected into {injected} of {own} objects");
    print!("{}", inject::write(&documents));
    Ok(true)
}

async fn logs(client: &Client, namespace: &str, name: &str, follow: bool, tail: i64) -> anyhow::Result<bool> {
    let proxy = find(client, namespace, name).await?;
    let pods = pods(client, &proxy).await.map_err(anyhow::Error::msg)?;
    if pods.is_empty() {
        bail!("EtcdProxy {namespace}/{name} has no pods; `kubectl etcdproxy status {name}` says why");
    }
    let streams = pods.iter().map(|pod| async move {
        let (place, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let api = Api::<Pod>::namespaced(client.clone(), &place);
        let parameters = LogParams {
            container: Some(container::NAME.to_owned()),
            follow,
            tail_lines: Some(tail),
            ..LogParams::default()
        };
        match api.log_stream(&name, &parameters).await {
            Ok(stream) => {
                let mut lines = std::pin::pin!(stream.lines());
                while let Ok(Some(line)) = lines.try_next().await {
                    println!("{name}  {line}");
                }
                true
            }
            Err(error) => {
                let why = draw::trouble(pod).unwrap_or_else(|| error.to_string());
                eprintln!("{name}: no logs: {why}");
                false
            }
        }
    });
    let all: Vec<bool> = futures_util::stream::iter(streams).buffer_unordered(MAX_PODS as usize).collect().await;
    Ok(all.into_iter().any(|seen| seen))
}
