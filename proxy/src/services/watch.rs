//! The Watch RPC.

use std::sync::Arc;

use crate::{
    exchange::{Outcome, Replies, Requests},
    rules::caller::Caller,
};

use super::calls;

pub mod hub;

use hub::Hub;

/// Serves one client stream to its end.
pub async fn serve(hub: &Arc<Hub>, caller: &Caller, requests: Requests, replies: Replies) -> Outcome {
    calls::forward_unknown(hub.upstream(), caller, "/etcdserverpb.Watch/Watch", requests, replies).await
}
