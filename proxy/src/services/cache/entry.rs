//! One cached range: its keys at a known revision, what keeps them level with etcd, and the right to show them.
//!
//! An answer from here is what etcd would have said at some moment after the question came:
//!
//! 1. A linearizable read waits for a *barrier*, one linearizable question to etcd on behalf of all who waited when it
//!    was sent, and then until the shared watch has told everything up to the barrier's revision.
//! 2. A serializable read waits for the watch to say how far its member is, unless it may be answered a little stale.
//! 3. No answer is older than what its connection has been shown.
//! 4. Where etcd judges by who asks, the barrier is a question about the whole range with the same credentials; a
//!    serializable read is answered only if such a question went well a moment ago.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{RangeRequest, ResponseHeader};
use prost::Message as _;

use super::rounds::Rounds;
use crate::{
    rules::{
        cache::{Content, Query, Unsure},
        caller::Caller,
        framing,
        keys::KeyRange,
        methods::Method,
        wire,
    },
    services::watch::{
        live::LiveFeed,
        reader::{Lost, Reader, progress},
    },
    upstream::Upstream,
};

/// How long a serializable read may go without asking etcd whether its caller still has the right to it. etcd itself
/// applies a change of rights on each member when that hears of it.
const RIGHTS_AGE: Duration = Duration::from_secs(1);
/// How long to wait before a member that lags is asked again how far it is.
const LAG_PAUSE: Duration = Duration::from_millis(5);
/// Answers that are kept ready, of many keys each; a range has few readers that ask differently.
const MAX_READY: usize = 16;
/// An answer of fewer keys is made anew as fast as it would be found.
const MIN_READY_KEYS: usize = 4;

pub struct Entry {
    /// As clients know it, without the namespace.
    pub range: KeyRange,
    caller: Caller,
    method: &'static Method,
    /// The framed questions that are asked at the barrier.
    linearizable: Bytes,
    serializable: Bytes,
    rights: Arc<Rights>,
    feeding: Arc<Feeding>,
    state: Mutex<State>,
    last_used: Mutex<Instant>,
    max_weight: usize,
}

struct State {
    content: Content,
    reader: Reader,
    /// Everything up to here is in the content.
    revision: i64,
    /// Answers less their headers, by what was asked.
    ready: HashMap<Bytes, Bytes>,
    ready_weight: usize,
}

/// What is known of the right to read, shared by the entries that one question speaks for.
#[derive(Default)]
pub struct Rights {
    barriers: Arc<Rounds<Option<ResponseHeader>>>,
    checks: Arc<Rounds<Option<ResponseHeader>>>,
    /// When the last question that went well was sent.
    granted: Mutex<Option<Instant>>,
}

/// The feed of some entries, and how far it was when it was last asked.
pub struct Feeding {
    pub feed: Arc<LiveFeed>,
    rounds: Arc<Rounds<Option<ResponseHeader>>>,
    known: Mutex<Option<(Instant, ResponseHeader)>>,
}

impl Feeding {
    pub fn new(feed: Arc<LiveFeed>) -> Arc<Self> {
        Arc::new(Self { feed, rounds: Arc::default(), known: Mutex::default() })
    }
}

/// What an entry is made of.
pub struct Loaded {
    pub range: KeyRange,
    pub caller: Caller,
    pub method: &'static Method,
    pub content: Content,
    pub reader: Reader,
    pub revision: i64,
    pub max_weight: usize,
}

/// An answer from the cache.
pub struct Answer {
    pub header: ResponseHeader,
    /// The `RangeResponse` less its header.
    pub body: Bytes,
    /// How old the knowledge is that nothing newer was there; zero if it was asked for.
    pub age: Duration,
}

/// Why there is none.
pub enum NoAnswer {
    /// Only etcd can tell; the entry is as good as before.
    Unsure,
    /// The entry is of no more use.
    Lost,
}

impl From<Lost> for NoAnswer {
    fn from(_: Lost) -> Self {
        Self::Lost
    }
}

impl Entry {
    /// `is_judged` says that etcd may judge by who asks, so that the right must be asked for on the very range.
    pub fn new(loaded: Loaded, rights: Arc<Rights>, feeding: Arc<Feeding>, is_judged: bool) -> Arc<Self> {
        let Loaded { range, caller, method, content, reader, revision, max_weight } = loaded;
        let question = |serializable| {
            let asked = reader.range();
            let range_end = if is_judged { asked.range_end() } else { Bytes::new() };
            let key = asked.key().clone();
            let request = RangeRequest { key, range_end, serializable, count_only: true, ..RangeRequest::default() };
            framing::frame(&request.encode_to_vec())
        };
        Arc::new(Self {
            linearizable: question(false),
            serializable: question(true),
            range,
            caller,
            method,
            rights,
            feeding,
            state: Mutex::new(State { content, reader, revision, ready: HashMap::new(), ready_weight: 0 }),
            last_used: Mutex::new(Instant::now()),
            max_weight,
        })
    }

    /// Answers a query within the range, no older than `floor`. `staleness` is how old the knowledge may be on which a
    /// serializable read is answered.
    pub async fn answer(
        self: &Arc<Self>,
        upstream: &Upstream,
        query: &Query,
        message: &Bytes,
        floor: i64,
        staleness: Duration,
    ) -> Result<Answer, NoAnswer> {
        *self.last_used.lock().expect("an instant is stored") = Instant::now();
        let known = self.lock().pull(self.max_weight)?;
        let (mut age, mut wanted) = (Duration::ZERO, floor);
        let mut header = if query.serializable {
            self.check_rights(upstream).await?;
            match self.feeding.known(staleness) {
                Some((known_for, header)) => {
                    age = known_for;
                    header
                }
                None => self.feeding.ask().await?,
            }
        } else {
            let header = self.barrier(upstream).await?;
            // The store has gone back behind what is cached of it, as a restored one does.
            if header.revision < known {
                return Err(NoAnswer::Lost);
            }
            // So it has behind what this connection was shown of it before.
            if header.revision < floor {
                return Err(NoAnswer::Unsure);
            }
            wanted = wanted.max(header.revision);
            header
        };
        let mut asked = false;
        loop {
            if let Some((revision, body)) = self.lock().show(query, message, wanted, self.max_weight)? {
                header.revision = revision;
                return Ok(Answer { header, body, age });
            }
            if asked {
                tokio::time::sleep(LAG_PAUSE).await;
            }
            self.feeding.ask().await?;
            asked = true;
        }
    }

    async fn barrier(self: &Arc<Self>, upstream: &Upstream) -> Result<ResponseHeader, Lost> {
        let (entry, upstream) = (self.clone(), upstream.clone());
        let work = move || {
            let (entry, upstream) = (entry.clone(), upstream.clone());
            async move { entry.ask(&upstream, &entry.linearizable).await }
        };
        self.rights.barriers.join(work).await.flatten().ok_or(Lost)
    }

    async fn check_rights(self: &Arc<Self>, upstream: &Upstream) -> Result<(), Lost> {
        let granted = *self.rights.granted.lock().expect("an instant is stored");
        if granted.is_some_and(|granted| granted.elapsed() < RIGHTS_AGE) {
            return Ok(());
        }
        let (entry, upstream) = (self.clone(), upstream.clone());
        let work = move || {
            let (entry, upstream) = (entry.clone(), upstream.clone());
            async move { entry.ask(&upstream, &entry.serializable).await }
        };
        self.rights.checks.join(work).await.flatten().map(drop).ok_or(Lost)
    }

    /// Asks etcd a question of which only the header of the answer matters.
    async fn ask(&self, upstream: &Upstream, question: &Bytes) -> Option<ResponseHeader> {
        let sent = Instant::now();
        let answer = upstream.call(&self.caller, self.method, question.clone()).await.ok()?;
        let message = answer.collect(upstream.limits().max_answer).await.ok()?.into_message().ok()?;
        let header = ResponseHeader::decode(wire::last_bytes(&message, 1).ok()?).ok()?;
        *self.rights.granted.lock().expect("an instant is stored") = Some(sent);
        Some(header)
    }

    /// How much memory it takes, about, and for how many keys.
    pub fn weight(&self) -> (usize, usize) {
        let state = self.lock();
        (state.content.weight() + state.ready_weight, state.content.len())
    }

    pub fn idle(&self) -> Duration {
        self.last_used.lock().expect("an instant is stored").elapsed()
    }

    pub fn feeding(&self) -> &Arc<Feeding> {
        &self.feeding
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }
}

impl Feeding {
    /// How far the feed was, if it was asked lately.
    fn known(&self, staleness: Duration) -> Option<(Duration, ResponseHeader)> {
        let (asked, header) = (*self.known.lock().expect("a header is stored"))?;
        let age = asked.elapsed();
        (age < staleness).then_some((age, header))
    }

    /// Asks how far the feed is; everything up to there can be read then.
    async fn ask(self: &Arc<Self>) -> Result<ResponseHeader, Lost> {
        let feeding = self.clone();
        let work = move || {
            let feeding = feeding.clone();
            async move {
                let asked = Instant::now();
                // It ends with the feed, or with the patience of those who wait.
                let header = tokio::time::timeout(super::PATIENCE, progress(&feeding.feed)).await.ok()?;
                *feeding.known.lock().expect("a header is stored") = Some((asked, header));
                Some(header)
            }
        };
        self.rounds.join(work).await.flatten().ok_or(Lost)
    }
}

impl State {
    /// Takes in what has happened, and tells up to which revision that is all.
    fn pull(&mut self, max_weight: usize) -> Result<i64, Lost> {
        let Self { content, reader, revision, ready, ready_weight } = self;
        let mut outcome = Ok(());
        let mut changed = false;
        *revision = reader.read(|event| {
            changed = true;
            outcome = outcome.and_then(|()| content.apply(event));
        })?;
        if changed {
            ready.clear();
            *ready_weight = 0;
        }
        if outcome.is_err() || content.weight() > max_weight {
            return Err(Lost);
        }
        Ok(*revision)
    }

    /// The answer to a query, if everything up to the wanted revision is known.
    fn show(
        &mut self,
        query: &Query,
        message: &Bytes,
        wanted: i64,
        max_weight: usize,
    ) -> Result<Option<(i64, Bytes)>, NoAnswer> {
        let revision = self.pull(max_weight)?;
        if revision < wanted {
            return Ok(None);
        }
        if let Some(body) = self.ready.get(message) {
            return Ok(Some((revision, body.clone())));
        }
        let mut body = Vec::new();
        let keys = self.content.answer(query, &mut body).map_err(|Unsure| NoAnswer::Unsure)?;
        let body = Bytes::from(body);
        let fits = self.ready_weight + body.len() <= self.content.weight() && self.ready.len() < MAX_READY;
        if keys >= MIN_READY_KEYS && fits {
            self.ready_weight += body.len();
            self.ready.insert(message.clone(), body.clone());
        }
        Ok(Some((revision, body)))
    }
}
