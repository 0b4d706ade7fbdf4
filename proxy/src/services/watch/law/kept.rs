//! A reader in memory under the law: whatever becomes of the logs, what it has been shown is all that happened on its
//! range up to the revision that it was told, and nothing else.

use etcd_proxy_proto::mvccpb::Event;
use prost::Message as _;

use super::{
    super::{
        cursor::Wishes,
        reader::{Opened, Reader},
    },
    Store,
};

pub struct Kept {
    reader: Reader,
    start: i64,
    shown: Vec<Event>,
}

impl Kept {
    /// Reads what comes after a revision at which the range was read. None is there if the log cannot tell.
    pub fn new(opened: Opened, revision: i64) -> Option<Self> {
        Some(Self { reader: opened.after(revision).ok()?, start: revision + 1, shown: Vec::new() })
    }

    /// Reads what has come, and tells up to which revision that is all. None if it has to begin anew.
    pub fn look(&mut self, store: &Store) -> Option<i64> {
        let Self { reader, start, shown } = self;
        let revision =
            reader.read(|event| shown.push(Event::decode(event).expect("an event that etcd has sent"))).ok()?;
        let expected = store.expected_of(reader.range(), *start, revision, Wishes::default());
        assert_eq!(*shown, expected, "on {:?} from {start} to {revision}", reader.range());
        Some(revision)
    }
}
