//! Reads that etcd answers: one of a kind is under way at a time, and those who come meanwhile go together.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Cache, MAX_PART, TOO_LARGE_FOR,
    flights::{Flight, Key, Others, Place, Turn},
};
use crate::{
    exchange::{Outcome, Replies, Requests, until},
    rules::{caller::Caller, methods::Method, status::Code, wire},
    services::calls::{Forward, fail},
    upstream::Collected,
};

/// How long one read on behalf of many may take; clients give up on their own before.
const SHARED_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A read on its way to etcd.
pub struct Read<'a> {
    pub forward: &'a Forward<'a>,
    pub caller: &'a Caller,
    pub method: &'static Method,
    pub requests: Requests,
    pub body: Bytes,
    pub replies: Replies,
    pub deadline: Option<Instant>,
}

impl Read<'_> {
    /// Sends it by itself. `until_answered` is dropped as soon as etcd begins to answer.
    async fn send(self, until_answered: impl Sized) -> Outcome {
        let Self { forward, caller, method, requests, body, replies, deadline } = self;
        forward.send(caller, method, requests, body, replies, deadline, until_answered).await
    }
}

impl Cache {
    /// Sends a read to etcd, together with those who ask the same.
    pub(super) async fn fly(self: &Arc<Self>, mut read: Read<'_>, key: Key) -> Outcome {
        let name = self.frequency.name(&key);
        if self.is_put_off(name) {
            return read.send(()).await;
        }
        let floor = read.caller.connection.shown.revision();
        loop {
            let mut told = match self.flights.board(key.clone()) {
                Place::Alone(flight) => return read.send(flight).await,
                Place::Waiting(told) => told,
            };
            loop {
                let turn = tokio::select! {
                    biased;
                    turn = until(read.deadline, async { Ok((&mut told).await) }) => turn,
                    gone = read.replies.gone() => return Err(gone),
                };
                match turn {
                    Ok(Ok(Turn::Lead(flight, others))) if others.is_empty() => return read.send(flight).await,
                    Ok(Ok(Turn::Lead(flight, mut others))) => {
                        told = others.join();
                        self.lead(&read, &key, name, flight, others);
                    }
                    Ok(Ok(Turn::Answer(Some(Ok(collected))))) if !is_older(&collected, floor) => {
                        return read.forward.reply(read.caller, read.method, collected, read.replies).await;
                    }
                    Ok(Ok(Turn::Answer(Some(Err(status))))) => return Ok(fail(read.replies, &status)),
                    Ok(Ok(Turn::Answer(_))) => return read.send(()).await,
                    // Who was to tell has left; others may be about to read.
                    Ok(Err(_)) => break,
                    Err(status) => return Ok(fail(read.replies, &status)),
                }
            }
        }
    }

    /// Reads once for several, in a task that none of them can end by leaving.
    fn lead(self: &Arc<Self>, read: &Read<'_>, key: &Key, name: u64, flight: Flight, others: Others) {
        self.metrics.reads_merged.inc_by(others.len() as u64 - 1);
        let opened = read.forward.open(read.method, &read.requests, &read.body);
        let metadata = key.credentials.metadata();
        let caller = Caller { connection: read.caller.connection.clone(), metadata };
        let (cache, upstream, method) = (self.clone(), read.forward.upstream.clone(), read.method);
        let body = read.body.clone();
        let limit = self.config.max_bytes / MAX_PART;
        tokio::spawn(async move {
            let answer = tokio::time::timeout(SHARED_READ_TIMEOUT, async {
                let answer = upstream.call(&caller, method, opened?.unwrap_or(body)).await?;
                answer.collect(limit.min(upstream.limits().max_answer)).await
            });
            let answer = match answer.await {
                Ok(Err(status)) if status.code() == Code::ResourceExhausted => {
                    cache.put_off(name, TOO_LARGE_FOR);
                    None
                }
                Ok(answer) => Some(answer),
                Err(_) => None,
            };
            others.tell(&answer);
            drop(flight);
        });
    }
}

/// Whether an answer that was asked for another caller's sake is behind what this one has been shown.
fn is_older(collected: &Collected, floor: i64) -> bool {
    let revision = collected.message.as_deref().and_then(wire::header_revision);
    revision.is_some_and(|revision| revision < floor)
}
