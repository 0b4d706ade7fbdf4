//! One connection's bytes, both ways, until both ends have said that there are no more.
//!
//! A silent connection holds no buffer: a small message goes through one buffer that all connections of a thread share,
//! and only what its receiver does not take at once is kept. A stream that fills that buffer goes on through a kernel
//! pipe instead, without being copied into this process and out again.

use std::{
    cell::RefCell,
    io,
    os::fd::AsRawFd,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    time::Interval,
};

use super::pipe::{self, Pipe};
use crate::doors::Socket;

/// The buffer of a thread. In measurements more than this moved nothing faster, and half of it cost a fifth more CPU
/// time per byte of a stream.
const SCRATCH: usize = 64 << 10;
/// A pipe that gets less than this at a time is slower than a copy, as it takes two calls more to set it up.
const WORTH_A_PIPE: usize = 16 << 10;

/// How often a connection of which one half has ended is looked at: is that peer there to take the other half? The kernel
/// knows it once the peer has refused something, at the latest TCP keepalive, so that looking more often finds no more.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Bytes moved, by direction; one for each thread, so that counting costs no shared cache line.
#[derive(Debug, Default)]
pub struct Moved {
    pub to_endpoints: AtomicU64,
    pub to_clients: AtomicU64,
}

/// Moves bytes until both directions have ended, or one of them failed. A half that has ended is passed on as a half: the
/// other may go on for as long as its peers are there, which TCP keepalive finds out. A client that closes looks at first
/// like one that has no more to say; an endpoint that hangs would never end such a connection.
pub async fn relay(mut client: Socket, mut endpoint: Socket, moved: &Moved) -> io::Result<()> {
    let (mut up, mut down) = (Flow::default(), Flow::default());
    let mut look: Option<Pin<Box<Interval>>> = None;
    std::future::poll_fn(|context| {
        let up = up.poll(context, &mut client, &mut endpoint, &moved.to_endpoints)?.is_ready();
        let down = down.poll(context, &mut endpoint, &mut client, &moved.to_clients)?.is_ready();
        if up && down {
            return Poll::Ready(Ok(()));
        }
        if up || down {
            let look = look.get_or_insert_with(|| {
                let mut look = tokio::time::interval(LOOK_INTERVAL);
                look.reset();
                Box::pin(look)
            });
            while look.poll_tick(context).is_ready() {
                // Everything that this peer has sent was read, and it takes nothing any more.
                if has_hung_up(if up { &client } else { &endpoint }) {
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether the peer is known to be gone altogether, not only to have ended its half.
fn has_hung_up(socket: &Socket) -> bool {
    let descriptor = match socket {
        Socket::Tcp(socket) => socket.as_raw_fd(),
        Socket::Unix(socket) => socket.as_raw_fd(),
    };
    // What is asked for is nothing; that it hung up or failed is told without being asked for.
    let mut asked = libc::pollfd { fd: descriptor, events: 0, revents: 0 };
    // SAFETY: the pointer is to one whole pollfd, which the call fills, and it does not wait.
    unsafe { libc::poll(&mut asked, 1, 0) > 0 }
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// What was taken from the sender and not yet handed to the receiver.
    held: Held,
    /// Whether so much comes at a time that a pipe is worth its while.
    is_bulk: bool,
    stage: Stage,
}

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// The bytes from the given place on.
    Copy(Box<[u8]>, usize),
    /// So many bytes in a pipe.
    Piped(Pipe, usize),
}

#[derive(Default, PartialEq)]
enum Stage {
    #[default]
    Moving,
    /// The sender has ended, and the receiver is to be told.
    Ending,
    Ended,
}

impl Flow {
    /// Ready once this direction has ended.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut Socket,
        to: &mut Socket,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.stage == Stage::Ended {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_hand_over(context, to))?;
            if self.stage == Stage::Ending {
                // A receiver that is gone already has no need to be told.
                let _ = ready!(Pin::new(&mut *to).poll_shutdown(context));
                self.stage = Stage::Ended;
                continue;
            }
            let took = match self.is_bulk {
                true => ready!(self.poll_pipe(context, from))?,
                false => ready!(self.poll_copy(context, from, to))?,
            };
            match took {
                0 => self.stage = Stage::Ending,
                took => {
                    count.fetch_add(took as u64, Ordering::Relaxed);
                    self.is_bulk = if self.is_bulk { took >= WORTH_A_PIPE } else { took == SCRATCH };
                }
            }
        }
    }

    /// Hands what is held to the receiver; ready once nothing is held any more.
    fn poll_hand_over(&mut self, context: &mut Context<'_>, to: &mut Socket) -> Poll<io::Result<()>> {
        loop {
            match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Copy(bytes, at) => {
                    *at += ready!(Pin::new(&mut *to).poll_write(context, &bytes[*at..]))?;
                    if *at == bytes.len() {
                        self.held = Held::Nothing;
                    }
                }
                Held::Piped(pipe, left) => {
                    ready!(to.poll_write_ready(context))?;
                    match to.try_io(Interest::WRITABLE, |to| pipe.pour(to, *left)) {
                        Ok(poured) => *left -= poured,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                    if *left == 0
                        && let Held::Piped(pipe, _) = std::mem::take(&mut self.held)
                    {
                        pipe::give_back(pipe);
                    }
                }
            }
        }
    }

    /// Takes what the sender has, hands as much of it on as the receiver takes, and keeps the rest.
    fn poll_copy(&mut self, context: &mut Context<'_>, from: &mut Socket, to: &mut Socket) -> Poll<io::Result<usize>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut taken = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(context, &mut taken))?;
            let taken = taken.filled();
            let mut at = 0;
            while at < taken.len() {
                match Pin::new(&mut *to).poll_write(context, &taken[at..]) {
                    Poll::Ready(wrote) => at += wrote?,
                    Poll::Pending => {
                        self.held = Held::Copy(taken[at..].into(), 0);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(taken.len()))
        })
    }

    /// Takes what the sender has into a pipe.
    fn poll_pipe(&mut self, context: &mut Context<'_>, from: &mut Socket) -> Poll<io::Result<usize>> {
        let pipe = match pipe::take() {
            Ok(pipe) => pipe,
            Err(_) => {
                // Without descriptors for a pipe a copy does as well; a full buffer asks for a pipe again.
                self.is_bulk = false;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        };
        loop {
            match from.poll_read_ready(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    pipe::give_back(pipe);
                    return Poll::Pending;
                }
            }
            match from.try_io(Interest::READABLE, |from| pipe.draw(from)) {
                Ok(0) => {
                    pipe::give_back(pipe);
                    return Poll::Ready(Ok(0));
                }
                Ok(drawn) => {
                    self.held = Held::Piped(pipe, drawn);
                    return Poll::Ready(Ok(drawn));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream, UnixStream},
    };

    use super::*;

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("it listens"), far.expect("it was dialled").0)
    }

    /// Bytes that are nowhere the same as shortly before, so that a swap is seen.
    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect()
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_both_ways_at_any_size_and_pace() {
        for length in [1, SCRATCH - 1, SCRATCH, SCRATCH + 1, 8 << 20] {
            let ((client, near), (far, endpoint)) = (tcp_pair().await, tcp_pair().await);
            let moved = Moved::default();
            let sent = pattern(length);
            let talk = async |mut socket: TcpStream| {
                let (mut read, mut write) = socket.split();
                let mut received = Vec::new();
                let sending = async {
                    write.write_all(&sent).await.expect("the relay takes it");
                    write.shutdown().await.expect("the half can be closed");
                };
                let receiving = async {
                    read.read_to_end(&mut received).await.expect("the relay brings it");
                };
                tokio::join!(sending, receiving);
                assert!(received == sent, "{length} bytes arrive changed");
            };
            let (relayed, (), ()) =
                tokio::join!(relay(Socket::Tcp(near), Socket::Tcp(far), &moved), talk(client), talk(endpoint));
            relayed.expect("both ends ended well");
            let counted = [&moved.to_endpoints, &moved.to_clients].map(|count| count.load(Ordering::Relaxed));
            assert_eq!(counted, [length as u64; 2]);
        }
    }

    #[tokio::test]
    async fn a_half_that_is_closed_is_passed_on_while_the_other_goes_on() {
        let (mut client, near) = tcp_pair().await;
        let (far, mut endpoint) = UnixStream::pair().expect("a pair of sockets");
        let relaying =
            tokio::spawn(async move { relay(Socket::Tcp(near), Socket::Unix(far), &Moved::default()).await });
        client.write_all(b"question").await.expect("the relay takes it");
        client.shutdown().await.expect("the half can be closed");
        let mut question = Vec::new();
        endpoint.read_to_end(&mut question).await.expect("the end is passed on");
        assert_eq!(question, b"question");
        endpoint.write_all(b"answer").await.expect("the other half is open");
        drop(endpoint);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("the answer comes");
        assert_eq!(answer, b"answer");
        relaying.await.expect("no panic").expect("both ends ended well");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_is_found_out_though_the_endpoint_hangs() {
        let ((mut client, near), (far, mut endpoint)) = (tcp_pair().await, tcp_pair().await);
        let relaying = tokio::spawn(async move { relay(Socket::Tcp(near), Socket::Tcp(far), &Moved::default()).await });
        client.shutdown().await.expect("the half can be closed");
        assert_eq!(endpoint.read(&mut [0]).await.expect("the end is passed on"), 0);
        tokio::time::sleep(LOOK_INTERVAL * 3).await;
        assert!(!relaying.is_finished(), "a client that only said its all may wait for as long as it likes");
        // As the kernel answers for a process that is gone when keepalive asks.
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(client);
        relaying.await.expect("no panic").expect("nobody is left to be told");

        let (mut client, near) = UnixStream::pair().expect("a pair of sockets");
        let (far, mut endpoint) = UnixStream::pair().expect("a pair of sockets");
        let relaying =
            tokio::spawn(async move { relay(Socket::Unix(near), Socket::Unix(far), &Moved::default()).await });
        client.write_all(b"question").await.expect("the relay takes it");
        drop(client);
        let mut question = Vec::new();
        endpoint.read_to_end(&mut question).await.expect("the end is passed on");
        assert_eq!(question, b"question");
        relaying.await.expect("no panic").expect("nobody is left to be told");
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_read_holds_its_sender_up() {
        let ((mut client, near), (far, endpoint)) = (tcp_pair().await, tcp_pair().await);
        let relaying = tokio::spawn(async move { relay(Socket::Tcp(near), Socket::Tcp(far), &Moved::default()).await });
        let chunk = vec![0; 1 << 20];
        // Kernel buffers hold some megabytes; a relay that read on without end would take all of this.
        let pushing = async {
            for _ in 0..512 {
                client.write_all(&chunk).await.expect("the relay is there");
            }
        };
        let outcome = tokio::time::timeout(std::time::Duration::from_millis(500), pushing).await;
        assert!(outcome.is_err(), "the relay swallowed what nobody reads");
        drop((client, endpoint));
        // Whether the break is seen as an error or as an end depends on who is looked at first.
        let _ = relaying.await.expect("no panic");
    }
}
