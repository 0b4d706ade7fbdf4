//! The way of a line to stderr: a bounded queue and one thread, so that no other thread ever waits for a reader of logs.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Format, line};

/// Some ten thousand lines: what comes in a burst while a reader pauses. More would only delay the news of loss.
const MAX_QUEUED_BYTES: usize = 4 << 20;
/// A queue that has grown in a burst gives back its memory beyond this.
const KEPT_BYTES: usize = 64 << 10;
/// How long a stderr that is set to non-blocking may be full before lines are dropped.
const WRITABLE_WITHIN_MILLISECONDS: libc::c_int = 1_000;

/// The queue's end that lines are put into.
pub(super) struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Notified when the queue is no longer empty.
    filled: Condvar,
    /// Notified when all that was queued has been written.
    drained: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    writing: bool,
}

impl Sink {
    pub(super) fn start(format: Format, writer: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let thread = Drain { shared: Arc::clone(&shared), format, writer, torn: false, unreported: 0 };
        std::thread::Builder::new().name("log".to_owned()).spawn(move || thread.run())?;
        Ok(Sink { shared })
    }

    /// Queues one line with its newline, or drops it if there is no room.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.shared.lock();
        if queue.bytes.len() + line.len() > MAX_QUEUED_BYTES {
            drop(queue);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = queue.bytes.is_empty();
        queue.bytes.extend_from_slice(line);
        drop(queue);
        if was_empty {
            self.shared.filled.notify_one();
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Whether all lines were written, or dropped, in this time.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut queue = self.shared.lock();
        while queue.writing || !queue.bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.drained.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Shared {
    /// The lock is held for copies of bytes only, so there is no half-done state that a panic could leave behind.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Drain ===

/// The thread at the other end of the queue.
struct Drain {
    shared: Arc<Shared>,
    format: Format,
    writer: Box<dyn Write + Send>,
    /// Whether the last thing written was a part of a line.
    torn: bool,
    /// How many of the dropped lines no line has told of yet is the total less this.
    unreported: u64,
}

impl Drain {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            {
                let mut queue = self.shared.lock();
                while queue.bytes.is_empty() {
                    queue = self.shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                std::mem::swap(&mut queue.bytes, &mut batch);
                queue.writing = true;
            }
            self.write(&batch);
            batch.clear();
            batch.shrink_to(KEPT_BYTES);
            let mut queue = self.shared.lock();
            queue.writing = false;
            if queue.bytes.is_empty() {
                self.shared.drained.notify_all();
            }
        }
    }

    /// Writes whole lines; what cannot be written is dropped and counted.
    fn write(&mut self, lines: &[u8]) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        let mut notice = Vec::new();
        if self.torn {
            notice.push(b'\n');
        }
        if dropped > self.unreported {
            line::dropped_notice(self.format, dropped - self.unreported, &mut notice);
        }
        if !notice.is_empty() {
            let written = self.write_bytes(&notice);
            self.torn = if written == 0 { self.torn } else { notice[written - 1] != b'\n' };
            if written == notice.len() {
                self.unreported = dropped;
            }
            if written < notice.len() {
                self.count_lost(lines);
                return;
            }
        }
        let written = self.write_bytes(lines);
        if written > 0 {
            self.torn = lines[written - 1] != b'\n';
        }
        self.count_lost(&lines[written..]);
    }

    fn count_lost(&self, lines: &[u8]) {
        let lost = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.shared.dropped.fetch_add(lost, Ordering::Relaxed);
    }

    /// How many bytes the writer took before it failed.
    fn write_bytes(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.writer.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(count) => written += count.min(bytes.len() - written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        written
    }
}

// === impl Stderr ===

/// File descriptor 2 as it is. The standard library's handle takes a lock that other writers may hold while they
/// block, and reports a closed descriptor as success.
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match write_stderr(bytes) {
            // Whoever shares this file with us, a shell say, may have set it to non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock && stderr_is_writable() => write_stderr(bytes),
            result => result,
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_stderr(bytes: &[u8]) -> std::io::Result<usize> {
    // SAFETY: the pointer and the length are those of a live slice, which the call only reads.
    let written = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).map_err(|_| std::io::Error::last_os_error())
}

fn stderr_is_writable() -> bool {
    let mut poll = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointer is to one live pollfd, and one is what the count says.
    unsafe { libc::poll(&mut poll, 1, WRITABLE_WITHIN_MILLISECONDS) > 0 }
}
