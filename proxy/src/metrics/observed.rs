//! What other rooms know and the metrics only show: endpoints, TLS files, tenants and what was dropped.

use std::time::SystemTime;

use prometheus::proto::MetricFamily;

use super::family::{self, Series, Value};

/// What others know, as of the moment when someone asks.
#[derive(Debug, Default)]
pub struct Observed {
    /// Each endpoint with the name of its state.
    pub endpoints: Vec<(String, &'static str)>,
    /// The names of all states.
    pub endpoint_states: Vec<&'static str>,
    pub tls_files: Vec<TlsFile>,
    pub draining: bool,
    pub log_lines_dropped: u64,
    pub log_lines_sampled: u64,
    pub tenants: Vec<TenantUse>,
    pub audit_lines: u64,
    pub audit_lines_dropped: u64,
    pub panics: u64,
}

/// What one tenant was refused and what it uses, by the names of limits.
#[derive(Debug)]
pub struct TenantUse {
    pub tenant: String,
    pub refused: Vec<(&'static str, u64)>,
    pub used: Vec<(&'static str, u64)>,
}

/// One TLS file.
#[derive(Debug)]
pub struct TlsFile {
    pub side: Side,
    /// `cert`, `key`, `ca` or `crl`.
    pub role: &'static str,
    pub not_after: Option<SystemTime>,
    /// Whether its newest content is in use.
    pub is_current: bool,
}

/// Whom TLS is spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Clients,
    Etcd,
}

impl Side {
    pub(super) const ALL: [Side; 2] = [Side::Clients, Side::Etcd];

    pub fn label(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Etcd => "etcd",
        }
    }
}

/// What is observed, as metrics.
pub(super) fn gather(observed: &Observed) -> impl Iterator<Item = MetricFamily> {
    let states = observed.endpoints.iter().flat_map(|(endpoint, current)| {
        observed.endpoint_states.iter().map(move |state| Series {
            labels: vec![endpoint.clone(), (*state).to_owned()],
            value: Value::Number(f64::from(u8::from(state == current))),
        })
    });
    let file_labels = |file: &TlsFile| vec![file.role.to_owned(), file.side.label().to_owned()];
    let expiries = observed.tls_files.iter().filter_map(|file| {
        let seconds = seconds_since_1970(file.not_after?);
        Some(Series { labels: file_labels(file), value: Value::Number(seconds) })
    });
    let current = observed
        .tls_files
        .iter()
        .map(|file| Series { labels: file_labels(file), value: Value::Number(f64::from(u8::from(file.is_current))) });
    let versions = [etcd_proxy_proto::ETCD_VERSION, env!("CARGO_PKG_VERSION")];
    let build = Series { labels: versions.map(str::to_owned).to_vec(), value: Value::Number(1.0) };
    let of_tenants = |counts: fn(&TenantUse) -> &Vec<(&'static str, u64)>| {
        observed.tenants.iter().flat_map(move |tenant| {
            counts(tenant).iter().map(|(limit, count)| Series {
                labels: vec![(*limit).to_owned(), tenant.tenant.clone()],
                value: Value::Number(*count as f64),
            })
        })
    };
    [
        family::TENANT_REFUSED.gathered(of_tenants(|tenant| &tenant.refused)),
        family::TENANT_USED.gathered(of_tenants(|tenant| &tenant.used)),
        family::ENDPOINT_STATE.gathered(states),
        family::TLS_EXPIRY.gathered(expiries),
        family::TLS_FILE_CURRENT.gathered(current),
        family::BUILD_INFO.gathered([build]),
        family::DRAINING.single(f64::from(u8::from(observed.draining))),
        family::AUDIT_LINES.single(observed.audit_lines as f64),
        family::AUDIT_DROPPED.single(observed.audit_lines_dropped as f64),
        family::LOG_LINES_DROPPED.single(observed.log_lines_dropped as f64),
        family::LOG_LINES_SAMPLED.single(observed.log_lines_sampled as f64),
        family::PANICS.single(observed.panics as f64),
    ]
    .into_iter()
    .flatten()
}

/// A certificate may have run out before 1970.
fn seconds_since_1970(time: SystemTime) -> f64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
