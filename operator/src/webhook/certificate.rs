//! The webhook's certificate: kept in a Secret that all operator processes share, renewed before it ends, loaded by each
//! of them, and its CA told to the API server. Whoever looks first does what is to be done; a write that comes second
//! is refused by its resource version.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{Flags, WEBHOOK};
use crate::admin::Metrics;
use crate::certs::{self, Data};
use crate::plan::Object;
use crate::render::MANAGER;

/// How often Secret and configuration are looked at. So long may a configuration that was just applied be without its
/// CA, and so long a new certificate unused; a new CA is trusted a day before it signs.
const LOOK: Duration = Duration::from_secs(15);
/// The same while there is no certificate, or the last look failed.
const AGAIN: Duration = Duration::from_secs(2);

pub struct Keeper {
    client: Client,
    namespace: String,
    /// The Secret, named like the Service that the certificate is for.
    secret: String,
    configuration: String,
    names: Vec<String>,
    /// What is served.
    loaded: Data,
    /// What was last logged about the configuration.
    told: String,
}

impl Keeper {
    pub fn new(client: Client, namespace: &str, flags: &Flags, names: Vec<String>) -> Keeper {
        Keeper {
            client,
            namespace: namespace.to_owned(),
            secret: flags.webhook_service.clone(),
            configuration: flags.webhook_configuration.clone(),
            names,
            loaded: Data::new(),
            told: String::new(),
        }
    }

    /// Looks again and again until the process ends.
    pub async fn keep(mut self, settings: watch::Sender<Option<Arc<ServerConfig>>>, metrics: Arc<Metrics>) {
        loop {
            let mut wait = LOOK;
            match self.look(&settings).await {
                Ok(()) => metrics.webhook.store(true, Ordering::Relaxed),
                Err(error) => {
                    tracing::warn!("the webhook's certificate: {error:#}; trying again");
                    wait = AGAIN;
                }
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn look(&mut self, settings: &watch::Sender<Option<Arc<ServerConfig>>>) -> anyhow::Result<()> {
        let data = self.stored().await?;
        if data != self.loaded {
            let loaded = server_config(&data).context("the Secret holds what cannot be served")?;
            settings.send_replace(Some(Arc::new(loaded)));
            self.loaded = data;
        }
        self.tell_the_api_server().await
    }

    /// What stands in the Secret, after whatever is due was issued.
    async fn stored(&self) -> anyhow::Result<Data> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let name = &self.secret;
        let found = api.get_opt(name).await.with_context(|| format!("cannot read Secret {name}"))?;
        let version = found.as_ref().and_then(ResourceExt::resource_version);
        let before: Data =
            found.and_then(|found| found.data).into_iter().flatten().map(|(key, bytes)| (key, bytes.0)).collect();
        let object = Object { namespace: self.namespace.clone(), name: name.clone(), uid: String::new() };
        let data = certs::keep_server(&object, &self.names, &before, OffsetDateTime::now_utc())?;
        if data == before {
            return Ok(data);
        }
        let mut texts: Value =
            data.iter().map(|(key, bytes)| (key.clone(), json!(ByteString(bytes.clone())))).collect();
        let written = match version {
            None => {
                let secret = serde_json::from_value(self.secret(texts)).context("a Secret of ours is no Secret")?;
                api.create(&PostParams::default(), &secret).await.map(|_| ())
            }
            Some(version) => {
                for gone in before.keys().filter(|key| !data.contains_key(*key)) {
                    texts[gone] = Value::Null;
                }
                let patch = json!({"metadata": {"resourceVersion": version}, "data": texts});
                api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
            }
        };
        match written {
            Ok(()) => {
                tracing::info!(secret = name, "issued a certificate for the webhook");
                Ok(data)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => bail!("another process has just written it"),
            Err(error) => Err(error).with_context(|| format!("cannot write Secret {name}")),
        }
    }

    fn secret(&self, data: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {
                "name": self.secret, "namespace": self.namespace, "labels": {"app.kubernetes.io/managed-by": MANAGER},
            },
            "data": data,
        })
    }

    /// Writes the CA into the configuration, and nothing else of it.
    async fn tell_the_api_server(&mut self) -> anyhow::Result<()> {
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let name = &self.configuration;
        let found = api.get_opt(name).await;
        let found = found.with_context(|| format!("cannot read MutatingWebhookConfiguration {name}"))?;
        let webhooks = found.and_then(|found| found.webhooks).unwrap_or_default();
        let Some(webhook) = webhooks.iter().find(|webhook| webhook.name == WEBHOOK) else {
            self.tell(format!(
                "no MutatingWebhookConfiguration {name} asks this webhook; deploy/admission/webhook.yaml is one"
            ));
            return Ok(());
        };
        let bundle = ByteString(self.loaded.get("ca.crt").cloned().unwrap_or_default());
        if webhook.client_config.ca_bundle.as_ref() == Some(&bundle) {
            self.tell("the API server knows the webhook's CA".to_owned());
            return Ok(());
        }
        let patch = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{"name": WEBHOOK, "clientConfig": {"caBundle": bundle}}],
        });
        let parameters = PatchParams::apply(MANAGER).force();
        let patched = api.patch_metadata(name, &parameters, &Patch::Apply(&patch)).await;
        patched.with_context(|| format!("cannot write the CA into MutatingWebhookConfiguration {name}"))?;
        self.tell("the API server knows the webhook's CA".to_owned());
        Ok(())
    }

    /// Logs it unless it is what was last logged.
    fn tell(&mut self, text: String) {
        if self.told != text {
            tracing::info!("{text}");
            self.told = text;
        }
    }
}

fn server_config(data: &Data) -> anyhow::Result<ServerConfig> {
    let pem = |key: &str| data.get(key).map(Vec::as_slice).unwrap_or_default();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem("tls.crt")).collect();
    let key = PrivateKeyDer::from_pem_slice(pem("tls.key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_issued_can_be_served() {
        let object = Object { namespace: "ns".to_owned(), name: "hook".to_owned(), uid: String::new() };
        let names = ["a.ns.svc".to_owned(), "10.0.0.1".to_owned()];
        let now = OffsetDateTime::now_utc();
        let data = certs::keep_server(&object, &names, &Data::new(), now).expect("it can be issued");
        server_config(&data).expect("it can be served");
        assert_eq!(certs::keep_server(&object, &names, &data, now).expect("it is kept"), data);
        for days in [61, 91, 1000] {
            let later =
                certs::keep_server(&object, &names, &data, now + time::Duration::days(days)).expect("it is renewed");
            assert_ne!(later["tls.crt"], data["tls.crt"], "one that ends soon, or has ended, is not served on");
            assert_eq!(later["ca.crt"], data["ca.crt"], "and API servers need not be told anything");
            server_config(&later).expect("it can be served");
        }
        let others = ["b.ns.svc".to_owned()];
        let other = certs::keep_server(&object, &others, &data, now).expect("it can be issued");
        assert_ne!(other["tls.crt"], data["tls.crt"], "other names want another certificate");
        assert_eq!(other["ca.crt"], data["ca.crt"], "of the same authority");
        server_config(&Data::new()).expect_err("an empty Secret cannot be served");
    }
}
