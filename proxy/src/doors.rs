//! Listeners of the front doors that do not speak gRPC, and the threads behind them.
//!
//! Each thread has a runtime of its own, so that a connection stays on one core and shares no lock with the others. A
//! few of the threads accept, and give a connection to the thread that has the fewest.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    net::{TcpStream, UnixStream},
    sync::{Notify, mpsc},
};

use crate::{
    drain::{Observer, Watcher},
    server::descriptors,
};

mod bound;
mod itself;
mod socket;

use bound::Kind;
pub use bound::{Address, Bound, ListenError, set_options};
pub use itself::Itself;

/// Connections dealt to a thread and not yet taken.
const DEAL_QUEUE: usize = 1024;
/// The wait after `accept` fails for want of file descriptors, so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Connections that are accepted in one go before the thread looks after those that it has.
const ACCEPT_BATCH: usize = 32;
/// Threads that accept. The kernel wakes all of them for each connection, so on a machine with many cores most must not
/// listen; four take far more connections in a second than etcd can serve.
const ACCEPTORS: usize = 4;

/// How many connections there may be, and on how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub threads: usize,
    /// Connections that may be open; zero is without a limit.
    pub max_connections: usize,
    /// File descriptors that one connection needs.
    pub descriptors_each: usize,
}

/// A connection of a client, or to a server.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What happens on a thread to each connection: it gets the number of the listener that it came in by.
pub trait Serve: Clone + Send + 'static {
    fn serve(&self, listener: usize, socket: Socket, drain: Observer) -> impl Future<Output = ()> + Send + 'static;
}

struct Shared {
    config: Config,
    /// Connections that there are file descriptors for.
    affordable: usize,
    threads: Vec<Thread>,
}

struct Thread {
    open: AtomicUsize,
    /// Told when `open` falls to zero.
    idle: Notify,
    door: mpsc::Sender<Accepted>,
}

/// A connection that belongs to no runtime yet.
struct Accepted {
    listener: usize,
    kind: Kind,
    descriptor: OwnedFd,
    _open: Open,
}

/// Counts a connection for as long as it is open.
struct Open(Arc<Shared>, usize);

impl Open {
    fn new(shared: &Arc<Shared>, thread: usize) -> Self {
        shared.threads[thread].open.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone(), thread)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let thread = &self.0.threads[self.1];
        if thread.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            thread.idle.notify_one();
        }
    }
}

/// Starts the threads, which accept until the drain begins and hold it up until their last connection has ended.
/// `make_service` runs on each, inside its runtime.
pub fn open<S: Serve>(
    config: Config,
    listeners: &[Bound],
    drain: &Watcher,
    make_service: impl Fn() -> S + Send + Sync + 'static,
) -> io::Result<()> {
    let (doors, ways): (Vec<_>, Vec<_>) = (0..config.threads.max(1)).map(|_| mpsc::channel(DEAL_QUEUE)).unzip();
    let threads =
        doors.into_iter().map(|door| Thread { open: AtomicUsize::new(0), idle: Notify::new(), door }).collect();
    let affordable = (descriptors::affordable_connections() / config.descriptors_each.max(1)).max(1);
    let shared = Arc::new(Shared { config, affordable, threads });
    let make_service = Arc::new(make_service);
    for (number, way) in ways.into_iter().enumerate() {
        let mut mine = Vec::new();
        for bound in listeners.iter().filter(|_| number < ACCEPTORS) {
            mine.push((bound.kind, bound.try_clone()?));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (shared, make_service, drain) = (shared.clone(), make_service.clone(), drain.clone());
        thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
            runtime.block_on(async move {
                let service = make_service();
                // What it holds of the drain must not outlive the service that it made.
                drop(make_service);
                run(number, shared, way, mine, service, drain).await;
            });
        })?;
    }
    Ok(())
}

async fn run<S: Serve>(
    number: usize,
    shared: Arc<Shared>,
    mut dealt: mpsc::Receiver<Accepted>,
    listeners: Vec<(Kind, OwnedFd)>,
    service: S,
    mut drain: Watcher,
) {
    let mut observer = drain.observer();
    for (listener, (kind, descriptor)) in listeners.into_iter().enumerate() {
        // SAFETY: an OwnedFd names the same open file for as long as it lives, and nobody takes this one out again.
        match unsafe { AsyncFd::register(descriptor) } {
            Ok(descriptor) => {
                let acceptor = Acceptor { number, shared: shared.clone(), listener, kind, drain: observer.clone() };
                tokio::spawn(acceptor.run(descriptor, service.clone()));
            }
            Err(error) => tracing::error!(%error, "a listener cannot be watched"),
        }
    }
    loop {
        tokio::select! {
            biased;
            () = drain.signaled() => break,
            Some(accepted) = dealt.recv() => begin(&service, accepted, observer.clone()),
        }
    }
    // Those that were dealt and not taken are turned away; they have asked for nothing yet.
    drop(dealt);
    let idle = async {
        while shared.threads[number].open.load(Ordering::Relaxed) > 0 {
            shared.threads[number].idle.notified().await;
        }
    };
    tokio::select! {
        () = idle => (),
        // Nobody waits any more.
        () = observer.over() => (),
    }
}

fn begin<S: Serve>(service: &S, accepted: Accepted, drain: Observer) {
    let Accepted { listener, kind, descriptor, _open } = accepted;
    match kind.socket(descriptor) {
        Ok(socket) => {
            let serving = service.serve(listener, socket, drain);
            tokio::spawn(async move {
                serving.await;
                drop(_open);
            });
        }
        Err(error) => tracing::warn!(%error, "failed to take a connection over"),
    }
}

/// Accepts the connections of one listener on one thread.
struct Acceptor {
    number: usize,
    shared: Arc<Shared>,
    listener: usize,
    kind: Kind,
    drain: Observer,
}

impl Acceptor {
    async fn run<S: Serve>(mut self, descriptor: AsyncFd<OwnedFd>, service: S) {
        loop {
            if self.shared.open() >= self.shared.affordable {
                // They wait in the kernel's queue. The proxy needs its last descriptors to reach etcd.
                tracing::warn!(open = self.shared.affordable, "no file descriptors left for clients (ulimit -n)");
                tokio::select! {
                    () = self.drain.signaled() => return,
                    () = tokio::time::sleep(ACCEPT_BACKOFF) => continue,
                }
            }
            let ready = tokio::select! {
                biased;
                () = self.drain.signaled() => return,
                ready = descriptor.readable() => ready,
            };
            let Ok(mut ready) = ready else { return };
            let mut failed = false;
            for _ in 0..ACCEPT_BATCH {
                match ready.try_io(|listener| accept(listener.get_ref())) {
                    Ok(Ok(accepted)) => self.admit(accepted, &service),
                    // The client gave up before it was accepted, which says nothing about the next.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => (),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "failed to accept a connection; are there file descriptors left (ulimit -n)?");
                        failed = true;
                        break;
                    }
                    Err(_) => break,
                }
            }
            if failed {
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    fn admit<S: Serve>(&self, descriptor: OwnedFd, service: &S) {
        let limit = self.shared.config.max_connections;
        if limit > 0 && self.shared.open() >= limit {
            tracing::warn!(limit, "refused a connection over --max-connections");
            return;
        }
        let here = &self.shared.threads[self.number].open;
        let (emptiest, open) = self.shared.emptiest();
        // Who has accepted it keeps it unless another has less to do, as moving it costs time.
        let thread = if here.load(Ordering::Relaxed) <= open { self.number } else { emptiest };
        let open = Open::new(&self.shared, thread);
        let accepted = Accepted { listener: self.listener, kind: self.kind, descriptor, _open: open };
        if thread == self.number {
            begin(service, accepted, self.drain.clone());
        } else if let Err(refused) = self.shared.threads[thread].door.try_send(accepted) {
            let mut accepted = refused.into_inner();
            accepted._open = Open::new(&self.shared, self.number);
            begin(service, accepted, self.drain.clone());
        }
    }
}

impl Shared {
    fn open(&self) -> usize {
        self.threads.iter().map(|thread| thread.open.load(Ordering::Relaxed)).sum()
    }

    /// The thread with the fewest connections, and how many these are.
    fn emptiest(&self) -> (usize, usize) {
        let open = self.threads.iter().map(|thread| thread.open.load(Ordering::Relaxed)).enumerate();
        open.min_by_key(|(_, open)| *open).unwrap_or_default()
    }
}

/// Accepts without a look at who it is, and without a second call to make the socket non-blocking.
fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the descriptor is a listener of ours, and null pointers say that the address is not wanted.
    let accepted = unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if accepted < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}
