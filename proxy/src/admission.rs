//! Who may come in now: a tenant's limits at work, with the clock that the rules do not have.
//!
//! A call takes a [`Seat`] and gives it back when it ends. Bytes are never refused but waited for ([`throttle`]), and
//! turns at etcd are dealt out fairly ([`gate`]). Where no limit is set all of this is a look at a few numbers.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use crate::rules::{
    caller::Connection,
    methods::{Kind, Lane, Method},
    tenant::limits::{Bucket, Counter, Exceeded, Flow, Limit},
};

pub mod gate;
pub mod memory;
pub mod shares;
pub mod throttle;

/// How long a refused call is kept waiting for its refusal, so that a client that does not wait as it is told cannot
/// spend the proxy's time on being refused. Shorter than anybody's timeout.
pub const REFUSAL_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection beyond the limit is heard, so that its client can be told why it is not served.
pub const TURNED_AWAY_AFTER: Duration = Duration::from_secs(1);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time as buckets want it.
pub fn now() -> Duration {
    START.elapsed()
}

/// A call that has been let in.
#[must_use]
pub struct Seat {
    /// Whose it is, if it counts for anything.
    counted: Option<(Arc<Connection>, Counted)>,
}

#[derive(Clone, Copy)]
enum Counted {
    Stream,
    Request,
}

impl Counted {
    fn counter(self, connection: &Connection) -> &Counter {
        match self {
            Self::Stream => &connection.tenant.usage.streams,
            Self::Request => &connection.tenant.usage.concurrent_requests,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((connection, counted)) = &self.counted {
            counted.counter(connection).give_back();
        }
    }
}

/// Lets a call in, or says which limit of its tenant or its connection is in the way.
pub fn enter(connection: &Arc<Connection>, method: &Method) -> Result<Seat, Exceeded> {
    // Whoever asks whether the proxy is well must be told.
    if matches!(method.lane, Lane::HealthCheck | Lane::HealthList | Lane::HealthWatch) {
        return Ok(Seat { counted: None });
    }
    let usage = &connection.tenant.usage;
    if !connection.has_place() {
        return Err(usage.refused(Exceeded::of(Limit::Connections), now()));
    }
    let counted = if method.kind != Kind::Unary || method.waits() { Counted::Stream } else { Counted::Request };
    if !counted.counter(connection).is_limited() {
        take_request(connection)?;
        return Ok(Seat { counted: None });
    }
    if !counted.counter(connection).take() {
        let limit = match counted {
            Counted::Stream => Limit::Streams,
            Counted::Request => Limit::ConcurrentRequests,
        };
        return Err(usage.refused(Exceeded::of(limit), now()));
    }
    let seat = Seat { counted: Some((connection.clone(), counted)) };
    take_request(connection)?;
    Ok(seat)
}

/// Takes one of the requests of this second.
fn take_request(connection: &Connection) -> Result<(), Exceeded> {
    for bucket in buckets(connection, |flow| flow.requests.as_ref()) {
        if let Err(wait) = bucket.take(1, now()) {
            return Err(connection.tenant.usage.refused(Exceeded { limit: Limit::RequestRate, wait }, now()));
        }
    }
    Ok(())
}

/// What is to be taken from: that of the connection, whose limit is the narrower one, and that of the tenant.
fn buckets<'a>(
    connection: &'a Connection,
    of: impl Fn(&'a Flow) -> Option<&'a Bucket>,
) -> impl Iterator<Item = &'a Bucket> {
    let own = connection.usage.as_ref().map(|usage| &usage.flow);
    own.into_iter().chain([&connection.tenant.usage.flow]).filter_map(of)
}

/// The largest request of a connection: its tenant may have a limit of its own.
pub fn max_request(connection: &Connection, everybodys: usize) -> usize {
    narrower(connection.tenant.usage.limits.request_bytes, everybodys)
}

/// The largest answer.
pub fn max_answer(connection: &Connection, everybodys: usize) -> usize {
    narrower(connection.tenant.usage.limits.answer_bytes, everybodys)
}

fn narrower(own: u64, everybodys: usize) -> usize {
    if own == 0 { everybodys } else { usize::try_from(own).map_or(everybodys, |own| own.min(everybodys)) }
}

/// Whether an answer that is here already may be handed down.
pub fn check_answer(connection: &Connection, size: usize) -> Result<(), Exceeded> {
    if size <= max_answer(connection, usize::MAX) {
        return Ok(());
    }
    Err(connection.tenant.usage.refused(Exceeded::of(Limit::AnswerBytes), now()))
}

/// Takes one of the watches that the connection and its tenant may have; it must be given back.
pub fn take_watch(connection: &Connection) -> Result<(), Exceeded> {
    let usage = &connection.tenant.usage;
    let own = connection.usage.as_ref().map(|usage| &usage.watches);
    if own.is_some_and(|watches| !watches.take()) {
        return Err(usage.refused(Exceeded::of(Limit::Watches), now()));
    }
    if !usage.watches.take() {
        own.inspect(|watches| watches.give_back());
        return Err(usage.refused(Exceeded::of(Limit::Watches), now()));
    }
    Ok(())
}

pub fn give_back_watch(connection: &Connection) {
    if let Some(usage) = &connection.usage {
        usage.watches.give_back();
    }
    connection.tenant.usage.watches.give_back();
}

/// Whether there is no use in asking etcd for another watch.
pub fn watches_are_full(connection: &Connection) -> bool {
    connection.tenant.usage.watches.is_full() || connection.usage.as_ref().is_some_and(|usage| usage.watches.is_full())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{
        methods,
        namespace::Namespace,
        tenant::{
            Tenant,
            limits::{ConnectionLimits, Limits, Rates},
            policy::Policy,
        },
    };

    fn tenant(limits: Limits) -> Arc<Tenant> {
        Arc::new(Tenant::new("a", Namespace::new("a/"), Policy::default()).limited(limits))
    }

    fn method(path: &str) -> &'static Method {
        methods::find(path).expect("a row")
    }

    fn limit(entered: Result<Seat, Exceeded>) -> Option<Limit> {
        entered.err().map(|exceeded| exceeded.limit)
    }

    #[test]
    fn seats_are_taken_and_given_back_by_kind() {
        let tenant = tenant(Limits { streams: 1, concurrent_requests: 1, ..Limits::default() });
        let connection = Connection::new(None, 1, tenant.clone());
        let (put, watch) = (method("/etcdserverpb.KV/Put"), method("/etcdserverpb.Watch/Watch"));
        let (lock, health) = (method("/v3lockpb.Lock/Lock"), method("/grpc.health.v1.Health/Check"));
        let first = enter(&connection, put).expect("a seat");
        let stream = enter(&connection, watch).expect("a seat");
        assert_eq!(limit(enter(&connection, put)), Some(Limit::ConcurrentRequests));
        assert_eq!(limit(enter(&connection, lock)), Some(Limit::Streams));
        assert!(enter(&connection, health).is_ok());
        drop((first, stream));
        assert!(enter(&connection, put).is_ok() && enter(&connection, lock).is_ok());
        assert_eq!(tenant.usage.refusals(Limit::Streams), 1);
    }

    #[test]
    fn a_connections_own_rate_is_its_own_and_the_tenants_is_everybodys() {
        let rates = |requests| Rates { requests, ..Rates::default() };
        let connection = ConnectionLimits { rates: rates(2), ..ConnectionLimits::default() };
        let tenant = tenant(Limits { rates: rates(3), connection, ..Limits::default() });
        let (one, other) = (Connection::new(None, 1, tenant.clone()), Connection::new(None, 2, tenant.clone()));
        let put = method("/etcdserverpb.KV/Put");
        assert!(enter(&one, put).is_ok() && enter(&one, put).is_ok());
        assert_eq!(limit(enter(&one, put)), Some(Limit::RequestRate));
        assert!(enter(&other, put).is_ok());
        assert_eq!(limit(enter(&other, put)), Some(Limit::RequestRate));
        assert_eq!(tenant.usage.refusals(Limit::RequestRate), 2);
    }

    #[test]
    fn a_connection_too_many_becomes_one_of_those_that_are_served_when_another_ends() {
        let tenant = tenant(Limits { connections: 1, ..Limits::default() });
        let first = Connection::new(None, 1, tenant.clone());
        let second = Connection::new(None, 2, tenant.clone());
        let put = method("/etcdserverpb.KV/Put");
        assert!(enter(&first, put).is_ok());
        assert_eq!(limit(enter(&second, put)), Some(Limit::Connections));
        drop(first);
        assert!(enter(&second, put).is_ok());
        drop(second);
        assert_eq!(tenant.usage.connections.used(), 0);
    }

    #[test]
    fn watches_count_for_the_connection_and_for_the_tenant() {
        let connection = ConnectionLimits { watches: 1, ..ConnectionLimits::default() };
        let tenant = tenant(Limits { watches: 2, connection, ..Limits::default() });
        let connections: Vec<_> = (0..3).map(|number| Connection::new(None, number, tenant.clone())).collect();
        assert!(take_watch(&connections[0]).is_ok() && watches_are_full(&connections[0]));
        assert!(take_watch(&connections[0]).is_err() && take_watch(&connections[1]).is_ok());
        assert!(take_watch(&connections[2]).is_err(), "the tenant has as many as it may");
        give_back_watch(&connections[1]);
        assert!(take_watch(&connections[2]).is_ok());
        assert_eq!(tenant.usage.watches.used(), 2);
    }
}
