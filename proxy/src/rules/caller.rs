//! Who asks: the first argument of every call that goes to etcd, and part of every key under which work is shared.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    namespace::Namespace,
    tenant::{
        Tenant, UserNumber,
        limits::{Counter, Flow},
    },
};

/// One request's sender: its connection and the metadata that it sent.
#[derive(Clone, Debug)]
pub struct Caller {
    pub connection: Arc<Connection>,
    /// The request's metadata as it came, less what belongs to the connection.
    pub metadata: HeaderMap,
}

/// One client connection.
#[derive(Debug)]
pub struct Connection {
    pub peer: Option<SocketAddr>,
    /// A number that stays the same for the connection, so that its calls keep to one member.
    pub number: u64,
    /// To whom it belongs.
    pub tenant: Arc<Tenant>,
    /// What the client's certificate says who it is; for logs only.
    pub identity: Option<Box<str>>,
    /// What its answers may not fall behind.
    pub shown: Shown,
    /// What it uses, if connections of its tenant have limits.
    pub usage: Option<Box<ConnectionUsage>>,
    /// Whether it is one of those that the tenant may have.
    has_place: AtomicBool,
}

/// What one connection uses.
#[derive(Debug)]
pub struct ConnectionUsage {
    pub watches: Counter,
    pub flow: Flow,
}

/// The newest revision that a connection was shown: no read of its own may come back older, or a client would see time
/// run backwards, which at one member of etcd it never does.
#[derive(Debug, Default)]
pub struct Shown(AtomicI64);

impl Shown {
    pub fn note(&self, revision: i64) {
        self.0.fetch_max(revision, Ordering::Relaxed);
    }

    pub fn revision(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets what came after this revision: the store itself has gone back to it.
    pub fn fall_back(&self, revision: i64) {
        self.0.store(revision, Ordering::Relaxed);
    }
}

impl Connection {
    pub fn new(peer: Option<SocketAddr>, number: u64, tenant: Arc<Tenant>) -> Arc<Self> {
        Self::identified(peer, number, tenant, None)
    }

    /// One whose client has said who it is.
    pub fn identified(
        peer: Option<SocketAddr>,
        number: u64,
        tenant: Arc<Tenant>,
        identity: Option<Box<str>>,
    ) -> Arc<Self> {
        let limits = &tenant.usage.limits.connection;
        let usage = (*limits != Default::default()).then(|| {
            Box::new(ConnectionUsage { watches: Counter::new(limits.watches), flow: Flow::new(&limits.rates) })
        });
        let has_place = AtomicBool::new(tenant.usage.connections.take());
        Arc::new(Self { peer, number, tenant, identity, shown: Shown::default(), usage, has_place })
    }

    /// Whether it is among the connections that its tenant may have; one that came too late may have become it.
    pub fn has_place(&self) -> bool {
        if self.has_place.load(Ordering::Relaxed) {
            return true;
        }
        if !self.tenant.usage.connections.take() {
            return false;
        }
        if self.has_place.swap(true, Ordering::Relaxed) {
            self.tenant.usage.connections.give_back();
        }
        true
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if *self.has_place.get_mut() {
            self.tenant.usage.connections.give_back();
        }
    }
}

/// What etcd judges a caller by. Two callers with equal credentials and the same wish for a leader are
/// indistinguishable to etcd, so they may share a watch; no others may, and never two tenants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// What one tenant is shown is nothing to another.
    pub tenant: Arc<Tenant>,
    pub token: Option<HeaderValue>,
    pub authorization: Option<HeaderValue>,
    pub require_leader: bool,
}

pub const TOKEN: HeaderName = HeaderName::from_static("token");
const REQUIRE_LEADER: HeaderName = HeaderName::from_static("hasleader");
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Headers that speak of one connection or one encoding of a message, and so must not travel on.
const CONNECTION_HEADERS: [HeaderName; 5] = [
    http::header::CONTENT_LENGTH,
    http::header::HOST,
    http::header::CONNECTION,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
];

impl Caller {
    /// The sender of a request that came with these headers.
    pub fn new(connection: Arc<Connection>, mut metadata: HeaderMap) -> Self {
        for name in &CONNECTION_HEADERS {
            metadata.remove(name);
        }
        Self { connection, metadata }
    }

    /// The same sender, whose message was opened on the way and goes on uncompressed.
    pub fn uncompressed(&self) -> Cow<'_, Self> {
        if !self.metadata.contains_key(ENCODING) {
            return Cow::Borrowed(self);
        }
        let mut caller = self.clone();
        caller.metadata.remove(ENCODING);
        Cow::Owned(caller)
    }

    /// The proxy itself.
    pub fn proxy() -> Self {
        Self { connection: Connection::new(None, 0, Tenant::whole()), metadata: HeaderMap::new() }
    }

    /// To whom the request belongs.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.connection.tenant
    }

    /// The user as whom etcd is asked. A request that brings credentials of its own is judged by those alone.
    pub fn user(&self) -> Option<UserNumber> {
        let user = self.tenant().user?;
        let brings_its_own =
            self.metadata.contains_key(TOKEN) || self.metadata.contains_key(http::header::AUTHORIZATION);
        (!brings_its_own).then_some(user)
    }

    /// The keyspace that the caller sees.
    pub fn namespace(&self) -> &Namespace {
        &self.connection.tenant.namespace
    }

    pub fn credentials(&self) -> Credentials {
        Credentials {
            tenant: self.tenant().clone(),
            token: self.metadata.get(TOKEN).cloned(),
            authorization: self.metadata.get(http::header::AUTHORIZATION).cloned(),
            require_leader: self.metadata.get(REQUIRE_LEADER).is_some_and(|value| value == "true"),
        }
    }
}

impl Credentials {
    /// Whether the caller shows etcd something of its own, by which alone it is judged.
    pub fn has_token(&self) -> bool {
        self.token.is_some() || self.authorization.is_some()
    }

    /// The metadata that a call made on behalf of these credentials carries.
    pub fn metadata(&self) -> HeaderMap {
        let mut metadata = HeaderMap::with_capacity(3);
        if let Some(token) = &self.token {
            metadata.insert(TOKEN, token.clone());
        }
        if let Some(authorization) = &self.authorization {
            metadata.insert(http::header::AUTHORIZATION, authorization.clone());
        }
        if self.require_leader {
            metadata.insert(REQUIRE_LEADER, HeaderValue::from_static("true"));
        }
        metadata
    }
}
