//! What the shared logs hold together, and how much of it one tenant's may.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prometheus::IntGauge;

use crate::admission::shares::Shares;

/// How much the shared logs hold together, and may. Clients may watch any number of ranges that overlap, and each
/// range's log holds the events for itself.
#[derive(Debug)]
pub struct Budget {
    used: IntGauge,
    max: usize,
    /// What one tenant's logs hold of it.
    own: AtomicUsize,
    shares: Arc<Shares>,
}

impl Budget {
    /// `used` shows how much is held.
    pub fn new(max: usize, used: IntGauge, shares: Arc<Shares>) -> Arc<Self> {
        Arc::new(Self { used, max, own: AtomicUsize::new(0), shares })
    }

    /// The same for another tenant.
    pub fn for_another(&self) -> Arc<Self> {
        Self::new(self.max, self.used.clone(), self.shares.clone())
    }

    /// Whether all tenants hold too much together, or this one does.
    pub fn is_over(&self) -> bool {
        self.used.get() > i64::try_from(self.max).unwrap_or(i64::MAX)
            || self.own.load(Ordering::Relaxed) > self.shares.of_one(self.max)
    }

    pub(super) fn take(&self, bytes: usize) {
        self.used.add(signed(bytes));
        self.own.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.sub(signed(bytes));
        self.own.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).expect("memory is smaller than that")
}

#[cfg(test)]
mod tests {
    use etcd_proxy_proto::etcdserverpb::ResponseHeader;

    use super::{
        super::{super::inbox::Inbox, Batch, Log, Read, Subscriber},
        *,
    };
    use crate::rules::tenant::Tenant;

    #[test]
    fn logs_that_share_a_budget_keep_within_it_and_give_back_what_they_held() {
        let header = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
        let one = signed(Batch::progress(header(1)).weight());
        let used = IntGauge::new("used", "used").expect("a good name");
        let budget = Budget::new(4 * one as usize, used.clone(), Arc::default());
        let logs: Vec<_> = (0..4).map(|_| Log::shared(usize::MAX, &budget)).collect();
        logs.iter().for_each(|log| log.note_opened(Ok(header(0)), 0));
        for revision in 1..100 {
            logs.iter().for_each(|log| log.append_progress(header(revision)));
            assert!(used.get() <= 5 * one, "after revision {revision}");
        }
        let inbox = Arc::<Inbox>::default();
        let subscriber = || Subscriber { inbox: inbox.clone(), watch: 0, part: None, progress: true };
        assert!(logs[0].subscribe(50, subscriber()).is_none(), "what was dropped is not promised");
        let seat = logs[0].subscribe(100, subscriber()).expect("what is to come is");
        logs[0].forget();
        logs[0].append_progress(header(100));
        assert!(matches!(logs[0].read(seat), Read::Batch(batch) if batch.header.revision == 100));
        drop(logs);
        assert_eq!(used.get(), 0);
    }

    #[test]
    fn the_logs_of_one_tenant_leave_half_of_the_budget_to_the_others() {
        let header = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
        let one = Batch::progress(header(1)).weight();
        let used = IntGauge::new("used", "used").expect("a good name");
        let shares = Arc::new(Shares::default());
        shares.serve(&[Tenant::whole(), Tenant::nobody()]);
        let greedy = Budget::new(8 * one, used.clone(), shares);
        let modest = greedy.for_another();
        let log = |budget| {
            let log = Log::shared(usize::MAX, budget);
            log.note_opened(Ok(header(0)), 0);
            log
        };
        let (greedy_log, modest_log) = (log(&greedy), log(&modest));
        for revision in 1..4 {
            modest_log.append_progress(header(revision));
        }
        for revision in 1..100 {
            greedy_log.append_progress(header(revision));
        }
        assert!(modest_log.lock().bytes == 3 * one && greedy_log.lock().bytes <= 4 * one);
        drop((greedy_log, modest_log));
        assert_eq!((used.get(), greedy.own.load(Ordering::Relaxed)), (0, 0));
    }
}
