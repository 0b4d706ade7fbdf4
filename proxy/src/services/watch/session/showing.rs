//! What a session shows its client: the events of its watches, each in its turn, and how far they are.

use bytes::BytesMut;
use etcd_proxy_proto::etcdserverpb::{ResponseHeader, WatchResponse};
use prost::Message as _;

use super::{
    super::{
        log::{End, Read},
        sayings::Saying,
        watches::Number,
    },
    NO_WATCH, OUT_HIGH_WATER, Session, Shown, Source, Watch,
    turns::Turn,
};
use crate::{
    admission,
    rules::{framing, status},
};

/// Ids of one client, up to which those are kept that it has not cancelled though their watches have ended.
const MAX_ENDED_IDS: usize = 10_000;
/// How long a watch whose filters let nothing through may go without a word, if it asked for progress: what etcd's
/// `--watch-progress-notify-interval` is by default.
const PROGRESS_INTERVAL_SECONDS: u32 = 600;

/// The bytes of events that are made ready for one watch at a time.
const MAX_RUN: u64 = 64 << 10;

impl Session {
    pub(super) fn give_turn(&mut self, number: Number) {
        if let Some(watch) = self.watches.get_mut(number)
            && !std::mem::replace(&mut watch.has_turn, true)
        {
            self.turns.push_watch(number);
        }
    }

    /// Reads for those whose turn it is, until there is enough to send.
    pub(super) fn fill(&mut self) {
        let mut shown = Shown::default();
        while self.waiting() < OUT_HIGH_WATER {
            match self.turns.pop() {
                None => break,
                Some(Turn::Progress(header)) => self.show_progress(header),
                Some(Turn::Watch(number)) => {
                    if self.read(number, &mut shown) {
                        // There is more: it goes on first, so that a notice of progress behind it stays true.
                        self.turns.push_watch_first(number);
                    } else if let Some(watch) = self.watches.get_mut(number) {
                        watch.has_turn = false;
                    }
                }
            }
        }
        self.tell_what_was_shown(&shown);
    }

    /// Notes what was made ready, before any of it goes out; once per turn, since all threads note it in one place.
    fn tell_what_was_shown(&self, shown: &Shown) {
        let Shown { events, event_revision, revision } = *shown;
        if events > 0 {
            self.hub.metrics.watch_events_delivered.inc_by(events);
        }
        if revision > 0 {
            self.hub.saw(event_revision);
            self.connection.shown.note(revision);
        }
    }

    /// Shows one watch's next batch. Says whether there may be another.
    fn read(&mut self, number: Number, shown: &mut Shown) -> bool {
        let Some(watch) = self.watches.get_mut(number) else { return false };
        let (log, seat) = match &watch.source {
            Source::Live { seat } => (&watch.live.log, *seat),
            Source::CatchUp(own) => (&own.log, own.seat),
            Source::Crowd => return false,
        };
        let said = self.bell.sayings().read(log, seat, &mut watch.cursor, MAX_RUN);
        if let Some((saying, may_be_more)) = said {
            if watch.cursor.wishes.progress_notify {
                watch.last_shown = now_seconds();
            }
            self.repeat(saying, shown);
            return may_be_more;
        }
        match log.read(seat) {
            Read::Wait => false,
            Read::Batch(batch) => {
                match watch.cursor.show(&batch, &mut self.out) {
                    Some(count) => {
                        if watch.cursor.wishes.progress_notify {
                            watch.last_shown = now_seconds();
                        }
                        shown.events += count as u64;
                    }
                    None if watch.cursor.wishes.progress_notify && watch.cursor.wishes.filters() => {
                        watch.show_late_progress(batch.header, &mut self.out);
                    }
                    None => (),
                }
                if batch.header.revision >= self.last_header.revision {
                    self.last_header = batch.header;
                }
                shown.note(batch.last_revision(), batch.header.revision);
                true
            }
            Read::Fallen { next_revision } => {
                self.hub.metrics.watch_falls.inc();
                self.relocate(number, next_revision);
                true
            }
            Read::Ended(End::Continue { next_revision }) => {
                self.relocate(number, next_revision);
                true
            }
            // etcd was asked again because a member was lost, and the rights have run out meanwhile. A client of that
            // member would have lost its stream and come back with fresh ones, so that is what this one is told.
            Read::Ended(End::Canceled { reason, .. }) if status::asks_for_login(&reason) => {
                self.lost = Some(Box::new(status::broken(reason)));
                false
            }
            Read::Ended(End::Canceled { header, compact_revision, reason }) => {
                let watch_id = watch.cursor.watch_id;
                self.remove(number);
                // As at etcd, the id of a watch that a compaction ended is taken until the client cancels it.
                if compact_revision != 0 && self.watches.ids() < MAX_ENDED_IDS {
                    self.watches.keep_id(watch_id);
                }
                self.say(WatchResponse {
                    header: Some(header),
                    watch_id,
                    canceled: true,
                    compact_revision,
                    cancel_reason: reason,
                    ..WatchResponse::default()
                });
                false
            }
            // The feed has failed, which ends the session.
            Read::Ended(End::Closed) => false,
        }
    }

    /// Says what others are told too.
    fn repeat(&mut self, saying: Saying, shown: &mut Shown) {
        let Saying { bytes, events, header, last_revision } = saying;
        if header.revision >= self.last_header.revision {
            self.last_header = header;
        }
        shown.events += events;
        shown.note(last_revision, header.revision);
        // Of many watches of one client the messages go out together; of one alone they need not be copied.
        if self.waiting() == 0 && self.watches.len() == 1 {
            self.shared = bytes;
        } else {
            self.out.extend_from_slice(&bytes);
        }
    }

    /// Looks for a watch's place anew, when what it read from has ended or dropped what comes next. It has been shown
    /// all before `next_revision`.
    pub(super) fn relocate(&mut self, number: Number, next_revision: i64) {
        let Some(mut watch) = self.watches.take(number) else { return };
        watch.leave();
        match watch.source {
            Source::Live { .. } | Source::Crowd => watch.live.look_again(),
            Source::CatchUp(_) => watch.live.look_again_from_outside(),
        }
        watch.cursor.next_revision = watch.cursor.next_revision.max(next_revision);
        watch.source = self.locate(&watch.live, &mut watch.cursor, number);
        self.watches.put(number, watch);
    }

    /// Tells the client that it has seen everything up to here; as etcd, only if that is so for all its watches.
    fn show_progress(&mut self, header: ResponseHeader) {
        let level =
            |watch: &Watch| matches!(watch.source, Source::Live { .. }) && watch.start_revision <= header.revision;
        if self.watches.is_empty() || !self.watches.values().all(level) {
            return;
        }
        for watch in self.watches.values_mut() {
            watch.cursor.next_revision = watch.cursor.next_revision.max(header.revision + 1);
        }
        self.say(WatchResponse { header: Some(header), watch_id: NO_WATCH, ..WatchResponse::default() });
    }

    pub(super) fn say(&mut self, response: WatchResponse) {
        if let Some(header) = response.header.filter(|header| header.revision >= self.last_header.revision) {
            self.last_header = header;
            self.hub.saw(header.revision);
            self.connection.shown.note(header.revision);
        }
        let message = response.encode_to_vec();
        // Alone it need not be copied, and keeps no room that the next event would not use.
        if self.waiting() == 0 {
            self.shared = framing::frame(&message);
        } else {
            framing::put_frame(&mut self.out, &message);
        }
    }
}

impl Shown {
    fn note(&mut self, event_revision: i64, revision: i64) {
        self.event_revision = self.event_revision.max(event_revision);
        self.revision = self.event_revision.max(self.revision).max(revision);
    }
}

/// A clock for what is known to the second.
pub(super) fn now_seconds() -> u32 {
    u32::try_from(admission::now().as_secs()).unwrap_or(u32::MAX)
}

impl Watch {
    /// A watch that filters away all that happens is told now and then how far it is.
    fn show_late_progress(&mut self, header: ResponseHeader, out: &mut BytesMut) {
        let now = now_seconds();
        if now - self.last_shown < PROGRESS_INTERVAL_SECONDS {
            return;
        }
        self.last_shown = now;
        let header = ResponseHeader { revision: self.cursor.next_revision - 1, ..header };
        let response =
            WatchResponse { header: Some(header), watch_id: self.cursor.watch_id, ..WatchResponse::default() };
        framing::put_frame(out, &response.encode_to_vec());
    }
}
