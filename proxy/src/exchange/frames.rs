//! Finds the heads of HTTP/2 frames in a stream of bytes, however it is cut. h2 keeps frames to itself, and what a
//! peer asks of us is known by counting them.

/// The bytes before each frame's payload.
pub const HEAD_LEN: usize = 9;

/// The type of a frame, of those that matter here.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const PUSH_PROMISE: u8 = 5;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// The flag of a PING or SETTINGS that answers one.
const ACK: u8 = 1;
/// The flag of a DATA or HEADERS that is the last of its stream.
const END_STREAM: u8 = 1;

/// The flag of a frame of headers after which no more of them come.
const END_HEADERS: u8 = 4;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

    pub fn write(self) -> [u8; HEAD_LEN] {
        let [_, a, b, c] = self.len.to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    pub fn is_ack(self) -> bool {
        self.flags & ACK != 0
    }

    /// Whether the next frame must go on with the headers that this one begins.
    fn is_continued(self) -> bool {
        matches!(self.kind, kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION) && self.flags & END_HEADERS == 0
    }

    pub fn ends_stream(self) -> bool {
        self.flags & END_STREAM != 0
    }
}

/// A place in a stream of frames. Any bytes at all are frames to it, so it cannot fail; it holds nine bytes.
#[derive(Debug)]
pub struct Scanner {
    held: [u8; HEAD_LEN],
    held_len: usize,
    /// Bytes until the next head begins.
    left: usize,
    /// Whose payload they are.
    head: Head,
}

/// What a scanner has come upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A head that is whole now.
    Head(Head),
    /// Some of the payload of the frame with this head.
    Payload(Head, &'a [u8]),
}

impl Scanner {
    /// `skip` bytes come before the first frame.
    pub fn new(skip: usize) -> Self {
        Self { held: [0; HEAD_LEN], held_len: 0, left: skip, head: Head::default() }
    }

    /// Takes the next bytes of the stream and shows what they are.
    pub fn scan(&mut self, mut bytes: &[u8], mut see: impl FnMut(Part<'_>)) {
        while !bytes.is_empty() {
            let payload = self.payload(&mut bytes, usize::MAX);
            if !payload.is_empty() {
                see(Part::Payload(self.head, payload));
            }
            if let Some(head) = self.next_head(&mut bytes) {
                see(Part::Head(head));
            }
        }
    }

    /// Takes what comes next of the payload that is passing, up to `most` bytes.
    pub fn payload<'a>(&mut self, bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
        let (payload, rest) = bytes.split_at(self.left.min(bytes.len()).min(most));
        self.left -= payload.len();
        *bytes = rest;
        payload
    }

    /// Takes what comes next of the head of a frame, which must come next, and says whether it is whole now.
    pub fn next_head(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        if self.left > 0 {
            return None;
        }
        let (taken, rest) = bytes.split_at((HEAD_LEN - self.held_len).min(bytes.len()));
        self.held[self.held_len..self.held_len + taken.len()].copy_from_slice(taken);
        self.held_len += taken.len();
        *bytes = rest;
        if self.held_len < HEAD_LEN {
            return None;
        }
        self.held_len = 0;
        self.head = Head::read(self.held);
        self.left = self.head.len as usize;
        Some(self.head)
    }

    /// Whether a payload is passing, so that no other frame can begin.
    pub fn is_in_payload(&self) -> bool {
        self.left > 0
    }

    /// Whether a frame of one's own may be put here without cutting another in two, or headers from what continues them.
    pub fn is_between_frames(&self) -> bool {
        self.held_len == 0 && self.is_before_a_head()
    }

    /// The same, for who holds back what has come of a head.
    pub fn is_before_a_head(&self) -> bool {
        self.left == 0 && !self.head.is_continued()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(heads: &mut Vec<Head>, part: Part<'_>) {
        if let Part::Head(head) = part {
            heads.push(head);
        }
    }

    fn put(stream: &mut Vec<u8>, head: Head) {
        stream.extend_from_slice(&head.write());
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
                bytes.chunks(step).for_each(|piece| scanner.scan(piece, |part| note(&mut heads, part)));
                heads
            };
            assert_eq!(scan(bytes.len().max(1)), scan(5));
        });
    }

    #[test]
    fn nothing_may_stand_between_headers_and_what_continues_them() {
        let frames = [(kind::HEADERS, 1, false), (kind::CONTINUATION, 0, false), (kind::CONTINUATION, 4, true)];
        let mut scanner = Scanner::new(0);
        for (kind, flags, may) in frames {
            let mut stream = Vec::new();
            put(&mut stream, Head { len: 3, kind, flags, stream: 1 });
            scanner.scan(&stream, |_| ());
            assert_eq!((scanner.is_between_frames(), scanner.is_before_a_head()), (may, may), "{kind}");
        }
    }

    fn scan_in_pieces(scanner: &mut Scanner, stream: &[u8], sizes: &[usize]) -> Vec<Head> {
        let mut heads = Vec::new();
        let (mut rest, mut sizes) = (stream, sizes.iter().cycle());
        while !rest.is_empty() {
            let size = sizes.next().map_or(1, |size| *size).clamp(1, rest.len());
            let (piece, later) = rest.split_at(size);
            scanner.scan(piece, |part| note(&mut heads, part));
            rest = later;
        }
        heads
    }

    prop_compose! {
        fn any_head()(len in 0_u32..600, kind in 0_u8..12, flags: u8, stream in 0_u32..(1 << 31)) -> Head {
            // No headers that go on in the next frame.
            Head { len, kind, flags: flags | END_HEADERS, stream }
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
            prop_assert_eq!(scan_in_pieces(&mut scanner, &stream, &sizes), heads.clone());
            prop_assert!(scanner.is_between_frames());
            let mut payloads = vec![0; heads.len()];
            let (mut scanner, mut at) = (Scanner::new(skip), 0);
            stream.chunks(sizes[0]).for_each(|piece| scanner.scan(piece, |part| match part {
                Part::Head(_) => at += 1,
                Part::Payload(_, payload) if at > 0 => payloads[at - 1] += payload.len(),
                Part::Payload(..) => (),
            }));
            let lens: Vec<usize> = heads.iter().map(|head| head.len as usize).collect();
            prop_assert_eq!(payloads, lens);
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
