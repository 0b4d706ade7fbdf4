//! Work that is done once for all who wait for it when it begins.
//!
//! Whoever comes while it is being done waits for the next time: what they are told must have been asked after they
//! came.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, ThreadId},
};

use tokio::{runtime::Handle, sync::oneshot};

/// Those who wait for one kind of work.
pub struct Rounds<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    is_running: bool,
    /// One for each thread on which someone waits.
    waiting: Vec<Bench<T>>,
}

/// Those who wait on one thread. They are told there, by one task: to wake each of them from elsewhere takes a system
/// call each, and its answer would be written alone, before the next one is woken.
struct Bench<T> {
    thread: ThreadId,
    runtime: Handle,
    /// Bounded by the calls of clients, each of which waits at one place.
    places: Vec<oneshot::Sender<T>>,
}

impl<T> Default for Rounds<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State { is_running: false, waiting: Vec::new() }) }
    }
}

impl<T: Clone + Send + 'static> Rounds<T> {
    /// Waits for work that begins from now on. `None` if it was broken off.
    pub async fn join<W>(self: &Arc<Self>, work: impl Fn() -> W + Send + 'static) -> Option<T>
    where
        W: Future<Output = T> + Send,
    {
        let (done, result) = oneshot::channel();
        let begins = {
            let mut state = self.lock();
            state.take_place(done);
            !std::mem::replace(&mut state.is_running, true)
        };
        if begins {
            let running = Running(self.clone());
            // In a task of its own, so that it goes on for the others when the client that began it leaves.
            tokio::spawn(async move {
                while let Some(waiting) = running.next() {
                    let result = work().await;
                    waiting.into_iter().for_each(|bench| bench.tell(&result));
                }
            });
        }
        result.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nothing panics while it holds the state")
    }
}

impl<T> State<T> {
    fn take_place(&mut self, done: oneshot::Sender<T>) {
        let thread = thread::current().id();
        match self.waiting.iter_mut().find(|bench| bench.thread == thread) {
            Some(bench) => bench.places.push(done),
            None => self.waiting.push(Bench { thread, runtime: Handle::current(), places: vec![done] }),
        }
    }
}

impl<T: Clone + Send + 'static> Bench<T> {
    fn tell(self, result: &T) {
        let Self { thread, runtime, places } = self;
        let result = result.clone();
        let tell = move || {
            for done in places {
                // Whoever asked may have left.
                let _ = done.send(result.clone());
            }
        };
        if thread == thread::current().id() {
            tell();
        } else {
            runtime.spawn(async move { tell() });
        }
    }
}

/// Rounds that someone works on; dropped, others may begin.
struct Running<T: Clone + Send + 'static>(Arc<Rounds<T>>);

impl<T: Clone + Send + 'static> Running<T> {
    /// Those to work for now, if there is anyone.
    fn next(&self) -> Option<Vec<Bench<T>>> {
        let mut state = self.0.lock();
        state.is_running = !state.waiting.is_empty();
        state.is_running.then(|| std::mem::take(&mut state.waiting))
    }
}

impl<T: Clone + Send + 'static> Drop for Running<T> {
    fn drop(&mut self) {
        // Still running means that the work panicked, or that its thread ends. Those who wait see that they were left.
        let mut state = self.0.lock();
        if std::mem::take(&mut state.is_running) {
            state.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use tokio::sync::Semaphore;

    use super::*;

    /// Only a defect takes as long.
    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn who_comes_while_work_is_under_way_waits_for_the_next_round() {
        let (rounds, count, gate) =
            (Arc::new(Rounds::default()), Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
        let join = || {
            let (rounds, count, gate, started) = (rounds.clone(), count.clone(), gate.clone(), started.clone());
            let work = move || {
                let (count, gate, started) = (count.clone(), gate.clone(), started.clone());
                async move {
                    let round = count.fetch_add(1, Ordering::Relaxed);
                    started.send(()).expect("the test listens");
                    gate.acquire().await.expect("it is open").forget();
                    round
                }
            };
            tokio::spawn(async move { rounds.join(work).await })
        };
        let first = join();
        starts.recv().await.expect("the first round begins");
        let others: Vec<_> = (0..5).map(|_| join()).collect();
        // On this one thread, a yield lets all of them take their places.
        tokio::task::yield_now().await;
        gate.add_permits(1);
        assert_eq!(first.await.expect("no panic"), Some(0));
        gate.add_permits(1);
        for other in others {
            assert_eq!(other.await.expect("no panic"), Some(1));
        }
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn those_who_wait_on_another_thread_sit_together_and_are_told_there() {
        let (rounds, gate) = (Arc::new(Rounds::default()), Arc::new(Semaphore::new(0)));
        let join = {
            let (rounds, gate) = (rounds.clone(), gate.clone());
            move || {
                let (rounds, gate) = (rounds.clone(), gate.clone());
                let work = move || {
                    let gate = gate.clone();
                    async move { gate.acquire().await.expect("it is open").forget() }
                };
                async move { rounds.join(work).await }
            }
        };
        let first = tokio::spawn(join());
        let seats = || rounds.lock().waiting.iter().map(|bench| bench.places.len()).collect::<Vec<_>>();
        let sits = async |expected: &[usize]| {
            while !rounds.lock().is_running || seats() != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, sits(&[])).await.expect("the first round begins");
        let (tell, told) = oneshot::channel();
        let elsewhere = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let all = runtime.block_on(async { tokio::join!(join(), join(), join()) });
            tell.send(all).expect("the test listens");
        });
        tokio::time::timeout(LONG, sits(&[3])).await.expect("they sit on one bench");
        gate.add_permits(2);
        assert_eq!(first.await.expect("no panic"), Some(()));
        let told = tokio::time::timeout(LONG, told).await.expect("they are told");
        assert_eq!(told, Ok((Some(()), Some(()), Some(()))));
        elsewhere.join().expect("no panic");
    }

    #[tokio::test]
    async fn work_that_panics_leaves_nobody_waiting() {
        let rounds = Arc::new(Rounds::<u32>::default());
        assert_eq!(rounds.join(|| async { panic!("as intended") }).await, None);
        assert_eq!(rounds.join(|| async { 7 }).await, Some(7));
    }
}
