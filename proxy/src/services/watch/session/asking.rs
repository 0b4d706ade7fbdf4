//! What a client asks of its session: create, cancel, progress, and how each is answered.

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::{
    ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType,
    watch_request::RequestUnion,
};
use futures_util::future::BoxFuture;

use super::{
    super::{
        cursor::{Cursor, Wishes},
        hub::{JoinError, Joined, Wanted},
        live::LogUse,
        log::{Refused, Subscriber},
        watches::Number,
    },
    NO_WATCH, Session, Source, Watch,
    showing::now_seconds,
};
use crate::{
    admission,
    rules::{
        keys::KeyRange,
        status,
        tenant::limits::{Exceeded, Limit},
    },
};

/// A request of the client's whose answer is ready to be given.
pub enum Asked {
    Create {
        created: Create,
        joined: Result<Joined, JoinError>,
    },
    /// A create for which there was no room.
    Full {
        header: ResponseHeader,
    },
    Cancel {
        watch_id: i64,
    },
    Progress,
}

pub struct Create {
    watch_id: i64,
    start_revision: i64,
    wishes: Wishes,
}

impl Session {
    /// Takes in a request of the client's.
    pub(super) fn ask(&mut self, request: WatchRequest) {
        let asked: BoxFuture<'static, Asked> = match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.ask_create(create),
            Some(RequestUnion::CancelRequest(cancel)) => {
                Box::pin(std::future::ready(Asked::Cancel { watch_id: cancel.watch_id }))
            }
            Some(RequestUnion::ProgressRequest(_)) => Box::pin(std::future::ready(Asked::Progress)),
            // etcd passes over a request without content.
            None => return,
        };
        self.asked.get_or_insert_default().push_back(asked);
    }

    fn ask_create(&self, create: WatchCreateRequest) -> BoxFuture<'static, Asked> {
        // etcd need not be asked for what cannot be had.
        let is_full = admission::watches_are_full(&self.connection);
        let wishes = Wishes {
            no_put: create.filters.contains(&(FilterType::Noput as i32)),
            no_delete: create.filters.contains(&(FilterType::Nodelete as i32)),
            prev_kv: create.prev_kv,
            progress_notify: create.progress_notify,
            fragment: create.fragment,
        };
        // Copied, or a watch would keep all that came with the request.
        let [key, range_end] = [create.key, create.range_end].map(|bytes| Bytes::copy_from_slice(&bytes));
        let range = KeyRange::of_watch(key, range_end);
        let wanted = Wanted {
            range: self.connection.tenant.namespace.prefix_range(&range),
            start_revision: create.start_revision,
            prev_kv: create.prev_kv,
        };
        let created = Create { watch_id: create.watch_id, start_revision: create.start_revision, wishes };
        let (hub, feed) = (self.hub.clone(), self.feed.clone());
        let header = ResponseHeader { revision: self.last_header.revision.max(hub.seen()), ..self.last_header };
        Box::pin(async move {
            if is_full {
                return Asked::Full { header };
            }
            let joined = hub.join(&feed, &wanted).await;
            Asked::Create { created, joined }
        })
    }

    /// Gives the answer whose turn has come.
    pub(super) fn answer(&mut self, asked: Asked) {
        match asked {
            Asked::Create { created, joined: Ok(joined) } => self.create(&created, joined),
            Asked::Create { joined: Err(JoinError::Refused(refused)), .. } => self.refuse_create(refused),
            Asked::Full { header } => self.refuse_for_want_of_room(header),
            // The feed's own end is about to end the session.
            Asked::Create { joined: Err(JoinError::Lost), .. } => (),
            Asked::Cancel { watch_id } => self.cancel(watch_id),
            Asked::Progress if !self.watches.is_empty() => self.feed.ask_progress(&self.inbox),
            Asked::Progress => (),
        }
    }

    fn create(&mut self, created: &Create, joined: Joined) {
        let Joined { header, next_revision, live } = joined;
        if created.watch_id != 0 && self.watches.has_id(created.watch_id) {
            let reason = status::DUPLICATE_WATCH_ID_REASON.to_owned();
            return self.refuse_create(Refused { header, reason });
        }
        if let Err(exceeded) = admission::take_watch(&self.connection) {
            let reason = status::exhausted(exceeded).message().to_owned();
            return self.refuse_create(Refused { header, reason });
        }
        let watch_id = self.take_id(created.watch_id);
        let number = self.watches.reserve(watch_id);
        self.hub.metrics.client_watches.inc();
        self.say(WatchResponse { header: Some(header), watch_id, created: true, ..WatchResponse::default() });
        let (told_revision, wishes) = (header.revision, created.wishes);
        let mut cursor = Cursor { watch_id, next_revision, told_revision, wishes, part: None };
        let source = self.locate(&live, &mut cursor, number);
        let start_revision = created.start_revision;
        let watch = Watch { cursor, start_revision, live, source, last_shown: now_seconds(), has_turn: false };
        self.watches.put(number, Box::new(watch));
        self.give_turn(number);
    }

    /// The id for a new watch: the client's own, which is free, or the next free one.
    fn take_id(&mut self, wanted: i64) -> i64 {
        if wanted != 0 {
            return wanted;
        }
        while self.watches.has_id(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn refuse_for_want_of_room(&mut self, header: ResponseHeader) {
        let exceeded = self.connection.tenant.usage.refused(Exceeded::of(Limit::Watches), admission::now());
        self.refuse_create(Refused { header, reason: status::exhausted(exceeded).message().to_owned() });
    }

    fn refuse_create(&mut self, refused: Refused) {
        let Refused { header, reason } = refused;
        self.say(WatchResponse {
            header: Some(header),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..WatchResponse::default()
        });
    }

    /// Finds the place in the shared log, or begins to catch up with it.
    pub(super) fn locate(&self, live: &LogUse, cursor: &mut Cursor, number: Number) -> Source {
        let subscriber = || Subscriber {
            inbox: self.inbox.clone(),
            watch: number,
            part: live.part.clone(),
            progress: cursor.wishes.progress_notify,
        };
        let seat = live.log.subscribe(cursor.next_revision, subscriber());
        let source = match seat {
            Some(seat) => Source::Live { seat },
            None => Source::CatchUp(Box::new(live.catch_up(cursor.next_revision, subscriber()))),
        };
        cursor.part = live.part.clone().filter(|_| seat.is_some());
        source
    }

    fn cancel(&mut self, watch_id: i64) {
        // etcd says nothing about an id that it does not know.
        match self.watches.find(watch_id) {
            Some(number) => self.remove(number),
            None if self.watches.give_back_id(watch_id) => (),
            None => return,
        }
        let header = ResponseHeader { revision: self.last_header.revision.max(self.hub.seen()), ..self.last_header };
        self.say(WatchResponse { header: Some(header), watch_id, canceled: true, ..WatchResponse::default() });
    }

    pub(super) fn remove(&mut self, number: Number) {
        if let Some(id) = self.watches.get_mut(number).map(|watch| watch.cursor.watch_id)
            && let Some(watch) = self.watches.remove(number, id)
        {
            watch.leave();
            admission::give_back_watch(&self.connection);
            self.hub.metrics.client_watches.dec();
        }
    }
}
