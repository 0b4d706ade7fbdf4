//! Finds the heads of HTTP/2 frames in a stream of bytes, however it is cut. h2 keeps frames to itself, and what a
//! peer asks of us is known by counting them.

/// The bytes before each frame's payload.
const HEAD_LEN: usize = 9;

/// The type of a frame, of those that matter here.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
}

/// The flag of a PING or SETTINGS that answers one.
const ACK: u8 = 1;
/// The flag of a DATA or HEADERS that is the last of its stream.
const END_STREAM: u8 = 1;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub len: u32,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    fn read(bytes: [u8; HEAD_LEN]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        // The highest bit of the stream is reserved and means nothing.
        Self {
            len: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
        }
    }

    pub fn is_ack(self) -> bool {
        self.flags & ACK != 0
    }

    pub fn ends_stream(self) -> bool {
        self.flags & END_STREAM != 0
    }
}

/// A place in a stream of frames. Any bytes at all are frames to it, so it cannot fail; it holds nine bytes.
#[derive(Debug)]
pub struct Scanner {
    head: [u8; HEAD_LEN],
    held: usize,
    /// Bytes until the next head begins.
    skip: usize,
}

impl Scanner {
    /// `skip` bytes come before the first frame.
    pub fn new(skip: usize) -> Self {
        Self { head: [0; HEAD_LEN], held: 0, skip }
    }

    /// Takes the next bytes of the stream and shows each head that they complete.
    pub fn scan(&mut self, mut bytes: &[u8], mut see: impl FnMut(Head)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD_LEN - self.held).min(bytes.len());
            self.head[self.held..self.held + taken].copy_from_slice(&bytes[..taken]);
            self.held += taken;
            bytes = &bytes[taken..];
            if self.held == HEAD_LEN {
                let head = Head::read(self.head);
                self.held = 0;
                self.skip = head.len as usize;
                see(head);
            }
        }
    }

    /// Whether a frame of one's own may be put here without cutting another in two.
    pub fn is_between_frames(&self) -> bool {
        self.held == 0 && self.skip == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(stream: &mut Vec<u8>, head: Head) {
        stream.extend_from_slice(&head.len.to_be_bytes()[1..]);
        stream.extend_from_slice(&[head.kind, head.flags]);
        stream.extend_from_slice(&head.stream.to_be_bytes());
        // A payload that looks like heads must not be taken for any.
        stream.resize(stream.len() + head.len as usize, kind::PING);
    }

    #[test]
    fn damaged_frames_have_the_same_heads_wherever_they_are_cut() {
        let mut stream = Vec::new();
        for (len, kind) in
            [(6, kind::SETTINGS), (0, kind::SETTINGS), (8, kind::PING), (70, kind::HEADERS), (3, kind::DATA)]
        {
            put(&mut stream, Head { len, kind, flags: 5, stream: 7 });
        }
        crate::foreign::damaged(&[&stream], |bytes| {
            let scan = |step: usize| {
                let (mut scanner, mut heads) = (Scanner::new(3), Vec::new());
                bytes.chunks(step).for_each(|piece| scanner.scan(piece, |head| heads.push(head)));
                heads
            };
            assert_eq!(scan(bytes.len().max(1)), scan(5));
        });
    }

    fn scan_in_pieces(scanner: &mut Scanner, stream: &[u8], sizes: &[usize]) -> Vec<Head> {
        let mut heads = Vec::new();
        let (mut rest, mut sizes) = (stream, sizes.iter().cycle());
        while !rest.is_empty() {
            let size = sizes.next().map_or(1, |size| *size).clamp(1, rest.len());
            let (piece, later) = rest.split_at(size);
            scanner.scan(piece, |head| heads.push(head));
            rest = later;
        }
        heads
    }

    prop_compose! {
        fn any_head()(len in 0_u32..600, kind in 0_u8..12, flags: u8, stream in 0_u32..(1 << 31)) -> Head {
            Head { len, kind, flags, stream }
        }
    }

    proptest! {
        #[test]
        fn every_head_is_found_however_the_stream_is_cut(
            skip in 0_usize..40,
            heads in prop::collection::vec(any_head(), 0..40),
            sizes in prop::collection::vec(1_usize..70, 1..20),
        ) {
            let mut stream = vec![0; skip];
            for head in &heads {
                put(&mut stream, *head);
            }
            let mut scanner = Scanner::new(skip);
            prop_assert_eq!(scan_in_pieces(&mut scanner, &stream, &sizes), heads);
            prop_assert!(scanner.is_between_frames());
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic_and_cut_alike(
            stream in prop::collection::vec(any::<u8>(), 0..4096),
            sizes in prop::collection::vec(1_usize..70, 1..20),
        ) {
            let (mut whole, mut cut) = (Scanner::new(0), Scanner::new(0));
            let expected = scan_in_pieces(&mut whole, &stream, &[usize::MAX]);
            prop_assert_eq!(scan_in_pieces(&mut cut, &stream, &sizes), expected);
            prop_assert_eq!(whole.is_between_frames(), cut.is_between_frames());
        }
    }
}
