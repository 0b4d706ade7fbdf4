//! What is done to the bytes of an answer that passes through: the namespace is taken off, and the limit held.

use bytes::{Bytes, BytesMut};

use crate::{
    metrics::Metrics,
    rules::{
        framing::{self, Decoder, Skimmer},
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
    skimmer: Skimmer,
}

impl SizeCheck {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, skimmer: Skimmer::default() }
    }

    pub(super) fn pass(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while let Some(prefix) = self.skimmer.next_prefix(&mut data) {
            let announced = framing::parse_prefix(&prefix).map_err(status::unreadable_answer)?;
            if let Some((_, size)) = announced.filter(|(_, size)| *size > self.limit) {
                return Err(status::message_too_large(size, self.limit));
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
