//! Bytes per second: whoever has had more than that waits before the next piece, and HTTP/2's flow control passes the
//! wait on to the other end. So nothing is refused, and no more is held than what was under way.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Sleep;

use super::{buckets, now};
use crate::rules::{
    caller::Connection,
    tenant::limits::{Bucket, Exceeded, Flow, Limit},
};

/// One direction of one call. A piece passes and is paid for by the next one, so a wait can be broken off at any time
/// and nothing is lost.
pub struct Throttle {
    connection: Arc<Connection>,
    bytes: fn(&Flow) -> Option<&Bucket>,
    /// Until what was taken is earned.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    /// What comes from the client; none where nothing of it has a limit.
    pub fn received(connection: &Arc<Connection>) -> Option<Box<Self>> {
        let has_size = connection.tenant.usage.limits.request_bytes > 0;
        Self::new(connection, |flow| flow.received.as_ref(), |flow| flow.requests.is_some(), has_size)
    }

    /// What goes to the client.
    pub fn sent(connection: &Arc<Connection>) -> Option<Box<Self>> {
        Self::new(connection, |flow| flow.sent.as_ref(), |_| false, false)
    }

    fn new(
        connection: &Arc<Connection>,
        bytes: fn(&Flow) -> Option<&Bucket>,
        more: fn(&Flow) -> bool,
        has_size: bool,
    ) -> Option<Box<Self>> {
        let is_limited = |flow: &Flow| bytes(flow).is_some() || more(flow);
        let usage = connection.usage.as_ref();
        if !has_size
            && !is_limited(&connection.tenant.usage.flow)
            && !usage.is_some_and(|usage| is_limited(&usage.flow))
        {
            return None;
        }
        let mut throttle = Box::new(Self { connection: connection.clone(), bytes, sleep: None });
        let debt = buckets(connection, bytes).map(|bucket| bucket.debt(now())).max();
        throttle.sleep_for(debt.unwrap_or_default());
        Some(throttle)
    }

    fn sleep_for(&mut self, wait: Duration) {
        if !wait.is_zero() {
            self.sleep = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    /// Ready when the next piece may pass.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(context));
            self.sleep = None;
        }
        Poll::Ready(())
    }

    /// Takes note of a piece that has passed.
    pub fn charge(&mut self, bytes: usize) {
        let wait = buckets(&self.connection, self.bytes).map(|bucket| bucket.charge(bytes as u64, now())).max();
        self.sleep_for(wait.unwrap_or_default());
    }

    /// Takes note of a message on a stream, which is a request as any other.
    pub fn charge_request(&mut self) {
        let requests = buckets(&self.connection, |flow| flow.requests.as_ref());
        let wait = requests.map(|bucket| bucket.charge(1, now())).max();
        self.sleep_for(wait.unwrap_or_default());
    }

    /// Counts a request that was too large.
    pub fn refused_for_size(&self) {
        self.connection.tenant.usage.refused(Exceeded::of(Limit::RequestBytes), now());
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::rules::{
        namespace::Namespace,
        tenant::{
            Tenant,
            limits::{Limits, Rates},
            policy::Policy,
        },
    };

    fn connection(rates: Rates) -> Arc<Connection> {
        let tenant = Tenant::new("a", Namespace::new("a/"), Policy::default());
        Connection::new(None, 1, Arc::new(tenant.limited(Limits { rates, ..Limits::default() })))
    }

    #[tokio::test]
    async fn who_has_taken_too_much_waits_and_others_of_the_tenant_too() {
        let connection = connection(Rates { sent_bytes: 10_000, ..Rates::default() });
        assert!(Throttle::received(&connection).is_none(), "the other direction has no limit");
        let mut first = Throttle::sent(&connection).expect("a limit");
        first.charge(10_000);
        assert!(first.sleep.is_none(), "a second's worth may pass at once");
        first.charge(1_000);
        assert!(first.sleep.is_some());
        let before = now();
        let mut second = Throttle::sent(&connection).expect("a limit");
        poll_fn(|context| second.poll_ready(context)).await;
        // A part of the debt may have been earned before it was looked at.
        assert!(now() - before >= Duration::from_millis(20), "{:?}", now() - before);
    }

    #[test]
    fn without_limits_there_is_nothing_to_ask() {
        let connection = connection(Rates::default());
        assert!(Throttle::received(&connection).is_none() && Throttle::sent(&connection).is_none());
    }
}
