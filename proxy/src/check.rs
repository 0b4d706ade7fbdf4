//! `etcd-proxy check`: tries what a start would need, one thing after the other, and says of each how it went. It binds
//! its ports for a moment, writes nothing, and asks etcd only for what changes nothing.

use std::time::Duration;

use crate::{
    config,
    flags::{Flags, tools::CheckFlags},
};

mod cluster;
mod endpoint;
mod own;
mod report;

pub use report::{Outcome, Report, Row};

/// Tries everything; what depends on something that failed is left out and said to be.
pub async fn run(flags: &CheckFlags, warnings: Vec<String>) -> Report {
    let flags = &flags.start;
    let mut report = Report::default();
    match flags.check() {
        Ok(more) => {
            let warnings: Vec<String> = warnings.into_iter().chain(more).collect();
            let is_fine = warnings.is_empty();
            warnings.into_iter().for_each(|warning| report.add("flags", "", Outcome::Warn(warning)));
            if is_fine {
                report.add("flags", "", Outcome::Fine("they fit together".to_owned()));
            }
        }
        Err(refusal) => report.add("flags", "", Outcome::Failed(refusal.to_string())),
    }
    own::listeners(&mut report, flags).await;
    own::clients_tls(&mut report, flags).await;
    own::etcd_tls(&mut report, flags);
    // What `--auto-tls` makes is made by the start, and not by who only looks.
    match config::configure(&Flags { auto_tls: false, ..flags.clone() }) {
        Ok(config) => cluster::look(&mut report, flags, config).await,
        // A file of TLS was named above already.
        Err(error) if report.has_failed() => drop(error),
        Err(error) => report.add("configuration", "", Outcome::Failed(error.to_string())),
    }
    report
}

/// How long one question to etcd may take; etcd itself gives up after about seven seconds without a leader.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Certificates that run out sooner are warned of; renewal by common tools begins well before.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);
