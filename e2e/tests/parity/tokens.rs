//! Tokens that run out: what stays open, what is refused, and that a new token helps.

use std::time::Duration;

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, LeaseGrantRequest,
    LeaseKeepAliveRequest, PutRequest, WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
};

use crate::auth::log_in;
use crate::callers;
use crate::rpcs::{AUTH_ENABLE, LEASE_GRANT, LEASE_KEEP_ALIVE, PUT, ROLE_ADD, USER_ADD, USER_GRANT_ROLE, WATCH};
use crate::side::Side;

/// In seconds; etcd looks once a second which tokens have run out.
const TTL: u64 = 1;

pub fn flags(_: Version) -> Vec<String> {
    vec!["--bcrypt-cost=4".to_owned(), format!("--auth-token-ttl={TTL}")]
}

fn create(key: &str) -> WatchRequest {
    let request = WatchCreateRequest { key: key.to_owned().into(), ..Default::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
}

pub async fn script(side: Side) {
    side.fetch(USER_ADD, AuthUserAddRequest { name: "root".into(), password: "r".into(), ..Default::default() }).await;
    side.fetch(ROLE_ADD, AuthRoleAddRequest { name: "root".into() }).await;
    side.fetch(USER_GRANT_ROLE, AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() }).await;
    side.fetch(AUTH_ENABLE, AuthEnableRequest {}).await;

    let old = log_in(&side, "root", "r").await;
    callers::some(&old, "while it is good").await;
    old.call("grant", LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: 1 }).await;
    let mut watch = old.open(WATCH).await;
    watch.send(&create("k"));
    watch.next("a watch, while it is good").await;
    let mut keep_alive = old.open(LEASE_KEEP_ALIVE).await;
    keep_alive.send(&LeaseKeepAliveRequest { id: 1 });
    keep_alive.next("a keep-alive, while it is good").await;

    // Asking whether it has run out would renew it, so there is nothing to await but time.
    tokio::time::sleep(Duration::from_secs(TTL + 3)).await;
    callers::some(&old, "run out").await;
    let new = log_in(&side, "root", "r").await;
    callers::some(&new, "a new one").await;
    new.call("put", PUT, PutRequest { key: "k".into(), ..Default::default() }).await;
    watch.next("the old watch still sees").await;
    watch.send(&create("k2"));
    watch.next("a new watch on the old stream").await;
    keep_alive.send(&LeaseKeepAliveRequest { id: 1 });
    keep_alive.next("a keep-alive on the old stream").await;
    let mut keep_alive = new.open(LEASE_KEEP_ALIVE).await;
    keep_alive.send(&LeaseKeepAliveRequest { id: 1 });
    keep_alive.next("a keep-alive with the new one").await;
}
