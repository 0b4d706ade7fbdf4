//! The command line: read it, start what it says, and end with the exit code that etcd's users know.

use std::{fmt::Display, io::Write, process::ExitCode, time::Duration};

use etcd_proxy::{
    app, config,
    flags::{self, Flags, Invocation, LogFormat, Refusal},
    logging,
    notify::Notifier,
};
use tokio::signal::unix::{SignalKind, signal};

/// glibc's allocator costs a fifth more per call here and gives memory back later.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match flags::parse(std::env::args_os().skip(1), &flags::process_env()) {
        Ok(Invocation::Print(text)) => {
            // A reader that has gone, as `head` does, is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Start { flags, warnings }) => match flags.check() {
            Ok(more) => run(&flags, warnings.into_iter().chain(more)),
            Err(refusal) => refuse(&refusal),
        },
        Err(refusal) => refuse(&refusal),
    }
}

/// How long the last log lines may take to be written.
const LOG_FLUSH: Duration = Duration::from_secs(1);

fn refuse(refusal: &Refusal) -> ExitCode {
    complain(refusal);
    failure()
}

/// Says on stderr why the proxy does not start; one that is closed or full must not turn that into a panic.
fn complain(reason: impl Display) {
    let mut text = reason.to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn failure() -> ExitCode {
    ExitCode::from(u8::try_from(Refusal::EXIT_CODE).unwrap_or(1))
}

fn run(flags: &Flags, warnings: impl Iterator<Item = String>) -> ExitCode {
    let format = match flags.log_format {
        LogFormat::Json => logging::Format::Json,
        LogFormat::Text => logging::Format::Text,
    };
    if let Err(error) = logging::init(flags.level(), format) {
        complain(error);
        return failure();
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), flags = flags.effective(), "starting etcd-proxy");
    let config = match config::configure(flags) {
        Ok(config) => config,
        Err(error) => {
            logging::flush(LOG_FLUSH);
            complain(error);
            return failure();
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("failed to start: {error}"));
            return failure();
        }
    };
    let exit = runtime.block_on(serve(flags, config));
    logging::flush(LOG_FLUSH);
    exit
}

async fn serve(flags: &Flags, config: app::Config) -> ExitCode {
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            complain(format_args!("failed to listen for signals: {error}"));
            return failure();
        }
    };
    let running = match app::start(config).await {
        Ok(running) => running,
        Err(error) => {
            complain(error);
            return failure();
        }
    };
    let notifier = Notifier::from_env();
    tracing::info!(address = %flags.listen_addr, "started gRPC proxy");
    notifier.ready();
    tokio::select! {
        _ = terminate.recv() => tracing::info!("received SIGTERM, draining"),
        _ = interrupt.recv() => tracing::info!("received SIGINT, draining"),
    }
    notifier.stopping();
    let finished = tokio::select! {
        finished = running.drain() => finished,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if finished {
        tracing::info!("drained, every call has ended");
    } else {
        tracing::warn!("ending with calls under way");
    }
    tracing::info!(address = %flags.listen_addr, "stop listening gRPC proxy client requests");
    ExitCode::SUCCESS
}
