//! The Watch RPC: a client's watch is a place in a log that all who watch the same range share.
//!
//! A session serves one client stream. It asks the hub which log serves a watch; a feed fills the logs from one
//! upstream stream, and a cursor decides what of a log its client is shown.

use std::{sync::Arc, time::Instant};

use crate::{
    exchange::{Outcome, Replies, Requests},
    rules::caller::Caller,
};

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
mod session;
mod sessions;
mod watches;

use bell::Bell;
use crowd::Crowds;
use hub::Hub;
use session::Session;

/// Serves one client stream to its end.
///
/// Watches are many and live long, so their memory counts. An `async fn` would hold all of its arguments twice, as they
/// came and as its body has them; a block that owns them and lends them out holds each once. Of the caller it holds
/// nothing.
pub fn serve(
    hub: &Arc<Hub>,
    bell: &Arc<Bell>,
    caller: &Caller,
    crowds: Option<Arc<Crowds>>,
    mut requests: Requests,
    mut replies: Replies,
    deadline: Option<Instant>,
) -> impl Future<Output = Outcome> + Send + use<> {
    let mut session = Session::new(hub, bell, caller, crowds);
    async move {
        let status = session.run(&mut requests, &mut replies, deadline).await?;
        replies.fail(&status);
        Ok(status.code())
    }
}
