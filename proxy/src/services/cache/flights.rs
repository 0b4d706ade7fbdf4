//! Identical reads at the same time: one is under way, and all who come meanwhile are served by the next one together.
//!
//! Nobody joins a read that was sent before they came, so that what they are told is never older than their question.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    rules::{caller::Credentials, status::Status},
    upstream::Collected,
};

/// What makes reads identical: the message, consistency included, who asks, and the endpoint that would answer, by its
/// id: a connection's answers come from one member while that serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub credentials: Credentials,
    pub message: Bytes,
    pub endpoint: Option<u64>,
}

/// The reads that are under way, each with those who wait for the next. Bounded by the calls of clients.
#[derive(Default)]
pub struct Flights {
    waiting: Mutex<HashMap<Key, Vec<oneshot::Sender<Turn>>>>,
}

/// A read that is under way; dropped, the next may be sent.
pub struct Flight {
    flights: Arc<Flights>,
    key: Key,
}

/// A place among those who read.
pub enum Place {
    /// Nobody else reads this now.
    Alone(Flight),
    Waiting(oneshot::Receiver<Turn>),
}

/// What one who waits is told.
pub enum Turn {
    /// To read for oneself and these others.
    Lead(Flight, Others),
    /// The answer for all, or that there is none and each must ask for himself.
    Answer(Option<Result<Collected, Status>>),
}

/// Those who wait for one answer.
pub struct Others(Vec<oneshot::Sender<Turn>>);

impl Flights {
    pub fn board(self: &Arc<Self>, key: Key) -> Place {
        let mut waiting = self.lock();
        if let Some(waiting) = waiting.get_mut(&key) {
            let (tell, told) = oneshot::channel();
            waiting.push(tell);
            return Place::Waiting(told);
        }
        waiting.insert(key.clone(), Vec::new());
        Place::Alone(Flight { flights: self.clone(), key })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<oneshot::Sender<Turn>>>> {
        self.waiting.lock().expect("nothing panics while it holds the flights")
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut others = {
            let mut waiting = self.flights.lock();
            match waiting.get_mut(&self.key) {
                Some(others) if !others.is_empty() => std::mem::take(others),
                _ => {
                    waiting.remove(&self.key);
                    return;
                }
            }
        };
        let mut flight = Flight { flights: self.flights.clone(), key: self.key.clone() };
        while let Some(first) = others.pop() {
            match first.send(Turn::Lead(flight, Others(others))) {
                Err(Turn::Lead(unled, rest)) => (flight, others) = (unled, rest.0),
                _ => return,
            }
        }
        // All of them have left; dropping this flight lands it for those who came in the meantime.
    }
}

impl Others {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Waits together with the others.
    pub fn join(&mut self) -> oneshot::Receiver<Turn> {
        let (tell, told) = oneshot::channel();
        self.0.push(tell);
        told
    }

    pub fn tell(self, answer: &Option<Result<Collected, Status>>) {
        for other in self.0 {
            // Whoever asked may have left.
            let _ = other.send(Turn::Answer(answer.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::caller::Caller;

    fn key() -> Key {
        Key { credentials: Caller::proxy().credentials(), message: Bytes::from_static(b"a read"), endpoint: None }
    }

    fn waiting(flights: &Arc<Flights>) -> oneshot::Receiver<Turn> {
        match flights.board(key()) {
            Place::Waiting(told) => told,
            Place::Alone(_) => panic!("one is under way"),
        }
    }

    #[test]
    fn those_who_come_while_one_is_under_way_go_together() {
        let flights = Arc::new(Flights::default());
        let Place::Alone(flight) = flights.board(key()) else { panic!("the first is alone") };
        let mut told: Vec<_> = (0..3).map(|_| waiting(&flights)).collect();
        drop(flight);
        let mut leads = told.iter_mut().filter_map(|told| match told.try_recv() {
            Ok(Turn::Lead(flight, others)) => Some((flight, others)),
            _ => None,
        });
        let (flight, others) = leads.next().expect("one of them leads");
        assert!(leads.next().is_none());
        assert_eq!(others.len(), 2);
        // The next are not told what was asked before they came.
        let mut late = waiting(&flights);
        others.tell(&None);
        assert!(late.try_recv().is_err());
        drop(flight);
        assert!(matches!(late.try_recv(), Ok(Turn::Lead(..))));
        let answers = told.iter_mut().map(oneshot::Receiver::try_recv);
        assert_eq!(answers.filter(|turn| matches!(turn, Ok(Turn::Answer(None)))).count(), 2);
    }

    #[test]
    fn those_who_have_left_are_passed_over_and_nothing_stays_behind() {
        let flights = Arc::new(Flights::default());
        let Place::Alone(flight) = flights.board(key()) else { panic!("the first is alone") };
        let mut stays = waiting(&flights);
        drop(waiting(&flights));
        drop(flight);
        let Ok(Turn::Lead(flight, others)) = stays.try_recv() else { panic!("the one who stayed leads") };
        assert!(others.is_empty());
        drop(waiting(&flights));
        drop(flight);
        assert!(flights.lock().is_empty());
    }
}
