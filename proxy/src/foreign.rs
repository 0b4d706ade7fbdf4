//! Damaged input for the tests of whatever reads foreign bytes: the same in every run, and bounded by a count.
//!
//! A test calls [`damaged`] with good inputs and the reader. What the reader may answer is its own affair; that it
//! answers, and without a panic, is what is shown. `FOREIGN_ROUNDS` makes a run longer, and other, than that of CI.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Damaged inputs per test: at a few microseconds each, tests of all readers together take some seconds in a debug
/// build.
const ROUNDS: u64 = 4_000;
/// Wounds of one input. One alone is found by what reads the place; several reach what stands behind that.
const MOST_WOUNDS: u64 = 4;
/// The longest that an input may grow to by being doubled, so that a round stays short.
const LONGEST: usize = 8 << 10;
/// Bytes that mean something to one reader or another: ends of ranges, tags, lengths, quotes, brackets, separators.
const TELLING: &[u8] = b"\x00\x01\x7f\x80\xff\n\r\t \"'\\/%:;,.@=-+*&!|#<>()[]{}019eEuUnN\x08\x0a\x12\x1a\x22";
/// What numbers are tried with.
const NUMBERS: [&[u8]; 8] =
    [b"0", b"-1", b"2147483648", b"4294967296", b"9223372036854775807", b"18446744073709551616", b"1e999", b"0x"];

/// A reader that takes milliseconds, not microseconds, gets one in this many of the damaged inputs.
const SELDOM: u64 = 40;

/// Gives the reader each input as it is, and then thousands that are damaged.
pub fn damaged<T>(inputs: &[&[u8]], read: impl FnMut(&[u8]) -> T) {
    offer_all(inputs, rounds(), read);
}

/// The same for a reader that is slow.
pub fn damaged_seldom<T>(inputs: &[&[u8]], read: impl FnMut(&[u8]) -> T) {
    offer_all(inputs, rounds() / SELDOM, read);
}

fn rounds() -> u64 {
    std::env::var("FOREIGN_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

fn offer_all<T>(inputs: &[&[u8]], rounds: u64, mut read: impl FnMut(&[u8]) -> T) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for input in inputs {
        offer(input, &mut read);
    }
    for _ in 0..rounds {
        let mut input = inputs[dice.below(inputs.len())].to_vec();
        for _ in 0..=dice.below(MOST_WOUNDS as usize) {
            wound(&mut input, inputs, &mut dice);
        }
        offer(&input, &mut read);
    }
}

/// Tells what was read before it hands a panic on.
fn offer<T>(input: &[u8], read: &mut impl FnMut(&[u8]) -> T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(read(input)))) {
        eprintln!("the reader panicked at {} bytes: {}", input.len(), input.escape_ascii());
        resume_unwind(panic);
    }
}

fn wound(input: &mut Vec<u8>, others: &[&[u8]], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let end = at + dice.below(input.len() - at + 1).min(dice.below(64) + 1);
    let telling = TELLING[dice.below(TELLING.len())];
    match dice.below(10) {
        0 if at < input.len() => input[at] ^= 1 << dice.below(8),
        1 if at < input.len() => input[at] = telling,
        2 => input.insert(at, telling),
        3 => drop(input.drain(at..end)),
        4 => input.truncate(at),
        5 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        // Nested deep, or many of one kind.
        6 if at < end => {
            let copy = input[at..end].repeat(dice.below(512));
            input.splice(at..at, copy);
        }
        7 => {
            let other = others[dice.below(others.len())];
            let from = dice.below(other.len() + 1);
            input.splice(at..end, other[from..].iter().copied());
        }
        8 => {
            input.splice(at..end, NUMBERS[dice.below(NUMBERS.len())].iter().copied());
        }
        _ => {
            let noise: Vec<u8> = (0..dice.below(16)).map(|_| dice.below(256) as u8).collect();
            input.splice(at..end, noise);
        }
    }
    input.truncate(LONGEST);
}

/// xorshift: the same throws in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

#[test]
fn damage_reaches_every_byte_and_is_the_same_in_every_run() {
    let good = b"0123456789";
    let run = || {
        let mut seen = Vec::new();
        damaged(&[good], |input| seen.push(input.to_vec()));
        seen
    };
    let seen = run();
    assert_eq!(seen, run());
    assert_eq!(seen[0], good);
    for index in 0..good.len() {
        let is_touched = |input: &&Vec<u8>| input.len() == good.len() && input[index] != good[index];
        assert!(seen.iter().any(|input| is_touched(&input)), "byte {index}");
    }
    assert!(seen.iter().any(Vec::is_empty) && seen.iter().any(|input| input.len() > 1000));
}
