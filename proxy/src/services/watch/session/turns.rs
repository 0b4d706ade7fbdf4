//! Whose turn it is to be read, in order. Most sessions have one watch, of which this is to take no memory of its own.

use std::collections::VecDeque;

use etcd_proxy_proto::etcdserverpb::ResponseHeader;

use super::super::watches::Number;

pub enum Turn {
    Watch(Number),
    /// Everything before is in the turns before this one.
    Progress(ResponseHeader),
}

/// Stands for a notice of progress; no watch has this number.
const PROGRESS: Number = Number::MAX;

#[derive(Default)]
pub struct Turns {
    /// The watch that is first; none if there is nobody, or a notice of progress is.
    first: Option<Number>,
    rest: Option<Box<Rest>>,
}

#[derive(Default)]
struct Rest {
    numbers: VecDeque<Number>,
    headers: VecDeque<ResponseHeader>,
}

impl Turns {
    pub fn is_empty(&self) -> bool {
        self.first.is_none() && self.rest.as_ref().is_none_or(|rest| rest.numbers.is_empty())
    }

    pub fn push_watch(&mut self, number: Number) {
        if self.is_empty() {
            self.first = Some(number);
        } else {
            self.rest().numbers.push_back(number);
        }
    }

    pub fn push_progress(&mut self, header: ResponseHeader) {
        let rest = self.rest();
        rest.numbers.push_back(PROGRESS);
        rest.headers.push_back(header);
    }

    /// Gives a watch the next turn, before all others.
    pub fn push_watch_first(&mut self, number: Number) {
        if let Some(second) = self.first.replace(number) {
            self.rest().numbers.push_front(second);
        }
    }

    pub fn pop(&mut self) -> Option<Turn> {
        if let Some(number) = self.first.take() {
            return Some(Turn::Watch(number));
        }
        let rest = self.rest.as_mut()?;
        match rest.numbers.pop_front()? {
            PROGRESS => rest.headers.pop_front().map(Turn::Progress),
            number => Some(Turn::Watch(number)),
        }
    }

    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all turns; a notice of progress is shown by its revision, below zero.
    fn all(turns: &mut Turns) -> Vec<i64> {
        std::iter::from_fn(|| {
            turns.pop().map(|turn| match turn {
                Turn::Watch(number) => i64::from(number),
                Turn::Progress(header) => -header.revision,
            })
        })
        .collect()
    }

    #[test]
    fn turns_come_in_the_order_in_which_they_were_given_but_for_those_that_were_put_first() {
        let header = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
        let mut turns = Turns::default();
        assert!(turns.is_empty() && turns.pop().is_none());
        turns.push_progress(header(5));
        turns.push_watch(1);
        turns.push_watch(2);
        turns.push_progress(header(6));
        turns.push_watch_first(3);
        turns.push_watch_first(4);
        assert!(!turns.is_empty());
        assert_eq!(all(&mut turns), [4, 3, -5, 1, 2, -6]);
        assert!(turns.is_empty());
        turns.push_watch(7);
        assert!(!turns.is_empty());
        turns.push_watch(8);
        assert!(matches!(turns.pop(), Some(Turn::Watch(7))));
        turns.push_watch(9);
        assert_eq!(all(&mut turns), [8, 9]);
    }
}
