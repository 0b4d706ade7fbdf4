//! Whether the caller may still watch what it watches: etcd looks at rights only when a watch begins, so it is asked for
//! another watch of the same range now and then, which is cancelled at once.

use std::{collections::HashMap, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    super::{directory::Opening, log::LogId},
    stream::Stream,
};

/// In how many turns all logs are asked about, so that etcd is not asked about very many at once.
const TURNS: u32 = 32;
/// The shortest time between two turns.
const SHORTEST_TURN: Duration = Duration::from_millis(10);

/// Whose turn it is to be asked about.
pub struct Rights {
    /// None is never.
    turn: Option<Duration>,
    next: Option<Instant>,
    /// Those that have not been asked about in this round, and how many of them a turn takes.
    left: Vec<LogId>,
    each: usize,
}

impl Rights {
    /// Asks about each log at least once in `interval`. A round takes half of it, since a log that comes in the middle
    /// of one waits for the next.
    pub fn new(interval: Option<Duration>) -> Self {
        let turn = interval.map(|interval| (interval / 2 / TURNS).max(SHORTEST_TURN));
        Self { turn, next: None, left: Vec::new(), each: 0 }
    }

    /// Returns when some are to be asked about.
    pub async fn due(&mut self) {
        let Some(turn) = self.turn else { return std::future::pending().await };
        let next = *self.next.get_or_insert_with(|| Instant::now() + turn);
        sleep_until(next).await;
        self.next = None;
    }

    /// Asks about those whose turn it is.
    pub fn ask(&mut self, open: &HashMap<LogId, Opening>, stream: &mut Stream) {
        for id in self.take(open.keys().copied()) {
            if let Some(opening) = open.get(&id).filter(|opening| opening.log.is_opened()) {
                stream.ask_right(opening);
            }
        }
    }

    fn take(&mut self, open: impl Iterator<Item = LogId>) -> Vec<LogId> {
        if self.left.is_empty() {
            self.left = open.collect();
            // In the same order each time, so that none waits much longer than the others.
            self.left.sort_unstable();
            self.each = self.left.len().div_ceil(TURNS as usize);
        }
        self.left.split_off(self.left.len().saturating_sub(self.each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_log_is_asked_about_once_in_a_round_and_few_in_a_turn() {
        let mut rights = Rights::new(Some(Duration::from_secs(60)));
        for count in [0, 1, 31, 33, 1000] {
            let open: Vec<LogId> = (0..count).map(LogId).collect();
            let mut asked = Vec::new();
            for _ in 0..TURNS {
                let turn = rights.take(open.iter().copied());
                assert!(turn.len() <= count.div_ceil(TURNS as usize), "{count}");
                asked.extend(turn);
                if rights.left.is_empty() {
                    break;
                }
            }
            asked.sort_unstable();
            assert_eq!(asked, open);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_takes_half_the_interval_at_most() {
        let mut rights = Rights::new(Some(Duration::from_secs(64)));
        let started = Instant::now();
        for _ in 0..TURNS {
            rights.due().await;
        }
        assert_eq!(started.elapsed(), Duration::from_secs(32));
        let never = tokio::time::timeout(Duration::from_secs(3600), Rights::new(None).due()).await;
        assert!(never.is_err(), "nothing is asked where etcd does not judge");
    }
}
