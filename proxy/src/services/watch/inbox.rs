//! Where a session hears that one of its watches has something to read.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake},
};

use etcd_proxy_proto::etcdserverpb::ResponseHeader;
use futures_util::task::AtomicWaker;

use super::{bell::Bell, watches::Number};

/// Filled by logs and the feed, emptied by the one session that owns it. A log tells a reader that has nothing to read
/// once, and again only when that one has read all, so the inbox is bounded by the session's watches.
#[derive(Debug, Default)]
pub struct Inbox {
    owner: AtomicWaker,
    /// Wakes the owner together with the other sessions of its thread; without one it is woken by itself.
    bell: Option<Arc<Bell>>,
    content: Mutex<Content>,
    /// Set while it has rung and nobody has looked, so that a burst rings once.
    has_rung: AtomicBool,
    /// Set for good when the session must end.
    is_over: AtomicBool,
    /// Set while the client's stream has called and nobody has looked.
    has_called: AtomicBool,
}

/// How the client's stream calls the session: by a waker of the inbox, so that the session asks the stream what there is
/// only if it called, and not at each event.
impl Wake for Inbox {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_called.store(true, Ordering::Release);
        self.owner.wake();
    }
}

/// Most sessions have one watch, so one number takes no memory of its own.
#[derive(Debug, Default)]
struct Content {
    first: Option<Number>,
    #[expect(clippy::box_collection, reason = "it is empty in nearly all inboxes")]
    rest: Option<Box<Vec<Number>>>,
    progress: Option<Box<ResponseHeader>>,
}

/// What was in an inbox: the watches that may read on, and an answer to a progress request.
#[derive(Debug, Default)]
pub struct Heard {
    pub first: Option<Number>,
    pub rest: Vec<Number>,
    pub progress: Option<Box<ResponseHeader>>,
}

impl Inbox {
    /// An inbox of a session on the bell's thread.
    pub fn at(bell: &Arc<Bell>) -> Arc<Self> {
        Arc::new(Self { bell: Some(bell.clone()), ..Self::default() })
    }

    /// A watch has something to read.
    pub fn wake(self: &Arc<Self>, watch: Number) {
        let mut content = self.lock();
        match content.first {
            None => content.first = Some(watch),
            Some(_) => content.rest.get_or_insert_default().push(watch),
        }
        drop(content);
        self.ring();
    }

    /// etcd has answered the session's progress request.
    pub fn progress(self: &Arc<Self>, header: ResponseHeader) {
        self.lock().progress = Some(Box::new(header));
        self.ring();
    }

    /// The session must end; its feed knows why.
    pub fn tell_the_end(self: &Arc<Self>) {
        self.is_over.store(true, Ordering::Release);
        self.ring();
    }

    pub fn must_end(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn ring(self: &Arc<Self>) {
        if self.has_rung.swap(true, Ordering::AcqRel) {
            return;
        }
        match &self.bell {
            Some(bell) => bell.ring_for(self.clone()),
            None => self.notify(),
        }
    }

    /// Lets the owner hear that something has come.
    pub fn notify(&self) {
        self.owner.wake();
    }

    /// Returns when there may be something in the inbox.
    pub async fn heard(&self) {
        poll_fn(|context| self.poll_heard(context)).await;
    }

    /// The same. Only the owner asks, and one at a time.
    pub fn poll_heard(&self, context: &Context<'_>) -> Poll<()> {
        // Whoever rings after the look finds the waker, and is seen by the look if it was before.
        self.owner.register(context.waker());
        if self.has_heard() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when the session must end or the stream has called, whatever else there is.
    pub fn poll_called(&self, context: &Context<'_>) -> Poll<()> {
        self.owner.register(context.waker());
        if self.must_end() || self.has_called() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether there may be something in it, or the stream has called.
    pub fn has_heard(&self) -> bool {
        self.has_rung.load(Ordering::Acquire) || self.has_called()
    }

    fn has_called(&self) -> bool {
        self.has_called.load(Ordering::Acquire)
    }

    /// Whether the stream has called since this was asked.
    pub fn take_call(&self) -> bool {
        self.has_called() && self.has_called.swap(false, Ordering::AcqRel)
    }

    /// Takes what is there.
    pub fn hear(&self) -> Heard {
        if !self.has_rung.swap(false, Ordering::AcqRel) {
            return Heard::default();
        }
        let mut content = self.lock();
        let rest = content.rest.as_mut().map_or(Vec::new(), |rest| {
            // The room stays here, where it is needed under the lock of a log.
            let taken = rest.to_vec();
            rest.clear();
            taken
        });
        Heard { first: content.first.take(), rest, progress: content.progress.take() }
    }

    /// The same, for who keeps what it takes.
    pub fn take(&self, ready: &mut Vec<Number>) -> Option<ResponseHeader> {
        let Heard { first, rest, progress } = self.hear();
        ready.extend(first.into_iter().chain(rest));
        progress.map(|header| *header)
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("nothing panics while it holds an inbox")
    }
}
