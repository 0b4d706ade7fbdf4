//! etcd's log lines: what zap writes as JSON on stderr, made from `tracing` events.
//!
//! Logging must never harm serving. A line that is below the level is not even formatted, a storm of one message is
//! sampled as zap samples it, and the bytes go to a thread of their own through a bounded queue: a stderr that is
//! closed, full or stuck costs lines, which are counted, and nothing else.

mod line;
mod sampler;
mod sink;

use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::go;
use sampler::Sampler;
use sink::{Sink, Stderr};

/// How long a panic may wait for its line to be written; it may be the last thing that the process does.
const PANIC_FLUSH: Duration = Duration::from_millis(100);

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// zap's production encoder, as etcd sets it up.
    Json,
    /// zap's console encoder: the same parts with tabs between.
    Text,
}

static LOGGER: OnceLock<Arc<Shared>> = OnceLock::new();
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Sends all events of this process to stderr, panics among them. Can be done once.
pub fn init(level: Level, format: Format) -> Result<(), InitError> {
    let logger = Logger::new(level, format, Box::new(Stderr)).map_err(InitError::Thread)?;
    let shared = Arc::clone(&logger.shared);
    tracing::subscriber::set_global_default(logger).map_err(|_| InitError::Twice)?;
    // Cannot be set already: the default subscriber is set once, and that was here.
    let _ = LOGGER.set(shared);
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(std::io::Error),
    #[error("logging has begun already")]
    Twice,
}

/// Changes the level of the running process.
pub fn set_level(level: Level) {
    if let Some(shared) = LOGGER.get() {
        shared.set_level(level);
    }
}

/// The level of the running process.
pub fn level() -> Level {
    LOGGER.get().map_or(Level::INFO, |shared| shared.level())
}

/// How many lines were lost so far, since they could not be written.
pub fn dropped() -> u64 {
    LOGGER.get().map_or(0, |shared| shared.sink.dropped())
}

/// How many lines were left out so far, since there were too many of one message.
pub fn sampled() -> u64 {
    LOGGER.get().map_or(0, |shared| shared.sampled.load(Ordering::Relaxed))
}

/// Waits until all lines are written, but no longer than this; to be called before the process ends.
pub fn flush(timeout: Duration) -> bool {
    LOGGER.get().is_none_or(|shared| shared.sink.flush(timeout))
}

/// Panics since the start. Each has ended one call and was logged, and none should have happened.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// A duration as etcd logs it: `took = %logging::duration(took)` gives `"took":"1.5s"`.
pub fn duration(duration: Duration) -> String {
    go::format_duration(duration)
}

/// The default hook would write to stderr by itself, in lines that no reader of JSON understands.
fn log_panic(info: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or_default();
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let error = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text.as_str(),
        (None, None) => "a panic without a text",
    };
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        tracing::error!(error, location, thread, stacktrace = %backtrace, "panicked");
    } else {
        tracing::error!(error, location, thread, "panicked");
    }
    flush(PANIC_FLUSH);
}

// === impl Logger ===

/// The subscriber. It takes events only: a span would cost a call on every poll of a task, and nobody reads them.
pub struct Logger {
    shared: Arc<Shared>,
}

struct Shared {
    level: AtomicU8,
    format: Format,
    started: Instant,
    sampler: Sampler,
    sampled: AtomicU64,
    sink: Sink,
}

impl Logger {
    /// A logger that writes to `writer`, on a thread of its own that ends with the process.
    pub fn new(level: Level, format: Format, writer: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let shared = Shared {
            level: AtomicU8::new(rank(level)),
            format,
            started: Instant::now(),
            sampler: Sampler::new(),
            sampled: AtomicU64::new(0),
            sink: Sink::start(format, writer)?,
        };
        Ok(Logger { shared: Arc::new(shared) })
    }
}

impl Shared {
    fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::ERROR,
            1 => Level::WARN,
            2 => Level::INFO,
            3 => Level::DEBUG,
            _ => Level::TRACE,
        }
    }

    fn set_level(&self, level: Level) {
        self.level.store(rank(level), Ordering::Relaxed);
        // Each place that logs remembers whether it is wanted, which is why an unwanted one costs nothing.
        tracing::callsite::rebuild_interest_cache();
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let level = self.level();
        let ours = metadata.target().starts_with("etcd_proxy");
        // The libraries below narrate each frame and handshake; their warnings are ours to know at any level.
        metadata.is_event()
            && *metadata.level() <= level
            && (ours || *metadata.level() <= Level::WARN || level >= Level::DEBUG)
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}

impl Subscriber for Logger {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.shared.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.shared.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.shared.level()))
    }

    fn event(&self, event: &Event<'_>) {
        let shared = &self.shared;
        let elapsed = u64::try_from(shared.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if !shared.sampler.admits(rank(*event.metadata().level()), line::message_hash(event), elapsed) {
            shared.sampled.fetch_add(1, Ordering::Relaxed);
            return;
        }
        line::with_line(shared.format, event, |line| shared.sink.push(line));
    }

    // No span is ever wanted, so none of these is called for one that exists.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests;
