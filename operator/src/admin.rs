//! Metrics and health of the operator itself, over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::{Router, http::StatusCode, routing::get};
use prometheus::core::Collector;
use prometheus::{Encoder, GaugeVec, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::plan::Object;

/// Every metric of the operator.
pub struct Metrics {
    registry: Registry,
    reconciled: IntCounterVec,
    seconds: HistogramVec,
    ready: IntGaugeVec,
    certificates: GaugeVec,
    pub backing_off: IntGauge,
    pub leader: IntGauge,
    /// Whether the API server was reached and the start is over.
    pub started: AtomicBool,
    /// Whether the webhook has a certificate, if one is served.
    pub webhook: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let named = |name: &str, help: &str| Opts::new(format!("etcdproxy_operator_{name}"), help);
        // Names and labels are constants, and a test makes them all once.
        let valid = "the metric is named as Prometheus wants it";
        let reconciled = named("reconcile_total", "Reconciliations, by kind and result.");
        let seconds = named("reconcile_seconds", "How long reconciliations took.");
        let ready = named("proxy_ready", "Whether an EtcdProxy is ready.");
        let certificates =
            named("certificate_not_after_seconds", "When a managed certificate expires, in seconds since 1970.");
        let backing_off = named("error_backoff_objects", "Objects that wait after an error.");
        let leader = named("leader", "Whether this process leads.");
        let metrics = Metrics {
            reconciled: IntCounterVec::new(reconciled, &["kind", "result"]).expect(valid),
            seconds: HistogramVec::new(seconds.into(), &["kind"]).expect(valid),
            ready: IntGaugeVec::new(ready, &["namespace", "name"]).expect(valid),
            certificates: GaugeVec::new(certificates, &["namespace", "name", "use"]).expect(valid),
            backing_off: IntGauge::with_opts(backing_off).expect(valid),
            leader: IntGauge::with_opts(leader).expect(valid),
            started: AtomicBool::new(false),
            webhook: AtomicBool::new(true),
            registry,
        };
        let all: [Box<dyn Collector>; 6] = [
            Box::new(metrics.reconciled.clone()),
            Box::new(metrics.seconds.clone()),
            Box::new(metrics.ready.clone()),
            Box::new(metrics.certificates.clone()),
            Box::new(metrics.backing_off.clone()),
            Box::new(metrics.leader.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector).expect("each metric is registered once");
        }
        metrics
    }

    pub fn reconciled(&self, kind: &str, result: &str, took: Duration) {
        self.reconciled.with_label_values(&[kind, result]).inc();
        self.seconds.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    pub fn ready(&self, object: &Object, ready: bool) {
        self.ready.with_label_values(&[&object.namespace, &object.name]).set(i64::from(ready));
    }

    pub fn certificates(&self, object: &Object, serving: i64, client: i64) {
        for (usage, not_after) in [("serving", serving), ("client", client)] {
            // Seconds since 1970 are exact in a float for a long time to come.
            #[allow(clippy::cast_precision_loss)]
            self.certificates
                .with_label_values(&[object.namespace.as_str(), object.name.as_str(), usage])
                .set(not_after as f64);
        }
    }

    /// Series of an object that is gone.
    pub fn forget(&self, object: &Object) {
        let Object { namespace, name, .. } = object;
        // What was never set cannot be removed, and that is as well.
        let _ = self.ready.remove_label_values(&[namespace, name]);
        for usage in ["serving", "client"] {
            let _ = self.certificates.remove_label_values(&[namespace.as_str(), name.as_str(), usage]);
        }
    }

    fn text(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// Serves `/metrics`, `/livez` and `/readyz` until the process ends. Answers with the address.
pub async fn serve(address: &str, metrics: Arc<Metrics>) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let (for_metrics, for_ready) = (metrics.clone(), metrics);
    let routes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { for_metrics.text() }))
        .route(
            "/readyz",
            get(move || async move {
                if !for_ready.started.load(Ordering::Relaxed) {
                    (StatusCode::SERVICE_UNAVAILABLE, "the API server was not reached yet\n")
                } else if !for_ready.webhook.load(Ordering::Relaxed) {
                    (StatusCode::SERVICE_UNAVAILABLE, "the webhook has no certificate yet\n")
                } else {
                    (StatusCode::OK, "ok\n")
                }
            }),
        );
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "metrics and health are no longer served");
        }
    });
    Ok(bound)
}
