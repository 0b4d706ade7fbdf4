//! What is not gRPC: health, metrics, version and profiles over HTTP, on the main listener and on the metrics addresses.
//!
//! Paths, codes and texts are those of etcd's proxy and, for what that lacks, of etcd itself; an error says besides
//! what would be right.

use std::{sync::Arc, time::SystemTime};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS},
};
use tokio::sync::watch;

use crate::{
    drain::Observer,
    logging,
    metrics::{Observed, Side, TenantUse, TlsFile},
    resolver::Registered,
    router::Router,
    rules::tenant::{Tenant, limits::Limit},
    tls::{ClientTls, FileStatus, Role, ServerTls},
    upstream::endpoint::State,
};

mod health;
mod level;
mod members;
mod probe;
mod profile;
mod query;
mod ready;
pub mod status;

pub use health::Checks;
use query::Query;

/// Serves the HTTP paths; cheap to clone.
#[derive(Clone)]
pub struct Admin {
    watched: Arc<Watched>,
    router: Arc<Router>,
    place: Place,
}

/// What the pages tell of besides calls.
pub struct Watched {
    pub drain: Observer,
    pub server_tls: Option<ServerTls>,
    pub client_tls: Option<ClientTls>,
    /// Whether profiles may be taken (`--enable-pprof`).
    pub profiles: bool,
    /// Who is registered, if this proxy is.
    pub registered: Option<watch::Receiver<Registered>>,
    pub identity: Identity,
    /// Those of health that are under way.
    pub checks: Checks,
}

/// What tells this process from others.
pub struct Identity {
    /// Of the machine.
    pub name: String,
    pub listen_address: String,
    pub started: SystemTime,
}

/// Where a page is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The address that clients use; whoever reaches it must not be able to change anything of the proxy.
    ForClients,
    /// A `--metrics-addr`, which is the operator's.
    ForOperators,
}

/// What the reader of a 404 may have meant.
const PAGES: &str =
    "/health, /livez, /readyz, /proxy/health, /proxy/metrics, and of an etcd member /version and /metrics";

impl Admin {
    pub fn new(watched: Arc<Watched>, router: Arc<Router>, place: Place) -> Self {
        Self { watched, router, place }
    }

    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let path = request.uri().path().to_owned();
        if path == "/log-level" && self.place == Place::ForOperators {
            return level::answer(request).await;
        }
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let query = Query::parse(request.uri().query().unwrap_or_default());
        match path.as_str() {
            _ if !self.has(&path) => not_found(&path),
            _ if !is_read => method_not_allowed("GET, HEAD"),
            "/health" => self.health(health::of_etcd(&self.watched.checks, &self.router, &query).await),
            "/proxy/health" => self.health(health::of_proxy(&self.watched.checks, &self.router).await),
            "/metrics" => members::metrics(&self.router.upstream).await,
            "/version" => members::version(&self.router.upstream).await,
            "/proxy/metrics" => self.metrics(),
            "/" => status::page(),
            "/status.json" => status::json(&self.watched, &self.router),
            path if path.starts_with("/debug/pprof") => profile::answer(path, &query).await,
            path => ready::answer(path, &self.watched, &self.router, &query).unwrap_or_else(|| not_found(path)),
        }
    }

    fn has(&self, path: &str) -> bool {
        match path {
            "/health" | "/proxy/health" | "/metrics" | "/version" | "/proxy/metrics" | "/livez" | "/readyz" => true,
            // Not for clients: it tells of all tenants.
            "/" | "/status.json" => self.place == Place::ForOperators,
            _ if path.starts_with("/livez/") || path.starts_with("/readyz/") => true,
            "/debug/pprof" => self.watched.profiles,
            _ => path.starts_with("/debug/pprof/") && self.watched.profiles,
        }
    }

    fn health(&self, health: health::Health) -> Response<Body> {
        let metrics = &self.router.metrics;
        let counter = if health.is_healthy() { &metrics.health_success } else { &metrics.health_failures };
        counter.inc();
        health.into_response()
    }

    fn metrics(&self) -> Response<Body> {
        match self.router.metrics.text(&self.watched.observe(&self.router)) {
            Ok(text) => with_type(StatusCode::OK, prometheus::TEXT_FORMAT, text),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")),
        }
    }
}

impl Watched {
    fn observe(&self, router: &Router) -> Observed {
        let endpoints = router.upstream.endpoints().list();
        Observed {
            endpoints: endpoints.iter().map(|endpoint| (endpoint.name.clone(), endpoint.state().name())).collect(),
            // One that is removed is not among the endpoints.
            endpoint_states: State::ALL
                .iter()
                .filter(|state| **state != State::Removed)
                .map(|state| state.name())
                .collect(),
            tls_files: self.tls_files().into_iter().map(|(side, file)| tls_file(side, &file)).collect(),
            draining: self.drain.is_signaled(),
            log_lines_dropped: logging::dropped(),
            log_lines_sampled: logging::sampled(),
            audit_lines: router.audit.as_ref().map_or(0, |audit| audit.written()),
            audit_lines_dropped: router.audit.as_ref().map_or(0, |audit| audit.dropped()),
            tenants: router.tenants.borrow().all().iter().map(|tenant| tenant_use(tenant)).collect(),
            panics: logging::panics(),
        }
    }

    /// The files of both sides.
    fn tls_files(&self) -> Vec<(Side, FileStatus)> {
        let server = self.server_tls.iter().flat_map(ServerTls::status).map(|file| (Side::Clients, file));
        let client = self.client_tls.iter().flat_map(ClientTls::status).map(|file| (Side::Etcd, file));
        server.chain(client).collect()
    }
}

fn tenant_use(tenant: &Tenant) -> TenantUse {
    let refused = Limit::ALL.into_iter().map(|limit| (limit.label(), tenant.usage.refusals(limit)));
    TenantUse {
        tenant: tenant.name.clone(),
        refused: refused.filter(|(_, count)| *count > 0).collect(),
        used: tenant.usage.used().into_iter().map(|(limit, used)| (limit.label(), used)).collect(),
    }
}

fn tls_file(side: Side, file: &FileStatus) -> TlsFile {
    let not_after = file.not_after.filter(|_| file.role != Role::Key);
    TlsFile { side, role: file.role.label(), not_after, is_current: file.last_error.is_none() }
}

/// Whether a page says of nothing but the proxy's own health, so that each tenant of many may see it.
pub fn tells_of_nobody(path: &str) -> bool {
    matches!(path, "/health" | "/proxy/health" | "/livez" | "/readyz")
        || path.starts_with("/livez/")
        || path.starts_with("/readyz/")
}

/// The answer to a tenant of many that asks for a page about everybody: metrics name the tenants and count their calls.
pub fn kept_from_tenants(path: &str) -> Response<Body> {
    let place = "it is served to operators: to the profile full, and on --metrics-addr";
    text(StatusCode::FORBIDDEN, format!("403 forbidden: {path} tells of all tenants; {place}\n"))
}

fn not_found(path: &str) -> Response<Body> {
    text(StatusCode::NOT_FOUND, format!("404 page not found: {path}; there are {PAGES}\n"))
}

fn method_not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A text, with the headers that Go's server gives to one.
fn text(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = with_type(status, "text/plain; charset=utf-8", body);
    response.headers_mut().insert(NOSNIFF.0, NOSNIFF.1);
    response
}

const NOSNIFF: (HeaderName, HeaderValue) = (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
