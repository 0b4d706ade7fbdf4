//! The sessions of one feed, who are told together why they must end: the drain has begun, or etcd refuses the feed.
//!
//! They are very many, and a session that waited for either by itself would spend as much memory on it as on a watch.

use std::sync::{Arc, Mutex, MutexGuard};

use super::inbox::Inbox;
use crate::rules::status::Status;

/// One per feed; holds the inbox of each session until that leaves.
#[derive(Default)]
pub struct Sessions(Mutex<State>);

/// Where a session stands among them.
#[derive(Clone, Copy, Debug)]
pub struct Place(u32);

#[derive(Default)]
struct State {
    /// Why all must end, once that is known.
    why: Option<Status>,
    places: Vec<Option<Arc<Inbox>>>,
    free: Vec<Place>,
}

impl Sessions {
    /// Takes in a session, which must leave. One that comes too late is told so at once.
    pub fn enter(&self, inbox: &Arc<Inbox>) -> Place {
        let mut state = self.lock();
        if state.why.is_some() {
            inbox.tell_the_end();
        }
        let place = state.free.pop().unwrap_or_else(|| {
            state.places.push(None);
            Place(u32::try_from(state.places.len() - 1).expect("a billion sessions do not fit into memory"))
        });
        state.places[place.0 as usize] = Some(inbox.clone());
        place
    }

    pub fn leave(&self, place: Place) {
        let mut state = self.lock();
        state.places[place.0 as usize] = None;
        state.free.push(place);
        // A crowd that has gone leaves nothing behind.
        if state.free.len() == state.places.len() {
            (state.places, state.free) = (Vec::new(), Vec::new());
        }
    }

    /// Tells all why they must end.
    pub fn end(&self, why: Status) {
        let mut state = self.lock();
        state.why.get_or_insert(why);
        state.places.iter().flatten().for_each(|inbox| inbox.tell_the_end());
    }

    /// What a session that must end says to its client.
    pub fn why(&self) -> Option<Status> {
        self.lock().why.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the sessions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::status;

    #[tokio::test]
    async fn all_who_have_not_left_are_told_and_so_is_who_comes_too_late() {
        let sessions = Sessions::default();
        let inboxes: Vec<Arc<Inbox>> = (0..4).map(|_| Arc::default()).collect();
        let places: Vec<Place> = inboxes[..3].iter().map(|inbox| sessions.enter(inbox)).collect();
        sessions.leave(places[1]);
        assert!(sessions.why().is_none() && !inboxes[0].must_end());
        sessions.end(status::draining());
        inboxes[0].heard().await;
        sessions.enter(&inboxes[3]);
        let told: Vec<bool> = inboxes.iter().map(|inbox| inbox.must_end()).collect();
        assert_eq!(told, [true, false, true, true]);
        assert_eq!(sessions.why().map(|why| why.code()), Some(status::draining().code()));
    }
}
