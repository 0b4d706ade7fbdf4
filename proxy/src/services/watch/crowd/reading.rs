//! How a crowd reads on in its log, and has HTTP/2 debit what it is about to say.

use bytes::BytesMut;
use etcd_proxy_proto::etcdserverpb::ResponseHeader;

use super::{
    super::{
        bell::Bell,
        cursor::Cursor,
        log::{End, Read},
        sayings::Saying,
    },
    Alike, Crowd, Joining, MAX_LOOKS, MAX_ORDER, MAX_RUN, MAX_UNCUT, MIN_ORDER, PAID_AHEAD, Reached, Reading, Said,
    Turn,
    members::Members,
};
use crate::{
    exchange::books::{Books, Entry},
    rules::framing::Skimmer,
};

impl Crowd {
    pub(super) fn new(alike: Alike, first: &Joining) -> Self {
        Self {
            alike,
            log: first.log.clone(),
            seat: first.seat,
            cursor: first.cursor.clone(),
            header: first.header,
            members: Members::default(),
            saying: None,
            payer: 0,
            is_busy: false,
            messages: first.member.messages,
        }
    }

    /// What one has been told, the others may be told too: the store was there.
    pub(super) fn take_in(&mut self, entry: Entry, joining: Joining) {
        let Joining { member, cursor, header, .. } = joining;
        self.cursor.next_revision = self.cursor.next_revision.max(cursor.next_revision);
        self.cursor.told_revision = self.cursor.told_revision.max(cursor.told_revision);
        self.note_header(header);
        self.members.push(entry, member);
    }

    fn note_header(&mut self, header: ResponseHeader) {
        if header.revision >= self.header.revision {
            self.header = header;
        }
    }

    /// How far it is, with all that it has read. What the log covers without events for it need not be asked for again.
    pub(super) fn reached(&mut self) -> Reached {
        if let (None, Some(since)) = (&self.saying, self.log.since(self.seat)) {
            self.cursor.next_revision = self.cursor.next_revision.max(since);
        }
        let Cursor { next_revision, told_revision, .. } = self.cursor;
        Reached { next_revision, told_revision, header: self.header }
    }

    /// Reads on, and has something to say or not.
    pub(super) fn read(&mut self, bell: &Bell) -> Reading {
        let before = self.reached();
        let saying = loop {
            if let Some((saying, _)) = bell.sayings().read(&self.log, self.seat, &mut self.cursor, MAX_RUN) {
                break saying;
            }
            match self.log.read(self.seat) {
                Read::Wait => return Reading::Nothing,
                Read::Batch(batch) => {
                    let mut out = BytesMut::new();
                    let shown = self.cursor.show(&batch, &mut out);
                    let (header, last_revision) = (batch.header, batch.last_revision());
                    if let Some(events) = shown {
                        break Saying { bytes: out.freeze(), events: events as u64, header, last_revision };
                    }
                    self.note_header(header);
                }
                Read::Fallen { next_revision } => {
                    self.cursor.next_revision = self.cursor.next_revision.max(next_revision);
                    return Reading::Fallen;
                }
                Read::Ended(End::Continue { next_revision }) => {
                    self.cursor.next_revision = self.cursor.next_revision.max(next_revision);
                    return Reading::Ended;
                }
                Read::Ended(_) => return Reading::Ended,
            }
        };
        self.note_header(saying.header);
        let (mut skimmer, mut rest, mut messages) = (Skimmer::default(), &saying.bytes[..], 0);
        while skimmer.next_prefix(&mut rest).is_some() {
            messages += 1;
        }
        self.saying = Some(Said { saying, messages, to: 0, before });
        Reading::Said
    }

    /// Has HTTP/2 debit what is to be written. None if no stream can be debited.
    pub(super) fn pay(&mut self, books: &mut Books, len: usize) -> Option<Turn> {
        let said = self.saying.as_ref().map_or(0, |said| said.to);
        let wanted = (len * (self.members.len() - said)).min(PAID_AHEAD.max(len));
        let mut lacking = books.lacks(wanted);
        let mut has_ordered = false;
        let all = self.members.len();
        for least in [MIN_ORDER, 1] {
            let looks = if least == 1 { all } else { all.min(MAX_LOOKS) };
            for _ in 0..looks {
                if lacking == 0 {
                    break;
                }
                self.payer = (self.payer + 1) % all;
                let entry = self.members.entry(self.payer);
                let now = books.may_order(entry).min(lacking).min(MAX_ORDER);
                if now >= least.min(lacking) && now > 0 && self.members.send_nothing(self.payer, now) {
                    books.order(entry, now);
                    lacking -= now;
                    has_ordered = true;
                }
            }
            if has_ordered {
                return Some(Turn::Again);
            }
        }
        // What is on its way goes on when the client's window for the connection does, unless that holds what others do not
        // read: then what is left of it may be less than a large message, and HTTP/2 sends that in pieces.
        let may_come = len <= MAX_UNCUT || books.connection_window() >= len as i64;
        (may_come && books.has_ordered()).then_some(Turn::Over)
    }
}
