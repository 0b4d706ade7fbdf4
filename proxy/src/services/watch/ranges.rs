//! Values by key range, found by what the range holds: who reads this key, and which watch covers that range.
//!
//! Single keys stand in a hash map. Longer ranges stand in a treap, ordered by where they begin and, of those that
//! begin at the same key, the longest first; each node knows how far its subtree reaches. So a key is looked up in the
//! logarithm of their number and the number found, however they nest or overlap.

use std::{
    cmp::Ordering,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    ops::ControlFlow,
};

use bytes::Bytes;

use crate::rules::keys::{KeyRange, NUL};

pub struct Ranges<T> {
    singles: HashMap<Bytes, T>,
    nodes: Vec<Option<Node<T>>>,
    free: Vec<Link>,
    root: Link,
    /// Priorities come from this, so that no client can choose ranges that make the tree deep.
    chance: RandomState,
    inserted: u64,
}

type Link = u32;
const NOBODY: Link = Link::MAX;

struct Node<T> {
    range: KeyRange,
    /// Where the range ends; `None` is the end of all keys.
    end: Option<Bytes>,
    /// The furthest end in this subtree.
    reach: Option<Bytes>,
    value: T,
    priority: u64,
    left: Link,
    right: Link,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self {
            singles: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            root: NOBODY,
            chance: RandomState::new(),
            inserted: 0,
        }
    }
}

impl<T> Ranges<T> {
    pub fn is_empty(&self) -> bool {
        self.singles.is_empty() && self.root == NOBODY
    }

    pub fn get_mut(&mut self, range: &KeyRange) -> Option<&mut T> {
        if range.is_single() {
            return self.singles.get_mut(range.key());
        }
        let found = self.find(range)?;
        Some(&mut self.node_mut(found).value)
    }

    /// The value of a range, made if there is none.
    pub fn or_insert_with(&mut self, range: &KeyRange, make: impl FnOnce() -> T) -> &mut T {
        if range.is_single() {
            return self.singles.entry(range.key().clone()).or_insert_with(make);
        }
        let found = match self.find(range) {
            Some(found) => found,
            None => self.insert(range, make()),
        };
        &mut self.node_mut(found).value
    }

    pub fn remove(&mut self, range: &KeyRange) -> Option<T> {
        if range.is_single() {
            return self.singles.remove(range.key());
        }
        let found = self.find(range)?;
        let (left, rest) = self.split(self.root, range, Ordering::Less);
        let (alone, right) = self.split(rest, range, Ordering::Equal);
        debug_assert_eq!(alone, found);
        self.root = self.merge(left, right);
        self.free.push(found);
        self.nodes[found as usize].take().map(|node| node.value)
    }

    /// Every value whose range holds this key.
    pub fn each_holding(&mut self, key: &[u8], mut visit: impl FnMut(&mut T)) {
        if let Some(value) = self.singles.get_mut(key) {
            visit(value);
        }
        let mut found = Vec::new();
        let _ = self.walk(self.root, key, &mut |link| {
            found.push(link);
            ControlFlow::<()>::Continue(())
        });
        found.into_iter().for_each(|link| visit(&mut self.node_mut(link).value));
    }

    /// The first that the visitor makes something of, among the values whose range covers this one, the widest of
    /// those with the same beginning first, and the range itself last.
    pub fn find_covering<R>(&self, range: &KeyRange, mut choose: impl FnMut(&T) -> Option<R>) -> Option<R> {
        let walked = self.walk(self.root, range.key(), &mut |link| {
            let node = self.node(link);
            match node.range.covers(range).then(|| choose(&node.value)).flatten() {
                Some(chosen) => ControlFlow::Break(chosen),
                None => ControlFlow::Continue(()),
            }
        });
        match walked {
            ControlFlow::Break(chosen) => Some(chosen),
            ControlFlow::Continue(()) if range.is_single() => self.singles.get(range.key()).and_then(choose),
            ControlFlow::Continue(()) => None,
        }
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.singles.values().chain(self.nodes.iter().flatten().map(|node| &node.value))
    }

    fn node(&self, link: Link) -> &Node<T> {
        self.nodes[link as usize].as_ref().expect("links lead to nodes that are there")
    }

    fn node_mut(&mut self, link: Link) -> &mut Node<T> {
        self.nodes[link as usize].as_mut().expect("links lead to nodes that are there")
    }

    fn find(&self, range: &KeyRange) -> Option<Link> {
        let end = end_of(range);
        let mut link = self.root;
        while link != NOBODY {
            let node = self.node(link);
            link = match order(range.key(), &end, node) {
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
                Ordering::Equal => return Some(link),
            };
        }
        None
    }

    fn insert(&mut self, range: &KeyRange, value: T) -> Link {
        self.inserted += 1;
        let (end, priority) = (end_of(range), self.chance.hash_one(self.inserted));
        let node = Node { range: range.clone(), reach: end.clone(), end, value, priority, left: NOBODY, right: NOBODY };
        let link = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            Link::try_from(self.nodes.len() - 1).expect("a billion ranges do not fit into memory")
        });
        self.nodes[link as usize] = Some(node);
        let (left, right) = self.split(self.root, range, Ordering::Less);
        let left = self.merge(left, link);
        self.root = self.merge(left, right);
        link
    }

    /// Parts a tree into what stands before `range` (or, with `Equal`, before or at it) and the rest.
    fn split(&mut self, link: Link, range: &KeyRange, upto: Ordering) -> (Link, Link) {
        if link == NOBODY {
            return (NOBODY, NOBODY);
        }
        // Turned around: how this node stands to the range.
        let stands = order(range.key(), &end_of(range), self.node(link)).reverse();
        if stands <= upto {
            let (middle, right) = self.split(self.node(link).right, range, upto);
            self.node_mut(link).right = middle;
            self.measure(link);
            (link, right)
        } else {
            let (left, middle) = self.split(self.node(link).left, range, upto);
            self.node_mut(link).left = middle;
            self.measure(link);
            (left, link)
        }
    }

    fn merge(&mut self, left: Link, right: Link) -> Link {
        if left == NOBODY || right == NOBODY {
            return if left == NOBODY { right } else { left };
        }
        if self.node(left).priority >= self.node(right).priority {
            let merged = self.merge(self.node(left).right, right);
            self.node_mut(left).right = merged;
            self.measure(left);
            left
        } else {
            let merged = self.merge(left, self.node(right).left);
            self.node_mut(right).left = merged;
            self.measure(right);
            right
        }
    }

    fn measure(&mut self, link: Link) {
        let node = self.node(link);
        let mut reach = &node.end;
        for child in [node.left, node.right] {
            if child != NOBODY && compare_ends(&self.node(child).reach, reach).is_gt() {
                reach = &self.node(child).reach;
            }
        }
        let reach = reach.clone();
        self.node_mut(link).reach = reach;
    }

    /// Visits, in their order, the ranges that hold this key.
    fn walk<B>(&self, link: Link, key: &[u8], visit: &mut impl FnMut(Link) -> ControlFlow<B>) -> ControlFlow<B> {
        if link == NOBODY {
            return ControlFlow::Continue(());
        }
        let node = self.node(link);
        if !is_before(key, &node.reach) {
            return ControlFlow::Continue(());
        }
        self.walk(node.left, key, visit)?;
        if **node.range.key() > *key {
            return ControlFlow::Continue(());
        }
        if is_before(key, &node.end) {
            visit(link)?;
        }
        self.walk(node.right, key, visit)
    }
}

fn end_of(range: &KeyRange) -> Option<Bytes> {
    Some(range.range_end()).filter(|end| *end != NUL)
}

fn is_before(key: &[u8], end: &Option<Bytes>) -> bool {
    end.as_ref().is_none_or(|end| *key < **end)
}

fn compare_ends(one: &Option<Bytes>, other: &Option<Bytes>) -> Ordering {
    match (one, other) {
        (None, None) => Ordering::Equal,
        (None, _) => Ordering::Greater,
        (_, None) => Ordering::Less,
        (Some(one), Some(other)) => one.cmp(other),
    }
}

fn order<T>(key: &Bytes, end: &Option<Bytes>, node: &Node<T>) -> Ordering {
    key.cmp(node.range.key()).then_with(|| compare_ends(&node.end, end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(prop::sample::select(vec![0, 1, b'a', b'b', 0xff]), 0..3).prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), key()).prop_map(|(key, end)| {
            let range = KeyRange::of_watch(key.clone(), end);
            // One that would hold nothing is of its key instead: proptest gives up if very many are turned down.
            if range.is_empty() { KeyRange::of_watch(key, Bytes::new()) } else { range }
        })
    }

    proptest! {
        #[test]
        fn what_holds_a_key_or_covers_a_range_is_found_as_by_looking_at_each(
            steps in prop::collection::vec((range(), any::<bool>()), 1..60),
            keys in prop::collection::vec(key(), 1..10),
            sought in prop::collection::vec(range(), 1..10),
        ) {
            let (mut ranges, mut plain) = (Ranges::default(), Vec::<(KeyRange, usize)>::new());
            for (number, (range, remove)) in steps.into_iter().enumerate() {
                let known = plain.iter().position(|(other, _)| *other == range);
                if remove {
                    let removed = known.map(|at| plain.swap_remove(at).1);
                    prop_assert_eq!(ranges.remove(&range), removed);
                } else {
                    let value = *ranges.or_insert_with(&range, || number);
                    if known.is_none() {
                        plain.push((range.clone(), number));
                    }
                    prop_assert_eq!(ranges.get_mut(&range).copied(), Some(value));
                }
                prop_assert_eq!(ranges.is_empty(), plain.is_empty());
            }
            let sorted = |mut values: Vec<usize>| {
                values.sort_unstable();
                values
            };
            let all = ranges.values().copied().collect();
            prop_assert_eq!(sorted(all), sorted(plain.iter().map(|(_, value)| *value).collect()));
            for key in keys {
                let mut found = Vec::new();
                ranges.each_holding(&key, |value| found.push(*value));
                let expected = plain.iter().filter(|(range, _)| range.contains(&key)).map(|(_, value)| *value);
                prop_assert_eq!(sorted(found), sorted(expected.collect()));
            }
            for wanted in sought {
                let mut found = Vec::new();
                ranges.find_covering(&wanted, |value| -> Option<()> {
                    found.push(*value);
                    None
                });
                // A single key is covered by itself alone among single keys, and so is a range that holds no more.
                let expected = plain.iter().filter(|(range, _)| range.covers(&wanted));
                let expected = expected.filter(|(range, _)| !range.is_single() || *range == wanted);
                prop_assert_eq!(sorted(found), sorted(expected.map(|(_, value)| *value).collect()));
            }
        }
    }

    #[test]
    fn a_wider_range_is_found_before_a_narrower_one() {
        let range = |key: &'static str, end: &'static str| KeyRange::of_watch(key.into(), end.into());
        let mut ranges = Ranges::default();
        for (name, range) in [("narrow", range("a", "b")), ("single", range("a", "")), ("wide", range("a", "\0"))] {
            ranges.or_insert_with(&range, || name);
        }
        assert_eq!(ranges.find_covering(&range("a", ""), |name| Some(*name)), Some("wide"));
        assert_eq!(ranges.find_covering(&range("a", "b"), |name| (*name != "wide").then_some(*name)), Some("narrow"));
        assert_eq!(ranges.find_covering(&range("a", "c"), |name| (*name != "wide").then_some(*name)), None);
    }
}
