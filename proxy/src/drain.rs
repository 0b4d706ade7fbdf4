//! The end of the process: everyone is told, and whoever still works is waited for.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Tells the others to finish and waits for them. Dropping it tells them to stop at once.
pub struct Trigger {
    signal: watch::Sender<bool>,
    finished: mpsc::Receiver<()>,
}

/// Held by whoever must be allowed to finish; dropping it means done.
#[derive(Clone)]
pub struct Watcher {
    signal: watch::Receiver<bool>,
    _working: mpsc::Sender<()>,
}

/// Held by whoever wants to know of the end but is not waited for.
#[derive(Clone)]
pub struct Observer {
    signal: watch::Receiver<bool>,
}

pub fn channel() -> (Trigger, Watcher) {
    let (signal, heard) = watch::channel(false);
    // Nothing is ever sent: the channel closes when the last watcher is dropped.
    let (working, finished) = mpsc::channel(1);
    (Trigger { signal, finished }, Watcher { signal: heard, _working: working })
}

impl Trigger {
    /// Gives the signal and waits for nobody.
    pub fn begin(&self) {
        self.signal.send_replace(true);
    }

    /// Gives the signal and waits until all are done or the time is up. Says whether all were done.
    pub async fn drain(mut self, timeout: Duration) -> bool {
        // It fails only when nobody listens any more, and then there is nobody to wait for.
        let _ = self.signal.send(true);
        tokio::time::timeout(timeout, self.finished.recv()).await.is_ok()
    }
}

impl Watcher {
    /// Returns when it is time to finish, at once if it already is.
    pub async fn signaled(&mut self) {
        // A trigger that is gone without a signal is the process's end as well.
        let _ = self.signal.wait_for(|signaled| *signaled).await;
    }

    pub fn is_signaled(&self) -> bool {
        *self.signal.borrow()
    }

    pub fn observer(&self) -> Observer {
        Observer { signal: self.signal.clone() }
    }
}

impl Observer {
    /// Returns when the end has begun, at once if it already has.
    pub async fn signaled(&mut self) {
        // A trigger that is gone without a signal is the process's end as well.
        let _ = self.signal.wait_for(|signaled| *signaled).await;
    }

    pub fn is_signaled(&self) -> bool {
        *self.signal.borrow()
    }

    /// Returns when nobody waits any more for what is under way: after the drain, or when the proxy was dropped.
    pub async fn over(&mut self) {
        while self.signal.changed().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_when_the_last_watcher_is_dropped() {
        let (trigger, watcher) = channel();
        let mut second = watcher.clone();
        let worker = tokio::spawn(async move { second.signaled().await });
        drop(watcher);
        assert!(trigger.drain(Duration::from_secs(60)).await);
        worker.await.expect("the worker ends by itself");
    }

    #[tokio::test(start_paused = true)]
    async fn an_observer_hears_of_the_end_and_does_not_hold_it_up() {
        let (trigger, watcher) = channel();
        let mut observer = watcher.observer();
        drop(watcher);
        assert!(!observer.is_signaled());
        assert!(trigger.drain(Duration::from_secs(60)).await);
        observer.signaled().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_does_not_wait_for_ever() {
        let (trigger, _watcher) = channel();
        assert!(!trigger.drain(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_observes_hears_the_signal_before_the_end() {
        let (trigger, watcher) = channel();
        let mut observer = watcher.observer();
        let listener = tokio::spawn(async move {
            observer.signaled().await;
            observer.over().await;
        });
        let draining = tokio::spawn(trigger.drain(Duration::from_secs(60)));
        tokio::task::yield_now().await;
        assert!(!listener.is_finished(), "someone still works");
        drop(watcher);
        assert!(draining.await.expect("the drain ends"));
        listener.await.expect("the observer hears the end");
    }
}
