//! What is done to the bytes of an answer that passes through: the namespace is taken off, and the limit held.

use bytes::{Bytes, BytesMut};

use crate::{
    metrics::Metrics,
    rules::{
        framing::{self, Decoder},
        namespace::{Namespace, Shape},
        status::{self, Status},
    },
};

/// Takes the namespace off each message of a stream.
pub(super) struct Strip<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) metrics: &'a Metrics,
    pub(super) shape: Shape,
    pub(super) decoder: Decoder,
}

impl Strip<'_> {
    pub(super) fn pass(&mut self, data: &Bytes) -> Result<Bytes, Status> {
        self.decoder.push(data);
        let mut out = BytesMut::new();
        while let Some(message) = self.decoder.next().map_err(status::unreadable_answer)? {
            let stripped = self.namespace.response(self.shape, message.bytes).map_err(|broken| {
                tracing::error!(?broken, "withheld an answer of etcd that does not keep to the namespace");
                self.metrics.withheld.inc();
                status::outside_namespace()
            })?;
            framing::put_frame(&mut out, &stripped);
        }
        Ok(out.freeze())
    }
}

/// Holds passing messages to the limit without holding the messages.
pub(super) struct SizeCheck {
    limit: usize,
    /// What is left of the message that is passing.
    left: usize,
    prefix: Vec<u8>,
}

impl SizeCheck {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, left: 0, prefix: Vec::with_capacity(framing::PREFIX_LEN) }
    }

    pub(super) fn pass(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(data.len());
                self.left -= passed;
                data = &data[passed..];
                continue;
            }
            let wanted = (framing::PREFIX_LEN - self.prefix.len()).min(data.len());
            self.prefix.extend_from_slice(&data[..wanted]);
            data = &data[wanted..];
            if let Some((_, size)) = framing::parse_prefix(&self.prefix).map_err(status::unreadable_answer)? {
                if size > self.limit {
                    return Err(status::message_too_large(size, self.limit));
                }
                self.left = size;
                self.prefix.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::status::Code;

    #[test]
    fn sizes_are_checked_across_any_cut() {
        let mut stream = framing::frame(&[1; 40]).to_vec();
        stream.extend_from_slice(&framing::frame(&[2; 41]));
        for step in 1..stream.len() {
            let mut check = SizeCheck::new(40);
            let results: Vec<_> =
                stream.chunks(step).map(|chunk| check.pass(chunk).map_err(|status| status.code())).collect();
            assert!(results.contains(&Err(Code::ResourceExhausted)), "cut into {step}");
            let mut check = SizeCheck::new(41);
            assert!(stream.chunks(step).all(|chunk| check.pass(chunk).is_ok()), "cut into {step}");
        }
    }
}
