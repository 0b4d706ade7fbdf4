//! Keys and ranges as etcd means them: what `key` and `range_end` of a request say, decided once.

use bytes::Bytes;

/// The smallest key there is, and, as a `range_end`, the mark for "no end".
pub const NUL: &[u8] = b"\0";

/// A request without a key, which etcd refuses: `etcdserver: key is not provided`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("key is not provided")]
pub struct EmptyKey;

/// The keys that a `key` and a `range_end` name together: one key, those up to an end that is not itself included, or
/// all from a key on. A range whose end is not after its key holds nothing (and a watch on it is refused by etcd).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyRange {
    key: Bytes,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum End {
    Single,
    Before(Bytes),
    None,
}

impl KeyRange {
    /// What a Range, a DeleteRange or a comparison means. No key is empty, and etcd refuses one that is before it looks
    /// at anything else, at `range_end` either.
    pub fn of_request(key: Bytes, range_end: Bytes) -> Result<Self, EmptyKey> {
        if key.is_empty() { Err(EmptyKey) } else { Ok(Self::new(key, range_end)) }
    }

    /// What a watch means: etcd takes an empty key for the smallest one.
    pub fn of_watch(key: Bytes, range_end: Bytes) -> Self {
        Self::new(if key.is_empty() { Bytes::from_static(NUL) } else { key }, range_end)
    }

    /// One key.
    pub fn single(key: Bytes) -> Self {
        Self { key, end: End::Single }
    }

    /// All keys.
    pub fn all() -> Self {
        Self { key: Bytes::from_static(NUL), end: End::None }
    }

    fn new(key: Bytes, range_end: Bytes) -> Self {
        let end = match &range_end[..] {
            b"" => End::Single,
            NUL => End::None,
            _ => End::Before(range_end),
        };
        Self { key, end }
    }

    /// The first key, as a request spells it.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// The end as a request spells it: empty for a single key, `\0` for none.
    pub fn range_end(&self) -> Bytes {
        match &self.end {
            End::Single => Bytes::new(),
            End::Before(end) => end.clone(),
            End::None => Bytes::from_static(NUL),
        }
    }

    pub fn is_single(&self) -> bool {
        self.end == End::Single
    }

    /// No key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.key)
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        *self.key <= *key && self.ends_after(key)
    }

    /// Every key of `other` is a key of this one.
    pub fn covers(&self, other: &Self) -> bool {
        if other.is_empty() {
            return true;
        }
        let ends_later = match (&self.end, &other.end) {
            (End::None, _) => true,
            (_, End::None) => false,
            (_, End::Single) => self.ends_after(&other.key),
            (End::Before(end), End::Before(other_end)) => end >= other_end,
            // All that fits into a single key is a range that ends at the next key after it, which is `key\0`.
            (End::Single, End::Before(end)) => {
                end.split_last().is_some_and(|(last, head)| *last == 0 && *head == *self.key)
            }
        };
        self.key <= other.key && ends_later
    }

    /// Some key may be in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.ends_after(&other.key) && other.ends_after(&self.key)
    }

    fn ends_after(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Single => *key <= *self.key,
            End::Before(end) => *key < **end,
            End::None => true,
        }
    }
}

/// The first key after all keys that start with `prefix`, or `\0` ("no end") where there is none, as after `\xff\xff`.
///
/// The bytes behind the one that is counted up must go: after the prefix `a\xff` comes `b`. With `b\0` the key `b` would
/// belong to the prefix, which it does not start with.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&byte| byte != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        }
        None => Bytes::from_static(NUL),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(key: &'static [u8], range_end: &'static [u8]) -> KeyRange {
        KeyRange::of_watch(Bytes::from_static(key), Bytes::from_static(range_end))
    }

    #[test]
    fn key_and_range_end_have_four_meanings() {
        let single = range(b"b", b"");
        assert!(single.contains(b"b") && !single.contains(b"b\0") && !single.contains(b"a") && single.is_single());
        let half_open = range(b"b", b"d");
        assert!(half_open.contains(b"b") && half_open.contains(b"c\xff") && !half_open.contains(b"d"));
        let from_key = range(b"b", b"\0");
        assert!(from_key.contains(b"b") && from_key.contains(b"\xff") && !from_key.contains(b"a\xff"));
        assert_eq!(range(b"\0", b"\0"), KeyRange::all());
        assert!(KeyRange::all().contains(b"\0") && KeyRange::all().contains(b"\xff"));
    }

    #[test]
    fn an_inverted_range_is_empty() {
        assert!(range(b"b", b"a").is_empty());
        assert!(range(b"b", b"b").is_empty());
        assert!(!range(b"b", b"b\0").is_empty());
        assert!(!range(b"b", b"").is_empty());
        assert!(!range(b"\xff", b"\0").is_empty());
    }

    #[test]
    fn an_empty_key_is_refused_in_a_request_and_the_smallest_key_in_a_watch() {
        assert_eq!(KeyRange::of_request(Bytes::new(), Bytes::from_static(b"\0")), Err(EmptyKey));
        assert_eq!(range(b"", b""), range(b"\0", b""));
        assert_eq!(range(b"", b"\0"), KeyRange::all());
    }

    #[test]
    fn the_end_of_a_prefix_is_cut_where_it_was_counted_up() {
        for (prefix, end) in [
            (&b"a"[..], &b"b"[..]),
            (b"ns/", b"ns0"),
            (b"a\xff", b"b"),
            (b"a\xff\xff", b"b"),
            (b"a\xfe\xff", b"a\xff"),
            (b"\xff", b"\0"),
            (b"\xff\xff", b"\0"),
        ] {
            assert_eq!(prefix_end(prefix), end, "{prefix:?}");
        }
    }

    /// Keys from few letters, so that ranges touch, nest and end at each other's keys.
    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(prop::sample::select(vec![0, 1, b'a', b'b', 0xff]), 0..3).prop_map(Bytes::from)
    }

    fn key_range() -> impl Strategy<Value = KeyRange> {
        (key(), key()).prop_map(|(key, end)| KeyRange::of_watch(key, end))
    }

    /// Every key of up to three of those letters and some neighbours: enough to tell any two of those ranges apart.
    fn all_keys() -> Vec<Vec<u8>> {
        let letters = [0, 1, b'a', b'b', 0xff];
        let mut keys = vec![vec![]];
        for from in 0..1 + 5 + 25 {
            let longer: Vec<Vec<u8>> =
                letters.iter().map(|letter| [&keys[from] as &[u8], &[*letter]].concat()).collect();
            keys.extend(longer);
        }
        keys.remove(0);
        keys
    }

    proptest! {
        #[test]
        fn covers_and_overlaps_agree_with_contains(a in key_range(), b in key_range()) {
            let keys = all_keys();
            prop_assert_eq!(a.is_empty(), !keys.iter().any(|key| a.contains(key)));
            prop_assert_eq!(a.overlaps(&b), keys.iter().any(|key| a.contains(key) && b.contains(key)));
            prop_assert_eq!(a.covers(&b), keys.iter().all(|key| !b.contains(key) || a.contains(key)), "{:?} {:?}", a, b);
        }

        #[test]
        fn a_range_is_spelled_as_it_was_read(a in key_range()) {
            prop_assert_eq!(KeyRange::of_watch(a.key().clone(), a.range_end()), a);
        }

        #[test]
        fn a_prefix_holds_exactly_the_keys_that_start_with_it(prefix in key(), key in key()) {
            prop_assume!(!prefix.is_empty());
            let range = KeyRange::of_watch(prefix.clone(), prefix_end(&prefix));
            prop_assert_eq!(range.contains(&key), key.starts_with(&prefix));
        }
    }
}
