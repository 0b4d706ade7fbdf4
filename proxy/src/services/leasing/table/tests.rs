//! What is shown and what is not, whichever way the news comes in.

use super::*;

const LEASE: i64 = 33;
const FAR: Duration = Duration::from_secs(1_000_000);
const MAX_BYTES: usize = 1 << 20;

fn table() -> Arc<Table> {
    let table = Table::new(MAX_BYTES, Arc::new(Metrics::new()));
    table.open(LEASE, clock::now() + FAR, &header(1));
    table
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { cluster_id: 1, member_id: 2, revision, raft_term: 3 }
}

fn key() -> Bytes {
    Bytes::from_static(b"k")
}

fn pair(revision: i64) -> Option<KeyValue> {
    Some(KeyValue { key: key(), value: revision.to_string().into(), mod_revision: revision, ..KeyValue::default() })
}

fn acquired(created: i64) -> Acquired {
    Acquired { header: header(created), pair: pair(created - 1), ownership: Ownership::Ours { created } }
}

fn ticket(table: &Arc<Table>) -> Ticket {
    match table.look(&key(), 0, true) {
        Look::Free(ticket) => ticket,
        _ => panic!("the key is free"),
    }
}

/// Owns the key since revision 10, with the value of revision 9.
fn owner() -> Arc<Table> {
    let table = table();
    ticket(&table).settle(&acquired(10));
    table
}

/// The revision of the value that is shown, if one is.
fn shown(table: &Arc<Table>) -> Option<i64> {
    match table.look(&key(), 0, false) {
        Look::Hit(pair, _) => Some(pair.map_or(0, |pair| pair.mod_revision)),
        Look::Free(_) | Look::Elsewhere => None,
    }
}

fn writing(table: &Arc<Table>) -> Writing {
    table.begin_write(&[key()], &[])
}

#[test]
fn a_value_is_shown_while_the_session_is_alive_and_with_a_header_that_never_goes_back() {
    let table = owner();
    assert_eq!(shown(&table), Some(9));
    let revision = |seen| match table.look(&key(), seen, false) {
        Look::Hit(_, header) => header.revision,
        _ => panic!("it is owned"),
    };
    assert_eq!((revision(0), revision(17)), (10, 17));
    table.saw(&header(20));
    assert_eq!(revision(17), 20);
    table.close();
    assert_eq!(shown(&table), None);

    let table = Table::new(MAX_BYTES, Arc::new(Metrics::new()));
    table.open(LEASE, clock::now() + FAR, &header(1));
    ticket(&table).settle(&acquired(10));
    table.open(LEASE + 1, clock::now() + FAR, &header(1));
    assert_eq!(shown(&table), None, "a new session owns nothing");

    let table = Table::new(MAX_BYTES, Arc::new(Metrics::new()));
    let soon = clock::now() + Duration::from_millis(50);
    table.open(LEASE, soon, &header(1));
    ticket(&table).settle(&acquired(10));
    while clock::now() < soon {
        std::hint::spin_loop();
    }
    assert_eq!(shown(&table), None, "the lease may be over");
    assert!(table.peek(&[key()], 0).is_none());
    table.extend(clock::now() + FAR);
    assert_eq!(shown(&table), Some(9), "it was not");
}

#[test]
fn nothing_is_shown_while_a_write_is_under_way_and_the_newest_of_several_stays() {
    let table = owner();
    let (first, second) = (writing(&table), writing(&table));
    assert_eq!((first.created(&key()), shown(&table)), (10, None));
    second.done(12, |_| After::Is(pair(12)));
    assert_eq!(shown(&table), None, "the other is under way");
    first.done(11, |_| After::Is(pair(11)));
    assert_eq!(shown(&table), Some(12));
    writing(&table).held_up();
    assert_eq!(shown(&table), Some(12), "nothing was written");
    writing(&table).done(13, |_| After::Is(None));
    assert_eq!(shown(&table), Some(0), "there is no such key");
    let range = KeyRange::of_watch(Bytes::from_static(b"a"), Bytes::from_static(b"z"));
    let ranged = table.begin_write(&[], std::slice::from_ref(&range));
    assert_eq!((ranged.youngest(&range), shown(&table)), (10, None));
    ranged.done(14, |_| After::Is(None));
    assert_eq!(shown(&table), Some(0));
}

#[test]
fn a_doubt_about_a_value_ends_its_ownership() {
    let doubts: [fn(&Arc<Table>); 6] = [
        |table| drop(writing(table)),
        |table| writing(table).done(11, |_| After::Unknown),
        |table| {
            let mortal = pair(11).map(|pair| KeyValue { lease: 5, ..pair });
            writing(table).done(11, |_| After::Is(mortal.clone()));
        },
        |table| {
            let large = pair(11).map(|pair| KeyValue { value: vec![0; MAX_BYTES].into(), ..pair });
            writing(table).done(11, |_| After::Is(large.clone()));
        },
        |table| table.revoked(&key(), 10, LEASE),
        |table| {
            let late = writing(table);
            table.revoked(&key(), 10, LEASE);
            late.done(12, |_| After::Is(pair(12)));
        },
    ];
    for (number, doubt) in doubts.into_iter().enumerate() {
        let table = owner();
        doubt(&table);
        assert_eq!(shown(&table), None, "doubt {number}");
        assert!(matches!(table.look(&key(), 0, true), Look::Elsewhere), "it is not free before it is given up");
        assert_eq!(writing(&table).created(&key()), 10, "writes of ours pass its leasing key");
        let releases = table.take_releases(9);
        assert_eq!(releases, [(key(), 10)]);
        table.not_released(releases.clone());
        assert_eq!(table.take_releases(9), releases);
        table.released(&releases);
        assert_eq!(writing(&table).created(&key()), 0);
        assert!(matches!(table.look(&key(), 0, true), Look::Elsewhere), "it is left alone for a while");
    }
}

#[test]
fn news_of_an_earlier_ownership_is_no_news_of_this_one() {
    let table = owner();
    table.revoked(&key(), 8, LEASE);
    table.revoked(&key(), 10, LEASE + 1);
    table.deleted(&key(), 9);
    assert_eq!(shown(&table), Some(9));
    table.deleted(&key(), 11);
    assert_eq!(shown(&table), None);
    assert_eq!(table.take_releases(9), [], "it is gone already");
}

#[test]
fn news_that_overtakes_the_answer_of_an_acquisition_is_not_lost() {
    let revoked = table();
    let held = ticket(&revoked);
    revoked.revoked(&key(), 10, LEASE);
    held.settle(&acquired(10));
    assert_eq!((shown(&revoked), revoked.take_releases(9)), (None, vec![(key(), 10)]));

    let deleted = table();
    let held = ticket(&deleted);
    deleted.deleted(&key(), 11);
    held.settle(&acquired(10));
    assert_eq!((shown(&deleted), deleted.take_releases(9)), (None, vec![]));

    let unanswered = table();
    let held = ticket(&unanswered);
    unanswered.revoked(&key(), 10, LEASE);
    drop(held);
    assert_eq!(unanswered.take_releases(9), [(key(), 10)]);

    let written = table();
    let held = ticket(&written);
    assert!(matches!(written.look(&key(), 0, true), Look::Elsewhere), "one acquires at a time");
    writing(&written).done(11, |_| After::Is(pair(11)));
    held.settle(&acquired(10));
    assert_eq!((shown(&written), written.take_releases(9)), (None, vec![(key(), 10)]));

    let closed = table();
    let held = ticket(&closed);
    closed.open(LEASE + 1, clock::now() + FAR, &header(1));
    held.settle(&acquired(10));
    assert_eq!((shown(&closed), closed.take_releases(9)), (None, vec![]));
}

#[test]
fn a_leasing_key_that_nobody_knows_of_is_given_up_when_someone_asks() {
    let table = table();
    drop(ticket(&table));
    table.revoked(&key(), 10, LEASE);
    assert_eq!(table.take_releases(9), [(key(), 10)]);
}

#[test]
fn what_is_not_read_makes_room_when_room_is_short() {
    let table = table();
    let name = |number: usize| Bytes::from(format!("k{number}"));
    let mut count = 0;
    while let Look::Free(ticket) = table.look(&name(count), 0, true) {
        let value = Bytes::from(vec![0; MAX_BYTES / 16]);
        let pair = Some(KeyValue { key: name(count), value, ..KeyValue::default() });
        ticket.settle(&Acquired { pair, ..acquired(10) });
        count += 1;
    }
    assert!((15..=17).contains(&count), "{count}");
    table.tidy();
    assert_eq!(table.take_releases(99), [], "all were used since");
    table.look(&name(3), 0, false);
    table.tidy();
    let mut released = table.take_releases(99);
    assert_eq!(released.len(), count - 1);
    released.retain(|(key, _)| *key == name(3));
    assert_eq!(released, []);
}

#[tokio::test]
async fn those_who_wait_for_a_leasing_key_are_woken_when_it_goes() {
    let ways: [fn(&Table); 3] =
        [|table| table.deleted(&key(), 11), |table| table.released(&[(key(), 10)]), Table::close];
    for gone in ways {
        let table = owner();
        let waiter = table.waiter(&key());
        let woken = waiter.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        gone(&table);
        tokio::time::timeout(Duration::from_secs(5), woken).await.expect("it is woken");
    }
}
