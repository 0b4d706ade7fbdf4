//! One child process in a process group of its own: its lines as they come, its signals, its cost, and its certain end.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::wait;

/// How long a test waits for a line, an exit or a port before it gives up. It only has to be longer than a loaded
/// two-core machine needs; a test that passes never waits this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A chatty child must not eat the machine: the newest lines are kept.
const LINES_KEPT: usize = 100_000;

/// How much of a log helps a person who reads a failed test.
const TAIL: usize = 60;

/// How often the state of a child is looked at, where the kernel offers no event to a thread.
const POLL: Duration = Duration::from_millis(5);

/// A running child. Dropping it kills its whole process group and waits for the end.
pub struct Process {
    name: String,
    child: Child,
    exit: Option<ExitStatus>,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Process {
    /// Starts `command`; `stdin` is written and closed. `name` is how its log is headed when a test fails.
    pub fn spawn(name: impl Into<String>, command: &mut Command, stdin: &[u8]) -> Process {
        let name = name.into();
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        let stdout = Lines::read(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::read(child.stderr.take().expect("stderr is piped"));
        // A child that does not read its input, or is gone already, is no reason to fail here.
        let _ = child.stdin.take().expect("stdin is piped").write_all(stdin);
        Process { name, child, exit: None, stdout, stderr }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, `libc::SIGTERM` and the like, to the process itself.
    pub fn signal(&self, signal: i32) {
        let id = i32::try_from(self.id()).expect("process ids fit in 31 bits");
        // SAFETY: kill takes two integers and touches no memory. The child is not reaped while `exit` is empty, so the
        // id is still its own; afterwards nothing is sent.
        if self.exit.is_none() {
            unsafe { libc::kill(id, signal) };
        }
        if signal == libc::SIGSTOP && self.exit.is_none() {
            // The kernel stops each thread when that comes to it, which takes its time on a busy machine.
            wait::until("each thread stands still", || self.stands_still());
        }
    }

    fn stands_still(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.id())) else { return true };
        let state = |stat: &str| stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat"));
            stat.is_ok_and(|stat| matches!(state(&stat), Some('T' | 't' | 'Z' | 'X')))
        })
    }

    /// Whether it has ended, and how.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("a child of ours can be waited for");
        }
        self.exit
    }

    /// Waits for the end. The exit code is as a shell has it: 128 + signal for a process that a signal killed.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.exit() {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(Instant::now() < deadline, "{} did not end within {PATIENCE:?}", self.name);
            std::thread::sleep(POLL);
        }
    }

    /// Kills the process group at once, as a crash would, and waits for the end.
    pub fn kill(&mut self) {
        if self.exit().is_none() {
            let id = i32::try_from(self.id()).expect("process ids fit in 31 bits");
            // SAFETY: as in `signal`; the group carries the child's id because it was started with process_group(0).
            unsafe { libc::kill(-id, libc::SIGKILL) };
            self.exit = Some(self.child.wait().expect("a child of ours can be waited for"));
        }
    }

    /// Kills what is left of the process group of a child that has ended by itself.
    pub fn end_group(&self) {
        let id = i32::try_from(self.id()).expect("process ids fit in 31 bits");
        // SAFETY: kill takes two integers and touches no memory. A group keeps its id for as long as it has members, and
        // no new process gets that id meanwhile.
        unsafe { libc::kill(-id, libc::SIGKILL) };
    }

    /// CPU time used so far, user and system, in the kernel's 10 ms steps.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("the process is running");
        // The second field is the name in brackets, and may hold spaces; utime and stime are fields 14 and 15.
        let after_name = stat.rsplit(')').next().expect("rsplit yields at least one part");
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        // SAFETY: sysconf takes an integer and touches no memory.
        let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).expect("the clock has ticks");
        Duration::from_millis(ticks * 1000 / per_second)
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the process is running");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a running process has memory");
        let kibibytes: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("VmRSS is a number");
        kibibytes * 1024
    }

    /// The panic for what did not come, with the end of both logs.
    fn fail(&self, wanted: &str) -> ! {
        panic!("{}: {wanted}\n{}", self.name, self.logs())
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for (stream, lines) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let lines = lines.all();
            let start = lines.len().saturating_sub(TAIL);
            text += &format!("--- {} {stream}, the last {} of {} lines\n", self.name, lines.len() - start, lines.len());
            for line in &lines[start..] {
                text += line;
                text.push('\n');
            }
        }
        text
    }

    /// Waits for a line on stdout that contains `needle`, after those that were waited for before.
    pub fn expect_stdout(&self, needle: &str) -> String {
        self.stdout.wait_for(needle).unwrap_or_else(|| self.fail(&format!("no line on stdout contains {needle:?}")))
    }

    /// Waits for a line on stderr that contains `needle`, after those that were waited for before.
    pub fn expect_stderr(&self, needle: &str) -> String {
        self.stderr.wait_for(needle).unwrap_or_else(|| self.fail(&format!("no line on stderr contains {needle:?}")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprint!("{}", self.logs());
        }
    }
}

/// The lines of one stream so far. Each wait continues where the last one ended, so that the same words can be
/// awaited twice.
#[derive(Clone)]
pub struct Lines {
    shared: Arc<(Mutex<Kept>, Condvar)>,
}

#[derive(Default)]
struct Kept {
    lines: Vec<String>,
    /// The first line that no wait has passed yet.
    cursor: usize,
    ended: bool,
}

impl Lines {
    fn read(stream: impl Read + Send + 'static) -> Lines {
        let lines = Lines { shared: Arc::default() };
        let shared = lines.shared.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                let mut state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                if state.lines.len() == LINES_KEPT {
                    let half = LINES_KEPT / 2;
                    state.lines.drain(..half);
                    state.cursor = state.cursor.saturating_sub(half);
                }
                state.lines.push(text);
                shared.1.notify_all();
                line.clear();
            }
            shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            shared.1.notify_all();
        });
        lines
    }

    /// The next line that contains `needle`, or nothing when the stream ends or patience runs out before it.
    pub fn wait_for(&self, needle: &str) -> Option<String> {
        self.wait_until(Instant::now() + PATIENCE, |line| line.contains(needle))
    }

    /// The next line that `wanted` accepts, or nothing when the stream ends or the deadline passes before it.
    pub fn wait_until(&self, deadline: Instant, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let mut state = self.lock();
        loop {
            let found = state.lines.iter().skip(state.cursor).position(|line| wanted(line));
            if let Some(offset) = found {
                let at = state.cursor + offset;
                state.cursor = at + 1;
                return Some(state.lines[at].clone());
            }
            state.cursor = state.lines.len();
            let left = deadline.checked_duration_since(Instant::now())?;
            if state.ended {
                return None;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the stream has ended, so that `all` is the whole of it.
    pub fn wait_for_end(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while !state.ended {
            let left = deadline.checked_duration_since(Instant::now()).expect("a dead child's output ends");
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All lines that are kept, whether waited for or not.
    pub fn all(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// All lines as one text.
    pub fn text(&self) -> String {
        self.all().join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
