//! Fills the cache with a range: all of its keys at one revision, and then whatever its watch has told since.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_proxy_proto::etcdserverpb::RangeRequest;
use prost::Message as _;

use crate::{
    rules::{
        cache::{Content, Page},
        caller::Caller,
        framing,
        keys::KeyRange,
        methods::Method,
        namespace::{Namespace, Shape},
        status::Code,
        wire,
    },
    services::watch::{
        hub::Hub,
        reader::{self, Lost, Opened},
    },
    upstream::Upstream,
};

use super::entry::Loaded;

/// Keys that are asked for at a time: few enough that other calls come between, and that compactions, which break a
/// load off, are far rarer than loads.
const PAGE_KEYS: i64 = 2_000;
/// A load that takes longer than this is of a range or of an etcd that no cache does any good.
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a range is not cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLoaded {
    TooLarge,
    /// etcd refused it, could not be asked, or compacted it meanwhile.
    Failed,
}

impl From<Lost> for NotLoaded {
    fn from(_: Lost) -> Self {
        Self::Failed
    }
}

/// What a load works with.
pub struct Load {
    pub hub: Arc<Hub>,
    pub upstream: Upstream,
    pub caller: Caller,
    pub method: &'static Method,
    /// As the client knows it.
    pub range: KeyRange,
    pub max_weight: usize,
}

impl Load {
    /// Begins to watch, and then reads: so nothing can happen between the two.
    pub async fn run(self) -> Result<Loaded, NotLoaded> {
        tokio::time::timeout(LOAD_TIMEOUT, self.load()).await.unwrap_or(Err(NotLoaded::Failed))
    }

    async fn load(self) -> Result<Loaded, NotLoaded> {
        let namespace = self.caller.namespace().clone();
        let opened = reader::open(&self.hub, &self.caller, namespace.prefix_range(&self.range)).await?;
        let mut content = Content::default();
        let (mut page, revision) = self.page(&namespace, &mut content, self.range.key().clone(), 0).await?;
        while page.more {
            let next = [&page.last_key[..], b"\0"].concat();
            (page, _) = self.page(&namespace, &mut content, next.into(), revision).await?;
        }
        self.finish(opened, content, revision)
    }

    fn finish(self, opened: Opened, content: Content, revision: i64) -> Result<Loaded, NotLoaded> {
        let reader = opened.after(revision)?;
        let Self { caller, method, range, max_weight, .. } = self;
        Ok(Loaded { range, caller, method, content, reader, revision, max_weight })
    }

    /// Reads the keys from one on, at a revision, or at the newest if that is zero; tells the revision.
    async fn page(
        &self,
        namespace: &Namespace,
        content: &mut Content,
        key: Bytes,
        revision: i64,
    ) -> Result<(Page, i64), NotLoaded> {
        let request =
            RangeRequest { key, range_end: self.range.range_end(), revision, limit: PAGE_KEYS, ..Default::default() };
        let request = namespace.request(Shape::Range, request.encode_to_vec().into()).map_err(|_| NotLoaded::Failed)?;
        let answer = self.upstream.call(&self.caller, self.method, framing::frame(&request)).await;
        let limit = self.max_weight.min(self.upstream.limits().max_answer);
        let collected = answer.map_err(|_| NotLoaded::Failed)?.collect(limit).await.map_err(|status| {
            if status.code() == Code::ResourceExhausted { NotLoaded::TooLarge } else { NotLoaded::Failed }
        })?;
        let message = collected.into_message().map_err(|_| NotLoaded::Failed)?;
        let revision = wire::header_revision(&message).ok_or(NotLoaded::Failed)?.min(match revision {
            0 => i64::MAX,
            asked => asked,
        });
        let stripped = namespace.response(Shape::RangeResponse, message).map_err(|_| NotLoaded::Failed)?;
        let page = content.put_page(&stripped).map_err(|_| NotLoaded::Failed)?;
        if content.weight() > self.max_weight {
            return Err(NotLoaded::TooLarge);
        }
        Ok((page, revision))
    }
}
