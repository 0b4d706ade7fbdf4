//! Writes under guards: the owners of the keys that are written are asked to give them up, and waited for.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_proxy_proto::{
    etcdserverpb::{
        DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
        ResponseHeader, ResponseOp, TxnRequest, TxnResponse, response_op::Response,
    },
    mvccpb::KeyValue,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::HeaderMap;
use prost::Message as _;

use super::{
    Answered, Leasing,
    table::{After, Writing},
};
use crate::{
    backoff::Backoff,
    rules::{
        caller::Caller,
        keys::KeyRange,
        leasing::{self, Guarded, Operation, Prefix, Writes, answer::MAX_OPS, range_of},
        namespace::Shape,
        status::{self, Status},
    },
    services::calls::Forward,
};

/// How long a write waits for owners. One that is gone keeps its keys for its TTL, which is a minute unless told
/// otherwise, and may have successors.
const OWNERS_PATIENCE: Duration = Duration::from_secs(150);
/// Between looks whether an owner has given a key up. Mostly the watch on the prefix tells sooner.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(1);
/// Owners that one write asks at a time.
const CONCURRENT_REVOCATIONS: usize = 16;
/// Values that are read back after a transaction. Those of further keys are given up, since each read counts against
/// etcd's limit on operations.
const MAX_READ_BACK: usize = 32;

/// A client's write, and what it may touch.
struct Write {
    operation: Operation,
    message: Bytes,
    writes: Writes,
    /// Leasing keys that the write itself would delete.
    leasing_keys: Vec<KeyRange>,
    /// A put that tells the value and the lease of its key, which then need not be read back. (etcd 3.7 leaves the lease
    /// out where only keys are wanted.)
    put: Option<PutRequest>,
    is_flat: bool,
    /// Reads that may stand after it.
    read_back: usize,
}

/// A leasing key in someone's hands.
struct Held {
    leasing_key: Bytes,
    created: i64,
}

impl Leasing {
    pub(super) async fn write(
        &self,
        to: &Forward<'_>,
        caller: &Caller,
        operation: Operation,
        message: Bytes,
    ) -> Answered {
        let Some(write) = self.understand(operation, message)? else { return Ok(None) };
        let (headers, header, mut responses) = self.carry_out(to, caller, &write).await?;
        let header = Some(header);
        let answer = match operation {
            Operation::Txn if write.is_flat => TxnResponse { header, succeeded: true, responses }.encode_to_vec(),
            _ => match responses.pop().and_then(|response| response.response) {
                Some(Response::ResponsePut(put)) => PutResponse { header, ..put }.encode_to_vec(),
                Some(Response::ResponseDeleteRange(delete)) => DeleteRangeResponse { header, ..delete }.encode_to_vec(),
                Some(Response::ResponseTxn(txn)) => TxnResponse { header, ..txn }.encode_to_vec(),
                _ => return Err(status::unreadable_answer("a transaction without its answers")),
            },
        };
        Ok(Some((headers, answer.into())))
    }

    /// What a request writes; nothing if it writes nothing, or if etcd refuses it as it stands.
    fn understand(&self, operation: Operation, message: Bytes) -> Result<Option<Write>, Status> {
        let mut put = None;
        let mut is_flat = false;
        let mut read_back = MAX_READ_BACK;
        let writes = match operation {
            Operation::Put => {
                let request = PutRequest::decode(message.clone()).map_err(status::malformed)?;
                let writes = Writes::of_put(&request);
                put = Some(request).filter(|put| !put.ignore_value && !put.ignore_lease);
                writes
            }
            Operation::DeleteRange => {
                let request = DeleteRangeRequest::decode(message.clone()).map_err(status::malformed)?;
                Writes::of_delete(&request)
            }
            Operation::Txn => {
                let request = TxnRequest::decode(message.clone()).map_err(status::malformed)?;
                is_flat = request.compare.is_empty() && request.failure.is_empty();
                if is_flat {
                    read_back = read_back.min(MAX_OPS.saturating_sub(request.success.len()));
                }
                Writes::of_txn(&request)
            }
        };
        let Ok(writes) = writes else { return Ok(None) };
        if writes.is_empty() {
            return Ok(None);
        }
        let leasing_keys = writes.ranges.iter().filter_map(|range| self.prefix.inside(range)).collect();
        Ok(Some(Write { operation, message, writes, leasing_keys, put, is_flat, read_back }))
    }

    /// Writes when no other owner is left, and says what etcd answered to the client's own operations.
    async fn carry_out(
        &self,
        to: &Forward<'_>,
        caller: &Caller,
        write: &Write,
    ) -> Result<(HeaderMap, ResponseHeader, Vec<ResponseOp>), Status> {
        let give_up = Instant::now() + OWNERS_PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(1), LAST_LOOK);
        loop {
            let writing = self.table.begin_write(&write.writes.keys, &write.writes.ranges);
            let read_back = write.read_back(&writing);
            let request = self.guarded(write, &writing, &read_back).encode();
            // If it fails here, it may have been carried out: `writing` is dropped and nothing of it is kept.
            let (headers, response) = self.txn(to, caller, request).await?;
            let header = response.header.ok_or_else(|| status::unreadable_answer("no header"))?;
            if response.succeeded {
                let responses = write.done(writing, &read_back, header.revision, response.responses)?;
                return Ok((headers, header, responses));
            }
            writing.held_up();
            if Instant::now() >= give_up {
                return Err(status::leasing_key_held());
            }
            let held = self.held(write, response.responses);
            if held.is_empty() {
                // One of ours was acquired or given up meanwhile.
                backoff.wait().await;
            }
            let asked = stream::iter(held).map(|held| self.wait_for(to, caller, held, write.asks_at_once(), give_up));
            asked.buffer_unordered(CONCURRENT_REVOCATIONS).try_collect::<()>().await?;
        }
    }

    fn guarded<'a>(&self, write: &'a Write, writing: &Writing, read_back: &[Bytes]) -> Guarded<'a> {
        let mut guards = Vec::new();
        let mut otherwise = Vec::new();
        for key in &write.writes.keys {
            let leasing_key = self.prefix.leasing_key(key);
            let range = KeyRange::single(leasing_key.clone());
            guards.push(Prefix::guard(&range, writing.created(key)));
            otherwise.push(leasing::list(&range));
            if write.asks_at_once() {
                otherwise.push(leasing::ask(leasing_key));
            }
        }
        for range in &write.writes.ranges {
            let leasing_range = self.prefix.leasing_range(range);
            guards.push(Prefix::guard(&leasing_range, writing.youngest(range)));
            otherwise.push(leasing::list(&leasing_range));
        }
        // What the write deletes of these is nobody's by then, not ours either.
        for range in &write.leasing_keys {
            guards.push(Prefix::guard(range, 0));
            otherwise.push(leasing::list(range));
        }
        let keys_only = write.put.is_some();
        let reads: Vec<RequestOp> = read_back.iter().map(|key| leasing::read(key.clone(), keys_only)).collect();
        Guarded { operation: write.operation, message: &write.message, guards, reads, otherwise, flat: write.is_flat }
    }

    /// Who holds a write up, of what its guards found.
    fn held(&self, write: &Write, responses: Vec<ResponseOp>) -> Vec<Held> {
        let mut held: HashMap<Bytes, i64> = HashMap::new();
        let lists = responses.into_iter().filter_map(|response| range_of(response.response?));
        for leasing in lists.flatten() {
            let is_deleted = write.leasing_keys.iter().any(|range| range.contains(&leasing.key));
            let ours = self.prefix.key_of(&leasing.key).and_then(|key| self.table.owned_since(&key));
            // With the next try a leasing key of ours does not stand in the way.
            if is_deleted || ours != Some(leasing.create_revision) {
                held.insert(leasing.key, leasing.create_revision);
            }
        }
        held.into_iter().map(|(leasing_key, created)| Held { leasing_key, created }).collect()
    }

    /// Asks an owner for its leasing key and returns when that is gone.
    async fn wait_for(
        &self,
        to: &Forward<'_>,
        caller: &Caller,
        held: Held,
        is_asked: bool,
        give_up: Instant,
    ) -> Result<(), Status> {
        let Held { leasing_key, created } = held;
        let waiter = self.prefix.key_of(&leasing_key).map(|key| self.table.waiter(&key));
        if !is_asked {
            let request = Prefix::revoke(leasing_key.clone(), created).encode_to_vec().into();
            let (_, answer) = self.txn(to, caller, request).await?;
            if !answer.succeeded {
                return Ok(());
            }
        }
        let mut backoff = Backoff::new(FIRST_LOOK, LAST_LOOK);
        loop {
            let news = async {
                match &waiter {
                    Some(waiter) => waiter.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = news => (),
                () = backoff.wait() => (),
            }
            if self.leasing_key(to, caller, &leasing_key).await?.is_none_or(|found| found.create_revision != created) {
                return Ok(());
            }
            if Instant::now() >= give_up {
                return Err(status::leasing_key_held());
            }
        }
    }

    /// What is known of one leasing key, with the client's rights.
    async fn leasing_key(&self, to: &Forward<'_>, caller: &Caller, key: &Bytes) -> Result<Option<KeyValue>, Status> {
        let request = RangeRequest { key: key.clone(), keys_only: true, ..RangeRequest::default() };
        let request = to.namespace.request(Shape::Range, request.encode_to_vec().into()).map_err(status::malformed)?;
        let (_, message) = self.call(to, caller, "/etcdserverpb.KV/Range", request, Shape::RangeResponse).await?;
        let response = RangeResponse::decode(message).map_err(status::unreadable_answer)?;
        Ok(response.kvs.into_iter().next())
    }
}

impl Write {
    /// Whether the guarded write itself asks the owner, since there can be only one that is in the way.
    fn asks_at_once(&self) -> bool {
        self.writes.keys.len() == 1 && self.writes.ranges.is_empty()
    }

    /// The keys whose values must be read after the write, as they are kept and the request does not tell them.
    fn read_back(&self, writing: &Writing) -> Vec<Bytes> {
        match self.operation {
            Operation::DeleteRange => Vec::new(),
            Operation::Put | Operation::Txn => writing.kept().take(self.read_back).cloned().collect(),
        }
    }

    /// Takes over what was read back, and leaves the answers to the client's operations.
    fn done(
        &self,
        writing: Writing,
        read_back: &[Bytes],
        revision: i64,
        mut responses: Vec<ResponseOp>,
    ) -> Result<Vec<ResponseOp>, Status> {
        let Some(own) = responses.len().checked_sub(read_back.len()) else {
            return Err(status::unreadable_answer("a transaction without its answers"));
        };
        let read = responses.split_off(own);
        let mut pairs: HashMap<&Bytes, Option<KeyValue>> = HashMap::new();
        for (key, response) in read_back.iter().zip(read) {
            if let Some(pairs_read) = response.response.and_then(range_of) {
                pairs.insert(key, pairs_read.into_iter().next().map(|pair| self.whole(pair)));
            }
        }
        let is_deleted = self.operation == Operation::DeleteRange;
        writing.done(revision, |key| match pairs.remove(key) {
            Some(pair) => After::Is(pair),
            None if is_deleted => After::Is(None),
            None => After::Unknown,
        });
        Ok(responses)
    }

    /// With what the put tells, which is not read back with the rest.
    fn whole(&self, pair: KeyValue) -> KeyValue {
        match &self.put {
            Some(put) => KeyValue { value: put.value.clone(), lease: put.lease, ..pair },
            None => pair,
        }
    }
}
