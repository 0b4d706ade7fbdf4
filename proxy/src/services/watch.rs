//! The Watch RPC: a client's watch is a place in a log that all who watch the same range share.
//!
//! A session serves one client stream. It asks the hub which log serves a watch; a feed fills the logs from one
//! upstream stream, and a cursor decides what of a log its client is shown.

use std::time::Instant;

use crate::exchange::{Outcome, Replies, Requests};

pub mod bell;
pub mod crowd;
mod cursor;
mod directory;
mod feed;
pub mod hub;
mod inbox;
#[cfg(test)]
mod law;
pub mod live;
mod log;
mod ranges;
pub mod reader;
mod sayings;
mod seen;
pub mod session;
mod sessions;
mod watches;

use session::Session;

/// Serves one client stream to its end, and says how it ended.
///
/// Watches are many and live long, so their memory counts. An `async fn` would hold all of its arguments twice, as they
/// came and as its body has them; a block that owns them and lends them out holds each once. For the same reason it is
/// the whole of its task.
pub fn serve<E: FnOnce(Outcome) + Send + 'static>(
    mut session: Session,
    mut requests: Requests,
    mut replies: Replies,
    deadline: Option<Instant>,
    ended: E,
) -> impl Future<Output = ()> + Send + use<E> {
    let mut passed = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())));
    async move {
        let outcome = session.run(&mut requests, &mut replies, &mut passed).await.map(|status| {
            replies.fail(&status);
            status.code()
        });
        // What its watches held is given back before the call is noted as ended.
        drop(session);
        ended(outcome);
    }
}
