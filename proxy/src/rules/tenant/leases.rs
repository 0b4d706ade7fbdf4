//! Leases belong to somebody: whose a lease is stands in its id, so that no proxy has to remember it.
//!
//! An id of etcd's has 63 bits. The upper ones of a tenant's leases are a keyed hash of its prefix, the lower ones are
//! free: the blocks of two prefixes do not meet (that two have the same hash is refused at the start), and all proxies
//! that have the same key agree on them, across restarts. One id of each block is never granted. It goes to etcd in the
//! place of every lease that is somebody else's, so that etcd itself answers, in its own words and its own order of
//! checks, what it answers for a lease that does not exist.

use aws_lc_rs::hmac;

/// How many of the 63 bits are a hash. 36 leave 134 million leases to a tenant, and make it unlikely, one in 68 billion,
/// that a lease which etcd made without us looks like a given tenant's.
const TAG_BITS: u32 = 36;
const FREE_BITS: u32 = 63 - TAG_BITS;

/// With no key given. It makes nothing secret; it only spreads the blocks.
pub const DEFAULT_KEY: &[u8] = b"etcd-proxy: leases of tenants";

/// The ids of one tenant's leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseBlock {
    tag: i64,
}

impl LeaseBlock {
    /// The block of a prefix.
    pub fn of(key: &[u8], prefix: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let hash = hmac::sign(&key, prefix);
        let bytes = hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        // Block 0 is where people choose ids by hand.
        let tag = (u64::from_be_bytes(*bytes) >> (64 - TAG_BITS)).max(1);
        Self { tag: tag as i64 }
    }

    pub fn owns(self, lease: i64) -> bool {
        lease >> FREE_BITS == self.tag && lease != self.nobody()
    }

    /// The id that is never granted.
    pub fn nobody(self) -> i64 {
        self.tag << FREE_BITS
    }

    /// The lease as etcd is to be asked for it. No lease at all stays none.
    pub fn as_asked(self, lease: i64) -> i64 {
        if lease == 0 || self.owns(lease) { lease } else { self.nobody() }
    }

    /// An id of the block, from a random number.
    pub fn make(self, random: u64) -> i64 {
        let free = (random as i64 & ((1 << FREE_BITS) - 1)).max(1);
        self.nobody() | free
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_of_prefixes_that_begin_alike_do_not_meet() {
        let prefixes = [&b"/a"[..], b"/a/", b"/a0", b"/b/", b"\xff", b"\xff\xff"];
        for (index, one) in prefixes.iter().enumerate() {
            for other in &prefixes[index + 1..] {
                assert_ne!(LeaseBlock::of(DEFAULT_KEY, one), LeaseBlock::of(DEFAULT_KEY, other));
            }
            assert_ne!(LeaseBlock::of(DEFAULT_KEY, one), LeaseBlock::of(b"another key", one));
        }
    }

    #[test]
    fn a_block_is_the_same_for_every_proxy_and_every_version() {
        // Leases outlive the proxy that granted them.
        assert_eq!(LeaseBlock::of(DEFAULT_KEY, b"/a/"), LeaseBlock { tag: 23_809_683_127 });
    }

    proptest! {
        #[test]
        fn what_is_made_is_owned_by_its_maker_only(random: u64, prefix: Vec<u8>, other: Vec<u8>) {
            let (block, others) = (LeaseBlock::of(DEFAULT_KEY, &prefix), LeaseBlock::of(DEFAULT_KEY, &other));
            let lease = block.make(random);
            prop_assert!(lease > 0 && block.owns(lease));
            prop_assert_eq!(others.owns(lease), block == others);
            prop_assert_eq!(block.as_asked(lease), lease);
            prop_assert_eq!(block.as_asked(0), 0);
        }

        #[test]
        fn every_id_is_owned_or_asked_for_as_the_one_that_is_never_granted(lease: i64) {
            let block = LeaseBlock::of(DEFAULT_KEY, b"/a/");
            let asked = block.as_asked(lease);
            prop_assert!(lease == 0 || block.owns(asked) || asked == block.nobody());
            prop_assert!(!block.owns(block.nobody()));
        }
    }
}
