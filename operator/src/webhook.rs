//! Sidecars at admission where the API server does not serve MutatingAdmissionPolicy: a webhook over HTTPS, with
//! certificates of its own. Every operator process serves it, whoever leads.

mod certificate;
mod listener;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admin::Metrics;
use crate::api::EtcdProxy;
use crate::inject::review::Question;
use certificate::Keeper;
use listener::Listener;

/// The webhook that gets its CA, whatever the configuration is called that holds it.
pub const WEBHOOK: &str = "inject.etcdproxy.dev";
/// Where reviews are sent.
const PATH: &str = "/inject";

/// Somewhat less than the 5 s that the API server waits for an answer, so that it hears the reason.
const LOOK_UP: Duration = Duration::from_secs(4);
/// Above the largest object that an API server takes, which is 3 MiB, with what stands around it.
const MAX_REVIEW: usize = 4 << 20;

/// The flags of the webhook.
#[derive(Clone, Debug, clap::Args)]
// Else its group would have the name of the flags that it is part of.
#[group(skip)]
pub struct Flags {
    /// Address on which the webhook for sidecars is served; it is not served if absent
    #[arg(long)]
    pub webhook_listen: Option<String>,
    /// Further host names and IP addresses in the webhook's certificate, for API servers that reach it by a URL
    #[arg(long, value_delimiter = ',')]
    pub webhook_names: Vec<String>,
    /// Service that leads API servers to the webhook, in the operator's namespace; its certificate is kept in the Secret of
    /// the same name
    #[arg(long, default_value = "etcd-proxy-operator-webhook")]
    pub webhook_service: String,
    /// MutatingWebhookConfiguration whose webhook inject.etcdproxy.dev gets the CA of that certificate
    #[arg(long, default_value = "etcdproxy-inject")]
    pub webhook_configuration: String,
}

/// Begins to serve, if the flags say so. Nobody is ready before there is a certificate.
pub async fn start(client: &Client, flags: &Flags, namespace: &str, metrics: &Arc<Metrics>) -> anyhow::Result<()> {
    let Some(address) = &flags.webhook_listen else { return Ok(()) };
    let socket = TcpListener::bind(address).await;
    let socket = socket.with_context(|| format!("cannot listen on --webhook-listen={address}"))?;
    metrics.webhook.store(false, Ordering::Relaxed);
    let (settings, newest) = watch::channel(None);
    let names = names(namespace, flags);
    tracing::info!(address, ?names, "the webhook is served");
    let keeper = Keeper::new(client.clone(), namespace, flags, names);
    tokio::spawn(keeper.keep(settings, metrics.clone()));
    let routes =
        Router::new().route(PATH, post(review)).layer(DefaultBodyLimit::max(MAX_REVIEW)).with_state(client.clone());
    tokio::spawn(async move {
        if let Err(error) = axum::serve(Listener::new(socket, newest), routes).await {
            tracing::error!(%error, "the webhook is no longer served");
        }
    });
    Ok(())
}

/// By which an API server may reach the webhook.
fn names(namespace: &str, flags: &Flags) -> Vec<String> {
    let service = &flags.webhook_service;
    let mut names = vec![format!("{service}.{namespace}"), format!("{service}.{namespace}.svc")];
    names.extend(flags.webhook_names.iter().filter(|name| !name.is_empty()).cloned());
    names.sort();
    names.dedup();
    names
}

async fn review(State(client): State<Client>, body: Bytes) -> Response {
    let question = match Question::read(&body) {
        Ok(question) => question,
        Err(error) => return (StatusCode::BAD_REQUEST, error).into_response(),
    };
    if let Some(why) = question.unsuitable() {
        return axum::Json(question.cannot(why)).into_response();
    }
    let Some(wanted) = question.wanted() else { return axum::Json(question.allow()).into_response() };
    let proxies = Api::<EtcdProxy>::namespaced(client, &question.namespace);
    let found = tokio::time::timeout(LOOK_UP, proxies.get_opt(wanted)).await;
    let answer = match found {
        Ok(Ok(proxy)) => match proxy.and_then(|proxy| proxy.status?.sidecar) {
            Some(sidecar) => question.patch(&sidecar),
            None => question.refuse(),
        },
        Ok(Err(error)) => question.fail(&error.to_string()),
        Err(_) => question.fail(&format!("the API server did not answer within {LOOK_UP:?}")),
    };
    axum::Json(answer).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_names_the_service_and_what_flags_add() {
        let flags = Flags {
            webhook_listen: None,
            webhook_names: vec!["10.0.0.1".to_owned(), String::new(), "10.0.0.1".to_owned()],
            webhook_service: "hook".to_owned(),
            webhook_configuration: "inject".to_owned(),
        };
        assert_eq!(names("ns", &flags), ["10.0.0.1", "hook.ns", "hook.ns.svc"]);
    }
}
