//! Leases of a tenant that has leases of its own: their ids are made here, and no others exist to it.

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{LeaseGrantRequest, LeaseLeasesResponse, LeaseTimeToLiveRequest};
use http::HeaderMap;
use prost::Message as _;

use crate::{
    rules::{
        caller::Caller,
        framing,
        methods::{self, Method},
        namespace::Shape,
        status::{self, Status},
        tenant::leases::LeaseBlock,
        wire,
    },
    upstream::{Collected, Upstream},
};

/// How often another id is tried when the one that was made is taken. A tenant with a million leases has a chance of
/// one in 10^17 to be refused after so many.
const MAX_TRIES: u32 = 8;
/// What etcd gives to a Lock or a Campaign that names no lease.
const SESSION_TTL_SECONDS: i64 = 60;

/// The field `ID` of a LeaseTimeToLiveResponse.
const ID: u32 = 2;

/// LeaseGrant: without an id of the client's choice, one of the tenant's; with one that is not the tenant's, a refusal.
pub async fn grant(
    upstream: &Upstream,
    caller: &Caller,
    block: LeaseBlock,
    request: Bytes,
) -> Result<(HeaderMap, Bytes), Status> {
    let request = LeaseGrantRequest::decode(request).map_err(status::malformed)?;
    let collected = grant_own(upstream, caller, block, request).await?;
    Ok((collected.headers.clone(), collected.into_message()?))
}

async fn grant_own(
    upstream: &Upstream,
    caller: &Caller,
    block: LeaseBlock,
    mut request: LeaseGrantRequest,
) -> Result<Collected, Status> {
    let method = methods::find("/etcdserverpb.Lease/LeaseGrant").expect("a row of the table");
    let is_chosen = request.id != 0;
    if is_chosen && !block.owns(request.id) {
        return Err(status::foreign_lease_id());
    }
    let mut tries = 0;
    loop {
        if !is_chosen {
            request.id = block.make(random());
        }
        let collected = ask(upstream, caller, method, request.encode_to_vec()).await?;
        tries += 1;
        let is_taken =
            status::of_trailers(&collected.trailers).is_some_and(|status| status.message() == status::LEASE_EXISTS);
        if is_chosen || !is_taken || tries >= MAX_TRIES {
            return Ok(collected);
        }
    }
}

/// LeaseTimeToLive: of a lease that is not the tenant's as of one that does not exist.
pub async fn time_to_live(
    upstream: &Upstream,
    caller: &Caller,
    method: &'static Method,
    request: Bytes,
) -> Result<(HeaderMap, Bytes), Status> {
    let asked = LeaseTimeToLiveRequest::decode(request.clone()).map_err(status::malformed)?.id;
    let request = caller.namespace().request(Shape::Lease, request).map_err(status::malformed)?;
    let collected = ask(upstream, caller, method, request.into()).await?;
    let headers = collected.headers.clone();
    let answer = collected.into_message()?;
    let answer =
        caller.namespace().response(Shape::LeaseTimeToLiveResponse, answer).map_err(status::unreadable_answer)?;
    // The client hears of the lease that it asked for.
    Ok((headers, wire::with_int64(&answer, ID, asked).map_err(status::unreadable_answer)?.into()))
}

/// LeaseLeases: those of the tenant.
pub async fn list(
    upstream: &Upstream,
    caller: &Caller,
    block: LeaseBlock,
    method: &'static Method,
    request: Bytes,
) -> Result<(HeaderMap, Bytes), Status> {
    let collected = ask(upstream, caller, method, request.into()).await?;
    let headers = collected.headers.clone();
    let mut response = LeaseLeasesResponse::decode(collected.into_message()?).map_err(status::unreadable_answer)?;
    response.leases.retain(|lease| block.owns(lease.id));
    Ok((headers, response.encode_to_vec().into()))
}

/// Whether etcd makes a lease for a request of this shape that names none.
pub fn makes_lease(shape: Shape) -> bool {
    matches!(shape, Shape::Lock | Shape::Campaign | Shape::Proclaim | Shape::Resign)
}

/// A request that etcd would make a lease for, with one of the tenant's, since one that etcd makes would be nobody's.
pub async fn with_lease(
    upstream: &Upstream,
    caller: &Caller,
    block: LeaseBlock,
    shape: Shape,
    request: Bytes,
) -> Result<Bytes, Status> {
    const LEADER: u32 = 1;
    const LEASE: u32 = 2;
    const LEASE_OF_LEADER: u32 = 4;
    let is_led = matches!(shape, Shape::Proclaim | Shape::Resign);
    let lease = if is_led {
        match leader(&request, LEADER).map_err(status::malformed)? {
            Some(leader) => wire::last_int64(&leader, LEASE_OF_LEADER),
            // etcd refuses it.
            None => return Ok(request),
        }
    } else {
        wire::last_int64(&request, LEASE)
    };
    if lease.map_err(status::malformed)? != 0 {
        return Ok(request);
    }
    // A Resign needs none; etcd makes one all the same and leaves it to expire.
    let lease = if shape == Shape::Resign {
        block.nobody()
    } else {
        let grant = LeaseGrantRequest { ttl: SESSION_TTL_SECONDS, id: 0 };
        let granted = grant_own(upstream, caller, block, grant).await?.into_message()?;
        wire::last_int64(&granted, ID).map_err(status::unreadable_answer)?
    };
    // What comes last counts, and a leader in two pieces is one.
    let mut out = request.to_vec();
    if is_led {
        let mut piece = Vec::new();
        wire::put_varint_field(&mut piece, LEASE_OF_LEADER, lease as u64);
        wire::put_bytes_header(&mut out, LEADER, piece.len());
        out.extend(piece);
    } else {
        wire::put_varint_field(&mut out, LEASE, lease as u64);
    }
    Ok(out.into())
}

/// All pieces of the leader in one, if there is any.
fn leader(request: &[u8], number: u32) -> Result<Option<Vec<u8>>, wire::Malformed> {
    let mut whole: Option<Vec<u8>> = None;
    for field in wire::fields(request) {
        if let Some(piece) = field?.bytes(number) {
            whole.get_or_insert_default().extend_from_slice(piece);
        }
    }
    Ok(whole)
}

async fn ask(
    upstream: &Upstream,
    caller: &Caller,
    method: &'static Method,
    request: Vec<u8>,
) -> Result<Collected, Status> {
    let answer = upstream.call(&caller.uncompressed(), method, framing::frame(&request)).await?;
    answer.collect(upstream.limits().max_answer).await
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers, or TLS would not work either");
    u64::from_ne_bytes(bytes)
}
