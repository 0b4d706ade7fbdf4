//! The way to etcd: call a method and get its answer from whichever member can give it.
//!
//! Only this room knows that there is more than one endpoint. A call goes to the caller's own member while that
//! serves; it goes on to another when nothing of it was sent, or when sending it twice changes nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};

use crate::{
    admission::{
        gate::{Gate, Turn},
        memory::{Memory, Share},
    },
    metrics::{self, Metrics},
    rules::{
        caller::{self, Caller},
        methods::{self, Kind, Method},
        status::{self, Status, Trouble},
        tenant::UserNumber,
    },
};

pub mod answer;
pub mod channel;
pub mod discovery;
pub mod endpoint;
pub mod endpoints;
pub mod examine;
pub mod health;
pub mod incoming;
mod last_words;
pub mod own_watch;
pub mod pages;
mod request;
mod tonic_service;
pub mod users;

use answer::Body;
pub use answer::{Answer, Collected, code_of};
use channel::{Channels, DialError, Place};
use endpoint::{Endpoint, State};
use endpoints::Endpoints;
use users::{Pass, Users};

/// What the rest of the proxy holds to reach etcd. Each shard has its own, over the same endpoints.
#[derive(Clone)]
pub struct Upstream {
    endpoints: Arc<Endpoints>,
    channels: Channels,
    /// For large requests where there may be several tenants: on a connection of theirs, no other call waits behind their
    /// bytes for etcd to take them.
    channels_of_large: Channels,
    /// Those that show the certificate of a user.
    channels_of_users: Arc<Mutex<HashMap<UserNumber, Channels>>>,
    users: Arc<Users>,
    limits: Limits,
    metrics: Arc<Metrics>,
    /// Deals out the turns at etcd, where several tenants share them.
    gate: Option<Arc<Gate>>,
    /// What large answers may take of memory together.
    memory: Option<&'static Memory>,
}

/// Limits on messages, in bytes without gRPC's five bytes of framing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request that is sent to etcd.
    pub max_request: usize,
    /// The largest answer that is taken from etcd.
    pub max_answer: usize,
}

/// A call whose request is still being written.
pub struct Duplex {
    pub endpoint: Arc<Endpoint>,
    pub send: SendStream<Bytes>,
    /// What it was begun with, if it is made as a user who logs in.
    pub pass: Option<Pass>,
    response: ResponseFuture,
    place: Place,
    memory: Option<Share>,
}

/// Requests from this size on go by connections of their own: as much as Go's gRPC servers take on a connection before they
/// look at it.
const LARGE_REQUEST: usize = 64 << 10;
/// How long a read waits before it looks whether its member has fallen sick; far above the time that a read takes.
const PATIENCE_BEFORE_WATCHING: Duration = Duration::from_millis(100);

/// How often a read is asked again after a trouble that has passed; an election may need two terms, hardly more.
const MAX_PASSED: u32 = 5;
/// The wait before the first of them, growing by as much each time.
const PASSED_BACKOFF: Duration = Duration::from_millis(10);

/// Set by gateways from HTTP.
const GATEWAY_ACCEPT: &str = "grpcgateway-accept";

/// How an attempt failed.
enum Failure {
    /// No byte of the request reached etcd.
    Unsent(String),
    /// The request may have been carried out.
    Broken(String),
}

impl Upstream {
    pub fn new(
        endpoints: Arc<Endpoints>,
        channel: Arc<channel::Config>,
        users: Arc<Users>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            endpoints,
            channels: Channels::new(channel.clone()),
            channels_of_large: Channels::new(channel),
            channels_of_users: Arc::default(),
            users,
            limits,
            metrics,
            gate: None,
            memory: None,
        }
    }

    /// The same, with turns that are dealt out fairly and a bound on the memory of large answers.
    pub fn shared(self, gate: Option<Arc<Gate>>, memory: Option<&'static Memory>) -> Self {
        Self { gate, memory, ..self }
    }

    /// The same endpoints with connections of its own, for another thread.
    pub fn for_shard(&self, channel: Arc<channel::Config>) -> Self {
        let channels_of_large = Channels::new(channel.clone());
        let channels = Channels::new(channel);
        Self { channels, channels_of_large, channels_of_users: Arc::default(), ..self.clone() }
    }

    pub fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Sends a request that is complete (`body` is one framed message) and waits for the answer's headers.
    pub async fn call(&self, caller: &Caller, method: &'static Method, body: Bytes) -> Result<Answer, Status> {
        self.call_beyond(caller, method, body, &[]).await
    }

    /// The same at none of the endpoints in `avoid`, whose answers did not do.
    pub async fn call_beyond(
        &self,
        caller: &Caller,
        method: &'static Method,
        body: Bytes,
        avoid: &[Arc<Endpoint>],
    ) -> Result<Answer, Status> {
        let mut pass = self.users.pass(self, caller, method.path).await?;
        let mut has_fresh_pass = false;
        // A call that waits for something to happen would keep its turn from others.
        let mut turn = match &self.gate {
            Some(gate) if method.kind != Kind::Bidi && !method.waits() && !method.is_endless() => {
                Box::pin(gate.enter(caller.tenant(), body.len())).await.map_err(status::exhausted)?
            }
            _ => None,
        };
        if turn.as_ref().is_some_and(Turn::has_waited) {
            request::check_room(caller, method, &body)?;
        }
        let mut tried = avoid.to_vec();
        let mut last = None;
        // What a member that can do nothing has said; it says more than that the others were not there.
        let mut refusal = None;
        let mut passed = 0;
        while let Some(endpoint) = self.endpoints.pick(caller.connection.number, &tried) {
            tried.push(endpoint.clone());
            let started = Instant::now();
            let mut outcome = self.attempt_while_best(caller, pass.as_ref(), method, &endpoint, &body, &tried).await;
            if matches!(outcome, Err(Failure::Unsent(_))) && endpoint.state() != State::Unreachable {
                // The pooled connection had ended; a fresh one to the same member is worth one try.
                outcome = self.attempt_while_best(caller, pass.as_ref(), method, &endpoint, &body, &tried).await;
            }
            match outcome {
                Ok(mut answer) => {
                    let code = answer.code();
                    endpoint.calls(&self.metrics).answered(method, code, started.elapsed());
                    // etcd looks at who asks before it does anything, so even a write may be asked for again.
                    if !has_fresh_pass && pass.as_ref().is_some_and(|pass| pass.is_refused_by(&answer)) {
                        has_fresh_pass = true;
                        pass = self.users.pass(self, caller, method.path).await?;
                        tried.pop();
                        continue;
                    }
                    match trouble(&answer) {
                        Some(Trouble::Refused) if self.is_better_elsewhere(caller, &tried) => refusal = Some(answer),
                        Some(Trouble::Sick) if method.is_retry_safe() && self.is_better_elsewhere(caller, &tried) => {
                            refusal = Some(answer);
                        }
                        Some(Trouble::Passed) if method.is_retry_safe() && passed < MAX_PASSED => {
                            passed += 1;
                            tried.truncate(avoid.len());
                            tokio::time::sleep(PASSED_BACKOFF * passed).await;
                        }
                        _ => {
                            answer.body.bill = turn.take().map(|turn| turn.answered(method.effect));
                            return Ok(answer);
                        }
                    }
                }
                Err(Failure::Unsent(reason)) => {
                    endpoint.calls(&self.metrics).failed(method, metrics::Failure::Unsent);
                    last = Some(status::unreachable(reason));
                }
                Err(Failure::Broken(reason)) => {
                    endpoint.calls(&self.metrics).failed(method, metrics::Failure::Broken);
                    if !method.is_retry_safe() {
                        return Err(status::broken(reason));
                    }
                    last = Some(status::broken(reason));
                }
            }
        }
        refusal.ok_or_else(|| last.unwrap_or_else(status::no_endpoints))
    }

    /// A call to one endpoint only, for those who ask about that endpoint.
    pub async fn call_endpoint(
        &self,
        endpoint: &Arc<Endpoint>,
        caller: &Caller,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, Status> {
        let pass = self.users.pass(self, caller, path).await?;
        self.attempt(caller, pass.as_ref(), path, endpoint, body).await.map_err(|failure| match failure {
            Failure::Unsent(reason) => status::unreachable(reason),
            Failure::Broken(reason) => status::broken(reason),
        })
    }

    /// Begins a call whose request is written bit by bit; goes on to another endpoint while nothing was sent.
    /// `avoid` are endpoints that failed this caller just now.
    pub async fn open(&self, caller: &Caller, path: &str, avoid: &[Arc<Endpoint>]) -> Result<Duplex, Status> {
        let pass = self.users.pass(self, caller, path).await?;
        let mut tried = avoid.to_vec();
        let mut last = None;
        loop {
            let Some(endpoint) = self.endpoints.pick(caller.connection.number, &tried) else {
                return Err(last.unwrap_or_else(status::no_endpoints));
            };
            for _ in 0..2 {
                match self.begin(caller, pass.as_ref(), path, &endpoint, 0).await {
                    Ok((response, send, place)) => {
                        return Ok(Duplex { endpoint, send, pass, response, place, memory: self.share_of(caller) });
                    }
                    Err(Failure::Unsent(reason) | Failure::Broken(reason)) => last = Some(status::unreachable(reason)),
                }
                if let Some(method) = methods::find(path) {
                    endpoint.calls(&self.metrics).failed(method, metrics::Failure::Unsent);
                }
                if endpoint.state() == State::Unreachable {
                    break;
                }
            }
            tried.push(endpoint);
        }
    }

    /// Whether an endpoint that was not tried is well.
    fn is_better_elsewhere(&self, caller: &Caller, tried: &[Arc<Endpoint>]) -> bool {
        self.endpoints.pick(caller.connection.number, tried).is_some_and(|other| other.state().is_usable())
    }

    /// The endpoint that a caller's next call goes to.
    pub fn endpoint_of(&self, caller: &Caller) -> Option<Arc<Endpoint>> {
        self.endpoints.pick(caller.connection.number, &[])
    }

    /// Whether an endpoint that was not tried may answer a read that any member answers by itself.
    pub fn has_another(&self, caller: &Caller, tried: &[Arc<Endpoint>]) -> bool {
        self.endpoints.pick(caller.connection.number, tried).is_some_and(|other| other.state() < State::Unreachable)
    }

    /// An attempt that is given up, if sending twice changes nothing, when its member falls sick while another is well.
    async fn attempt_while_best(
        &self,
        caller: &Caller,
        pass: Option<&Pass>,
        method: &'static Method,
        endpoint: &Arc<Endpoint>,
        body: &Bytes,
        tried: &[Arc<Endpoint>],
    ) -> Result<Answer, Failure> {
        let attempt = self.attempt(caller, pass, method.path, endpoint, body.clone());
        if !method.is_retry_safe() {
            return attempt.await;
        }
        tokio::select! {
            biased;
            outcome = attempt => outcome,
            () = self.better_elsewhere(caller, endpoint, tried) => {
                Err(Failure::Broken(format!("{} is {}", endpoint.name, endpoint.state().name())))
            }
        }
    }

    /// Returns when this endpoint is sick and an untried one is not.
    async fn better_elsewhere(&self, caller: &Caller, endpoint: &Endpoint, tried: &[Arc<Endpoint>]) {
        // Nearly every call is over by then, and has not paid for watching, in time or in the size of its task.
        tokio::time::sleep(PATIENCE_BEFORE_WATCHING).await;
        Box::pin(self.watch_for_better(caller, endpoint, tried)).await;
    }

    async fn watch_for_better(&self, caller: &Caller, endpoint: &Endpoint, tried: &[Arc<Endpoint>]) {
        let (mut state, mut serving) = (endpoint.watch_state(), self.endpoints.watch_serving());
        loop {
            serving.borrow_and_update();
            if !state.borrow_and_update().is_usable() && self.is_better_elsewhere(caller, tried) {
                return;
            }
            let changed = tokio::select! {
                changed = state.changed() => changed,
                changed = serving.changed() => changed,
            };
            if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn attempt(
        &self,
        caller: &Caller,
        pass: Option<&Pass>,
        path: &str,
        endpoint: &Arc<Endpoint>,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let (response, mut send, place) = self.begin(caller, pass, path, endpoint, body.len()).await?;
        // The request is held whole already, so letting h2 queue it costs nothing more. If it is not even queued, etcd
        // cannot have acted on it.
        send.send_data(body, true).map_err(|error| Failure::Unsent(error.to_string()))?;
        let response = response.await.map_err(|error| classify(&error))?;
        let (parts, stream) = response.into_parts();
        let answer = Answer {
            endpoint: endpoint.clone(),
            headers: parts.headers,
            body: Body::new(stream, place, None),
            memory: self.share_of(caller),
        };
        answer.checked(parts.status).begun().await.map_err(|error| Failure::Broken(error.to_string()))
    }

    fn share_of(&self, caller: &Caller) -> Option<Share> {
        self.memory.map(|memory| memory.share_of(caller.tenant()))
    }

    /// The connections of a user who has a certificate of its own.
    fn channels_of(&self, user: UserNumber) -> Option<Channels> {
        let tls = self.users.certificate(user)?;
        let mut of_users = self.channels_of_users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = of_users.get(&user) {
            return Some(found.clone());
        }
        // Another one comes, so some may have gone.
        of_users.retain(|user, _| self.users.certificate(*user).is_some());
        Some(of_users.entry(user).or_insert(self.channels.of_user(tls)).clone())
    }

    async fn begin(
        &self,
        caller: &Caller,
        pass: Option<&Pass>,
        path: &str,
        endpoint: &Arc<Endpoint>,
        size: usize,
    ) -> Result<(ResponseFuture, SendStream<Bytes>, Place), Failure> {
        let unsent = |error: &dyn std::fmt::Display| Failure::Unsent(error.to_string());
        let user = caller.user();
        if user.is_some_and(|user| !self.users.knows(user)) {
            // It must not go out under the proxy's own certificate instead.
            return Err(Failure::Unsent("the rule of this user is gone".to_owned()));
        }
        let of_user = user.and_then(|user| self.channels_of(user));
        let is_apart = size >= LARGE_REQUEST && self.gate.is_some();
        let everybodys = if is_apart { &self.channels_of_large } else { &self.channels };
        let channels = of_user.as_ref().unwrap_or(everybodys);
        let (link, place) = channels.get(endpoint).await.map_err(|error: Arc<DialError>| unsent(&error))?;
        let mut send_request = link.ready().await.map_err(|error| unsent(&error))?;
        let mut request = request::head(caller, path, endpoint).map_err(|error| unsent(&error))?;
        if let Some(token) = pass.and_then(Pass::token) {
            request.headers_mut().insert(caller::TOKEN, token.clone());
        }
        if of_user.is_some() {
            // To etcd this says that the certificate is a gateway's. It is the very user's, by a rule for this client.
            request.headers_mut().remove(GATEWAY_ACCEPT);
        }
        let (response, send) = send_request.send_request(request, false).map_err(|error| unsent(&error))?;
        Ok((response, send, place))
    }
}

/// What an answer without messages says of the member that gave it.
fn trouble(answer: &Answer) -> Option<Trouble> {
    let message = answer.headers.get("grpc-message").map_or("", |value| value.to_str().unwrap_or(""));
    status::member_trouble(answer.code()?, message)
}

/// GOAWAY for a stream that was not begun, and REFUSED_STREAM, mean that nothing was done.
fn classify(error: &h2::Error) -> Failure {
    let refused = error.is_remote() && error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if refused || (error.is_remote() && error.is_go_away()) {
        Failure::Unsent(error.to_string())
    } else {
        Failure::Broken(error.to_string())
    }
}

impl Duplex {
    /// Splits the call into the end to write to and the answer to wait for.
    pub fn split(self) -> (SendStream<Bytes>, impl Future<Output = Result<Answer, Status>> + Send) {
        let Self { endpoint, send, pass, response, place, memory } = self;
        let answer = async move {
            let response = response.await.map_err(status::broken)?;
            let (parts, stream) = response.into_parts();
            // If it is refused, what was begun with the pass is lost; the next call gets a fresh one.
            if let Some(pass) = &pass {
                pass.is_refused_in(&parts.headers);
            }
            let body = Body::new(stream, place, pass);
            let answer = Answer { endpoint, headers: parts.headers, body, memory }.checked(parts.status);
            Ok(answer)
        };
        (send, answer)
    }
}

/// The longest that a call of the proxy's own may take.
pub const OWN_CALL_TIMEOUT: Duration = Duration::from_secs(5);
