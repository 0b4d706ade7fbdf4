//! A TCP hop between two parts, which a test can freeze or cut: 127.0.0.1 has no cable to pull.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ports;

/// How often a frozen hop looks whether it has thawed or ended.
const POLL: Duration = Duration::from_millis(10);

/// A port of its own that leads to `target` until it is told otherwise.
pub struct Forwarder {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    /// Bytes are taken and kept, as by a peer that lost its power: no answer, no reset.
    frozen: AtomicBool,
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    /// Nobody gets through.
    closed: bool,
    /// Members of a cluster that do not get through, by their ids in hexadecimal.
    refused: HashSet<String>,
    open: Vec<Link>,
}

struct Link {
    sender: Option<String>,
    ends: [TcpStream; 2],
}

impl Forwarder {
    pub fn start(target: &str) -> Forwarder {
        let address = ports::free_address();
        let listener =
            TcpListener::bind(&address).unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
        let shared = Arc::new(Shared::default());
        let (accepting, target) = (shared.clone(), target.to_owned());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(socket), shared, target) = (socket, accepting.clone(), target.clone()) else { continue };
                std::thread::spawn(move || shared.serve(socket, &target));
            }
        });
        Forwarder { address, shared }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connections stay open and new ones are accepted, but nothing gets through.
    pub fn freeze(&self) {
        self.shared.frozen.store(true, Ordering::Relaxed);
    }

    /// What was held back goes on its way.
    pub fn thaw(&self) {
        self.shared.frozen.store(false, Ordering::Relaxed);
    }

    /// Ends all connections and lets no new one through.
    pub fn close(&self) {
        self.shared.change(|links| links.closed = true);
    }

    /// Ends the connections of one etcd member, told by the id that it sends to its peers, and lets none through.
    pub fn refuse(&self, member: &str) {
        self.shared.change(|links| {
            links.refused.insert(member.to_owned());
        });
    }

    /// Lets everybody through again.
    pub fn reopen(&self) {
        self.shared.change(|links| {
            links.closed = false;
            links.refused.clear();
        });
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.close();
        // Wakes the acceptor, which then ends.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Links {
    fn allows(&self, sender: Option<&String>) -> bool {
        !self.closed && sender.is_none_or(|sender| !self.refused.contains(sender))
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Links)) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut links);
        let open = std::mem::take(&mut links.open);
        let (kept, cut): (Vec<_>, Vec<_>) = open.into_iter().partition(|link| links.allows(link.sender.as_ref()));
        links.open = kept;
        for end in cut.iter().flat_map(|link| &link.ends) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Clients of HTTP, 1 or 2, speak first, and members of etcd say there who they are.
    fn serve(self: Arc<Self>, mut near: TcpStream, target: &str) {
        let mut first = [0; 4096];
        let Ok(length @ 1..) = near.read(&mut first) else { return };
        let text = String::from_utf8_lossy(&first[..length]);
        let sender = text.lines().find_map(|line| line.strip_prefix("X-Server-From: ")).map(str::to_owned);
        self.hold();
        let Ok(mut far) = TcpStream::connect(target) else { return };
        let (Ok(near_end), Ok(far_end)) = (near.try_clone(), far.try_clone()) else { return };
        {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            if !links.allows(sender.as_ref()) {
                return;
            }
            links.open.push(Link { sender, ends: [near_end, far_end] });
        }
        if far.write_all(&first[..length]).is_err() {
            return;
        }
        let (Ok(near_reader), Ok(far_writer)) = (near.try_clone(), far.try_clone()) else { return };
        let upward = self.clone();
        std::thread::spawn(move || upward.copy(near_reader, far_writer));
        self.copy(far, near);
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            self.hold();
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn hold(&self) {
        while self.frozen.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(POLL);
        }
    }
}
