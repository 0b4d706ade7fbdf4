//! What etcd says on a feed's stream, handed to the logs and to those who wait.

use std::sync::Arc;

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{ResponseHeader, WatchCancelRequest, watch_request::RequestUnion};

use super::{
    Duty, StreamEnd, Task,
    stream::{Pending, Response, Stream},
};
use crate::{
    rules::{keys::KeyRange, status},
    services::watch::log::{End, Log, Opened, Refused},
};

impl Task {
    /// Hands what etcd sent to the logs and to those who wait.
    pub(super) fn take_in(&mut self, stream: &mut Stream, data: &Bytes) -> Result<(), StreamEnd> {
        stream.decoder.push(data);
        loop {
            let message = stream.decoder.next().map_err(|error| StreamEnd::Broken(status::unreadable_answer(error)))?;
            let Some(message) = message else { return Ok(()) };
            if message.compressed {
                return Err(StreamEnd::Broken(status::unreadable_answer("it is compressed, which was not asked for")));
            }
            let response =
                Response::parse(&message.bytes).map_err(|error| StreamEnd::Broken(status::unreadable_answer(error)))?;
            if response.canceled && self.wants_fresh_pass(stream, response.cancel_reason) {
                return Err(StreamEnd::Broken(status::broken(response.cancel_reason)));
            }
            if matches!(self.duty, Duty::Live) && self.lineage.is_of_another(&response.header) {
                return Err(self.gone_back());
            }
            self.hand_out(stream, response);
        }
    }

    /// Whether etcd does not take the stream's pass any more, and the watches are to be opened once more under a fresh
    /// one. It is no refusal of any watch.
    fn wants_fresh_pass(&mut self, stream: &Stream, reason: &str) -> bool {
        let is_refused = stream.pass.as_ref().is_some_and(|pass| pass.is_refused(reason));
        is_refused && !std::mem::replace(&mut self.has_fresh_pass, true)
    }

    fn hand_out(&mut self, stream: &mut Stream, response: Response<'_>) {
        if response.created {
            return self.hand_out_created(stream, response);
        }
        if response.watch_id == -1 && response.events.is_empty() {
            return self.hand_out_progress(stream, response.header);
        }
        let Some(open) = stream.watches.get_mut(&response.watch_id) else { return };
        if response.canceled {
            let log = open.log.clone();
            // A watch that etcd ended for a compaction still counts as one that lags, and while there is one, no
            // progress is reported to anyone on the stream.
            stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: response.watch_id }));
            stream.forget(response.watch_id);
            self.open.remove(&log.id());
            let Response { header, compact_revision, cancel_reason, .. } = response;
            return log.end(End::Canceled { header, compact_revision, reason: cancel_reason.to_owned() });
        }
        if response.events.is_empty() && open.builder.is_empty() {
            return open.log.append_progress(response.header);
        }
        self.parts.metrics.watch_events_received.inc_by(response.events.len() as u64);
        for event in &response.events {
            if let Err(broken) = open.builder.push(self.parts.caller.namespace(), event) {
                tracing::error!(%broken, "withheld an event of etcd that does not keep to the namespace");
                self.parts.metrics.withheld.inc();
            }
        }
        let batch = if response.fragment {
            open.builder.finish_whole_revisions(response.header)
        } else {
            open.builder.finish(response.header)
        };
        if let Some(batch) = batch {
            open.log.append(batch);
        }
    }

    fn hand_out_created(&mut self, stream: &mut Stream, response: Response<'_>) {
        let Some(pending) = stream.pending.pop_front() else { return };
        let refused = response.canceled;
        let opened: Opened = if refused {
            Err(Refused { header: response.header, reason: response.cancel_reason.to_owned() })
        } else {
            self.has_fresh_pass = false;
            Ok(response.header)
        };
        match pending {
            Pending::Probe(range) => {
                if !refused {
                    stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: response.watch_id }));
                }
                self.hand_out_probe(stream, range, &opened);
            }
            Pending::Right(log) => match opened {
                Ok(_) => stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: response.watch_id })),
                Err(Refused { header, reason }) => self.withdraw(stream, &log, header, reason),
            },
            Pending::Log { log, start_revision } => {
                match (&opened, self.open.get(&log.id()), &self.duty) {
                    (Ok(header), Some(opening), Duty::Live) if log.is_opened() => {
                        let covered = log.resume_revision() - 1;
                        self.lineage.note_resumed(header, covered, &self.parts, &opening.range);
                    }
                    (Ok(header), ..) => self.lineage.note_term(header),
                    (Err(_), ..) => (),
                }
                match &opened {
                    Ok(_) if self.open.contains_key(&log.id()) => stream.remember(response.watch_id, log.clone()),
                    Ok(_) => {
                        stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: response.watch_id }))
                    }
                    Err(_) => {
                        self.open.remove(&log.id());
                    }
                }
                log.note_opened(opened, start_revision);
            }
        }
    }

    /// Ends a watch to which etcd does not give the right any more.
    fn withdraw(&mut self, stream: &mut Stream, log: &Arc<Log>, header: ResponseHeader, reason: String) {
        // Nobody may read it any more, or it was refused already.
        if self.open.remove(&log.id()).is_none() {
            return;
        }
        tracing::info!(reason, "a watch ends, since etcd does not allow it any more");
        self.parts.metrics.watches_withdrawn.inc();
        stream.cancel(log);
        log.end(End::Canceled { header, compact_revision: 0, reason });
    }

    fn hand_out_probe(&mut self, stream: &mut Stream, range: KeyRange, opened: &Opened) {
        let Some(probes) = self.probes.get_mut(&range) else { return };
        for answer in probes.under_way.drain(..) {
            // Whoever asked may have left.
            let _ = answer.send(opened.clone());
        }
        if probes.next.is_empty() {
            self.probes.remove(&range);
        } else {
            probes.under_way.append(&mut probes.next);
            stream.probe(&range);
        }
    }

    fn hand_out_progress(&mut self, stream: &mut Stream, header: ResponseHeader) {
        stream.progress_answers += 1;
        for open in stream.watches.values() {
            open.log.cover(header);
        }
        for inbox in self.progress.under_way.drain(..) {
            inbox.progress(header);
        }
        self.progress.asked = None;
        if !self.progress.next.is_empty() {
            self.progress.under_way.append(&mut self.progress.next);
            self.ask_progress(stream);
        }
    }
}
