//! A range of keys as etcd would answer a Range over it: the keys with their encoded key-values, what an event changes
//! in them, and the answer to any request that can be answered exactly.
//!
//! What cannot be known to be etcd's own answer, byte for byte, is refused here and left to etcd: the order of equals
//! in a sort, which depends on the Go release, and leases in an answer of keys only, which etcd shows up to 3.6.

use std::{collections::BTreeMap, ops::Bound, ops::Range};

use bytes::{BufMut, Bytes};

use super::{
    event::EventKind,
    keys::KeyRange,
    wire::{self, Malformed, Value},
};

/// What a key costs in memory besides its bytes: its place in the tree, its numbers and its allocation.
const KEY_OVERHEAD: usize = 192;

/// Fields of `RangeResponse`.
const KVS: u32 = 2;
const MORE: u32 = 3;
const COUNT: u32 = 4;

/// A Range that asks for the newest revision, and that etcd does not refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub range: KeyRange,
    pub serializable: bool,
    limit: usize,
    order: Order,
    target: Target,
    keys_only: bool,
    count_only: bool,
    bounds: Bounds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    None,
    Ascend,
    Descend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// Revisions that a key must lie within; zero is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bounds {
    min_mod: i64,
    max_mod: i64,
    min_create: i64,
    max_create: i64,
}

impl Query {
    /// Reads an encoded `RangeRequest`. `None` for whatever only etcd can answer: old revisions, what it refuses, and
    /// fields that a later version may add.
    pub fn parse(request: &[u8]) -> Option<Self> {
        let (mut key, mut range_end) = (&[][..], &[][..]);
        // The numbers of the fields 3 to 13.
        let mut numbers = [0_u64; 14];
        for field in wire::fields(request) {
            let field = field.ok()?;
            match (field.number, field.value) {
                (1, Value::Bytes(bytes)) => key = bytes,
                (2, Value::Bytes(bytes)) => range_end = bytes,
                (number @ 3..=13, Value::Varint(varint)) => *numbers.get_mut(number as usize)? = varint,
                _ => return None,
            }
        }
        let signed = |field: usize| numbers[field] as i64;
        let order = match numbers[5] as i32 {
            0 => Order::None,
            1 => Order::Ascend,
            2 => Order::Descend,
            _ => return None,
        };
        let target = match numbers[6] as i32 {
            0 => Target::Key,
            1 => Target::Version,
            2 => Target::Create,
            3 => Target::Mod,
            4 => Target::Value,
            _ => return None,
        };
        let range = KeyRange::of_request(Bytes::copy_from_slice(key), Bytes::copy_from_slice(range_end)).ok()?;
        if signed(4) != 0 || signed(3) < 0 || range.is_empty() {
            return None;
        }
        Some(Self {
            range,
            serializable: numbers[7] != 0,
            limit: usize::try_from(signed(3)).ok()?,
            order,
            target,
            keys_only: numbers[8] != 0,
            count_only: numbers[9] != 0,
            bounds: Bounds { min_mod: signed(10), max_mod: signed(11), min_create: signed(12), max_create: signed(13) },
        })
    }
}

impl Bounds {
    fn admit(&self, item: &Item) -> bool {
        let Self { min_mod, max_mod, min_create, max_create } = *self;
        (max_mod == 0 || item.mod_revision <= max_mod)
            && (min_mod == 0 || item.mod_revision >= min_mod)
            && (max_create == 0 || item.create_revision <= max_create)
            && (min_create == 0 || item.create_revision >= min_create)
    }
}

/// The answer is not known to be etcd's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsure;

/// The keys of a range at one revision.
#[derive(Debug, Default)]
pub struct Content {
    items: BTreeMap<Bytes, Item>,
    weight: usize,
}

/// One key.
#[derive(Debug)]
struct Item {
    /// The `mvccpb.KeyValue` as etcd encoded it.
    encoded: Bytes,
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    has_lease: bool,
    /// The field `value` with its tag, and without.
    value_field: Range<usize>,
    value: Range<usize>,
}

impl Content {
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// About how many bytes of memory they take.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Takes in an encoded `mvccpb.KeyValue` in place of what its key held before.
    pub fn put(&mut self, key_value: &[u8]) -> Result<(), Malformed> {
        // A copy of its own, so that one key does not hold the memory of the whole message that it came in.
        let encoded = Bytes::copy_from_slice(key_value);
        let mut key = 0..0;
        let mut item = Item {
            encoded: encoded.clone(),
            create_revision: 0,
            mod_revision: 0,
            version: 0,
            has_lease: false,
            value_field: 0..0,
            value: 0..0,
        };
        for field in wire::fields(&encoded) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Bytes(bytes)) => key = field.end - bytes.len()..field.end,
                (2, Value::Varint(varint)) => item.create_revision = varint as i64,
                (3, Value::Varint(varint)) => item.mod_revision = varint as i64,
                (4, Value::Varint(varint)) => item.version = varint as i64,
                (5, Value::Bytes(bytes)) => {
                    item.value_field = field.start..field.end;
                    item.value = field.end - bytes.len()..field.end;
                }
                (6, Value::Varint(varint)) => item.has_lease = varint != 0,
                _ => (),
            }
        }
        self.weight += item.encoded.len() + KEY_OVERHEAD;
        if let Some(before) = self.items.insert(encoded.slice(key), item) {
            self.weight -= before.encoded.len() + KEY_OVERHEAD;
        }
        Ok(())
    }

    /// Takes in the key-values of an encoded `RangeResponse`, and tells the last key and whether there are more.
    pub fn put_page(&mut self, response: &[u8]) -> Result<Page, Malformed> {
        let mut page = Page::default();
        for field in wire::fields(response) {
            let field = field?;
            if let Some(key_value) = field.bytes(KVS) {
                page.last_key = Bytes::copy_from_slice(wire::last_bytes(key_value, 1)?);
                self.put(key_value)?;
            } else if let Some(more) = field.varint(MORE) {
                page.more = more != 0;
            }
        }
        Ok(page)
    }

    /// Does what an encoded `mvccpb.Event` says has happened.
    pub fn apply(&mut self, event: &[u8]) -> Result<(), Malformed> {
        let mut kind = EventKind::Put;
        let mut key_value: &[u8] = &[];
        for field in wire::fields(event) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Varint(0)) => kind = EventKind::Put,
                (1, Value::Varint(1)) => kind = EventKind::Delete,
                (1, _) => kind = EventKind::Unknown,
                (2, Value::Bytes(bytes)) => key_value = bytes,
                _ => (),
            }
        }
        match kind {
            EventKind::Put => self.put(key_value)?,
            EventKind::Delete => {
                if let Some(before) = self.items.remove(wire::last_bytes(key_value, 1)?) {
                    self.weight -= before.encoded.len() + KEY_OVERHEAD;
                }
            }
            EventKind::Unknown => return Err(Malformed::Direction),
        }
        Ok(())
    }

    /// Appends the answer to a query within this range, an encoded `RangeResponse` less its header, and says how many
    /// keys it shows.
    pub fn answer(&self, query: &Query, out: &mut impl BufMut) -> Result<usize, Unsure> {
        let mut shown: Vec<&Item> = Vec::new();
        let by_key = query.order == Order::None || (query.target == Target::Key && query.order == Order::Ascend);
        // etcd sees one key more than it may show, to know whether there are more; unless it must see all to sort or to
        // filter them.
        let seen = match query.limit {
            limit if limit > 0 && by_key && query.bounds == Bounds::default() => limit.saturating_add(1),
            _ => usize::MAX,
        };
        let mut count = 0_u64;
        for item in self.within(&query.range) {
            if !query.count_only && shown.len() < seen {
                shown.push(item);
            }
            count += 1;
        }
        shown.retain(|item| query.bounds.admit(item));
        sort(&mut shown, query)?;
        let mut more = false;
        if query.limit > 0 && shown.len() > query.limit {
            shown.truncate(query.limit);
            more = true;
        }
        if query.keys_only && shown.iter().any(|item| item.has_lease) {
            return Err(Unsure);
        }
        for item in &shown {
            item.put(out, query.keys_only);
        }
        for (field, number) in [(MORE, u64::from(more)), (COUNT, count)] {
            if number != 0 {
                wire::put_varint(out, u64::from(field) << 3);
                wire::put_varint(out, number);
            }
        }
        Ok(shown.len())
    }

    fn within(&self, range: &KeyRange) -> impl Iterator<Item = &Item> {
        let key = &range.key()[..];
        let range_end = range.range_end();
        let end = match &range_end[..] {
            b"" => Bound::Included(key),
            super::keys::NUL => Bound::Unbounded,
            end => Bound::Excluded(end),
        };
        self.items.range::<[u8], _>((Bound::Included(key), end)).map(|(_, item)| item)
    }
}

/// What [`Content::put_page`] found.
#[derive(Debug, Default)]
pub struct Page {
    pub last_key: Bytes,
    pub more: bool,
}

/// Sorts as etcd does: by key unless asked otherwise, and any other target without an order upwards.
fn sort(shown: &mut [&Item], query: &Query) -> Result<(), Unsure> {
    fn by<K: Ord>(shown: &mut [&Item], key: impl Fn(&Item) -> K) -> Result<(), Unsure> {
        shown.sort_by_key(|item| key(item));
        let has_equals = shown.windows(2).any(|pair| key(pair[0]) == key(pair[1]));
        if has_equals { Err(Unsure) } else { Ok(()) }
    }
    match query.target {
        // They come in the order of their keys.
        Target::Key => (),
        Target::Version => by(shown, |item| item.version)?,
        Target::Create => by(shown, |item| item.create_revision)?,
        Target::Mod => by(shown, |item| item.mod_revision)?,
        Target::Value => {
            shown.sort_by(|one, other| one.value().cmp(other.value()));
            if shown.windows(2).any(|pair| pair[0].value() == pair[1].value()) {
                return Err(Unsure);
            }
        }
    }
    if query.order == Order::Descend {
        shown.reverse();
    }
    Ok(())
}

impl Item {
    fn value(&self) -> &[u8] {
        &self.encoded[self.value.clone()]
    }

    fn put(&self, out: &mut impl BufMut, keys_only: bool) {
        if keys_only {
            wire::put_bytes_header(out, KVS, self.encoded.len() - self.value_field.len());
            out.put_slice(&self.encoded[..self.value_field.start]);
            out.put_slice(&self.encoded[self.value_field.end..]);
        } else {
            wire::put_bytes_header(out, KVS, self.encoded.len());
            out.put_slice(&self.encoded);
        }
    }
}

#[cfg(test)]
mod tests;
