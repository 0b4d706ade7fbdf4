//! Whether a kept range answers as etcd does.

use etcd_proxy_proto::{
    etcdserverpb::{RangeRequest, RangeResponse},
    mvccpb::{Event, KeyValue},
};
use prost::Message as _;

use super::*;

fn key_value(key: &str, value: &str, mod_revision: i64) -> KeyValue {
    KeyValue {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        create_revision: 2,
        mod_revision,
        version: mod_revision - 1,
        lease: 0,
    }
}

fn content() -> Content {
    let mut content = Content::default();
    for (index, key) in ["a", "b", "b/1", "c"].into_iter().enumerate() {
        let revision = 9 - i64::try_from(index).expect("a small number");
        content.put(&key_value(key, &format!("value of {key}"), revision).encode_to_vec()).expect("well formed");
    }
    content
}

fn ask(content: &Content, request: &RangeRequest) -> Result<RangeResponse, Unsure> {
    let query = Query::parse(&request.encode_to_vec()).expect("a request that etcd would take");
    let mut out = Vec::new();
    content.answer(&query, &mut out)?;
    Ok(RangeResponse::decode(&out[..]).expect("a RangeResponse"))
}

fn all() -> RangeRequest {
    RangeRequest { key: "a".into(), range_end: "\0".into(), ..RangeRequest::default() }
}

fn keys(response: &RangeResponse) -> Vec<String> {
    response.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

#[test]
fn limits_orders_and_filters_are_etcds() {
    let content = content();
    let check = |request: RangeRequest, expected: &[&str], more: bool| {
        let response = ask(&content, &request).expect("no equals");
        assert_eq!((keys(&response), response.more, response.count), (to_owned(expected), more, 4), "{request:?}");
    };
    let to_mod = |order| RangeRequest { sort_order: order, sort_target: 3, ..all() };
    check(all(), &["a", "b", "b/1", "c"], false);
    check(RangeRequest { limit: 2, ..all() }, &["a", "b"], true);
    check(RangeRequest { limit: 4, ..all() }, &["a", "b", "b/1", "c"], false);
    check(RangeRequest { limit: 1, sort_order: 2, ..all() }, &["c"], true);
    check(to_mod(1), &["c", "b/1", "b", "a"], false);
    // Without an order etcd takes the first three keys and sorts these.
    check(RangeRequest { limit: 2, ..to_mod(0) }, &["b/1", "b"], true);
    check(RangeRequest { limit: 2, ..to_mod(1) }, &["c", "b/1"], true);
    check(RangeRequest { min_mod_revision: 8, limit: 1, ..all() }, &["a"], true);
    check(RangeRequest { max_mod_revision: 6, ..all() }, &["c"], false);
    check(RangeRequest { count_only: true, limit: 1, ..all() }, &[], false);
}

fn to_owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[test]
fn what_depends_on_etcds_version_is_left_to_etcd() {
    let mut content = content();
    let by_create = RangeRequest { sort_order: 1, sort_target: 2, ..all() };
    assert_eq!(ask(&content, &by_create), Err(Unsure));
    let keys_only = RangeRequest { keys_only: true, ..all() };
    let response = ask(&content, &keys_only).expect("no key has a lease");
    assert!(response.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0));
    content.put(&KeyValue { lease: 7, ..key_value("d", "", 10) }.encode_to_vec()).expect("well formed");
    assert_eq!(ask(&content, &keys_only), Err(Unsure));
    assert!(ask(&content, &RangeRequest { limit: 2, ..keys_only }).is_ok());
}

#[test]
fn events_change_what_is_there_and_its_weight() {
    let mut content = content();
    let weight = content.weight();
    let put = Event { kv: Some(key_value("aa", "new", 11)), ..Event::default() };
    content.apply(&put.encode_to_vec()).expect("well formed");
    assert_eq!(keys(&ask(&content, &all()).expect("by key")), ["a", "aa", "b", "b/1", "c"]);
    let kv = KeyValue { key: "aa".into(), mod_revision: 12, ..KeyValue::default() };
    let delete = Event { r#type: 1, kv: Some(kv), ..Event::default() };
    content.apply(&delete.encode_to_vec()).expect("well formed");
    content.apply(&delete.encode_to_vec()).expect("a key that is not there");
    assert_eq!((content.len(), content.weight()), (4, weight));
    assert!(content.apply(&Event { r#type: 9, ..put }.encode_to_vec()).is_err());
}

#[test]
fn only_what_etcd_answers_from_its_newest_revision_is_a_query() {
    assert!(Query::parse(&all().encode_to_vec()).is_some());
    for request in [
        RangeRequest::default(),
        RangeRequest { revision: 3, ..all() },
        RangeRequest { revision: -1, ..all() },
        RangeRequest { limit: -1, ..all() },
        RangeRequest { sort_order: 3, ..all() },
        RangeRequest { sort_target: -1, ..all() },
        RangeRequest { key: "b".into(), range_end: "a".into(), ..RangeRequest::default() },
    ] {
        assert_eq!(Query::parse(&request.encode_to_vec()), None, "{request:?}");
    }
    let with_a_new_field = [&all().encode_to_vec()[..], b"\x70\x01"].concat();
    assert_eq!(Query::parse(&with_a_new_field), None);
}
