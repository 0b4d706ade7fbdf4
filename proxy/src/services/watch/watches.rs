//! The watches of one session: each by the number that the session gives it, and by the id that its client knows.
//!
//! A session finds a watch by its number at each event, which is a place in a row, and by its id when the client asks for
//! something. Most sessions have one watch, of which this is to take little.

use std::collections::HashMap;

/// A watch's number within its session. One that has gone is given to another.
pub type Number = u32;

/// Up to so many ids are looked through, more stand in a table.
const FEW: usize = 8;

pub enum Watches<T> {
    /// One at most, whose number is 0, and the id that is taken if there is one.
    One {
        id: Option<i64>,
        watch: Option<Box<T>>,
    },
    Many(Box<Table<T>>),
}

pub struct Table<T> {
    /// Boxed, since a row has more places than entries.
    places: Vec<Option<Box<T>>>,
    free: Vec<Number>,
    ids: Ids,
}

/// Which watch has an id; none of those that are there has it if it stands for one that has ended.
enum Ids {
    Few(Vec<(i64, Option<Number>)>),
    Many(HashMap<i64, Option<Number>>),
}

impl<T> Default for Watches<T> {
    fn default() -> Self {
        Self::One { id: None, watch: None }
    }
}

impl<T> Watches<T> {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        match self {
            Self::One { id, .. } => usize::from(id.is_some()),
            Self::Many(table) => table.places.len() - table.free.len(),
        }
    }

    /// The number of the only watch there is.
    pub fn only(&self) -> Option<Number> {
        if self.len() != 1 {
            return None;
        }
        let at = self.places().iter().position(Option::is_some)?;
        Number::try_from(at).ok()
    }

    /// Keeps a place for a watch with this id, and says its number; [`Watches::put`] must follow.
    pub fn reserve(&mut self, id: i64) -> Number {
        if let Self::One { id: one @ None, .. } = self {
            *one = Some(id);
            return 0;
        }
        self.table().reserve(id)
    }

    pub fn put(&mut self, number: Number, watch: Box<T>) {
        self.places_mut()[number as usize] = Some(watch);
    }

    pub fn get_mut(&mut self, number: Number) -> Option<&mut T> {
        self.places_mut().get_mut(number as usize)?.as_deref_mut()
    }

    /// Takes a watch out, to be put back.
    pub fn take(&mut self, number: Number) -> Option<Box<T>> {
        self.places_mut().get_mut(number as usize)?.take()
    }

    /// Removes a watch. Its id is free.
    pub fn remove(&mut self, number: Number, id: i64) -> Option<Box<T>> {
        let removed = self.take(number)?;
        match self {
            Self::One { id, .. } => *id = None,
            Self::Many(table) => {
                table.free.push(number);
                table.ids.remove(id);
            }
        }
        Some(removed)
    }

    /// Whether a watch has this id, or had it and nobody has given it back.
    pub fn has_id(&self, id: i64) -> bool {
        self.known(id).is_some()
    }

    /// How many ids are taken.
    pub fn ids(&self) -> usize {
        match self {
            Self::One { id, .. } => usize::from(id.is_some()),
            Self::Many(table) => table.ids.len(),
        }
    }

    /// The watch with this id.
    pub fn find(&self, id: i64) -> Option<Number> {
        self.known(id).flatten()
    }

    /// Keeps the id of a watch that has ended from being given to another.
    pub fn keep_id(&mut self, id: i64) {
        self.table().ids.insert(id, None);
    }

    /// Gives an id back that was kept. Says whether it was.
    pub fn give_back_id(&mut self, id: i64) -> bool {
        match self {
            Self::One { .. } => false,
            Self::Many(table) => table.ids.remove(id),
        }
    }

    /// All numbers that may be a watch's.
    pub fn numbers(&self) -> impl Iterator<Item = Number> + use<T> {
        0..Number::try_from(self.places().len()).expect("each place has a number")
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.places().iter().flatten().map(|watch| &**watch)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places_mut().iter_mut().flatten().map(|watch| &mut **watch)
    }

    fn known(&self, id: i64) -> Option<Option<Number>> {
        match self {
            Self::One { id: one, .. } => (*one == Some(id)).then_some(Some(0)),
            Self::Many(table) => table.ids.get(id),
        }
    }

    fn places(&self) -> &[Option<Box<T>>] {
        match self {
            Self::One { watch, .. } => std::slice::from_ref(watch),
            Self::Many(table) => &table.places,
        }
    }

    fn places_mut(&mut self) -> &mut [Option<Box<T>>] {
        match self {
            Self::One { watch, .. } => std::slice::from_mut(watch),
            Self::Many(table) => &mut table.places,
        }
    }

    /// The table, which is made of the one watch if there is none yet.
    fn table(&mut self) -> &mut Table<T> {
        if let Self::One { id, watch } = self {
            let mut table = Table { places: Vec::new(), free: Vec::new(), ids: Ids::Few(Vec::new()) };
            if let Some(id) = *id {
                let number = table.reserve(id);
                table.places[number as usize] = watch.take();
            }
            *self = Self::Many(Box::new(table));
        }
        match self {
            Self::Many(table) => table,
            Self::One { .. } => unreachable!("it has become a table just now"),
        }
    }
}

impl<T> Table<T> {
    fn reserve(&mut self, id: i64) -> Number {
        let number = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            Number::try_from(self.places.len() - 1).expect("a billion watches do not fit into memory")
        });
        self.ids.insert(id, Some(number));
        number
    }
}

impl Ids {
    fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    fn get(&self, id: i64) -> Option<Option<Number>> {
        match self {
            Self::Few(few) => few.iter().find(|(known, _)| *known == id).map(|(_, number)| *number),
            Self::Many(many) => many.get(&id).copied(),
        }
    }

    fn insert(&mut self, id: i64, number: Option<Number>) {
        match self {
            Self::Few(few) if few.len() < FEW => few.push((id, number)),
            Self::Few(few) => {
                let many = few.drain(..).chain([(id, number)]);
                *self = Self::Many(many.collect());
            }
            Self::Many(many) => {
                many.insert(id, number);
            }
        }
    }

    fn remove(&mut self, id: i64) -> bool {
        match self {
            Self::Few(few) => match few.iter().position(|(known, _)| *known == id) {
                Some(at) => {
                    few.swap_remove(at);
                    true
                }
                None => false,
            },
            Self::Many(many) => many.remove(&id).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_found_by_its_number_and_by_its_id_however_many_there_are() {
        let mut watches = Watches::default();
        for count in 1..=3 * FEW {
            let id = count as i64 * 7;
            let number = watches.reserve(id);
            watches.put(number, Box::new(id));
            assert_eq!((watches.len(), watches.ids()), (count, count));
            for known in (1..=count).map(|count| count as i64 * 7) {
                let number = watches.find(known).expect("it was put there");
                assert_eq!(watches.get_mut(number).copied(), Some(known));
            }
            assert!(!watches.has_id(id + 1));
        }
        assert_eq!(watches.values().count(), 3 * FEW);
    }

    #[test]
    fn the_id_of_a_watch_that_has_ended_is_nobodys_until_it_is_given_back() {
        for others in [1, 2, 2 * FEW] {
            let mut watches = Watches::default();
            for id in 0..others as i64 {
                let number = watches.reserve(id);
                watches.put(number, Box::new(id));
            }
            let ended = watches.find(0).expect("it was put there");
            assert_eq!(watches.remove(ended, 0).as_deref(), Some(&0));
            assert!(!watches.has_id(0) && watches.remove(ended, 0).is_none());
            watches.keep_id(0);
            // Its number is another's now.
            let number = watches.reserve(-5);
            watches.put(number, Box::new(-5));
            assert_eq!(number, ended);
            assert!(watches.has_id(0) && watches.find(0).is_none());
            assert!(watches.give_back_id(0) && !watches.has_id(0) && !watches.give_back_id(0));
            assert_eq!(watches.len(), others);
        }
    }
}
