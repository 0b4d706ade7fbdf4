//! What a shared etcd needs beside a proxy, done where its credential is: a namespace's part of the keys is claimed
//! before a proxy serves it, and purged when its owner goes and its administrator wants that. The operator runs these
//! commands in pods of their own, since it never speaks to etcd itself.

use std::{
    ffi::OsString,
    fmt,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{Parser, Subcommand};
use etcd_proxy_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    kv_client::KvClient,
    request_op::Request,
};
use tonic::Status;

use crate::{
    metrics::Metrics,
    rules::{keys::prefix_end, tenant::UserNumber},
    tls::{self, ClientTls},
    upstream::{
        Limits, Upstream, channel,
        endpoint::Endpoint,
        endpoints::Endpoints,
        users::{self, Password, Proof, Users},
    },
};

/// The word on the command line.
pub const WORD: &str = "keyspace";

/// What `claim` exits with when the keys are somebody else's, so that the operator can tell it from an etcd that does
/// not answer.
pub const FOREIGN: u8 = 3;

/// One question to etcd gets this long, and a command this long altogether before kubelet starts it anew.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// The wait between attempts while etcd does not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// Keys that are deleted at a time: few enough that no other client of etcd waits long behind them.
const PAGE: i64 = 1000;

/// Claims and purges parts of the keys of a shared etcd.
#[derive(Debug, Parser)]
#[command(name = "etcd-proxy keyspace", no_binary_name = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write whose a part of the keys is, unless that stands there already; exits with 3 if it is another's
    Claim {
        #[command(flatten)]
        etcd: Etcd,
        #[command(flatten)]
        claim: Claim,
    },
    /// Delete all keys with a prefix, and the claim if nothing that it covers is left
    Purge {
        #[command(flatten)]
        etcd: Etcd,
        /// Prefix of the keys that are deleted
        #[arg(long)]
        prefix: String,
        /// Prefix of everything that the claim covers
        #[arg(long)]
        claimed_prefix: String,
        #[command(flatten)]
        claim: Claim,
    },
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct Claim {
    /// Key that says whose a part of the keys is
    #[arg(long)]
    claim_key: String,
    /// Who claims it
    #[arg(long)]
    claim_value: String,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct Etcd {
    /// Comma separated etcd cluster endpoints
    #[arg(long, required = true, value_delimiter = ',')]
    endpoints: Vec<String>,
    /// Certificate file with which this command identifies itself to etcd
    #[arg(long)]
    cert: Option<PathBuf>,
    /// Key file of cert
    #[arg(long)]
    key: Option<PathBuf>,
    /// CA bundle file that verifies the certificates of the etcd servers
    #[arg(long)]
    cacert: Option<PathBuf>,
    /// Name that the certificates of the etcd servers must have, in place of each endpoint's host
    #[arg(long)]
    tls_server_name: Option<String>,
    /// etcd user as whom this command asks
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// File with the password of user
    #[arg(long, requires = "user")]
    password_file: Option<PathBuf>,
}

/// How a command failed.
enum Failure {
    Foreign(String),
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Foreign(text) | Failure::Other(text) => formatter.write_str(text),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Other(format!("etcd: {} ({:?})", status.message(), status.code()))
    }
}

/// Whether the words behind `keyspace` are known.
pub fn check(arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    Arguments::try_parse_from(arguments).map(|_| ()).map_err(|error| error.to_string())
}

/// Obeys the words behind `keyspace`. What came of it is the last line that is printed, which Kubernetes keeps.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let command = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments.command,
        Err(error) => {
            let code = error.exit_code();
            // A closed stdout or stderr is no reason to panic.
            let _ = error.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(1));
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failed to start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(obey(&command)) {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            match failure {
                Failure::Foreign(_) => ExitCode::from(FOREIGN),
                Failure::Other(_) => ExitCode::FAILURE,
            }
        }
    }
}

async fn obey(command: &Command) -> Result<String, Failure> {
    let etcd = match command {
        Command::Claim { etcd, .. } | Command::Purge { etcd, .. } => etcd,
    };
    if matches!(command, Command::Purge { prefix, .. } if prefix.is_empty()) {
        return Err(Failure::Other("--prefix is empty, which would be every key of this etcd".to_owned()));
    }
    let mut kv = connect(etcd)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let attempt = async {
            match command {
                Command::Claim { claim, .. } => claim.make(&mut kv).await,
                Command::Purge { prefix, claimed_prefix, claim, .. } => {
                    let deleted = purge(&mut kv, prefix).await?;
                    let released = claim.release(&mut kv, claimed_prefix).await?;
                    let rest = if released { ", and the claim" } else { "" };
                    Ok(format!("deleted {deleted} keys with prefix {prefix:?}{rest}"))
                }
            }
        };
        match attempt.await {
            Err(Failure::Other(text)) if Instant::now() < until => {
                eprintln!("{text}; trying again");
                tokio::time::sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

fn connect(etcd: &Etcd) -> Result<KvClient<Upstream>, Failure> {
    let other = |error: &dyn fmt::Display| Failure::Other(error.to_string());
    let endpoints: Result<Vec<Arc<Endpoint>>, _> = etcd.endpoints.iter().map(|text| Endpoint::parse(text)).collect();
    let endpoints = Endpoints::new(endpoints.map_err(|error| other(&error))?);
    let wants_tls = etcd.cert.is_some() || etcd.cacert.is_some() || etcd.tls_server_name.is_some();
    let files = tls::client::Config {
        cert: etcd.cert.clone(),
        key: etcd.key.clone(),
        cacert: etcd.cacert.clone(),
        server_name: etcd.tls_server_name.clone(),
        ..tls::client::Config::default()
    };
    let tls = wants_tls.then(|| ClientTls::load(&files)).transpose().map_err(|error| other(&error))?;
    let channel = channel::Config {
        tls,
        keepalive_time: Duration::ZERO,
        keepalive_timeout: CALL_TIMEOUT,
        keepalive_without_stream: false,
        is_judge: true,
    };
    let limits = Limits { max_request: 1 << 20, max_answer: 16 << 20 };
    let metrics = Arc::new(Metrics::new());
    let own = etcd.user.clone().zip(etcd.password_file.clone()).map(|(name, file)| {
        let proof = Proof::Password { name, password: Password::File(file) };
        users::Config { number: UserNumber::PROXY, proof }
    });
    let users = Users::new(own.into_iter().collect(), &metrics);
    Ok(KvClient::new(Upstream::new(endpoints, Arc::new(channel), users, limits, metrics)))
}

/// One call, or an error after a while: an etcd without a leader would keep it waiting.
async fn call<T>(what: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_TIMEOUT, what).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::Other(format!("etcd did not answer within {CALL_TIMEOUT:?}"))),
    }
}

impl Claim {
    /// Writes the claim if there is none, in one transaction, so that of two claimants one wins.
    async fn make(&self, kv: &mut KvClient<Upstream>) -> Result<String, Failure> {
        let (key, value) = (Bytes::from(self.claim_key.clone()), Bytes::from(self.claim_value.clone()));
        let put = PutRequest { key: key.clone(), value, ..PutRequest::default() };
        let read = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let answer = call(kv.txn(TxnRequest {
            compare: vec![absent(key, Bytes::new())],
            success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
            failure: vec![RequestOp { request: Some(Request::RequestRange(read)) }],
        }))
        .await?;
        if answer.succeeded {
            return Ok(format!("claimed: {} is written", self.claim_key));
        }
        let found = answer.responses.into_iter().find_map(|one| match one.response {
            Some(etcd_proxy_proto::etcdserverpb::response_op::Response::ResponseRange(range)) => {
                range.kvs.into_iter().next().map(|pair| pair.value)
            }
            _ => None,
        });
        let found = found.unwrap_or_default();
        if found == self.claim_value.as_bytes() {
            return Ok("claimed already".to_owned());
        }
        Err(Failure::Foreign(format!(
            "these keys belong to another: {} holds {:?} and not {:?} (cluster and namespace, by uid). A namespace of this \
             name was deleted and made anew, or another cluster uses the same root. To take over what is there, delete \
             that one key; to begin with nothing, delete the keys that it covers too",
            self.claim_key,
            String::from_utf8_lossy(&found),
            self.claim_value
        )))
    }

    /// Takes the claim back if it is ours and covers no key any more, in one transaction.
    async fn release(&self, kv: &mut KvClient<Upstream>, covered: &str) -> Result<bool, Failure> {
        let key = Bytes::from(self.claim_key.clone());
        let ours = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Value.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::Value(Bytes::from(self.claim_value.clone()))),
            ..Compare::default()
        };
        let covered = Bytes::copy_from_slice(covered.as_bytes());
        let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        let answer = call(kv.txn(TxnRequest {
            compare: vec![ours, absent(covered.clone(), prefix_end(&covered))],
            success: vec![RequestOp { request: Some(Request::RequestDeleteRange(delete)) }],
            failure: vec![],
        }))
        .await?;
        Ok(answer.succeeded)
    }
}

/// That there is no such key; with a range end, none at all in the range.
fn absent(key: Bytes, range_end: Bytes) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(0)),
        range_end,
    }
}

/// Deletes all keys with a prefix, some at a time.
async fn purge(kv: &mut KvClient<Upstream>, prefix: &str) -> Result<i64, Failure> {
    let first = Bytes::copy_from_slice(prefix.as_bytes());
    let range_end = prefix_end(&first);
    let mut deleted = 0;
    loop {
        let page = RangeRequest {
            key: first.clone(),
            range_end: range_end.clone(),
            limit: PAGE,
            keys_only: true,
            ..RangeRequest::default()
        };
        let keys = call(kv.range(page)).await?.kvs;
        let Some(last) = keys.last() else { return Ok(deleted) };
        // Up to and with the last one of this page.
        let behind: Bytes = last.key.iter().copied().chain([0]).collect();
        let delete = DeleteRangeRequest { key: first.clone(), range_end: behind, ..DeleteRangeRequest::default() };
        deleted += call(kv.delete_range(delete)).await?.deleted;
    }
}
