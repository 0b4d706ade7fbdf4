//! Calls of clients, by method: what Go's gRPC servers count, in plain arrays so that a call looks nothing up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::proto::MetricFamily;
use tonic::Code;

use super::{
    CODES, code_name,
    family::{CALLS, CALLS_HANDLED, CALLS_STARTED, MESSAGES_RECEIVED, MESSAGES_SENT, Series, Value},
};
use crate::rules::methods::{METHODS, Method};

/// One row per method, in the order of [`METHODS`].
pub struct Calls {
    rows: [Row; METHODS.len()],
}

#[derive(Default)]
pub struct Row {
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// A call under way. It is counted as canceled if nobody says how it ended.
pub struct Call {
    row: &'static Row,
    ended: Code,
}

/// Counts the messages of a call, or those of none.
#[derive(Clone, Copy, Default)]
pub struct Messages(Option<&'static Row>);

/// All calls of clients together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTotals {
    pub started: u64,
    pub under_way: u64,
    /// Those that ended, but neither well nor because the client did not want to know any more.
    pub failed: u64,
}

impl Calls {
    pub fn new() -> Self {
        Self { rows: std::array::from_fn(|_| Row::default()) }
    }

    pub fn started(&'static self, method: &'static Method) -> Call {
        let row = &self.rows[method.index()];
        row.started.fetch_add(1, Relaxed);
        Call { row, ended: Code::Cancelled }
    }

    pub fn totals(&self) -> CallTotals {
        let fine = [Code::Ok, Code::Cancelled].map(|code| code as usize);
        let mut totals = CallTotals::default();
        for row in &self.rows {
            totals.under_way += row.under_way();
            totals.started += row.started.load(Relaxed);
            let failed = row.handled.iter().enumerate().filter(|(code, _)| !fine.contains(code));
            totals.failed += failed.map(|(_, count)| count.load(Relaxed)).sum::<u64>();
        }
        totals
    }

    /// The families, each with the methods that were called so far, as Go's appear on first use.
    pub fn gather(&self) -> impl Iterator<Item = MetricFamily> {
        let used = || METHODS.iter().zip(&self.rows).filter(|(_, row)| row.started.load(Relaxed) > 0);
        let simple = |value: fn(&Row) -> u64| {
            used().map(move |(method, row)| Series { labels: labels(method), value: Value::Number(value(row) as f64) })
        };
        let handled = used().flat_map(|(method, row)| {
            CODES.iter().zip(&row.handled).filter(|(_, count)| count.load(Relaxed) > 0).map(|(code, count)| {
                let mut labels = labels(method);
                labels.insert(0, code_name(*code).to_owned());
                Series { labels, value: Value::Number(count.load(Relaxed) as f64) }
            })
        });
        [
            CALLS_STARTED.gathered(simple(|row| row.started.load(Relaxed))),
            CALLS_HANDLED.gathered(handled),
            MESSAGES_RECEIVED.gathered(simple(|row| row.received.load(Relaxed))),
            MESSAGES_SENT.gathered(simple(|row| row.sent.load(Relaxed))),
            CALLS.gathered(simple(Row::under_way)),
        ]
        .into_iter()
        .flatten()
    }
}

fn labels(method: &Method) -> Vec<String> {
    [method.name(), method.service(), method.grpc_type()].map(str::to_owned).to_vec()
}

impl Row {
    fn under_way(&self) -> u64 {
        // The ends are read first: a call that ends in between is then counted once too often, not below zero.
        let ended: u64 = self.handled.iter().map(|count| count.load(Relaxed)).sum();
        self.started.load(Relaxed).saturating_sub(ended)
    }
}

impl Call {
    pub fn messages(&self) -> Messages {
        Messages(Some(self.row))
    }

    pub fn finished(mut self, code: Code) {
        self.ended = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.row.handled[self.ended as usize].fetch_add(1, Relaxed);
    }
}

impl Messages {
    pub fn received(self) {
        if let Some(row) = self.0 {
            row.received.fetch_add(1, Relaxed);
        }
    }

    pub fn sent(self, messages: u64) {
        if let Some(row) = self.0 {
            row.sent.fetch_add(messages, Relaxed);
        }
    }

    /// Whether anyone wants to know.
    pub fn are_counted(self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::methods;

    fn value(calls: &Calls, family: &str, code: Option<&str>) -> Option<f64> {
        let families: Vec<_> = calls.gather().collect();
        let family = families.iter().find(|found| found.name() == family)?;
        let has = |pair: &prometheus::proto::LabelPair| code.is_none_or(|code| pair.value() == code);
        let metric = family.get_metric().iter().find(|metric| metric.get_label().iter().any(has))?;
        Some(metric.get_counter().get_value() + metric.get_gauge().get_value())
    }

    #[test]
    fn a_call_shows_when_it_begins_and_under_its_code_when_it_ends() {
        let calls: &'static Calls = Box::leak(Box::new(Calls::new()));
        assert_eq!(value(calls, "grpc_server_started_total", None), None);
        let call = calls.started(methods::find("/etcdserverpb.KV/Range").expect("a row"));
        call.messages().received();
        call.messages().sent(3);
        assert_eq!(value(calls, "grpc_server_started_total", Some("Range")), Some(1.0));
        assert_eq!(value(calls, "etcd_proxy_calls", Some("Range")), Some(1.0));
        assert_eq!(value(calls, "grpc_server_handled_total", None), None);
        call.finished(Code::NotFound);
        assert_eq!(value(calls, "grpc_server_handled_total", Some("NotFound")), Some(1.0));
        assert_eq!(value(calls, "etcd_proxy_calls", Some("Range")), Some(0.0));
        assert_eq!(value(calls, "grpc_server_msg_received_total", Some("Range")), Some(1.0));
        assert_eq!(value(calls, "grpc_server_msg_sent_total", Some("Range")), Some(3.0));
    }

    #[test]
    fn a_call_that_nobody_ends_is_canceled() {
        let calls: &'static Calls = Box::leak(Box::new(Calls::new()));
        drop(calls.started(methods::find("/etcdserverpb.Watch/Watch").expect("a row")));
        assert_eq!(value(calls, "grpc_server_handled_total", Some("Canceled")), Some(1.0));
    }
}
