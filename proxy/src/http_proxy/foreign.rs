//! What members, discovery services and users tell of the cluster, damaged.

use super::{
    cluster::{self, Member},
    discovery::{self, Answer},
    origin::{self, Origin},
    through::Through,
};
use crate::{doors::Address, foreign::damaged, upstream::endpoint::Endpoint};

#[test]
fn damaged_urls_are_taken_apart_or_refused() {
    let urls: [&[u8]; 5] = [
        b"https://user:p%40ss@a.example:2379/",
        b"http://[::1%25eth0]:1",
        b"unixs:///run/a.sock",
        b"m0=http://a:1,m1=https://b:2",
        b"https://discovery.example/v2/keys/token?a#b",
    ];
    damaged(&urls, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _ =
            (Origin::parse(&text), origin::of_cluster(&text), Through::parse(&text), discovery::split(&text).is_ok());
        let _ = (Address::parse(&text), Endpoint::parse(&text).map(|endpoint| endpoint.authority().to_owned()));
    });
}

#[test]
fn damaged_member_lists_and_answers_of_discovery_are_read_or_refused() {
    let texts: [&[u8]; 3] = [
        br#"[{"id":1,"peerURLs":["http://a:1"],"name":"m0","clientURLs":["http://a:2"],"isLearner":false}]"#,
        br#"{"action":"get","node":{"key":"/t","dir":true,"nodes":[{"key":"/t/1","value":"m0=http://a:1","createdIndex":4}]}}"#,
        br#"{"errorCode":100,"message":"Key not found","cause":"/t","index":3}"#,
    ];
    damaged(&texts, |bytes| {
        let _ = serde_json::from_slice::<Vec<Member>>(bytes).map(cluster::summary);
        serde_json::from_slice::<Answer>(bytes).is_ok()
    });
}
