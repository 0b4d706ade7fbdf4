//! A TCP connection to a name that may stand for several addresses, of which some may not answer.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::net::TcpStream;

/// The head start of an address before the next one is tried beside it, as in RFC 8305. An address where nobody answers
/// would otherwise use up all the time there is: that of a machine without power stands in DNS for a while.
const HEAD_START: Duration = Duration::from_millis(300);
/// Addresses of one name that are tried; a name that has more has others that answer.
const MAX_ADDRESSES: usize = 16;

/// Looks the name up, and connects to the first of its addresses that answers.
pub async fn connect(host_port: &str) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(host_port).await?.collect();
    first_of(&addresses).await
}

/// Connects to the first address that answers; an attempt begins when the one before it failed or had its head start.
pub async fn first_of(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    if let [only] = addresses {
        return TcpStream::connect(only).await;
    }
    let mut waiting = addresses.iter().take(MAX_ADDRESSES);
    let mut under_way = FuturesUnordered::new();
    let mut last = io::Error::other("the name has no address");
    loop {
        let has_more = match waiting.next() {
            Some(address) => {
                under_way.push(TcpStream::connect(address));
                waiting.len() > 0
            }
            None => false,
        };
        tokio::select! {
            ended = under_way.next() => match ended {
                Some(Ok(socket)) => return Ok(socket),
                Some(Err(error)) => last = error,
                None => return Err(last),
            },
            () = tokio::time::sleep(HEAD_START), if has_more => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd};

    use super::*;

    /// A listener whose queue is full leaves the next one without an answer, as a machine without power does.
    fn deaf() -> (TcpListener, Vec<std::net::TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // SAFETY: listen takes two integers and touches no memory; called again, it makes the queue shorter.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let address = listener.local_addr().expect("a bound listener has an address");
        let wait = Duration::from_millis(100);
        let filling = std::iter::from_fn(|| std::net::TcpStream::connect_timeout(&address, wait).ok()).collect();
        (listener, filling)
    }

    #[tokio::test]
    async fn addresses_where_nobody_answers_or_nobody_listens_do_not_keep_from_the_next() {
        let (silent, _queue) = deaf();
        let closed = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let open = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addresses = [&silent, &closed, &open].map(|l| l.local_addr().expect("a bound listener has an address"));
        drop(closed);
        let connecting = tokio::time::timeout(Duration::from_secs(30), first_of(&addresses));
        let socket = connecting.await.expect("the last address answers").expect("it accepts");
        assert_eq!(socket.peer_addr().expect("it is connected"), addresses[2]);
    }

    #[tokio::test]
    async fn a_name_without_an_address_that_accepts_says_why() {
        let closed = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = closed.local_addr().expect("a bound listener has an address");
        drop(closed);
        for addresses in [vec![address], vec![address; 3]] {
            let error = first_of(&addresses).await.expect_err("nobody listens");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
        assert!(first_of(&[]).await.is_err());
    }
}
