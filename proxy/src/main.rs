//! The command line: read it, start what it says, and end with the exit code that etcd's users know.

use std::{
    ffi::{OsString, c_char},
    fmt::Display,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    time::Duration,
};

use etcd_proxy::{
    app, check,
    config::{self, ConfigError},
    flags::{
        self, Flags, Invocation, LogFormat, Refusal,
        tools::{CheckFlags, TopFlags},
    },
    footprint, gateway, http_proxy, keyspace, logging,
    notify::Notifier,
    top,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// glibc's allocator costs a fifth more per call here and gives memory back later.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What is freed goes back to the kernel within half a second, and also while nothing is asked for: by itself the allocator
/// takes ten, and looks at the time only when it is called, so that what ten thousand clients needed to come in would be
/// kept for as long as they are idle. What each thread keeps for itself is given back never while that is idle, so large
/// pieces, of 16 KiB and more, are not kept so.
// SAFETY: the allocator looks for this name, and reads it as text that ends with a zero.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_CONFIG: Option<&'static c_char> =
    Some(unsafe { &*c"background_thread:true,dirty_decay_ms:500,muzzy_decay_ms:0,tcache_max:14336".as_ptr() });

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(word) if word == keyspace::WORD => return keyspace::run(words),
        Some(word) if word == INJECT => return inject(words),
        _ => (),
    }
    match flags::parse(std::env::args_os().skip(1), &flags::process_env()) {
        Ok(Invocation::Print(text)) => {
            // A reader that has gone, as `head` does, is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Start { flags, warnings }) => {
            let log = Log { level: flags.level(), format: flags.log_format, flags: flags.effective() };
            run(
                flags.check(),
                warnings,
                log,
                || config::configure(&flags),
                async |config, signals| serve(&flags, config, signals).await,
            )
        }
        Ok(Invocation::StartGateway { flags, warnings }) => {
            let (level, format) = (flags.process.level(), flags.process.log_format);
            let log = Log { level, format, flags: flags.effective() };
            run(flags.check(), warnings, log, || config::configure_gateway(&flags), serve_gateway)
        }
        Ok(Invocation::StartHttpProxy { flags, warnings }) => {
            let (level, format) = (flags.process.level(), flags.process.log_format);
            let log = Log { level, format, flags: flags.effective() };
            run(flags.check(), warnings, log, || config::configure_http_proxy(&flags), serve_http_proxy)
        }
        Ok(Invocation::Check { flags, warnings }) => run_check(&flags, warnings),
        Ok(Invocation::Top { flags, warnings }) => run_top(&flags, &warnings),
        Err(refusal) => refuse(&refusal),
    }
}

/// That something is wrong with what was looked at, and not with the command line.
const FOUND_WRONG: u8 = 2;

fn run_check(flags: &CheckFlags, warnings: Vec<String>) -> ExitCode {
    let report = match runtime() {
        Ok(runtime) => runtime.block_on(check::run(flags, warnings)),
        Err(exit) => return exit,
    };
    let text = if flags.wants_json() { format!("{:#}\n", report.json()) } else { report.table() };
    let _ = std::io::stdout().write_all(text.as_bytes());
    if report.has_failed() { ExitCode::from(FOUND_WRONG) } else { ExitCode::SUCCESS }
}

fn run_top(flags: &TopFlags, warnings: &[String]) -> ExitCode {
    warnings.iter().for_each(complain);
    if let Err(refusal) = flags.check() {
        return refuse(&refusal);
    }
    match runtime().map(|runtime| runtime.block_on(top::run(flags))) {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) if flags.once => ExitCode::from(FOUND_WRONG),
        Ok(Ok(false)) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            complain(error);
            failure()
        }
        Err(exit) => exit,
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        complain(format_args!("failed to start: {error}"));
        failure()
    })
}

/// Puts sidecars into pods, which the operator's program does: it knows Kubernetes, and this one need not.
const INJECT: &str = "inject";

/// Becomes the operator's program, which stands beside this one or on the PATH.
fn inject(words: impl Iterator<Item = OsString>) -> ExitCode {
    const PROGRAM: &str = "etcd-proxy-operator";
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name(PROGRAM)).filter(|path| path.is_file());
    let mut command = Command::new(beside.unwrap_or_else(|| PROGRAM.into()));
    let error = command.arg(INJECT).args(words).exec();
    complain(format_args!("etcd-proxy inject needs {PROGRAM} beside etcd-proxy or on the PATH: {error}"));
    failure()
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

/// What the log is, and what it begins with.
struct Log {
    level: tracing::Level,
    format: LogFormat,
    /// All flags with their values.
    flags: String,
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Returns at the first one, after a log line.
    async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("received SIGTERM, draining"),
            _ = self.interrupt.recv() => tracing::info!("received SIGINT, draining"),
        }
    }

    /// Waits for the drain, which another signal ends; whether it was finished.
    async fn second(&mut self, drain: impl Future<Output = bool>) -> bool {
        tokio::select! {
            finished = drain => finished,
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => false,
        }
    }
}

fn run<C>(
    checked: Result<Vec<String>, Refusal>,
    warnings: Vec<String>,
    log: Log,
    configure: impl FnOnce() -> Result<C, ConfigError>,
    serve: impl AsyncFnOnce(C, Signals) -> ExitCode,
) -> ExitCode {
    let more = match checked {
        Ok(more) => more,
        Err(refusal) => return refuse(&refusal),
    };
    let format = match log.format {
        LogFormat::Json => logging::Format::Json,
        LogFormat::Text => logging::Format::Text,
    };
    if let Err(error) = logging::init(log.level, format) {
        complain(error);
        return failure();
    }
    for warning in warnings.into_iter().chain(more) {
        tracing::warn!("{warning}");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), flags = log.flags, "starting etcd-proxy");
    let config = match configure() {
        Ok(config) => config,
        Err(error) => {
            logging::flush(LOG_FLUSH);
            complain(error);
            return failure();
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    let exit = runtime.block_on(async {
        pass_over_user_signals();
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => serve(config, Signals { terminate, interrupt }).await,
            (Err(error), _) | (_, Err(error)) => {
                complain(format_args!("failed to listen for signals: {error}"));
                failure()
            }
        }
    });
    logging::flush(LOG_FLUSH);
    exit
}

/// Programs in Go go on at these two, and who looks after processes sends them around; by itself the kernel would end
/// this one. Once listened for, they have that effect no more, whether somebody still listens or not.
fn pass_over_user_signals() {
    for kind in [SignalKind::user_defined1(), SignalKind::user_defined2()] {
        if let Err(error) = signal(kind) {
            tracing::warn!(%error, "failed to pass over a signal");
        }
    }
}

/// How long after it serves the start is over: threads have begun, and etcd's members have been asked how they are.
const START_OVER: Duration = Duration::from_secs(1);

async fn serve(flags: &Flags, config: app::Config, mut signals: Signals) -> ExitCode {
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
    tokio::spawn(async {
        tokio::time::sleep(START_OVER).await;
        footprint::let_go_of_the_program();
    });
    signals.first().await;
    notifier.stopping();
    if signals.second(running.drain()).await {
        tracing::info!("drained, every call has ended");
    } else {
        tracing::warn!("ending with calls under way");
    }
    tracing::info!(address = %flags.listen_addr, "stop listening gRPC proxy client requests");
    ExitCode::SUCCESS
}

async fn serve_gateway(config: gateway::Config, mut signals: Signals) -> ExitCode {
    // etcd's gateway says so first, with the words of its command line.
    let arguments: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    tracing::info!(args = ?arguments, "Running: ");
    let running = match gateway::start(config).await {
        Ok(running) => running,
        Err(error) => {
            complain(error);
            return failure();
        }
    };
    let notifier = Notifier::from_env();
    notifier.ready();
    tracing::info!(endpoints = ?running.endpoints, "ready to proxy client requests");
    signals.first().await;
    notifier.stopping();
    if signals.second(running.drain()).await {
        tracing::info!("drained, every connection has ended");
    } else {
        tracing::warn!("ending with connections open");
    }
    ExitCode::SUCCESS
}

async fn serve_http_proxy(config: http_proxy::Config, mut signals: Signals) -> ExitCode {
    // A cluster that is being made may take its time to be discovered.
    let started = tokio::select! {
        started = http_proxy::start(config) => started,
        () = signals.first() => return ExitCode::SUCCESS,
    };
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            complain(error);
            return failure();
        }
    };
    let notifier = Notifier::from_env();
    notifier.ready();
    signals.first().await;
    notifier.stopping();
    if signals.second(running.drain()).await {
        tracing::info!("drained, every request has ended");
    } else {
        tracing::warn!("ending with requests under way");
    }
    ExitCode::SUCCESS
}
