//! Watches that are sent the same, by clients that count: none is sent more than its windows take, on its stream or on
//! its connection, and none misses anything, whatever else its connection carries.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use etcd_proxy_e2e::{Etcd, Proxy, chance::Chance, grpc::frame};
use etcd_proxy_proto::etcdserverpb::{
    RangeRequest, RangeResponse, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_request::RequestUnion,
};
use h2::{
    RecvStream,
    client::{Builder, SendRequest},
};
use http::Request;
use prost::Message;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::client::{PATIENCE, channel, prefix, put};

/// What is written while all watch, and how much of it is larger than any frame, or than most windows.
const PUTS: usize = 400;
const STREAMS: usize = 30;

/// How the clients of one connection are.
#[derive(Clone, Copy, Debug)]
struct Manner {
    stream_window: u32,
    connection_window: u32,
    /// Some do not look until all has been written.
    has_sleepers: bool,
    /// The windows are changed while events come.
    changes_its_mind: bool,
}

const MANNERS: [Manner; 6] = [
    Manner { stream_window: 65_535, connection_window: 65_535, has_sleepers: false, changes_its_mind: false },
    Manner { stream_window: 300, connection_window: 65_535, has_sleepers: false, changes_its_mind: false },
    Manner { stream_window: 20_000, connection_window: 65_535, has_sleepers: false, changes_its_mind: true },
    // All wait for those who do not look.
    Manner { stream_window: 20_000, connection_window: 65_535, has_sleepers: true, changes_its_mind: false },
    Manner { stream_window: 65_535, connection_window: 64 << 20, has_sleepers: true, changes_its_mind: true },
    Manner { stream_window: 4 << 20, connection_window: 16 << 20, has_sleepers: true, changes_its_mind: false },
];

/// Opens a connection that counts what it is sent, and breaks if that is too much.
async fn connect(proxy: &Proxy, manner: Manner) -> (SendRequest<Bytes>, watch::Sender<u32>) {
    let socket = tokio::net::TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    let (send, mut connection) = Builder::new()
        .initial_window_size(manner.stream_window)
        .initial_connection_window_size(manner.connection_window)
        .data_frame_budget(usize::MAX >> 1)
        .handshake::<_, Bytes>(socket)
        .await
        .expect("both sides speak HTTP/2");
    let (window, mut windows) = watch::channel(manner.stream_window);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                ended = &mut connection => return ended.expect("nobody breaks the rules of HTTP/2"),
                changed = windows.changed() => match changed {
                    Ok(()) => connection.set_initial_window_size(*windows.borrow()).expect("one change at a time"),
                    Err(_) => return connection.await.expect("nobody breaks the rules of HTTP/2"),
                },
            }
        }
    });
    (send, window)
}

async fn call(send: &SendRequest<Bytes>, path: &str, message: &impl Message, is_last: bool) -> Call {
    let mut send = send.clone().ready().await.expect("the connection takes calls");
    let request = Request::post(format!("http://windows.test{path}")).header("content-type", "application/grpc");
    let request = request.header("te", "trailers").body(()).expect("a whole request");
    let (answer, mut stream) = send.send_request(request, false).expect("the call begins");
    stream.send_data(frame(&message.encode_to_vec()), is_last).expect("the request is sent");
    let body = timeout(PATIENCE, answer).await.expect("an answer in time").expect("an answer").into_body();
    Call { body, held: BytesMut::new(), owed: VecDeque::new(), stream }
}

/// A call of which one reads messages.
struct Call {
    body: RecvStream,
    held: BytesMut,
    /// What has been read and not given back to the windows.
    owed: VecDeque<usize>,
    stream: h2::SendStream<Bytes>,
}

impl Call {
    /// The next message; of what its pieces took, the windows have back what `keep` pieces did not.
    async fn next<M: Message + Default>(&mut self, keep: usize) -> M {
        loop {
            if let Some((head, rest)) = self.held.split_first_chunk::<5>() {
                let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if rest.len() >= len {
                    let message = self.held.split_to(5 + len);
                    return M::decode(&message[5..]).expect("a whole message");
                }
            }
            // What is kept for too long is never granted again: half a message may wait for it.
            while self.owed.len() > keep {
                let len = self.owed.pop_front().unwrap_or_default();
                self.body.flow_control().release_capacity(len).expect("it was taken");
            }
            let piece = match self.owed.is_empty() {
                true => timeout(PATIENCE, self.body.data()).await.expect("bytes in time"),
                false => match futures_util::FutureExt::now_or_never(self.body.data()) {
                    Some(piece) => piece,
                    None => {
                        let all: usize = self.owed.drain(..).sum();
                        self.body.flow_control().release_capacity(all).expect("it was taken");
                        continue;
                    }
                },
            };
            let piece = piece.expect("the call goes on").expect("the connection is whole");
            self.owed.push_back(piece.len());
            self.held.extend_from_slice(&piece);
        }
    }

    fn reset(mut self) {
        self.stream.send_reset(h2::Reason::CANCEL);
    }
}

/// Watches until this many events have come, and checks that each came in its turn.
async fn watch_all(
    send: SendRequest<Bytes>,
    number: usize,
    sleeps: bool,
    mut written: watch::Receiver<Option<i64>>,
    ready: Arc<AtomicUsize>,
) {
    let mut chance = Chance(number as u64 + 1);
    let create = |start_revision| WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest { start_revision, ..prefix("windows/") })),
    };
    let mut call = call(&send, "/etcdserverpb.Watch/Watch", &create(0), false).await;
    let created: WatchResponse = call.next(0).await;
    assert!(created.created);
    let mut next = created.header.expect("a header").revision + 1;
    ready.fetch_add(1, Ordering::SeqCst);
    if sleeps {
        written.wait_for(Option::is_some).await.expect("the writer goes on");
    }
    // What is read when the last has come is none of the last: the writer says which that is.
    while written.borrow().is_none_or(|last| next <= last) {
        let keep = usize::try_from(chance.below(8)).expect("few");
        let response: WatchResponse = tokio::select! {
            response = call.next(keep) => response,
            _ = written.wait_for(|last| last.is_some_and(|last| next > last)) => break,
        };
        for event in &response.events {
            let kv = event.kv.as_ref().expect("an event has a key");
            assert_eq!(kv.mod_revision, next, "watch {number}");
            next += 1;
        }
        // Some ask for a word besides, in the middle of it all.
        if number % 5 == 2 && chance.below(10) == 0 {
            let request_union = Some(RequestUnion::ProgressRequest(WatchProgressRequest {}));
            let asked = WatchRequest { request_union }.encode_to_vec();
            call.stream.send_data(frame(&asked), false).expect("the stream is open");
        }
        // Some go and come back where they were.
        if number % 5 == 1 && chance.below(40) == 0 {
            call.reset();
            call = self::call(&send, "/etcdserverpb.Watch/Watch", &create(next), false).await;
            assert!(call.next::<WatchResponse>(0).await.created);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_more_than_its_windows_take_and_nobody_misses_anything() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let writer = channel(&proxy).await;
    put(&writer, "large", vec![b'x'; 30_000]).await;
    let (said, written) = watch::channel(None);
    let ready = Arc::new(AtomicUsize::new(0));
    let (mut watching, mut connections) = (JoinSet::new(), Vec::new());
    for manner in MANNERS {
        let (send, window) = connect(&proxy, manner).await;
        for number in 0..STREAMS {
            let sleeps = manner.has_sleepers && number % 3 == 0;
            watching.spawn(watch_all(send.clone(), number, sleeps, written.clone(), ready.clone()));
        }
        connections.push((manner, send, window));
    }
    crate::client::wait_until("all watch", || ready.load(Ordering::SeqCst) == MANNERS.len() * STREAMS).await;
    let mut chance = Chance(7);
    let mut last = 0;
    for number in 0..PUTS {
        let len = match number % 50 {
            17 => 20_000,
            31 if number > PUTS / 2 => 70_000,
            _ => chance.below(400),
        };
        let value = vec![b'v'; usize::try_from(len).expect("it is short")];
        last = put(&writer, &format!("windows/{}", chance.below(20)), value).await;
        if number % 25 == 0 {
            let may_answer = |manner: &Manner| !manner.has_sleepers || manner.connection_window > 65_535;
            for (manner, send, window) in connections.iter().filter(|(manner, ..)| may_answer(manner)) {
                // A large answer on the same connection, which the windows of the connection are for as well.
                let request = RangeRequest { key: "large".into(), ..RangeRequest::default() };
                let mut call = call(send, "/etcdserverpb.KV/Range", &request, true).await;
                let answer: RangeResponse = call.next(0).await;
                assert_eq!(answer.kvs[0].value.len(), 30_000);
                if manner.changes_its_mind {
                    let changed = manner.stream_window / 2 + u32::try_from(chance.below(60_000)).expect("it is small");
                    window.send(changed).expect("the connection is there");
                }
            }
        }
    }
    said.send_replace(Some(last));
    while let Some(watched) = timeout(PATIENCE, watching.join_next()).await.expect("all have seen all in time") {
        watched.expect("each is shown all, in its turn");
    }
    let delivered = proxy.metric("etcd_proxy_watch_events_delivered_total").expect("it is counted");
    assert!(delivered >= (PUTS * MANNERS.len() * STREAMS) as f64, "{delivered} events");
}
