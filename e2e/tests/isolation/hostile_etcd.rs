//! An etcd that lies: whatever it is asked, it answers with keys of others among the tenant's own, whole or damaged. No
//! byte of a foreign key reaches the tenant, by any RPC, cached or watched.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes, BytesMut};
use etcd_proxy::rules::methods::METHODS;
use etcd_proxy_e2e::{Proxy, grpc, peer};
use etcd_proxy_proto::{
    etcdserverpb::{
        CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantResponse, LeaseTimeToLiveResponse,
        MemberListResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, RequestOp,
        ResponseHeader, ResponseOp, StatusResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
        WatchResponse, request_op::Request, response_op::Response, watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
    v3electionpb::{CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse},
    v3lockpb::LockResponse,
};
use h2::{RecvStream, server::SendResponse};
use prost::Message;

use crate::raw;

const PREFIX: &str = "/a/";
/// In every key of others, and in what is stored under it.
const SECRET: &str = "SECRET";
/// In what is stored under the tenant's own keys.
const OWN: &str = "its own";
/// Rounds over all RPCs; `ISOLATION_ROUNDS` makes it more.
const ROUNDS: usize = 40;

/// Numbers that look random and are the same each time.
#[derive(Clone)]
struct Dice(Arc<Mutex<u64>>);

impl Dice {
    fn roll(&self, sides: usize) -> usize {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        usize::try_from(*state % sides as u64).expect("less than the sides")
    }

    /// A key of the tenant's, or of somebody whose prefix is nearly the tenant's.
    fn key(&self) -> Bytes {
        let foreign = ["/b/", "/a", "/a0", "", "/", "/A/", "\u{0}", "a/"];
        match self.roll(3) {
            0 => format!("{}{SECRET}", foreign[self.roll(foreign.len())]).into(),
            _ => format!("{PREFIX}k{}", self.roll(3)).into(),
        }
    }

    fn pair(&self) -> KeyValue {
        let key = self.key();
        let value = if key.starts_with(PREFIX.as_bytes()) { OWN } else { SECRET };
        KeyValue { key, value: value.into(), create_revision: 1, mod_revision: 2, version: 1, lease: 0 }
    }

    fn pairs(&self) -> Vec<KeyValue> {
        (0..self.roll(4)).map(|_| self.pair()).collect()
    }

    fn operation(&self, depth: usize) -> ResponseOp {
        let response = match self.roll(4) {
            0 => Response::ResponseRange(self.range()),
            1 => Response::ResponsePut(PutResponse { header: header(), prev_kv: Some(self.pair()) }),
            2 => Response::ResponseDeleteRange(self.delete()),
            _ if depth < 3 => Response::ResponseTxn(self.transaction(depth + 1)),
            _ => Response::ResponsePut(PutResponse::default()),
        };
        ResponseOp { response: Some(response) }
    }

    fn range(&self) -> RangeResponse {
        RangeResponse { header: header(), kvs: self.pairs(), more: false, count: 1 }
    }

    fn delete(&self) -> DeleteRangeResponse {
        DeleteRangeResponse { header: header(), deleted: 1, prev_kvs: self.pairs() }
    }

    fn transaction(&self, depth: usize) -> TxnResponse {
        let responses = (0..self.roll(3)).map(|_| self.operation(depth)).collect();
        TxnResponse { header: header(), succeeded: true, responses }
    }

    /// The answers to one call.
    fn answers(&self, path: &str) -> Vec<Vec<u8>> {
        let leader = || LeaderKey { name: self.key(), key: self.key(), rev: 1, lease: 1 };
        let one = match path.rsplit('/').next().unwrap_or_default() {
            "Range" => self.range().encode_to_vec(),
            "RangeStream" => RangeStreamResponse { range_response: Some(self.range()) }.encode_to_vec(),
            "Put" => PutResponse { header: header(), prev_kv: Some(self.pair()) }.encode_to_vec(),
            "DeleteRange" => self.delete().encode_to_vec(),
            "Txn" => self.transaction(0).encode_to_vec(),
            "LeaseGrant" => {
                LeaseGrantResponse { header: header(), id: 7, ttl: 9, ..Default::default() }.encode_to_vec()
            }
            "LeaseTimeToLive" => {
                let keys = (0..self.roll(4)).map(|_| self.key()).collect();
                LeaseTimeToLiveResponse { header: header(), id: 7, ttl: 9, granted_ttl: 9, keys }.encode_to_vec()
            }
            "Lock" => LockResponse { header: header(), key: self.key() }.encode_to_vec(),
            "Campaign" => CampaignResponse { header: header(), leader: Some(leader()) }.encode_to_vec(),
            "Leader" | "Observe" => LeaderResponse { header: header(), kv: Some(self.pair()) }.encode_to_vec(),
            "MemberList" => MemberListResponse { header: header(), members: Vec::new() }.encode_to_vec(),
            "Status" => StatusResponse { header: header(), version: "3.7.0".into(), leader: 1, ..Default::default() }
                .encode_to_vec(),
            _ => CompactionResponse { header: header() }.encode_to_vec(),
        };
        if path.ends_with("/Status") {
            return vec![one];
        }
        let mut answer = one;
        match self.roll(6) {
            // Fields that come twice.
            0 => answer.extend_from_slice(&answer.clone()),
            // A byte that is another one.
            1 if !answer.is_empty() => {
                let at = self.roll(answer.len());
                answer[at] ^= 1 << self.roll(8);
            }
            2 => answer.truncate(self.roll(answer.len() + 1)),
            _ => (),
        }
        let is_stream = path.ends_with("Stream") || path.ends_with("/Observe");
        if is_stream { vec![answer.clone(), answer] } else { vec![answer] }
    }
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 1, member_id: 1, revision: 2, raft_term: 2 })
}

async fn serve(dice: Dice, path: String, mut body: RecvStream, mut respond: SendResponse<Bytes>) -> Option<()> {
    if path.ends_with("/Watch") {
        let mut send = respond.send_response(peer::head(), false).ok()?;
        let mut asked = BytesMut::new();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            asked.extend_from_slice(&data);
            while asked.len() >= 5 {
                let size = u32::from_be_bytes([asked[1], asked[2], asked[3], asked[4]]) as usize;
                if asked.len() < 5 + size {
                    break;
                }
                asked.advance(5);
                let request = WatchRequest::decode(asked.split_to(size)).ok()?;
                let Some(RequestUnion::CreateRequest(create)) = request.request_union else { continue };
                let said = WatchResponse { header: header(), watch_id: create.watch_id, ..WatchResponse::default() };
                let created = WatchResponse { created: true, ..said.clone() };
                let event = || Event { r#type: 0, kv: Some(dice.pair()), prev_kv: Some(dice.pair()) };
                let events = WatchResponse { events: (0..=dice.roll(3)).map(|_| event()).collect(), ..said };
                send.send_data(grpc::frame(&created.encode_to_vec()), false).ok()?;
                send.send_data(grpc::frame(&events.encode_to_vec()), false).ok()?;
            }
        }
        return Some(());
    }
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let mut send = respond.send_response(peer::head(), false).ok()?;
    for answer in dice.answers(&path) {
        send.send_data(grpc::frame(&answer), false).ok()?;
    }
    send.send_trailers(peer::ended("0")).ok()
}

/// A request that is well-formed, of the tenant's own keys.
fn request(dice: &Dice, path: &str) -> Bytes {
    let (key, range_end) = (Bytes::from(format!("k{}", dice.roll(2))), Bytes::from_static(b"z"));
    let range = RangeRequest { key: key.clone(), range_end: range_end.clone(), ..RangeRequest::default() };
    let put = PutRequest { key: key.clone(), value: "v".into(), prev_kv: true, ..PutRequest::default() };
    let delete = DeleteRangeRequest { key: key.clone(), range_end: range_end.clone(), prev_kv: true };
    match path.rsplit('/').next().unwrap_or_default() {
        "Range" | "RangeStream" => range.encode_to_vec(),
        "Put" => put.encode_to_vec(),
        "DeleteRange" => delete.encode_to_vec(),
        "Txn" => {
            let success = [Request::RequestRange(range), Request::RequestPut(put), Request::RequestDeleteRange(delete)]
                .map(|request| RequestOp { request: Some(request) })
                .to_vec();
            TxnRequest { success, ..TxnRequest::default() }.encode_to_vec()
        }
        "Watch" => {
            let create = WatchCreateRequest { key, range_end, prev_kv: true, ..WatchCreateRequest::default() };
            WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }.encode_to_vec()
        }
        "Leader" | "Observe" => LeaderRequest { name: key }.encode_to_vec(),
        // A name and a lease; to others a key, or nothing.
        _ => LeaderRequest { name: key }.encode_to_vec(),
    }
    .into()
}

/// What etcd's clients find in a message. A byte that is another one may make a field of one that etcd's API does not have;
/// those pass as they are, and no client looks into them.
fn understood(path: &str, message: &Bytes) -> Bytes {
    fn of<M: Message + Default>(message: &Bytes) -> Bytes {
        M::decode(message.clone()).map_or_else(|_| Bytes::new(), |message| message.encode_to_vec().into())
    }
    match path.rsplit('/').next().unwrap_or_default() {
        "Range" => of::<RangeResponse>(message),
        "RangeStream" => of::<RangeStreamResponse>(message),
        "Put" => of::<PutResponse>(message),
        "DeleteRange" => of::<DeleteRangeResponse>(message),
        "Txn" => of::<TxnResponse>(message),
        "LeaseTimeToLive" => of::<LeaseTimeToLiveResponse>(message),
        "Lock" => of::<LockResponse>(message),
        "Campaign" => of::<CampaignResponse>(message),
        "Leader" | "Observe" => of::<LeaderResponse>(message),
        "Watch" => of::<WatchResponse>(message),
        _ => message.clone(),
    }
}

#[tokio::test]
async fn no_byte_of_a_foreign_key_reaches_a_tenant_whatever_etcd_answers() {
    let dice = Dice(Arc::new(Mutex::new(0x9e37_79b9_7f4a_7c15)));
    let answering = dice.clone();
    let etcd = peer::start(move |request, respond| {
        let path = request.uri().path().to_owned();
        serve(answering.clone(), path, request.into_body(), respond)
    });
    let etcd = etcd.await;
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={etcd}"))
        .flag(format!("--namespace={PREFIX}"))
        .flag("--api-profile=tenant")
        .start();
    let channel = grpc::channel(proxy.address()).await;
    let rounds = std::env::var("ISOLATION_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let contains = |shown: &[u8], text: &str| shown.windows(text.len()).any(|window| window == text.as_bytes());
    let mut own = 0;
    for round in 0..rounds {
        for method in METHODS.iter().filter(|method| !method.path.starts_with("/grpc.health.")) {
            // A stream is listened to for a while, so that not every round may have one.
            if (method.path.ends_with("/Watch") || method.path.ends_with("KeepAlive")) && round % 10 > 0 {
                continue;
            }
            let answer = raw::call(&channel, method.path, request(&dice, method.path), None).await;
            let messages = answer.messages.iter().map(|message| understood(method.path, message)).collect();
            let shown = raw::Answer { messages, status: answer.status.clone() }.text();
            assert!(!contains(&shown, SECRET), "{} in round {round}: {answer:?}", method.path);
            own += usize::from(contains(&shown, OWN));
        }
    }
    assert!(own > rounds, "what is the tenant's own reaches it, as it did {own} times");
    let withheld = proxy.metric("etcd_proxy_withheld_total").expect("it is counted");
    assert!(withheld > rounds as f64, "{withheld} answers and events were withheld");
}
