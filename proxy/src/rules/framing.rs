//! gRPC's framing of messages: a compression flag, four bytes of length, the message.

use std::io::{self, Read};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::read::GzDecoder;

/// The bytes before each message.
pub const PREFIX_LEN: usize = 5;

/// One message as it stood on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub compressed: bool,
    pub bytes: Bytes,
}

/// Why bytes are not a sequence of gRPC messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("message of {size} bytes is over the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("compression flag {0} is neither 0 nor 1")]
    BadFlag(u8),
}

/// Cuts a stream of bytes into messages. Holds at most one unfinished message, which is at most `limit` long.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limit: usize,
}

impl Decoder {
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// What bounds one message.
    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn push(&mut self, data: &Bytes) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole message, if one has arrived.
    #[expect(clippy::should_implement_trait, reason = "none means that more bytes are needed, not that it is over")]
    pub fn next(&mut self) -> Result<Option<Message>, FramingError> {
        let Some((compressed, size)) = parse_prefix(&self.buffer)? else { return Ok(None) };
        if size > self.limit {
            return Err(FramingError::TooLarge { size, limit: self.limit });
        }
        if self.buffer.len() < PREFIX_LEN + size {
            // The rest is about to come; one allocation instead of a doubling series.
            self.buffer.reserve((PREFIX_LEN + size - self.buffer.len()).min(1 << 20));
            return Ok(None);
        }
        // The last message takes the buffer with it: who asks seldom shall hold nothing meanwhile.
        let mut bytes = match self.buffer.len() - PREFIX_LEN == size {
            true => std::mem::take(&mut self.buffer),
            false => self.buffer.split_to(PREFIX_LEN + size),
        };
        bytes.advance(PREFIX_LEN);
        Ok(Some(Message { compressed, bytes: bytes.freeze() }))
    }

    /// Whether the stream could end here without cutting a message short whose length is known.
    pub fn is_before_a_message(&self) -> bool {
        self.buffer.len() < PREFIX_LEN
    }
}

/// The compression flag and length, once five bytes are there.
pub fn parse_prefix(bytes: &[u8]) -> Result<Option<(bool, usize)>, FramingError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
    let compressed = match prefix[0] {
        0 => false,
        1 => true,
        flag => return Err(FramingError::BadFlag(flag)),
    };
    Ok(Some((compressed, u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize)))
}

/// Finds where messages begin in bytes that pass, wherever these are cut, and holds none of them.
#[derive(Debug, Default)]
pub struct Skimmer {
    /// What has passed of the prefix of a message.
    prefix: [u8; PREFIX_LEN],
    prefix_length: u8,
    /// What is left of the message that is passing.
    left: u32,
}

impl Skimmer {
    /// The next prefix that is whole, after which `data` goes on; none if that has ended.
    pub fn next_prefix(&mut self, data: &mut &[u8]) -> Option<[u8; PREFIX_LEN]> {
        while !data.is_empty() {
            if self.left > 0 {
                let passed = (self.left as usize).min(data.len());
                // No more passes than is left, which is of the same size.
                self.left -= passed as u32;
                *data = &data[passed..];
                continue;
            }
            let held = usize::from(self.prefix_length);
            let wanted = (PREFIX_LEN - held).min(data.len());
            self.prefix[held..held + wanted].copy_from_slice(&data[..wanted]);
            self.prefix_length += wanted as u8;
            *data = &data[wanted..];
            if held + wanted == PREFIX_LEN {
                let [_, size @ ..] = self.prefix;
                self.left = u32::from_be_bytes(size);
                self.prefix_length = 0;
                return Some(self.prefix);
            }
        }
        None
    }
}

/// The length that the first message says it has, whatever its flag.
pub fn announced(bytes: &[u8]) -> Option<usize> {
    let [_, size @ ..] = bytes.first_chunk::<PREFIX_LEN>()?;
    Some(u32::from_be_bytes(*size) as usize)
}

/// Why a message could not be inflated.
#[derive(Debug)]
pub enum GunzipError {
    TooLarge,
    Broken(io::Error),
}

/// Inflates a message, to no more than `limit` bytes whatever it promises.
pub fn gunzip(message: &[u8], limit: usize) -> Result<Bytes, GunzipError> {
    let mut inflated = Vec::with_capacity(message.len().min(limit));
    // One byte more than allowed tells that there is more.
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    GzDecoder::new(message).take(bound).read_to_end(&mut inflated).map_err(GunzipError::Broken)?;
    if inflated.len() > limit { Err(GunzipError::TooLarge) } else { Ok(inflated.into()) }
}

/// Whether a whole message stands at the front, or something that is none at all.
pub fn is_whole(body: &[u8]) -> bool {
    match parse_prefix(body) {
        Ok(None) => false,
        Ok(Some((_, size))) => body.len() - PREFIX_LEN >= size,
        Err(_) => true,
    }
}

/// A whole message with its prefix.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_LEN + message.len());
    put_frame(&mut framed, message);
    framed.freeze()
}

/// Appends a message with its prefix.
pub fn put_frame(out: &mut BytesMut, message: &[u8]) {
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).expect("a message is far below 4 GiB: every path to here has a limit"));
    out.extend_from_slice(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_cut_of_the_stream() {
        let mut stream = frame(b"first").to_vec();
        stream.extend_from_slice(&frame(b""));
        stream.extend_from_slice(&frame(&[7; 300]));
        for step in 1..stream.len() {
            let mut decoder = Decoder::new(1024);
            let mut messages = Vec::new();
            for chunk in stream.chunks(step) {
                decoder.push(&Bytes::copy_from_slice(chunk));
                while let Some(message) = decoder.next().expect("the frames are good") {
                    messages.push(message.bytes);
                }
            }
            assert_eq!(messages, [Bytes::from_static(b"first"), Bytes::new(), Bytes::from(vec![7; 300])]);
            assert!(decoder.is_before_a_message());
        }
    }

    #[test]
    fn gzip_is_inflated_up_to_the_limit() {
        let mut zipped = flate2::read::GzEncoder::new([7; 1000].as_slice(), flate2::Compression::default());
        let mut message = Vec::new();
        zipped.read_to_end(&mut message).expect("memory can be read");
        assert_eq!(gunzip(&message, 1000).expect("it fits"), [7; 1000].as_slice());
        assert!(matches!(gunzip(&message, 999), Err(GunzipError::TooLarge)));
        assert!(matches!(gunzip(&message[..20], 1000), Err(GunzipError::Broken(_))));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_held() {
        let mut decoder = Decoder::new(10);
        decoder.push(&Bytes::from_static(&[0, 0, 0, 0, 11]));
        assert_eq!(decoder.next(), Err(FramingError::TooLarge { size: 11, limit: 10 }));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_cut_into_messages_alike_however_they_come_and_no_more_is_held_than_one(
            stream in proptest::collection::vec(proptest::prop_oneof![4 => 0_u8..3, 1 => proptest::num::u8::ANY], 0..2000),
            step in 1_usize..300,
        ) {
            const LIMIT: usize = 500;
            let read = |step: usize| {
                let mut decoder = Decoder::new(LIMIT);
                let mut found = Vec::new();
                for chunk in stream.chunks(step) {
                    decoder.push(&Bytes::copy_from_slice(chunk));
                    loop {
                        match decoder.next() {
                            Ok(Some(message)) => found.push(message),
                            Ok(None) => break,
                            Err(error) => return (found, Some(error)),
                        }
                    }
                    assert!(decoder.buffer.len() < PREFIX_LEN + LIMIT, "a whole message was not given out");
                }
                (found, None)
            };
            proptest::prop_assert_eq!(read(step), read(usize::MAX));
        }
    }
}
