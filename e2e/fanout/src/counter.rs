//! Counts the events in one stream's bytes, wherever these are cut, and decodes nothing that it need not.

/// What has been seen, of one stream or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub messages: u64,
    pub events: u64,
    pub created: u64,
    pub canceled: u64,
}

/// Fields of a `WatchResponse`, with their wire types, as bytes.
const CREATED: u64 = 3 << 3;
const CANCELED: u64 = 4 << 3;
const EVENT: u64 = 11 << 3 | 2;

/// A place in a stream of messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    /// Bytes until the message ends.
    left: u32,
    /// Bytes to pass over before the next field.
    skip: u32,
    /// What has come of a number or of a message's prefix.
    held: u64,
    shift: u8,
    tag: u8,
    step: Step,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Prefix,
    Tag,
    Value,
}

impl Counter {
    pub fn pass(&mut self, mut data: &[u8], seen: &mut Seen) {
        while let Some((&byte, rest)) = data.split_first() {
            if self.skip > 0 {
                let passed = data.len().min(self.skip as usize);
                data = &data[passed..];
                self.skip -= passed as u32;
                self.left -= passed as u32;
            } else if self.step == Step::Prefix {
                self.held = self.held << 8 | u64::from(byte);
                self.shift += 1;
                data = rest;
                if self.shift == 5 {
                    self.left = self.held as u32;
                    (self.held, self.shift) = (0, 0);
                    self.step = Step::Tag;
                    seen.messages += 1;
                }
            } else {
                self.held |= u64::from(byte & 0x7f) << self.shift.min(63);
                self.shift += 7;
                self.left -= 1;
                data = rest;
                if byte < 0x80 {
                    self.number(seen);
                }
            }
            if self.left == 0 && self.step == Step::Tag {
                self.step = Step::Prefix;
            }
        }
    }

    /// A whole number has come.
    fn number(&mut self, seen: &mut Seen) {
        let number = std::mem::take(&mut self.held);
        self.shift = 0;
        if self.step == Step::Tag {
            self.tag = u8::try_from(number).expect("a WatchResponse has no field above 15");
            self.step = Step::Value;
            return;
        }
        self.step = Step::Tag;
        match u64::from(self.tag) {
            CREATED => seen.created += number,
            CANCELED => seen.canceled += number,
            EVENT => seen.events += 1,
            _ => (),
        }
        if self.tag & 7 == 2 {
            self.skip = u32::try_from(number).expect("a field is shorter than its message");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_once_wherever_their_bytes_are_cut() {
        let mut stream = Vec::new();
        let mut message = |body: &[u8]| {
            stream.push(0);
            stream.extend_from_slice(&u32::try_from(body.len()).expect("it is short").to_be_bytes());
            stream.extend_from_slice(body);
        };
        message(b"\x0a\x02\x18\x07\x18\x01");
        message(b"");
        let long = [&b"\x0a\x02\x18\x07\x10\x05\x5a\xc8\x01"[..], &[0x5a; 200], b"\x5a\x00"].concat();
        message(&long);
        message(b"\x0a\x00\x20\x01\x32\x03abc");
        for step in 1..stream.len() {
            let (mut counter, mut seen) = (Counter::default(), Seen::default());
            stream.chunks(step).for_each(|piece| counter.pass(piece, &mut seen));
            assert_eq!(seen, Seen { messages: 4, events: 2, created: 1, canceled: 1 }, "cut into {step}");
        }
    }
}
