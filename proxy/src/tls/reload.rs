//! Files that may change while the proxy runs, and the settings made of them.
//!
//! Files that belong together (a certificate and its key) form a group. A group is read as a whole and keeps its last
//! good content until a newer good one is there, so that a broken revocation list does not hold back a renewed
//! certificate. Connections keep the settings with which they began; only new handshakes see new ones.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;

use super::authorities::Authorities;
use super::crl::Revoked;
use super::files::{self, Content, Fact};
use super::{Error, FileStatus, Role};

/// How often the files are looked at when nobody connects. A second is far below any renewal margin.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often a handshake looks. etcd reads the files at each one; a storm of reconnects need not.
const HANDSHAKE_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How often a read is repeated because the files changed under it. After that the next look tries again.
const READ_ATTEMPTS: usize = 3;
/// A file that was written this recently may be written again without a new time stamp, where clocks of file systems
/// are coarse; its content is compared until it is older.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How many changes are kept for a task that does not come to fetch them; more tell nothing new.
const MAX_OUTCOMES: usize = 16;

/// What one look at the files has changed. Both lists may have entries: groups stand for themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadOutcome {
    /// Files whose new content is in use from now on.
    pub replaced: Vec<PathBuf>,
    /// Files whose new content cannot be used, with the reason; what was in use still is.
    pub failed: Vec<(PathBuf, String)>,
}

/// What the settings of one side are made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Material {
    pub pair: Option<Arc<CertifiedKey>>,
    pub authorities: Option<Arc<Authorities>>,
    pub revoked: Option<Arc<Revoked>>,
}

/// Which files one side has.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources {
    pub pair: Option<(PathBuf, PathBuf)>,
    pub authorities: Option<PathBuf>,
    pub revoked: Option<PathBuf>,
    pub require_empty_common_name: bool,
}

/// Makes the settings out of good material; it fails only where the library refuses their combination.
type Assemble<C> = dyn Fn(&Material) -> Result<C, Error> + Send + Sync;

/// The newest good settings of one side, `C` being the library's type for them.
pub(super) struct Reloading<C> {
    side: &'static str,
    current: ArcSwap<C>,
    /// As of the last change, so that a question about it never waits for a disk.
    status: ArcSwap<Vec<FileStatus>>,
    groups: Mutex<Groups>,
    assemble: Box<Assemble<C>>,
    started: Instant,
    /// When a handshake looked last, in milliseconds since `started`.
    looked: AtomicU64,
    outcomes: Mutex<VecDeque<ReloadOutcome>>,
}

struct Groups {
    pair: Option<Group<CertifiedKey, 2>>,
    authorities: Option<Group<Authorities, 1>>,
    revoked: Option<Group<Revoked, 1>>,
}

// === impl Reloading ===

impl<C> Reloading<C> {
    pub(super) fn load(
        side: &'static str,
        sources: Sources,
        assemble: impl Fn(&Material) -> Result<C, Error> + Send + Sync + 'static,
    ) -> Result<Reloading<C>, Error> {
        let groups = Groups::load(sources)?;
        let material = groups.material();
        let current = ArcSwap::from_pointee(assemble(&material)?);
        warn_about(side, &material);
        Ok(Reloading {
            side,
            current,
            status: ArcSwap::from_pointee(groups.status()),
            groups: Mutex::new(groups),
            assemble: Box::new(assemble),
            started: Instant::now(),
            looked: AtomicU64::new(0),
            outcomes: Mutex::new(VecDeque::new()),
        })
    }

    /// The newest good settings, after a look at the time stamps if the last one is a while ago.
    pub(super) fn config(&self) -> Arc<C> {
        let now = self.started.elapsed().as_millis() as u64;
        let looked = self.looked.load(Ordering::Relaxed);
        let is_due = now >= looked.saturating_add(HANDSHAKE_CHECK_INTERVAL.as_millis() as u64);
        if is_due && self.looked.compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // Whoever holds the lock is looking right now; a handshake does not wait for a disk.
            if let Ok(groups) = self.groups.try_lock() {
                self.look(groups, Look::Stamps);
            }
        }
        self.current.load_full()
    }

    /// Looks at the files now, contents included where the time stamps may not tell.
    pub(super) fn check(&self) -> Option<ReloadOutcome> {
        self.look(self.groups.lock().unwrap_or_else(PoisonError::into_inner), Look::Contents)
    }

    pub(super) fn status(&self) -> Vec<FileStatus> {
        self.status.load().as_ref().clone()
    }

    pub(super) fn has_files(&self) -> bool {
        !self.status.load().is_empty()
    }

    /// What has changed since the last call, oldest first.
    pub(super) fn take_outcomes(&self) -> VecDeque<ReloadOutcome> {
        std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn look(&self, mut groups: MutexGuard<'_, Groups>, look: Look) -> Option<ReloadOutcome> {
        let mut outcome = groups.refresh(look);
        if !outcome.replaced.is_empty() {
            let material = groups.material();
            match (self.assemble)(&material) {
                Ok(config) => {
                    self.current.store(Arc::new(config));
                    warn_about(self.side, &material);
                    tracing::info!(side = self.side, files = ?outcome.replaced, "reloaded TLS files");
                }
                // The files are good by themselves, so this is the library refusing them together.
                Err(error) => outcome.failed.extend(outcome.replaced.drain(..).map(|path| (path, error.to_string()))),
            }
        }
        for (path, error) in &outcome.failed {
            tracing::error!(side = self.side, file = %path.display(), error, "cannot use a changed TLS file, keeping its last good content");
        }
        if outcome == ReloadOutcome::default() {
            return None;
        }
        self.status.store(Arc::new(groups.status()));
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if outcomes.len() == MAX_OUTCOMES {
            outcomes.pop_front();
        }
        outcomes.push_back(outcome.clone());
        Some(outcome)
    }
}

/// The task behind `run_reload` of both sides: looks each second, away from the threads that serve, and tells of every
/// change, those that a handshake found first included. It ends when it is dropped.
pub(super) async fn run<C: Send + Sync + 'static>(reloading: Arc<Reloading<C>>, on_change: impl Fn(ReloadOutcome)) {
    if !reloading.has_files() {
        return std::future::pending().await;
    }
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let looking = reloading.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || looking.check()).await {
            tracing::error!(%error, "the look at the TLS files broke off, the next one is due in a second");
        }
        for outcome in reloading.take_outcomes() {
            on_change(outcome);
        }
    }
}

fn warn_about(side: &'static str, material: &Material) {
    if let Some(revoked) = &material.revoked {
        let subjects = material.authorities.as_ref().map(|authorities| authorities.subjects()).unwrap_or_default();
        for warning in revoked.warnings(&subjects) {
            tracing::warn!(side, "the certificate revocation list is in use, but {warning}");
        }
    }
}

// === impl Groups ===

impl Groups {
    fn load(sources: Sources) -> Result<Groups, Error> {
        let require_empty = sources.require_empty_common_name;
        let pair = sources.pair.map(|(cert, key)| {
            let files = [(Role::Certificate, cert), (Role::Key, key)];
            Group::load(files, move |contents| files::pair(contents, require_empty))
        });
        let authorities = sources.authorities.map(|path| Group::load([(Role::TrustedCa, path)], files::authorities));
        let revoked = sources.revoked.map(|path| Group::load([(Role::RevocationList, path)], super::crl::parse));
        Ok(Groups { pair: pair.transpose()?, authorities: authorities.transpose()?, revoked: revoked.transpose()? })
    }

    fn material(&self) -> Material {
        Material {
            pair: self.pair.as_ref().map(|group| group.value.clone()),
            authorities: self.authorities.as_ref().map(|group| group.value.clone()),
            revoked: self.revoked.as_ref().map(|group| group.value.clone()),
        }
    }

    fn refresh(&mut self, look: Look) -> ReloadOutcome {
        let mut outcome = ReloadOutcome::default();
        if let Some(group) = &mut self.pair {
            group.refresh(look, &mut outcome);
        }
        if let Some(group) = &mut self.authorities {
            group.refresh(look, &mut outcome);
        }
        if let Some(group) = &mut self.revoked {
            group.refresh(look, &mut outcome);
        }
        outcome
    }

    fn status(&self) -> Vec<FileStatus> {
        let pair = self.pair.iter().flat_map(Group::status);
        let authorities = self.authorities.iter().flat_map(Group::status);
        pair.chain(authorities).chain(self.revoked.iter().flat_map(Group::status)).collect()
    }
}

// === impl Group ===

/// Makes the value of a group out of the contents of its files, in the order in which the group names them, and tells
/// of each what a person wants to know.
type Parse<T, const N: usize> = dyn Fn(&[Content<'_>; N]) -> Result<(T, [Fact; N]), Error> + Send + Sync;

struct Group<T, const N: usize> {
    files: [(Role, PathBuf); N],
    parse: Box<Parse<T, N>>,
    value: Arc<T>,
    facts: [Fact; N],
    error: Option<Error>,
    stamps: Vec<Stamp>,
    is_settled: bool,
    hasher: RandomState,
    /// Of the contents that were looked at last, good or bad, so that each content is judged and logged once.
    digest: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Look {
    Stamps,
    Contents,
}

impl<T: 'static, const N: usize> Group<T, N> {
    fn load(
        files: [(Role, PathBuf); N],
        parse: impl Fn(&[Content<'_>; N]) -> Result<(T, [Fact; N]), Error> + Send + Sync + 'static,
    ) -> Result<Group<T, N>, Error> {
        let hasher = RandomState::new();
        let (stamps, contents) = read_together(&files);
        let digest = hasher.hash_one(contents_key(&contents));
        let (value, facts) = parse_with(&parse, &files, contents)?;
        let value = Arc::new(value);
        let is_settled = stamps.iter().all(Stamp::is_settled);
        Ok(Group { files, parse: Box::new(parse), value, facts, error: None, stamps, is_settled, hasher, digest })
    }

    fn refresh(&mut self, look: Look, outcome: &mut ReloadOutcome) {
        let is_unchanged = stamps(&self.files) == self.stamps;
        if is_unchanged && (self.is_settled || look == Look::Stamps) {
            return;
        }
        let (stamps, contents) = read_together(&self.files);
        self.is_settled = stamps.iter().all(Stamp::is_settled);
        self.stamps = stamps;
        let digest = self.hasher.hash_one(contents_key(&contents));
        if digest == self.digest {
            return;
        }
        self.digest = digest;
        match parse_with(&self.parse, &self.files, contents) {
            Ok((value, facts)) => {
                (self.value, self.facts, self.error) = (Arc::new(value), facts, None);
                outcome.replaced.extend(self.files.iter().map(|(_, path)| path.clone()));
            }
            Err(error) => {
                let path = error.path().unwrap_or(&self.files[0].1).to_path_buf();
                outcome.failed.push((path, error.to_string()));
                self.error = Some(error);
            }
        }
    }

    fn status(&self) -> Vec<FileStatus> {
        let at_fault = self.error.as_ref().map(|error| (error.path().unwrap_or(&self.files[0].1), error));
        let with_facts = self.files.iter().zip(&self.facts);
        let status = with_facts.map(|((role, path), fact)| FileStatus {
            path: path.clone(),
            role: *role,
            subject: fact.subject.clone(),
            not_after: fact.not_after,
            last_error: at_fault.filter(|(at, _)| *at == path.as_path()).map(|(_, error)| error.to_string()),
        });
        status.collect()
    }
}

/// What tells that a file is another one than before, or another content of the same one.
#[derive(Debug, Clone, PartialEq)]
enum Stamp {
    Absent(ErrorKind),
    /// The resolved path is part of it, since Kubernetes replaces mounted secrets by turning a symbolic link.
    Present {
        target: PathBuf,
        device: u64,
        inode: u64,
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
}

impl Stamp {
    fn of(path: &Path) -> Stamp {
        let stamp = std::fs::canonicalize(path).and_then(|target| {
            let metadata = std::fs::metadata(&target)?;
            Ok(Stamp::Present {
                target,
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        });
        stamp.unwrap_or_else(|error| Stamp::Absent(error.kind()))
    }

    fn is_settled(&self) -> bool {
        let Stamp::Present { modified, changed, .. } = self else { return true };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let newest = modified.0.max(changed.0);
        // A time in the future is a wrong clock; the content is then compared each time, which only costs a read.
        i64::try_from(now.as_secs()).is_ok_and(|now| newest.saturating_add(SETTLED_AFTER.as_secs() as i64) < now)
    }
}

fn stamps(files: &[(Role, PathBuf)]) -> Vec<Stamp> {
    files.iter().map(|(_, path)| Stamp::of(path)).collect()
}

/// Reads all files of a group from one moment: if one changes meanwhile, all are read again.
fn read_together(files: &[(Role, PathBuf)]) -> (Vec<Stamp>, Result<Vec<Vec<u8>>, Error>) {
    let mut before = stamps(files);
    let mut contents = read_all(files);
    for _ in 1..READ_ATTEMPTS {
        let after = stamps(files);
        if after == before {
            break;
        }
        before = after;
        contents = read_all(files);
    }
    // The stamps are those from before the read, so that a change during the last one is seen at the next look.
    (before, contents)
}

fn read_all(files: &[(Role, PathBuf)]) -> Result<Vec<Vec<u8>>, Error> {
    files.iter().map(|(role, path)| files::read(*role, path)).collect()
}

fn contents_key(contents: &Result<Vec<Vec<u8>>, Error>) -> Result<&Vec<Vec<u8>>, String> {
    contents.as_ref().map_err(|error| error.to_string())
}

fn parse_with<T, const N: usize>(
    parse: &Parse<T, N>,
    files: &[(Role, PathBuf); N],
    contents: Result<Vec<Vec<u8>>, Error>,
) -> Result<(T, [Fact; N]), Error> {
    let contents = contents?;
    let named = std::array::from_fn(|index| {
        let (role, path) = &files[index];
        Content { role: *role, path, bytes: &contents[index] }
    });
    parse(&named)
}
