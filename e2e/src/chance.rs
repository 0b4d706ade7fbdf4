//! Numbers that look like chance and are the same in each run, for tests that try many mixtures.

/// Numbers by xorshift, which needs no more than this; they begin with any number but zero.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }

    /// The same as etcd counts.
    pub fn small(&mut self, bound: u64) -> i64 {
        i64::try_from(self.below(bound)).expect("the bound is small")
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("there are few choices")]
    }
}
