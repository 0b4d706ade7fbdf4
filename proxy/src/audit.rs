//! The audit log: who asked what of which keys, and what came of it, one JSON object in a line. Never what is stored.
//!
//! A line goes into a bounded queue and a thread of its own writes it, so that no call ever waits for a disk. What does
//! not fit is counted and lost: a log that could stop the proxy would be a way to stop it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    metrics::code_name,
    rules::{caller::Connection, framing, methods, status::Code, tenant::Tenant},
};

mod keys;

use keys::Keys;

/// Lines of one tenant that wait to be written: what a busy proxy makes within a tenth of a second, at some hundred bytes
/// each. Whoever makes more loses his own, and cannot hide what he does behind what others lose.
const MAX_OF_ONE: usize = 16 * 1024;
/// Lines that wait altogether.
const MAX_QUEUED: usize = 2 * MAX_OF_ONE;
/// The largest compressed request whose keys are told, when it is inflated.
const MAX_INFLATED: usize = 2 << 20;
/// How often the file is looked after while nothing is to be written, so that one that is to be opened again is.
const IDLE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    /// One in so many calls that went well is written; those that did not always are.
    pub sample: u64,
}

pub struct AuditLog {
    queue: SyncSender<Entry>,
    sample: u64,
    calls: AtomicU64,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    written: AtomicU64,
    dropped: AtomicU64,
    /// Set when the file was moved away, so that the next line goes into a new one.
    reopen: AtomicBool,
}

enum Entry {
    Line(Queued),
    /// To be answered when everything before it has been written.
    Flush(SyncSender<()>),
}

struct Queued {
    text: Vec<u8>,
    _waiting: Waiting,
}

/// A line that waits counts for its tenant.
struct Waiting(Arc<Tenant>);

impl Waiting {
    /// None where the tenant has as many as it may.
    fn of(tenant: &Arc<Tenant>) -> Option<Self> {
        let waiting = Self(tenant.clone());
        (tenant.usage.audit_lines.fetch_add(1, Relaxed) < MAX_OF_ONE).then_some(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.usage.audit_lines.fetch_sub(1, Relaxed);
    }
}

/// A call under way that is to be told of.
pub struct Note {
    log: Arc<AuditLog>,
    connection: Arc<Connection>,
    path: String,
    started: Instant,
    /// The framed request of a call with one message; memory of it is shared with the call.
    body: OnceLock<Bytes>,
}

#[derive(Serialize)]
struct Line<'a> {
    ts: String,
    tenant: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    connection: u64,
    method: &'a str,
    #[serde(flatten)]
    keys: Keys,
    /// Absent where a line tells of a message on a stream that goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<f64>,
}

impl AuditLog {
    /// Opens the file, to append to it, and starts the thread that writes.
    pub fn start(config: &Config) -> io::Result<Arc<Self>> {
        let file = open(&config.path)?;
        let (queue, entries) = sync_channel(MAX_QUEUED);
        let shared: Arc<Shared> = Arc::default();
        let writer = Writer { path: config.path.clone(), file: Some(file), shared: shared.clone() };
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&entries))?;
        Ok(Arc::new(Self { queue, sample: config.sample.max(1), calls: AtomicU64::new(0), shared }))
    }

    /// Begins to take note of a call.
    pub fn note(self: &Arc<Self>, connection: &Arc<Connection>, path: &str) -> Arc<Note> {
        Arc::new(Note {
            log: self.clone(),
            connection: connection.clone(),
            path: path.to_owned(),
            started: Instant::now(),
            body: OnceLock::new(),
        })
    }

    /// The next line goes into a file that is opened anew.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Relaxed);
    }

    pub fn written(&self) -> u64 {
        self.shared.written.load(Relaxed)
    }

    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Waits until all lines are written, but no longer than this.
    pub fn flush(&self, timeout: Duration) {
        let (tell, told) = sync_channel(1);
        if self.queue.try_send(Entry::Flush(tell)).is_ok() {
            // Either way there is no time left for more.
            let _ = told.recv_timeout(timeout);
        }
    }

    fn push(&self, tenant: &Arc<Tenant>, line: &Line<'_>) {
        let Some(waiting) = Waiting::of(tenant) else {
            self.shared.dropped.fetch_add(1, Relaxed);
            return;
        };
        // A value of texts and numbers has a JSON form.
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(Entry::Line(Queued { text, _waiting: waiting }))
        {
            self.shared.dropped.fetch_add(1, Relaxed);
        }
    }

    fn is_sampled(&self) -> bool {
        self.sample == 1 || self.calls.fetch_add(1, Relaxed).is_multiple_of(self.sample)
    }
}

impl Note {
    /// The whole request of a call that sends one message, framed.
    pub fn collected(&self, body: &Bytes) {
        // One that is collected again is the same.
        let _ = self.body.set(body.clone());
    }

    /// A message on a stream: what it asks of keys is told at once, since the stream may go on for days.
    pub fn message(&self, message: &Bytes) {
        let keys = Keys::of_stream(&self.path, message);
        if !keys.is_empty() && self.log.is_sampled() {
            self.log.push(&self.connection.tenant, &self.line(keys));
        }
    }

    pub fn finished(&self, code: Code) {
        if code == Code::Ok && !self.log.is_sampled() {
            return;
        }
        let keys = self.body.get().map(|body| self.keys(body)).unwrap_or_default();
        let duration_ms = self.started.elapsed().as_micros() as f64 / 1000.0;
        let line = self.line(keys);
        let line = Line { status: Some(code_name(code)), duration_ms: Some(duration_ms), ..line };
        self.log.push(&self.connection.tenant, &line);
    }

    fn line(&self, keys: Keys) -> Line<'_> {
        Line {
            // It fails for years beyond four digits only.
            ts: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            tenant: &self.connection.tenant.name,
            identity: self.connection.identity.as_deref(),
            peer: self.connection.peer.map(|peer| peer.to_string()),
            connection: self.connection.number,
            method: &self.path,
            keys,
            status: None,
            duration_ms: None,
        }
    }

    fn keys(&self, body: &Bytes) -> Keys {
        let Some(shape) = methods::find(&self.path).and_then(|method| method.keys.request) else {
            return Keys::default();
        };
        let Ok(Some((is_compressed, size))) = framing::parse_prefix(body) else { return Keys::default() };
        let Some(message) = body[framing::PREFIX_LEN..].get(..size).map(|message| body.slice_ref(message)) else {
            return Keys::default();
        };
        let message = if is_compressed { framing::gunzip(&message, MAX_INFLATED).ok() } else { Some(message) };
        message.map(|message| Keys::of(shape, message)).unwrap_or_default()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// The thread at the other end of the queue.
struct Writer {
    path: PathBuf,
    file: Option<File>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self, entries: &Receiver<Entry>) {
        loop {
            match entries.recv_timeout(IDLE) {
                Ok(Entry::Line(Queued { text: mut lines, .. })) => {
                    // What waits besides goes out in the same write.
                    let (mut count, mut asked) = (1, None);
                    while lines.len() < (64 << 10) {
                        match entries.try_recv() {
                            Ok(Entry::Line(line)) => {
                                lines.extend_from_slice(&line.text);
                                count += 1;
                            }
                            Ok(Entry::Flush(tell)) => {
                                asked = Some(tell);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.write(&lines, count);
                    // Whoever asked may have gone.
                    if let Some(tell) = asked {
                        let _ = tell.try_send(());
                    }
                }
                Ok(Entry::Flush(tell)) => {
                    let _ = tell.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => self.look_after(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Opens the file again if it was moved away or could not be written to.
    fn look_after(&mut self) {
        if self.shared.reopen.swap(false, Relaxed) {
            self.file = None;
        }
        if self.file.is_none() {
            match open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "cannot open the audit log, its lines are lost");
                }
            }
        }
    }

    fn write(&mut self, lines: &[u8], count: u64) {
        self.look_after();
        let written = self.file.as_mut().map(|file| file.write_all(lines));
        match written {
            Some(Ok(())) => {
                self.shared.written.fetch_add(count, Relaxed);
            }
            Some(Err(error)) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot write the audit log, its lines are lost");
                self.file = None;
                self.shared.dropped.fetch_add(count, Relaxed);
            }
            None => {
                self.shared.dropped.fetch_add(count, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use etcd_proxy_proto::etcdserverpb::PutRequest;
    use prost::Message as _;

    use super::*;
    use crate::rules::{namespace::Namespace, tenant::policy::Policy};

    fn put(log: &Arc<AuditLog>, code: Code) {
        put_of(log, Tenant::whole(), code);
    }

    fn put_of(log: &Arc<AuditLog>, tenant: Arc<Tenant>, code: Code) {
        let note = log.note(&Connection::new(None, 7, tenant), "/etcdserverpb.KV/Put");
        let request = PutRequest { key: "k\u{e9}".into(), value: "secret".into(), ..PutRequest::default() };
        note.collected(&framing::frame(&request.encode_to_vec()));
        note.finished(code);
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).expect("the file is there");
        assert!(!text.contains("secret"), "{text}");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn a_line_tells_who_asked_what_of_which_key_and_no_value() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("audit.log");
        let log = AuditLog::start(&Config { path: path.clone(), sample: 1 }).expect("the file can be made");
        put(&log, Code::Ok);
        log.flush(Duration::from_secs(30));
        let line = &lines(&path)[0];
        assert_eq!(line["tenant"], "proxy");
        assert_eq!(line["method"], "/etcdserverpb.KV/Put");
        assert_eq!(line["keys"][0]["key"], "k\\xc3\\xa9");
        assert_eq!(line["status"], "OK");
        assert_eq!(line["connection"], 7);
        assert!(line["duration_ms"].is_number() && line["ts"].as_str().is_some_and(|ts| ts.ends_with('Z')), "{line}");
        assert_eq!((log.written(), log.dropped()), (1, 0));
    }

    #[test]
    fn one_in_so_many_is_told_and_every_failure() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("audit.log");
        let log = AuditLog::start(&Config { path: path.clone(), sample: 10 }).expect("the file can be made");
        (0..100).for_each(|_| put(&log, Code::Ok));
        (0..3).for_each(|_| put(&log, Code::PermissionDenied));
        log.flush(Duration::from_secs(30));
        let lines = lines(&path);
        let of = |status: &str| lines.iter().filter(|line| line["status"] == status).count();
        assert_eq!((of("OK"), of("PermissionDenied")), (10, 3));
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("audit.log");
        let log = AuditLog::start(&Config { path: path.clone(), sample: 1 }).expect("the file can be made");
        put(&log, Code::Ok);
        log.flush(Duration::from_secs(30));
        std::fs::rename(&path, folder.path().join("audit.log.1")).expect("it can be moved");
        log.reopen();
        put(&log, Code::Ok);
        log.flush(Duration::from_secs(30));
        assert_eq!(lines(&path).len(), 1);
        assert_eq!(lines(&folder.path().join("audit.log.1")).len(), 1);
    }

    #[test]
    fn a_full_queue_loses_lines_and_holds_nobody_up() {
        let (queue, entries) = sync_channel(2);
        let log = Arc::new(AuditLog { queue, sample: 1, calls: AtomicU64::new(0), shared: Arc::default() });
        (0..10).for_each(|_| put(&log, Code::Ok));
        assert_eq!(log.dropped(), 8);
        drop(entries);
        put(&log, Code::Ok);
        assert_eq!(log.dropped(), 9);
    }

    #[test]
    fn who_floods_the_queue_loses_lines_of_his_own() {
        let tenant = || Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()));
        let (greedy, modest) = (tenant(), tenant());
        let (queue, entries) = sync_channel(MAX_QUEUED);
        let log = Arc::new(AuditLog { queue, sample: 1, calls: AtomicU64::new(0), shared: Arc::default() });
        (0..MAX_QUEUED).for_each(|_| put_of(&log, greedy.clone(), Code::Ok));
        assert_eq!(log.dropped(), (MAX_QUEUED - MAX_OF_ONE) as u64);
        put_of(&log, modest, Code::PermissionDenied);
        assert_eq!(log.dropped(), (MAX_QUEUED - MAX_OF_ONE) as u64);
        drop(entries);
        assert_eq!(greedy.usage.audit_lines.load(Relaxed), 0, "what is written makes room");
    }
}
