//! The command line: read it, start what it says, and end with the exit code that etcd's users know.

use std::process::ExitCode;

use etcd_proxy::{
    app, config,
    flags::{self, Flags, Invocation, Refusal},
};
use tokio::signal::unix::{SignalKind, signal};

/// glibc's allocator costs a fifth more per call here and gives memory back later.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match flags::parse(std::env::args_os().skip(1), &flags::process_env()) {
        Ok(Invocation::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Invocation::Start { flags, warnings }) => match flags.check() {
            Ok(more) => run(&flags, warnings.into_iter().chain(more)),
            Err(refusal) => refuse(&refusal),
        },
        Err(refusal) => refuse(&refusal),
    }
}

fn refuse(refusal: &Refusal) -> ExitCode {
    eprint!("{refusal}");
    failure()
}

fn failure() -> ExitCode {
    ExitCode::from(u8::try_from(Refusal::EXIT_CODE).unwrap_or(1))
}

fn run(flags: &Flags, warnings: impl Iterator<Item = String>) -> ExitCode {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let config = match config::configure(flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return failure();
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failed to start: {error}");
            return failure();
        }
    };
    runtime.block_on(serve(config))
}

async fn serve(config: app::Config) -> ExitCode {
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("failed to listen for signals: {error}");
            return failure();
        }
    };
    let running = match app::start(config).await {
        Ok(running) => running,
        Err(error) => {
            eprintln!("{error}");
            return failure();
        }
    };
    tracing::info!(address = %running.address, "started gRPC proxy");
    tokio::select! {
        _ = terminate.recv() => tracing::info!("received SIGTERM, draining"),
        _ = interrupt.recv() => tracing::info!("received SIGINT, draining"),
    }
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
    ExitCode::SUCCESS
}
