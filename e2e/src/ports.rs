//! Free ports of 127.0.0.1, from below the range that the kernel takes outgoing ports from, so that a port stays free
//! between the moment when it is chosen here and the moment when the child binds it.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Linux takes outgoing ports from 32768 up; etcd's own suites use ports from 20000 up.
const FIRST: u32 = 10_000;
const COUNT: u32 = 9_900;

/// Test programs run side by side; an odd stride spreads their process ids, which are often neighbours.
const STRIDE: u32 = 397;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port that nobody listens on, and that no other caller in this process gets.
pub fn free() -> u16 {
    for _ in 0..COUNT {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id().wrapping_mul(STRIDE).wrapping_add(turn)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("the range lies below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// A free `127.0.0.1:port`.
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free())
}
