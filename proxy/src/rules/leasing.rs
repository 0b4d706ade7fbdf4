//! The leasing protocol of etcd's clientv3: which keys a request writes, the transactions that acquire, guard and give
//! up a key, and what their answers mean.
//!
//! Who owns the leasing key of a key, which is that key behind the leasing prefix, may keep the key's value, because
//! every writer that knows the protocol writes under a guard: the leasing key must not be there, or be the writer's own.
//! A writer that is held up puts `REVOKE` into the leasing key, and its owner then forgets the value and deletes it.
//! All words on the wire are those of `leasing.NewKV`, so that both kinds of owners give way to each other.

pub mod answer;

use bytes::{Bytes, BytesMut};
use etcd_proxy_proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
        response_op::Response,
    },
    mvccpb::KeyValue,
};
use prost::Message as _;

use super::{
    keys::{KeyRange, NUL},
    namespace::Namespace,
    wire,
};

/// What a leasing key holds when its owner is asked to give it up.
pub const REVOKE: &[u8] = b"REVOKE";

/// Where leasing keys stand: inside the namespace, as in etcd's proxy, each behind the leasing prefix.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// From a client's key to its leasing key, both as the client would see them.
    seen: Namespace,
    /// From a client's key to its leasing key as etcd has it.
    stored: Namespace,
}

impl Prefix {
    pub fn new(namespace: &Namespace, prefix: &str) -> Self {
        let stored = [&namespace.prefix()[..], prefix.as_bytes()].concat();
        Self { seen: Namespace::new(prefix.to_owned()), stored: Namespace::new(stored) }
    }

    /// The leasing key of a key.
    pub fn leasing_key(&self, key: &Bytes) -> Bytes {
        self.seen.prefix_key(key)
    }

    /// The leasing keys of a range of keys.
    pub fn leasing_range(&self, range: &KeyRange) -> KeyRange {
        self.seen.prefix_range(range)
    }

    /// The leasing keys that are themselves in a range of keys, as in "all keys".
    pub fn inside(&self, range: &KeyRange) -> Option<KeyRange> {
        let all = self.leasing_range(&KeyRange::all());
        if range.is_single() || !range.overlaps(&all) {
            return None;
        }
        let end = match (range.range_end(), all.range_end()) {
            (end, other) if *end == *NUL => other,
            (end, other) if *other == *NUL => end,
            (end, other) => end.min(other),
        };
        KeyRange::of_request(range.key().max(all.key()).clone(), end).ok()
    }

    /// The key that a leasing key is about, both as the client would see them.
    pub fn key_of(&self, leasing_key: &[u8]) -> Option<Bytes> {
        self.seen.strip_key(leasing_key).map(Bytes::copy_from_slice)
    }

    /// The same of a leasing key as etcd has it.
    pub fn key_of_stored(&self, leasing_key: &[u8]) -> Option<Bytes> {
        self.stored.strip_key(leasing_key).map(Bytes::copy_from_slice)
    }

    /// All leasing keys as etcd has them.
    pub fn all_stored(&self) -> KeyRange {
        self.stored.prefix_range(&KeyRange::all())
    }

    /// Whether a read may be answered from what is kept: of one key, as it is now. Leasing keys themselves are not
    /// leased, and what etcd would refuse is left to etcd.
    pub fn may_lease(&self, request: &RangeRequest) -> bool {
        answer::is_plain(request) && self.key_of(&request.key).is_none()
    }

    /// Makes the key ours, if nobody owns it and no lease can delete it, and reads it in any case.
    pub fn acquire(&self, key: &Bytes, lease: i64) -> TxnRequest {
        let leasing_key = self.leasing_key(key);
        let read = read(key.clone(), false);
        let own = PutRequest { key: leasing_key.clone(), lease, ..PutRequest::default() };
        TxnRequest {
            compare: vec![
                compare(
                    leasing_key.clone(),
                    CompareResult::Equal,
                    CompareTarget::Create,
                    TargetUnion::CreateRevision(0),
                ),
                compare(key.clone(), CompareResult::Equal, CompareTarget::Lease, TargetUnion::Lease(0)),
            ],
            success: vec![read.clone(), op(Request::RequestPut(own))],
            failure: vec![
                read,
                op(Request::RequestRange(RangeRequest { key: leasing_key, ..RangeRequest::default() })),
            ],
        }
    }

    /// Holds as long as no leasing key of the range is younger than `created`, where 0 means that there is none at all.
    pub fn guard(leasing_range: &KeyRange, created: i64) -> Compare {
        let union = TargetUnion::CreateRevision(created.saturating_add(1));
        let guard = compare(leasing_range.key().clone(), CompareResult::Less, CompareTarget::Create, union);
        Compare { range_end: leasing_range.range_end(), ..guard }
    }

    /// Asks for one leasing key, if it is still the one that was seen.
    pub fn revoke(leasing_key: Bytes, created: i64) -> TxnRequest {
        let union = TargetUnion::CreateRevision(created);
        TxnRequest {
            compare: vec![compare(leasing_key.clone(), CompareResult::Equal, CompareTarget::Create, union)],
            success: vec![ask(leasing_key)],
            failure: Vec::new(),
        }
    }

    /// Gives leasing keys up, each only as the one that was acquired: a request that is late must not take away what was
    /// acquired since. The keys are spelled as etcd has them.
    pub fn release(&self, keys: &[(Bytes, i64)]) -> TxnRequest {
        let give_up = |(key, created): &(Bytes, i64)| {
            let key = self.stored.prefix_key(key);
            let union = TargetUnion::CreateRevision(*created);
            let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
            op(Request::RequestTxn(TxnRequest {
                compare: vec![compare(key, CompareResult::Equal, CompareTarget::Create, union)],
                success: vec![op(Request::RequestDeleteRange(delete))],
                failure: Vec::new(),
            }))
        };
        TxnRequest { success: keys.iter().map(give_up).collect(), ..TxnRequest::default() }
    }
}

/// Puts `REVOKE` into a leasing key that is there, without touching the lease that it hangs on.
pub fn ask(leasing_key: Bytes) -> RequestOp {
    let put =
        PutRequest { key: leasing_key, value: Bytes::from_static(REVOKE), ignore_lease: true, ..PutRequest::default() };
    op(Request::RequestPut(put))
}

/// Reads one key, or what is known of it besides its value.
pub fn read(key: Bytes, keys_only: bool) -> RequestOp {
    op(Request::RequestRange(RangeRequest { key, keys_only, ..RangeRequest::default() }))
}

/// Reads what is known of the leasing keys of a range besides their values.
pub fn list(leasing_range: &KeyRange) -> RequestOp {
    let (key, range_end) = (leasing_range.key().clone(), leasing_range.range_end());
    op(Request::RequestRange(RangeRequest { key, range_end, keys_only: true, ..RangeRequest::default() }))
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn compare(key: Bytes, result: CompareResult, target: CompareTarget, union: TargetUnion) -> Compare {
    Compare { key, result: result.into(), target: target.into(), target_union: Some(union), range_end: Bytes::new() }
}

/// What an acquisition found.
#[derive(Debug, PartialEq)]
pub struct Acquired {
    pub header: ResponseHeader,
    pub pair: Option<KeyValue>,
    pub ownership: Ownership,
}

/// Whose the leasing key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Ours, since the revision at which its leasing key was created.
    Ours { created: i64 },
    /// Ours, but it must be given up.
    Unwanted { created: i64 },
    /// Someone else's, or nobody's since a lease may delete the key.
    Refused,
}

impl Acquired {
    /// Reads the answer to [`Prefix::acquire`]; nothing if it is none.
    pub fn read(answer: TxnResponse, lease: i64) -> Option<Self> {
        let header = answer.header?;
        let mut responses = answer.responses.into_iter();
        let pair = range_of(responses.next()?.response?)?.into_iter().next();
        let ownership = if answer.succeeded {
            Ownership::Ours { created: header.revision }
        } else {
            match range_of(responses.next()?.response?)?.into_iter().next() {
                // An acquisition before this one, whose answer was lost.
                Some(leasing) if leasing.lease == lease => {
                    let created = leasing.create_revision;
                    let wanted = leasing.value != REVOKE && pair.as_ref().is_none_or(|pair| pair.lease == 0);
                    if wanted { Ownership::Ours { created } } else { Ownership::Unwanted { created } }
                }
                _ => Ownership::Refused,
            }
        };
        Some(Self { header, pair, ownership })
    }
}

/// The key-values of an answer to a Range.
pub fn range_of(response: Response) -> Option<Vec<KeyValue>> {
    match response {
        Response::ResponseRange(range) => Some(range.kvs),
        _ => None,
    }
}

/// The keys that a request may write, whichever way its comparisons turn out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    pub keys: Vec<Bytes>,
    pub ranges: Vec<KeyRange>,
}

/// A request that etcd refuses before it looks at any key, in words of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

impl Writes {
    pub fn of_put(request: &PutRequest) -> Result<Self, Refused> {
        let mut writes = Self::default();
        writes.add(request.key.clone(), Bytes::new())?;
        Ok(writes)
    }

    pub fn of_delete(request: &DeleteRangeRequest) -> Result<Self, Refused> {
        let mut writes = Self::default();
        writes.add(request.key.clone(), request.range_end.clone())?;
        Ok(writes)
    }

    /// All that any branch writes, those of transactions within it too.
    pub fn of_txn(request: &TxnRequest) -> Result<Self, Refused> {
        let mut writes = Self::default();
        writes.add_txn(request)?;
        writes.keys.sort_unstable();
        writes.keys.dedup();
        Ok(writes)
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }

    /// As deep as the decoder lets messages nest.
    fn add_txn(&mut self, txn: &TxnRequest) -> Result<(), Refused> {
        for op in txn.success.iter().chain(&txn.failure) {
            match op.request.as_ref().ok_or(Refused)? {
                Request::RequestRange(request) if request.key.is_empty() => return Err(Refused),
                Request::RequestRange(_) => (),
                Request::RequestPut(request) => self.add(request.key.clone(), Bytes::new())?,
                Request::RequestDeleteRange(request) => self.add(request.key.clone(), request.range_end.clone())?,
                Request::RequestTxn(txn) => self.add_txn(txn)?,
            }
        }
        Ok(())
    }

    fn add(&mut self, key: Bytes, range_end: Bytes) -> Result<(), Refused> {
        let range = KeyRange::of_request(key, range_end).map_err(|_| Refused)?;
        if range.is_single() {
            self.keys.push(range.key().clone());
        } else if !range.is_empty() && !self.ranges.contains(&range) {
            self.ranges.push(range);
        }
        Ok(())
    }
}

/// How a write stands in the transaction that guards it, by the number of its field in `RequestOp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Put = 2,
    DeleteRange = 3,
    Txn = 4,
}

/// A client's write under guards, with reads after it. The client's message is taken over as it stands, unknown fields
/// and all.
#[derive(Clone, Debug)]
pub struct Guarded<'a> {
    pub operation: Operation,
    pub message: &'a [u8],
    pub guards: Vec<Compare>,
    pub reads: Vec<RequestOp>,
    /// What is asked if a guard does not hold.
    pub otherwise: Vec<RequestOp>,
    /// A transaction of one branch without conditions, whose operations stand beside the reads: etcd counts what is
    /// nested twice against its limit on operations.
    pub flat: bool,
}

const TXN_SUCCESS: u32 = 2;

impl Guarded<'_> {
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::new();
        if self.flat {
            // Messages of one type are merged by standing one after the other.
            out.extend_from_slice(self.message);
        } else {
            let field = self.operation as u32;
            let op_length = wire::bytes_field_len(field, self.message.len());
            wire::put_bytes_header(&mut out, TXN_SUCCESS, op_length);
            wire::put_bytes_header(&mut out, field, self.message.len());
            out.extend_from_slice(self.message);
        }
        let rest = TxnRequest { compare: self.guards, success: self.reads, failure: self.otherwise };
        out.extend_from_slice(&rest.encode_to_vec());
        out.freeze()
    }
}

#[cfg(test)]
mod tests;
