//! One client's HTTP/2 connection: its limits, its calls, and its end.

use std::{
    future::poll_fn,
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;

use super::{
    Config, Front,
    http::Http,
    metered::{Shared, metered},
    prefaced::{Io, Prefaced},
};
use crate::{
    drain::Observer,
    metrics::Metrics,
    router::{self, Crowds, Turn},
    rules::{caller::Connection, methods},
};

/// What one message may have under way towards us on a stream; four connections' worth of it on the connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Lease keep-alives are frames of 15 bytes; this many unread bytes' worth of them is taken before it is abuse.
const DATA_FRAME_BUDGET: usize = CONNECTION_WINDOW as usize;
/// Streams that a client may open and reset before we have looked at them. Go clients cancel all that they have open
/// when a context ends; h2's own limit of 20 would end their connections. How often is for `pace` to judge.
const MAX_PENDING_ACCEPT_RESETS: usize = 10_000;

/// How a connection broke, in HTTP/2 or below.
type Broken = Box<dyn std::error::Error + Send + Sync>;

/// A call that is open on a connection, and the number of its stream if that is followed.
struct OpenCall(Arc<Shared>, Option<NonZeroU32>);

impl OpenCall {
    fn new(shared: &Arc<Shared>, followed: Option<NonZeroU32>) -> Self {
        shared.calls.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone(), followed)
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
        if let Some(stream) = self.1 {
            self.0.books().forget(stream.get());
        }
    }
}

/// Those of its watches that are sent the same.
struct Together(Option<Arc<Crowds>>);

impl Drop for Together {
    fn drop(&mut self) {
        if let Some(crowds) = &self.0 {
            crowds.close();
        }
    }
}

/// Serves the calls of one connection until it ends, or until the drain and then the last call.
pub async fn serve(
    config: &Config,
    metrics: &Metrics,
    socket: Prefaced<Box<dyn Io>>,
    connection: Arc<Connection>,
    front: Arc<Front>,
    mut drain: Observer,
) {
    let shared: Arc<Shared> = Arc::default();
    let (socket, outlet) = metered(socket, shared.clone(), config.keepalive_min_time);
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(config.max_header_list)
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_pending_accept_reset_streams(MAX_PENDING_ACCEPT_RESETS)
        // It would count over the whole life of a connection; `pace` counts them by time.
        .max_local_error_reset_streams(None)
        .data_frame_budget(DATA_FRAME_BUDGET);
    let handshake = tokio::time::timeout(config.handshake_timeout, builder.handshake::<_, Bytes>(socket));
    let Ok(Ok(mut http2)) = handshake.await else {
        metrics.handshake_failed();
        return;
    };
    let ping_pong = http2.ping_pong().expect("the ping handle is taken once, here");
    let http = {
        let connection = connection.clone();
        Http::new(front.clone(), config.tls.is_some(), front.shows_everybody(&connection.tenant), move || {
            connection.clone()
        })
    };
    outlet.take_over();
    let mut draining = false;
    let lost = keepalive(ping_pong, &shared, config.keepalive_interval, config.keepalive_timeout);
    let unheard = tokio::time::sleep(config.handshake_timeout);
    tokio::pin!(lost, unheard);
    let mut greeted = false;
    let mut together = Together(None);
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.signaled(), if !draining => {
                draining = true;
                http2.graceful_shutdown();
                continue;
            }
            () = &mut lost => {
                tracing::debug!(peer = ?connection.peer, "client did not answer a keepalive ping");
                return;
            }
            // The preface is nothing yet: a client's first frame has to come with it.
            () = &mut unheard, if !greeted => {
                greeted = shared.heard.load(Ordering::Relaxed) > 0;
                if greeted {
                    continue;
                }
                metrics.handshake_failed();
                return;
            }
            // All that this turn has to say goes out in one write, when there is no more to accept.
            accepted = poll_fn(|context| {
                loop {
                    if let Poll::Ready(accepted) = http2.poll_accept(context) {
                        return Poll::Ready(accepted.map(|accepted| accepted.map_err(Broken::from)));
                    }
                    let crowds = together.0.as_ref();
                    let turn = crowds.map(|crowds| outlet.write_below(|below| crowds.turn(context, below)));
                    if turn != Some(Turn::Again) {
                        break;
                    }
                }
                match outlet.poll_write_out(context) {
                    Poll::Ready(Err(error)) => Poll::Ready(Some(Err(Broken::from(error)))),
                    _ => Poll::Pending,
                }
            }) => accepted,
        };
        match accepted {
            Some(Ok((mut request, respond))) => {
                let mut followed = None;
                if let Some(router) = &front.router
                    && request.uri().path() == methods::WATCH
                {
                    followed = NonZeroU32::new(respond.stream_id().as_u32());
                    if followed.is_some_and(|stream| shared.books().follow(stream.get())) {
                        let crowds = together.0.get_or_insert_with(|| router.crowds(&connection, &shared.books));
                        request.extensions_mut().insert(crowds.clone());
                    }
                }
                let (front, http) = (front.clone(), http.clone());
                let (connection, open) = (connection.clone(), OpenCall::new(&shared, followed));
                // Boxed, since a task is copied whole three times in its life: a pointer is cheaper to copy.
                tokio::spawn(Box::pin(async move {
                    match &front.router {
                        Some(router) if router::is_call(&request) => {
                            router.serve(connection, request, respond, open).await;
                        }
                        _ => {
                            // Boxed again, since every call's task is as large as the largest future that stands in it.
                            Box::pin(http.serve_http2(request, respond)).await;
                            drop(open);
                        }
                    }
                }));
            }
            Some(Err(error)) => {
                tracing::debug!(peer = ?connection.peer, %error, "connection broke");
                return;
            }
            None => return,
        }
    }
}

/// Returns when the peer leaves a ping unanswered. The interval is hours by default, as in grpc-go, which pings only
/// those who have been silent.
async fn keepalive(mut ping_pong: h2::PingPong, shared: &Shared, interval: Duration, timeout: Duration) {
    if interval.is_zero() || timeout.is_zero() {
        return std::future::pending().await;
    }
    let mut heard = shared.heard.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(interval).await;
        let now = shared.heard.load(Ordering::Relaxed);
        if std::mem::replace(&mut heard, now) != now {
            continue;
        }
        if !matches!(tokio::time::timeout(timeout, ping_pong.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
