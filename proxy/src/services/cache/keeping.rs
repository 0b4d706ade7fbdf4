//! Which cached ranges are kept when there are too many of them: those that were read last, and of one tenant among several
//! no more than its share.

use std::{collections::HashMap, hash::Hash, time::Duration};

/// How much may be kept.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub bytes: usize,
    pub ranges: usize,
}

/// A range as it is judged.
pub struct Candidate<O, N> {
    /// Whose it is.
    pub owner: O,
    pub name: N,
    /// For how long nobody has read it.
    pub idle: Duration,
    pub bytes: usize,
}

/// Those that are not kept. `of_one` is the room of one owner.
pub fn surplus<O: Clone + Eq + Hash, N>(
    mut candidates: Vec<Candidate<O, N>>,
    max_idle: Duration,
    of_all: Room,
    of_one: Room,
) -> Vec<N> {
    candidates.sort_by_key(|candidate| candidate.idle);
    let mut kept = Room { bytes: 0, ranges: 0 };
    let mut kept_of_one: HashMap<O, Room> = HashMap::new();
    let mut dropped = Vec::new();
    for Candidate { owner, name, idle, bytes } in candidates {
        let own = kept_of_one.entry(owner).or_insert(Room { bytes: 0, ranges: 0 });
        let fits = |kept: &Room, room: Room| kept.ranges < room.ranges && kept.bytes + bytes <= room.bytes;
        if idle > max_idle || !fits(&kept, of_all) || !fits(own, of_one) {
            dropped.push(name);
            continue;
        }
        for room in [&mut kept, own] {
            room.bytes += bytes;
            room.ranges += 1;
        }
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(held: &[(char, u64, usize)], of_all: Room, of_one: Room, dropped: &[usize]) {
        let candidate = |(name, &(owner, idle, bytes)): (usize, &(char, u64, usize))| Candidate {
            owner,
            name,
            idle: Duration::from_secs(idle),
            bytes,
        };
        let mut found =
            surplus(held.iter().enumerate().map(candidate).collect(), Duration::from_secs(60), of_all, of_one);
        found.sort_unstable();
        assert_eq!(found, dropped);
    }

    #[test]
    fn what_was_read_last_is_kept_and_what_nobody_reads_is_not() {
        let room = Room { bytes: 100, ranges: 2 };
        check(&[('a', 3, 10), ('a', 1, 10), ('a', 2, 10)], room, room, &[0]);
        check(&[('a', 1, 60), ('a', 2, 60), ('a', 3, 30)], room, room, &[1]);
        check(&[('a', 61, 1)], room, room, &[0]);
    }

    #[test]
    fn one_of_several_does_not_push_the_others_out() {
        let (of_all, of_one) = (Room { bytes: 100, ranges: 8 }, Room { bytes: 50, ranges: 4 });
        // The neighbour's was read long before all that the greedy one reads.
        check(&[('g', 1, 25), ('g', 2, 25), ('g', 3, 25), ('g', 4, 25), ('m', 50, 25)], of_all, of_one, &[2, 3]);
        let many: Vec<_> = (0..6).map(|second| ('g', second, 1)).chain([('m', 50, 1)]).collect();
        check(&many, of_all, of_one, &[4, 5]);
    }
}
