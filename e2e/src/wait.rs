//! Waits for what offers no event.

use std::time::{Duration, Instant};

use crate::process::PATIENCE;

/// How often it is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Returns when it holds. A test that waits in vain says for what.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(POLL);
    }
}

/// The same while other tasks go on.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(POLL).await;
    }
}
