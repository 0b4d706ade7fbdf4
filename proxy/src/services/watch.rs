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
mod session;

use bell::Bell;
use hub::Hub;
use session::Session;

/// Serves one client stream to its end.
pub async fn serve(
    hub: &Arc<Hub>,
    bell: &Arc<Bell>,
    caller: &Caller,
    requests: Requests,
    replies: Replies,
    deadline: Option<Instant>,
) -> Outcome {
    Session::new(hub, bell, caller).run(requests, replies, deadline).await
}
