//! Wakes the sessions of one thread, once for all whom an event concerns.
//!
//! A feed that woke each session of another thread by itself would pay for a wake-up call to that thread each time, and
//! the thread would begin to write while the feed still wakes the rest: many small writes instead of one large one.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use tokio::{runtime::Handle, sync::Notify};

use super::{inbox::Inbox, sayings::Sayings};

/// One per thread that serves connections. Holds each inbox at most once, so it is bounded by the thread's sessions.
#[derive(Debug, Default)]
pub struct Bell {
    /// What the thread's sessions say in the same words. Only they ask for it, so the lock is never waited for.
    sayings: Mutex<Sayings>,
    waiting: Mutex<Vec<Arc<Inbox>>>,
    is_rung: AtomicBool,
    notify: Notify,
}

impl Bell {
    /// Makes a bell whose sessions run where this is called.
    pub fn hang() -> Arc<Self> {
        let bell = Arc::<Self>::default();
        tokio::spawn(wake_those_who_wait(bell.clone()));
        bell
    }

    pub fn sayings(&self) -> MutexGuard<'_, Sayings> {
        self.sayings.lock().expect("nothing panics while it holds what is said")
    }

    /// Wakes the session of this inbox, which has just heard something.
    pub fn ring_for(self: &Arc<Self>, inbox: Arc<Inbox>) {
        self.waiting.lock().expect("nothing panics while it holds a bell").push(inbox);
        if self.is_rung.swap(true, Ordering::AcqRel) {
            return;
        }
        // The task that rings is about to ring for others too. What it spawns runs when it has done so.
        match Handle::try_current() {
            Ok(handle) => {
                let bell = self.clone();
                handle.spawn(async move { bell.notify.notify_one() });
            }
            Err(_) => self.notify.notify_one(),
        }
    }
}

async fn wake_those_who_wait(bell: Arc<Bell>) {
    loop {
        bell.notify.notified().await;
        bell.is_rung.store(false, Ordering::Release);
        let waiting = std::mem::take(&mut *bell.waiting.lock().expect("nothing panics while it holds a bell"));
        waiting.iter().for_each(|inbox| inbox.notify());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_were_rung_for_are_woken_also_from_another_thread() {
        let bell = Bell::hang();
        let inboxes: Vec<Arc<Inbox>> = (0..10).map(|_| Inbox::at(&bell)).collect();
        for round in 0..3 {
            let rung = inboxes.clone();
            let ring = move || rung.iter().for_each(|inbox| inbox.wake(round));
            if round == 1 {
                std::thread::spawn(ring).join().expect("it does not panic")
            } else {
                ring()
            }
            for inbox in &inboxes {
                inbox.heard().await;
                let mut ready = Vec::new();
                inbox.take(&mut ready);
                assert_eq!(ready, [round]);
            }
        }
    }
}
