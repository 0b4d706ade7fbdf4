//! A watch that begins with a list, as informers do since Kubernetes 1.32, and goes on where it was when it breaks.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long an event may take to come; the server takes its time to notice that a member is dead.
const PATIENCE: Duration = Duration::from_secs(90);
/// The server ends a watch after this, so that its end and resumption are part of the test.
const WATCH_SECONDS: u32 = 20;

const INITIAL: &str = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";

#[derive(Clone, Default)]
pub struct Seen {
    counts: HashMap<(String, String), usize>,
    listed: Option<Vec<String>>,
    error: Option<String>,
}

impl Seen {
    pub fn added(&self, name: &str) -> usize {
        self.count("ADDED", name)
    }

    pub fn deleted(&self, name: &str) -> usize {
        self.count("DELETED", name)
    }

    /// What is neither an addition nor a deletion.
    pub fn others(&self) -> Vec<String> {
        let others = self.counts.keys().filter(|(kind, _)| kind != "ADDED" && kind != "DELETED");
        others.map(|(kind, name)| format!("{kind} {name}")).collect()
    }

    fn count(&self, kind: &str, name: &str) -> usize {
        self.counts.get(&(kind.to_owned(), name.to_owned())).copied().unwrap_or(0)
    }
}

pub struct Watcher {
    /// What has come, shared with the thread that reads.
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl Watcher {
    pub fn start(address: &str, path: &str) -> Watcher {
        let watcher = Watcher { seen: Arc::default() };
        let (address, path, seen) = (address.to_owned(), path.to_owned(), watcher.seen.clone());
        std::thread::spawn(move || {
            let mut at = Position::default();
            // The thread ends with the server, and so with the test.
            while at.follow(&address, &path, &seen).is_ok() {}
        });
        watcher
    }

    /// The names that came before the bookmark.
    pub fn listed(&self) -> Vec<String> {
        self.until(|seen| seen.listed.is_some()).listed.expect("it was waited for")
    }

    /// Waits until what has come is as wanted.
    pub fn until(&self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            assert_eq!(seen.error, None, "the watch was refused, so events may be lost");
            if wanted(&seen) {
                return seen.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "what was wanted did not come; so much came: {}", seen.counts.len());
            seen = self.seen.1.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Where the watch is.
#[derive(Default)]
struct Position {
    revision: Option<String>,
    listing: Vec<String>,
}

impl Position {
    /// One request, read to its end.
    fn follow(&mut self, address: &str, path: &str, seen: &(Mutex<Seen>, Condvar)) -> std::io::Result<()> {
        let begin = match &self.revision {
            None => INITIAL.to_owned(),
            Some(revision) => format!("resourceVersion={revision}"),
        };
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "GET {path}?watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&{begin} HTTP/1.0\r\n\r\n"
        )?;
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
        if !status.contains(" 200 ") {
            // The server is not there for a moment; that it forgot the revision is told by an event.
            return Ok(());
        }
        for line in lines.skip_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).skip(1) {
            let Ok(event) = serde_json::from_str::<Value>(&line?) else { break };
            self.take(&event, &mut seen.0.lock().unwrap_or_else(PoisonError::into_inner));
            seen.1.notify_all();
        }
        Ok(())
    }

    fn take(&mut self, event: &Value, seen: &mut Seen) {
        let kind = event["type"].as_str().unwrap_or_default();
        let metadata = &event["object"]["metadata"];
        let (Some(revision), false) = (metadata["resourceVersion"].as_str(), kind == "ERROR") else {
            seen.error = Some(event.to_string());
            return;
        };
        // A list that broke off begins again; nothing of it has counted.
        let is_end = metadata["annotations"]["k8s.io/initial-events-end"] == "true";
        if is_end {
            self.listing.sort();
            for name in &self.listing {
                *seen.counts.entry(("ADDED".to_owned(), name.clone())).or_default() += 1;
            }
            seen.listed = Some(std::mem::take(&mut self.listing));
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        match (&seen.listed, kind) {
            (_, "BOOKMARK") => (),
            (None, _) => {
                self.listing.push(name);
                return;
            }
            (Some(_), kind) => *seen.counts.entry((kind.to_owned(), name)).or_default() += 1,
        }
        if seen.listed.is_some() {
            self.revision = Some(revision.to_owned());
        }
    }
}
