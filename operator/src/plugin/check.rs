//! Whether everything stands that EtcdProxies need, and a remedy for what does not.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};

use super::draw;
use crate::api::{EtcdBackend, EtcdProxy, GROUP, VERSION};
use crate::webhook;

/// The oldest minor version of Kubernetes 1 in which all that is used is there.
const OLDEST_MINOR: u32 = 33;
/// A lease that was not renewed for so long is nobody's any more, whatever its times are.
const STALE_SECONDS: i64 = 60;

/// One line, and whether it is good.
struct Line {
    good: bool,
    text: String,
}

fn good(text: impl Into<String>) -> Line {
    Line { good: true, text: text.into() }
}

fn bad(text: impl Into<String>) -> Line {
    Line { good: false, text: text.into() }
}

pub async fn run(client: &Client, namespace: &str) -> anyhow::Result<bool> {
    let mut lines = vec![version(client).await?];
    let kinds = kinds(client).await;
    let known = kinds.good;
    lines.push(kinds);
    lines.push(lease(client, namespace).await);
    lines.push(injection(client).await);
    if known {
        lines.extend(backends(client).await);
        lines.extend(proxies(client).await);
    }
    let mut well = true;
    for Line { good, text } in lines {
        well &= good;
        println!("{} {text}", if good { "✓" } else { "✗" });
    }
    Ok(well)
}

async fn version(client: &Client) -> anyhow::Result<Line> {
    let version = client.apiserver_version().await?;
    let minor: u32 = version.minor.trim_end_matches('+').parse().unwrap_or(0);
    Ok(if minor < OLDEST_MINOR {
        bad(format!("the API server is {}; Kubernetes 1.{OLDEST_MINOR} or later is needed", version.git_version))
    } else {
        good(format!("the API server is {}", version.git_version))
    })
}

async fn kinds(client: &Client) -> Line {
    match client.list_api_group_resources(&format!("{GROUP}/{VERSION}")).await {
        Ok(list)
            if ["etcdproxies", "etcdbackends"]
                .iter()
                .all(|kind| list.resources.iter().any(|one| one.name == *kind)) =>
        {
            good(format!("EtcdProxy and EtcdBackend are served as {GROUP}/{VERSION}"))
        }
        _ => bad(
            "EtcdProxy and EtcdBackend are not served: `etcd-proxy-operator crd | kubectl apply --server-side -f -`",
        ),
    }
}

async fn lease(client: &Client, namespace: &str) -> Line {
    let what = format!("Lease {namespace}/etcd-proxy-operator");
    match Api::<Lease>::namespaced(client.clone(), namespace).get_opt("etcd-proxy-operator").await {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            good(format!("whether an operator works is not known: you may not read {what}"))
        }
        Err(error) => bad(format!("{what} cannot be read: {error}")),
        Ok(None) => bad(format!("no operator has ever worked here: there is no {what}; apply deploy/operator.yaml")),
        Ok(Some(lease)) => {
            let spec = lease.spec.unwrap_or_default();
            let ago = spec.renew_time.map_or(i64::MAX, |time| Timestamp::now().as_second() - time.0.as_second());
            match spec.holder_identity.filter(|holder| !holder.is_empty()) {
                Some(holder) if ago < STALE_SECONDS => good(format!("operator {holder} works")),
                holder => bad(format!(
                    "no operator works: {what} was last renewed by {}; look at `kubectl get pods -n {namespace}`",
                    holder.as_deref().unwrap_or("nobody")
                )),
            }
        }
    }
}

/// What puts sidecars into pods may be called otherwise, by a chart's release, so that it is known by what it holds.
async fn injection(client: &Client) -> Line {
    let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone()).list(&ListParams::default()).await;
    let webhooks = webhooks.into_iter().flatten().flat_map(|configuration| configuration.webhooks.unwrap_or_default());
    if let Some(ours) = webhooks.into_iter().find(|one| one.name == webhook::WEBHOOK) {
        return if ours.client_config.ca_bundle.is_some() {
            good("sidecars are put into pods at admission, by the webhook")
        } else {
            bad("the webhook for sidecars has no CA yet; does an operator run with --webhook-listen?")
        };
    }
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "mutatingadmissionpolicies");
    let served = client.list_api_group_resources("admissionregistration.k8s.io/v1").await;
    if !served.is_ok_and(|list| list.resources.iter().any(|one| one.name == resource.plural)) {
        return good(
            "sidecars at admission are not installed: this API server has no MutatingAdmissionPolicy, so it takes \
             deploy/admission/webhook.yaml; `kubectl etcdproxy inject` works",
        );
    }
    let policies = Api::<DynamicObject>::all_with(client.clone(), &resource).list(&ListParams::default()).await;
    let is_ours = |one: &DynamicObject| one.name_any().split('.').next() == Some("etcdproxy-inject");
    match policies {
        Ok(all) if all.items.iter().any(is_ours) => good("sidecars are put into pods at admission"),
        Ok(_) => good(
            "sidecars at admission are not installed (deploy/admission/inject.yaml); `kubectl etcdproxy inject` works",
        ),
        Err(_) => good("whether sidecars are put into pods at admission is not known: you may not read the policies"),
    }
}

async fn backends(client: &Client) -> Vec<Line> {
    let Ok(all) = Api::<EtcdBackend>::all(client.clone()).list(&ListParams::default()).await else {
        return vec![good("EtcdBackends are not yours to see")];
    };
    let line = |backend: EtcdBackend| {
        let name = backend.name_any();
        let conditions = backend.status.map(|status| status.conditions).unwrap_or_default();
        match conditions.iter().find(|one| one.kind == "Ready") {
            Some(ready) if ready.status == "True" => good(format!("EtcdBackend {name} can be used")),
            Some(ready) => bad(format!("EtcdBackend {name}: {}: {}", ready.reason, ready.message)),
            None => bad(format!("EtcdBackend {name}: no operator has looked at it yet")),
        }
    };
    all.items.into_iter().map(line).collect()
}

async fn proxies(client: &Client) -> Vec<Line> {
    let all = match Api::<EtcdProxy>::all(client.clone()).list(&ListParams::default()).await {
        Ok(all) => all.items,
        Err(error) => return vec![bad(format!("EtcdProxies cannot be listed in all namespaces: {error}"))],
    };
    let (well, ill): (Vec<_>, Vec<_>) = all.into_iter().partition(draw::is_ready);
    let mut lines = vec![good(format!("{} EtcdProxies are ready", well.len()))];
    lines.extend(ill.into_iter().map(|proxy| {
        let conditions = proxy.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        let why = conditions.into_iter().find(|one| one.kind == "Ready");
        let why = why.map_or_else(
            || "no operator has looked at it yet".to_owned(),
            |one| format!("{}: {}", one.reason, one.message),
        );
        bad(format!("EtcdProxy {}/{}: {why}", proxy.namespace().unwrap_or_default(), proxy.name_any()))
    }));
    lines
}
