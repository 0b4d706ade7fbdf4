//! The set of endpoints, and which of them a call goes to.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::endpoint::{Endpoint, State};

/// Shared by all who call etcd; only discovery changes what is in it.
#[derive(Debug)]
pub struct Endpoints {
    list: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Counts the changes, so that the health check learns of new endpoints.
    version: watch::Sender<u64>,
    /// Whether some endpoint is known to serve.
    serving: watch::Sender<bool>,
}

impl Endpoints {
    pub fn new(list: Vec<Arc<Endpoint>>) -> Arc<Self> {
        Arc::new(Self {
            list: ArcSwap::from_pointee(list),
            version: watch::Sender::new(0),
            serving: watch::Sender::new(false),
        })
    }

    pub fn list(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.list.load_full()
    }

    /// Takes over a new list. Endpoints that stay keep their connections and state; those that go are told so,
    /// and what runs on them moves elsewhere. An empty list is not taken: the last known one is of more use.
    pub fn replace(&self, names: &[String]) {
        let old = self.list();
        let mut new: Vec<Arc<Endpoint>> = Vec::with_capacity(names.len());
        for name in names {
            if new.iter().any(|endpoint| endpoint.name == *name) {
                continue;
            }
            if let Some(kept) = old.iter().find(|endpoint| endpoint.name == *name) {
                new.push(kept.clone());
                continue;
            }
            match Endpoint::parse(name) {
                Ok(endpoint) => {
                    tracing::info!(endpoint = %endpoint.name, "endpoint added");
                    new.push(endpoint);
                }
                Err(error) => tracing::warn!(%error, "leaving out an endpoint that the cluster advertises"),
            }
        }
        if new.is_empty() || *new == *old {
            return;
        }
        let gone: Vec<_> = old.iter().filter(|endpoint| !new.contains(endpoint)).cloned().collect();
        self.list.store(Arc::new(new));
        for endpoint in gone {
            endpoint.note(State::Removed);
        }
        self.refresh_serving();
        self.version.send_modify(|version| *version += 1);
    }

    pub fn watch_version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The endpoint for a caller: of those in the best state and not yet tried, the first at or after the
    /// caller's own place in the list. So a client keeps to one member while that serves, as if it had dialled
    /// it, and what it reads does not jump between members that lag differently.
    pub fn pick(&self, number: u64, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let list = self.list.load();
        let start = usize::try_from(number % list.len().max(1) as u64).unwrap_or(0);
        let in_turn = (0..list.len()).map(|step| &list[(start + step) % list.len()]);
        // `min_by_key` gives the first of equals, which is the one nearest to the caller's place.
        let untried = in_turn.filter(|endpoint| !tried.contains(endpoint));
        untried.min_by_key(|endpoint| endpoint.state()).cloned()
    }

    /// Notes how a member is doing.
    pub fn note(&self, endpoint: &Endpoint, state: State) {
        endpoint.note(state);
        self.refresh_serving();
    }

    fn refresh_serving(&self) {
        let serving = self.list.load().iter().any(|endpoint| endpoint.state() == State::Serving);
        self.serving.send_if_modified(|current| std::mem::replace(current, serving) != serving);
    }

    /// Whether some endpoint is known to serve.
    pub fn any_serving(&self) -> bool {
        *self.serving.borrow()
    }

    pub fn watch_serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Endpoint {}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> Arc<Endpoints> {
        Endpoints::new(names.iter().map(|name| Endpoint::parse(name).expect("a good name")).collect())
    }

    #[test]
    fn a_caller_keeps_to_its_member_until_that_fails() {
        let endpoints = set(&["a:1", "b:1", "c:1"]);
        assert_eq!(endpoints.pick(4, &[]).expect("three").name, "b:1");
        endpoints.list()[1].note(State::Unreachable);
        assert_eq!(endpoints.pick(4, &[]).expect("two left").name, "c:1");
        endpoints.list()[1].note(State::Serving);
        assert_eq!(endpoints.pick(4, &[]).expect("three again").name, "b:1");
    }

    #[test]
    fn a_member_that_was_never_reached_waits_behind_those_that_serve() {
        let endpoints = set(&["a:1", "b:1"]);
        assert_eq!(endpoints.pick(0, &[]).expect("two").name, "a:1");
        endpoints.list()[1].note(State::Serving);
        assert_eq!(endpoints.pick(0, &[]).expect("two").name, "b:1");
        endpoints.list()[0].note(State::Serving);
        assert_eq!(endpoints.pick(0, &[]).expect("two").name, "a:1");
    }

    #[test]
    fn a_bad_member_is_better_than_none() {
        let endpoints = set(&["a:1", "b:1"]);
        endpoints.list()[0].note(State::Unreachable);
        endpoints.list()[1].note(State::NoLeader);
        assert_eq!(endpoints.pick(0, &[]).expect("two").name, "b:1");
        let tried = [endpoints.list()[1].clone()];
        assert_eq!(endpoints.pick(0, &tried).expect("one").name, "a:1");
    }

    #[test]
    fn endpoints_that_stay_keep_their_state_and_those_that_go_are_told() {
        let endpoints = set(&["a:1", "b:1"]);
        let old = endpoints.list();
        old[0].note(State::Serving);
        endpoints.replace(&["a:1".into(), "c:1".into(), "nonsense".into()]);
        assert_eq!(endpoints.list()[0].state(), State::Serving);
        assert_eq!(old[1].state(), State::Removed);
        endpoints.replace(&[]);
        assert_eq!(endpoints.list().len(), 2);
    }
}
