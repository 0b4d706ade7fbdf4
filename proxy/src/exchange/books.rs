//! Keeps the windows of streams whose DATA is written below HTTP/2 and HTTP/2's own belief about them in step.
//!
//! HTTP/2 is exact and dear: each DATA frame that it sends is queued, scheduled and debited by itself. Frames of events
//! that many streams are sent alike are written beside it ([`Below`]), and it is told of them in lumps. Before any are
//! written it is made to send as many bytes of nothing on one of the streams, which are swallowed on their way out: so it
//! has taken them from the connection's window, and nobody else can spend them. Which stream a lump is debited to
//! changes in turn, and a stream that goes back to HTTP/2 is settled: what is still owed is sent as nothing, and what
//! was debited too early is given back by a WINDOW_UPDATE of our own. Pure: bytes and numbers in, numbers out.

use std::{
    collections::{HashMap, VecDeque},
    io,
    task::{Context, Poll},
    time::Instant,
};

#[cfg(test)]
mod law;

use super::frames::{Head, Part, kind};

/// Where frames are written below HTTP/2.
pub trait Below {
    /// Makes room for a frame with so much payload; `Pending` while there is none, or HTTP/2 is within a frame of its own.
    fn poll_room(&mut self, context: &mut Context<'_>, payload: usize) -> Poll<io::Result<()>>;

    /// Writes a DATA frame, for which there is room.
    fn put(&mut self, stream: u32, payload: &[u8], now: Instant);
}

/// The most that a DATA frame may hold whatever the client's settings are.
pub const MAX_PAYLOAD: usize = 16 << 10;

/// What HTTP/2 says a stream may be sent until the client says something else.
const DEFAULT_WINDOW: i64 = 65_535;
/// The setting that changes it, of six bytes with its value.
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;
const SETTING_LEN: usize = 6;
/// With a wider window a stream is not written below HTTP/2: what it owes stands above its window in HTTP/2's belief, which
/// must not go beyond 2^31-1.
const MAX_WINDOW: i64 = 1 << 30;

/// Streams of which it is kept what the client granted them before anyone said that they are to be followed. It is looked
/// through by the number of the stream; one that falls out of it is never followed, and stays with HTTP/2.
const MAX_EARLY: usize = 64;

/// A stream that is followed.
#[derive(Clone, Copy, Debug, Default)]
struct Followed {
    stream: u32,
    is_below: bool,
    has_ended: bool,
    /// What the client lets it be sent, in truth, beside the window that all streams begin with: less than nothing for what
    /// has been sent.
    granted: i64,
    /// What HTTP/2 sent on it.
    passed: u64,
    /// What was written below HTTP/2 and HTTP/2 has not debited; negative where it was debited before.
    owed: i64,
    /// Bytes of nothing that HTTP/2 was given and has not sent.
    ordered: i64,
}

/// Where a followed stream stands in the books.
pub type Entry = u32;

/// One per connection.
#[derive(Debug)]
pub struct Books {
    initial_window: i64,
    /// Whether that has become less since it was looked at what this means.
    has_shrunk: bool,
    entries: Vec<Followed>,
    free: Vec<Entry>,
    by_stream: HashMap<u32, Entry>,
    early: VecDeque<(u32, i64)>,
    /// Streams up to this one may have been granted something that nobody has noted.
    unknown_upto: u32,
    /// What HTTP/2 believes that the connection may be sent.
    connection_window: i64,
    /// Bytes of the connection's window that HTTP/2 has debited and nobody has used.
    credit: i64,
    /// Bytes of nothing that are on their way, on all streams that are below.
    ordered: i64,
    /// Streams below HTTP/2 that have ended and whose owner has not heard of it.
    ended: Vec<u32>,
    /// Frames that HTTP/2 is to read as if the client had sent them.
    for_http2: VecDeque<u8>,
    /// A setting or an increment that has come in part.
    partial: [u8; SETTING_LEN],
    partial_len: usize,
}

impl Default for Books {
    fn default() -> Self {
        Self {
            initial_window: DEFAULT_WINDOW,
            has_shrunk: false,
            entries: Vec::new(),
            free: Vec::new(),
            by_stream: HashMap::new(),
            early: VecDeque::new(),
            unknown_upto: 0,
            connection_window: DEFAULT_WINDOW,
            credit: 0,
            ordered: 0,
            ended: Vec::new(),
            for_http2: VecDeque::new(),
            partial: [0; SETTING_LEN],
            partial_len: 0,
        }
    }
}

impl Books {
    /// Follows a stream on which nothing has been sent yet, if it is known what its client has granted it. Says whether.
    pub fn follow(&mut self, stream: u32) -> bool {
        if stream <= self.unknown_upto || self.by_stream.contains_key(&stream) {
            return false;
        }
        let early = self.early.iter().position(|(known, _)| *known == stream);
        let granted = early.and_then(|at| self.early.remove(at)).map_or(0, |(_, granted)| granted);
        let entry = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Followed::default());
            Entry::try_from(self.entries.len() - 1).expect("HTTP/2 has no more streams than that")
        });
        self.entries[entry as usize] = Followed { stream, granted, ..Followed::default() };
        self.by_stream.insert(stream, entry);
        true
    }

    /// Follows a stream no longer whose call has ended: it may have been reset before it was followed.
    pub fn forget(&mut self, stream: u32) {
        let Some(entry) = self.by_stream.get(&stream) else { return };
        let Followed { is_below, ordered, .. } = self.entries[*entry as usize];
        // What is on its way of nothing must be known when it comes; then its end comes too.
        if !is_below && ordered == 0 {
            self.end(stream);
        }
    }

    /// Notes what has come from the client.
    pub fn received(&mut self, part: Part<'_>) {
        match part {
            Part::Head(head) => {
                self.partial_len = 0;
                if head.kind == kind::RST_STREAM {
                    self.end(head.stream);
                }
            }
            Part::Payload(head, bytes) => match head.kind {
                kind::WINDOW_UPDATE => self.gather(bytes, 4, |books, payload| {
                    let increment = u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]);
                    books.grant(head.stream, i64::from(increment & (u32::MAX >> 1)));
                }),
                kind::SETTINGS => self.gather(bytes, SETTING_LEN, |books, payload| {
                    let value = u32::from_be_bytes([payload[2], payload[3], payload[4], payload[5]]);
                    if u16::from_be_bytes([payload[0], payload[1]]) == SETTINGS_INITIAL_WINDOW_SIZE {
                        books.set_initial_window(i64::from(value));
                    }
                }),
                _ => (),
            },
        }
    }

    /// Hands out each piece of so many bytes that is whole.
    fn gather(&mut self, mut bytes: &[u8], len: usize, mut with: impl FnMut(&mut Self, [u8; SETTING_LEN])) {
        while !bytes.is_empty() {
            let (taken, rest) = bytes.split_at((len - self.partial_len).min(bytes.len()));
            self.partial[self.partial_len..self.partial_len + taken.len()].copy_from_slice(taken);
            self.partial_len += taken.len();
            bytes = rest;
            if self.partial_len == len {
                self.partial_len = 0;
                with(self, self.partial);
            }
        }
    }

    fn grant(&mut self, stream: u32, increment: i64) {
        if stream == 0 {
            self.connection_window += increment;
            return;
        }
        if let Some(entry) = self.by_stream.get(&stream) {
            self.entries[*entry as usize].granted += increment;
            return;
        }
        if let Some((_, granted)) = self.early.iter_mut().find(|(known, _)| *known == stream) {
            *granted += increment;
            return;
        }
        if self.early.len() == MAX_EARLY
            && let Some((forgotten, _)) = self.early.pop_front()
        {
            self.unknown_upto = self.unknown_upto.max(forgotten);
        }
        self.early.push_back((stream, increment));
    }

    /// HTTP/2 moves all windows by the difference.
    fn set_initial_window(&mut self, initial: i64) {
        self.has_shrunk |= initial < std::mem::replace(&mut self.initial_window, initial);
    }

    /// Lets HTTP/2 send what it was given of nothing on streams whose windows have shrunk since: their clients have nothing
    /// to read there, and would never grant more.
    fn make_up_for_shrinking(&mut self) {
        for index in 0..self.entries.len() {
            let followed = &self.entries[index];
            let Followed { stream, owed, ordered, is_below, .. } = *followed;
            let short = ordered - (self.window(followed) + owed);
            if is_below && ordered > 0 && short > 0 {
                self.entries[index].owed += short;
                self.tell_http2(stream, short);
            }
        }
    }

    /// Notes a frame that HTTP/2 sends. Says whether it is one of nothing, which is not to reach the client.
    pub fn sent(&mut self, head: Head) -> bool {
        match head.kind {
            kind::DATA => {
                self.connection_window -= i64::from(head.len);
                if let Some(entry) = self.by_stream.get(&head.stream) {
                    let (entry, len) = (&mut self.entries[*entry as usize], i64::from(head.len));
                    if entry.ordered > 0 {
                        entry.ordered -= len;
                        entry.owed -= len;
                        if entry.is_below {
                            self.ordered -= len;
                        }
                        self.credit += len;
                        return true;
                    }
                    entry.granted -= len;
                    entry.passed += u64::from(head.len);
                }
                if head.ends_stream() {
                    self.end(head.stream);
                }
            }
            kind::HEADERS if head.ends_stream() => self.end(head.stream),
            kind::RST_STREAM => self.end(head.stream),
            _ => (),
        }
        false
    }

    fn end(&mut self, stream: u32) {
        let Some(entry) = self.by_stream.remove(&stream) else { return };
        let ended = &mut self.entries[entry as usize];
        // HTTP/2 has thrown away what it had not sent.
        let ordered = std::mem::take(&mut ended.ordered);
        if ended.is_below {
            self.ordered -= ordered;
            ended.has_ended = true;
            self.ended.push(stream);
        } else {
            self.free.push(entry);
        }
    }

    /// The entry of a stream on which HTTP/2 has sent all of so many bytes, so that what is written now comes after them.
    /// None as long as that is not so.
    pub fn flushed(&self, stream: u32, bytes: u64) -> Option<Entry> {
        let entry = *self.by_stream.get(&stream)?;
        let Followed { passed, owed, ordered, .. } = self.entries[entry as usize];
        (passed == bytes && owed == 0 && ordered == 0 && self.may_take_below(stream)).then_some(entry)
    }

    /// Whether a stream is followed whose window is narrow enough for it to be written below HTTP/2.
    pub fn may_take_below(&self, stream: u32) -> bool {
        let followed = self.by_stream.get(&stream).map(|entry| &self.entries[*entry as usize]);
        followed.is_some_and(|followed| self.window(followed) <= MAX_WINDOW)
    }

    /// What the client lets a stream be sent, in truth.
    fn window(&self, followed: &Followed) -> i64 {
        self.initial_window + followed.granted
    }

    /// From now on the DATA of this stream is written below HTTP/2.
    pub fn take_below(&mut self, entry: Entry) {
        self.entries[entry as usize].is_below = true;
    }

    /// HTTP/2 may send on this stream again, if first it sends as many bytes of nothing as this says.
    pub fn give_back(&mut self, entry: Entry) -> usize {
        let Self { entries, ordered, .. } = self;
        let back = &mut entries[entry as usize];
        if std::mem::take(&mut back.has_ended) {
            self.free.push(entry);
            return 0;
        }
        back.is_below = false;
        // The others wait for it no longer: its client may never take it.
        *ordered -= back.ordered;
        let owed = back.owed - back.ordered;
        if owed >= 0 {
            back.ordered += owed;
            return usize::try_from(owed).expect("it is not negative");
        }
        back.owed -= owed;
        let stream = back.stream;
        self.tell_http2(stream, -owed);
        0
    }

    /// The stream of an entry, if its client takes so many bytes now.
    pub fn takes(&self, entry: Entry, len: usize) -> Option<u32> {
        let followed = &self.entries[entry as usize];
        let (Followed { stream, owed, has_ended, .. }, window) = (*followed, self.window(followed));
        (window >= len as i64 && window.max(window + owed) <= MAX_WINDOW && !has_ended).then_some(stream)
    }

    /// Whether what is written next has been paid for.
    pub fn has_credit(&self, len: usize) -> bool {
        self.credit >= len as i64
    }

    /// How many of so many bytes are neither paid for nor on their way to be.
    pub fn lacks(&mut self, len: usize) -> usize {
        if std::mem::take(&mut self.has_shrunk) {
            self.make_up_for_shrinking();
        }
        usize::try_from(len as i64 - self.credit - self.ordered).unwrap_or(0)
    }

    /// Notes that a frame with so many bytes was written, which were there and paid for.
    pub fn wrote(&mut self, entry: Entry, len: usize) {
        let entry = &mut self.entries[entry as usize];
        entry.granted -= len as i64;
        entry.owed += len as i64;
        self.credit -= len as i64;
    }

    /// How many bytes of nothing HTTP/2 would send on this stream.
    pub fn may_order(&self, entry: Entry) -> usize {
        let followed = &self.entries[entry as usize];
        let taken = self.window(followed) + followed.owed - followed.ordered;
        if followed.has_ended { 0 } else { usize::try_from(taken).unwrap_or(0) }
    }

    /// Notes that HTTP/2 was given so many bytes of nothing to send on this stream.
    pub fn order(&mut self, entry: Entry, len: usize) {
        self.entries[entry as usize].ordered += len as i64;
        self.ordered += len as i64;
    }

    /// Whether HTTP/2 has bytes of nothing to send.
    pub fn has_ordered(&self) -> bool {
        self.ordered > 0
    }

    /// What the connection may be sent, whoever has paid for it.
    pub fn connection_window(&self) -> i64 {
        self.connection_window + self.credit
    }

    /// Gives back what was paid for and is not needed.
    pub fn return_credit(&mut self) {
        let credit = std::mem::take(&mut self.credit);
        self.tell_http2(0, credit);
    }

    /// Takes a stream that was below HTTP/2 and has ended.
    pub fn next_ended(&mut self) -> Option<u32> {
        self.ended.pop()
    }

    fn tell_http2(&mut self, stream: u32, mut increment: i64) {
        if stream == 0 {
            self.connection_window += increment;
        }
        while increment > 0 {
            let now = u32::try_from(increment).unwrap_or(u32::MAX).min(u32::MAX >> 1);
            increment -= i64::from(now);
            let head = Head { len: 4, kind: kind::WINDOW_UPDATE, flags: 0, stream };
            self.for_http2.extend(head.write());
            self.for_http2.extend(now.to_be_bytes());
        }
    }

    /// How many bytes HTTP/2 has to read that the client did not send.
    pub fn for_http2(&self) -> usize {
        self.for_http2.len()
    }

    /// Hands that to HTTP/2, up to as many bytes as there is room for.
    pub fn read_for_http2(&mut self, room: usize, mut with: impl FnMut(&[u8])) {
        let most = room.min(self.for_http2.len());
        let (first, second) = self.for_http2.as_slices();
        let (first, rest) = first.split_at(most.min(first.len()));
        with(first);
        if rest.is_empty() {
            with(&second[..most - first.len()]);
        }
        self.for_http2.drain(..most);
    }
}
