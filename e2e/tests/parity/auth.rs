//! Auth: its own administration, and what each kind of caller may do once it is on, with every way to show a token.

use etcd_proxy_e2e::Version;
use etcd_proxy_proto::authpb::{Permission, UserAddOptions};
use etcd_proxy_proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
    AuthRoleGrantPermissionRequest, AuthRoleListRequest, AuthRoleRevokePermissionRequest, AuthStatusRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest, AuthenticateRequest, LeaseGrantRequest,
    PutRequest,
};

use crate::callers;
use crate::rpcs::{
    AUTH_DISABLE, AUTH_ENABLE, AUTH_STATUS, AUTHENTICATE, LEASE_GRANT, PUT, ROLE_ADD, ROLE_DELETE, ROLE_GET,
    ROLE_GRANT_PERMISSION, ROLE_LIST, ROLE_REVOKE_PERMISSION, USER_ADD, USER_CHANGE_PASSWORD, USER_DELETE, USER_GET,
    USER_GRANT_ROLE, USER_LIST, USER_REVOKE_ROLE,
};
use crate::side::Side;

pub fn flags(_: Version) -> Vec<String> {
    // Passwords of tests need no protection.
    vec!["--bcrypt-cost=4".to_owned()]
}

pub async fn script(side: Side) {
    for (key, lease) in [("a", 0), ("a/1", 0), ("b", 1), ("rw/1", 1), ("rw/2", 2), ("w", 0)] {
        if lease != 0 {
            side.call("grant", LEASE_GRANT, LeaseGrantRequest { ttl: 600, id: lease }).await;
        }
        side.call("put", PUT, PutRequest { key: key.into(), value: "before".into(), lease, ..Default::default() })
            .await;
    }
    users(&side).await;
    roles(&side).await;
    enable(&side).await;
    callers(&side).await;
    administration(&side).await;
    disable(&side).await;
}

fn user(name: &str, password: &str) -> AuthUserAddRequest {
    AuthUserAddRequest { name: name.to_owned(), password: password.to_owned(), ..Default::default() }
}

async fn users(side: &Side) {
    side.call("auth is off", AUTH_STATUS, AuthStatusRequest {}).await;
    side.call("enable without root", AUTH_ENABLE, AuthEnableRequest {}).await;
    side.call("disable what is off", AUTH_DISABLE, AuthDisableRequest {}).await;
    side.call("authenticate while it is off", AUTHENTICATE, credentials("root", "r")).await;
    for name in ["root", "alice", "bob", "carol", "root", "\u{fc}ser", "a name with blanks"] {
        // Each user's password is the first letter of its name.
        side.call(&format!("add user {name}"), USER_ADD, user(name, &name.chars().take(1).collect::<String>())).await;
    }
    side.call("add a user without a name", USER_ADD, user("", "x")).await;
    side.call("add a user without a password", USER_ADD, user("empty", "")).await;
    let without = AuthUserAddRequest { options: Some(UserAddOptions { no_password: true }), ..user("nobody", "") };
    side.call("add a user who shall have none", USER_ADD, without.clone()).await;
    side.call(
        "and one who has one all the same",
        USER_ADD,
        AuthUserAddRequest { name: "x".into(), password: "x".into(), ..without },
    )
    .await;
    let hashed = AuthUserAddRequest { hashed_password: "bm8gaGFzaA==".into(), ..user("hashed", "") };
    side.call("add a user by a hash", USER_ADD, hashed).await;
    for name in ["alice", "nothing", ""] {
        side.call(&format!("get user {name:?}"), USER_GET, AuthUserGetRequest { name: name.into() }).await;
        let changed = AuthUserChangePasswordRequest { name: name.into(), password: "a".into(), ..Default::default() };
        side.call(&format!("change the password of {name:?}"), USER_CHANGE_PASSWORD, changed).await;
    }
    for name in ["x", "nothing", ""] {
        side.call(&format!("delete user {name:?}"), USER_DELETE, AuthUserDeleteRequest { name: name.into() }).await;
    }
    side.call("users", USER_LIST, AuthUserListRequest {}).await;
}

async fn roles(side: &Side) {
    for name in ["reader", "writer", "root", "reader", "", "spare"] {
        side.call(&format!("add role {name:?}"), ROLE_ADD, AuthRoleAddRequest { name: name.into() }).await;
    }
    let permission = |role: &str, perm_type, key: &str, end: &str| AuthRoleGrantPermissionRequest {
        name: role.to_owned(),
        // Roles speak of keys as etcd has them, so behind a namespace the script spells the prefix.
        perm: Some(Permission { perm_type, key: side.key_in_etcd(key), range_end: side.end_in_etcd(end) }),
    };
    for (role, perm_type, key, end) in [
        ("reader", 0, "a", "b"),
        ("reader", 0, "a", "b"),
        ("reader", 1, "log", ""),
        ("writer", 1, "w", ""),
        ("writer", 2, "rw/", "rw0"),
        ("writer", 2, "lock/", "lock0"),
        ("spare", 0, "x", "\0"),
        ("spare", 9, "y", ""),
        ("spare", 0, "z", "y"),
        ("spare", 0, "z", "z"),
        ("nothing", 0, "a", ""),
        ("root", 0, "a", ""),
        ("", 0, "a", ""),
    ] {
        let case = format!("grant {role:?} {perm_type} on {key:?} to {end:?}");
        side.call(&case, ROLE_GRANT_PERMISSION, permission(role, perm_type, key, end)).await;
    }
    let grant = |perm| AuthRoleGrantPermissionRequest { name: "spare".into(), perm };
    side.call("grant nothing", ROLE_GRANT_PERMISSION, grant(None)).await;
    side.call("grant an empty key", ROLE_GRANT_PERMISSION, grant(Some(Permission::default()))).await;
    for role in ["reader", "writer", "root", "nothing", ""] {
        let request = AuthRoleGetRequest { role: role.into() };
        side.masked(&format!("get role {role:?}"), ROLE_GET, request, |answer| {
            for permission in &mut answer.perm {
                permission.key = side.key_without_prefix(&permission.key);
                permission.range_end = side.key_without_prefix(&permission.range_end);
            }
        })
        .await;
    }
    for (role, key, end) in [("spare", "x", "\0"), ("spare", "x", ""), ("nothing", "x", ""), ("reader", "nothing", "")]
    {
        let (key_bytes, range_end) = (side.key_in_etcd(key), side.end_in_etcd(end));
        let request = AuthRoleRevokePermissionRequest { role: role.into(), key: key_bytes, range_end };
        side.call(&format!("revoke from {role} {key:?} to {end:?}"), ROLE_REVOKE_PERMISSION, request).await;
    }
    for (user, role) in [
        ("alice", "reader"),
        ("alice", "reader"),
        ("alice", "nothing"),
        ("nothing", "reader"),
        ("", ""),
        ("bob", "writer"),
        ("bob", "spare"),
        ("nobody", "reader"),
    ] {
        let request = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        side.call(&format!("grant {user:?} the role {role:?}"), USER_GRANT_ROLE, request).await;
    }
    for (name, role) in [("bob", "spare"), ("bob", "spare"), ("bob", "nothing"), ("nothing", "reader")] {
        let request = AuthUserRevokeRoleRequest { name: name.into(), role: role.into() };
        side.call(&format!("revoke from {name:?} the role {role:?}"), USER_REVOKE_ROLE, request).await;
    }
    side.call("roles", ROLE_LIST, AuthRoleListRequest {}).await;
    for role in ["spare", "nothing", ""] {
        side.call(&format!("delete role {role:?}"), ROLE_DELETE, AuthRoleDeleteRequest { role: role.into() }).await;
    }
    side.call("get user bob", USER_GET, AuthUserGetRequest { name: "bob".into() }).await;
}

pub fn credentials(name: &str, password: &str) -> AuthenticateRequest {
    AuthenticateRequest { name: name.to_owned(), password: password.to_owned() }
}

async fn enable(side: &Side) {
    side.call("enable, but root has no role", AUTH_ENABLE, AuthEnableRequest {}).await;
    let request = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    side.call("root becomes root", USER_GRANT_ROLE, request).await;
    side.call("enable", AUTH_ENABLE, AuthEnableRequest {}).await;
    side.call("enable twice", AUTH_ENABLE, AuthEnableRequest {}).await;
    side.call("auth is on", AUTH_STATUS, AuthStatusRequest {}).await;
    for (name, password) in
        [("root", "wrong"), ("root", ""), ("nothing", "x"), ("", ""), ("nobody", ""), ("nobody", "x"), ("hashed", "x")]
    {
        side.call(&format!("authenticate {name:?} with {password:?}"), AUTHENTICATE, credentials(name, password)).await;
    }
    let hide = |answer: &mut etcd_proxy_proto::etcdserverpb::AuthenticateResponse| answer.token = "a token".into();
    side.masked("authenticate", AUTHENTICATE, credentials("root", "r"), hide).await;
}

/// A side that shows a token of this user.
pub async fn log_in(side: &Side, name: &str, password: &str) -> Side {
    let token = side.fetch(AUTHENTICATE, credentials(name, password)).await.token;
    side.with("token", token)
}

async fn callers(side: &Side) {
    let root = log_in(side, "root", "r").await;
    callers::all(side, &root, "nobody", 100).await;
    callers::all(&side.with("token", "no.token"), &root, "a stranger", 200).await;
    callers::all(&side.with("token", ""), &root, "one with an empty token", 300).await;
    for (name, first_lease) in [("carol", 400), ("alice", 500), ("bob", 600), ("root", 700)] {
        let user = log_in(side, name, &name[..1]).await;
        callers::all(&user, &root, name, first_lease).await;
    }
    let token = side.fetch(AUTHENTICATE, credentials("bob", "b")).await.token;
    for (case, spelled) in [
        ("authorization", token.clone()),
        ("a bearer", format!("Bearer {token}")),
        ("a small bearer", format!("bearer {token}")),
        ("another scheme", format!("Basic {token}")),
    ] {
        callers::all(&side.with("authorization", spelled.clone()), &root, case, 800).await;
        let both = side.with("token", "no.token").with("authorization", spelled);
        callers::some(&both, &format!("{case} beside a token that is none")).await;
    }
    let twice = side.with("token", "no.token").with("token", token);
    callers::some(&twice, "a token that is none before a good one").await;
}

/// What a token is worth when its user or its roles change.
async fn administration(side: &Side) {
    let root = log_in(side, "root", "r").await;
    let bob = log_in(side, "bob", "b").await;
    callers::some(&bob, "bob, before anything changed").await;
    let changed = AuthUserChangePasswordRequest { name: "bob".into(), password: "new".into(), ..Default::default() };
    root.call("root changes bob's password", USER_CHANGE_PASSWORD, changed).await;
    callers::some(&bob, "bob, with another password").await;
    callers::some(&root, "root, after a change of its own").await;
    side.call("authenticate with the old one", AUTHENTICATE, credentials("bob", "b")).await;
    let bob = log_in(side, "bob", "new").await;
    let request = AuthUserRevokeRoleRequest { name: "bob".into(), role: "writer".into() };
    root.call("root takes bob's role", USER_REVOKE_ROLE, request).await;
    callers::some(&bob, "bob, without a role").await;
    let bob = log_in(side, "bob", "new").await;
    root.call("root deletes bob", USER_DELETE, AuthUserDeleteRequest { name: "bob".into() }).await;
    callers::some(&bob, "bob, deleted").await;
    root.call("root deletes itself", USER_DELETE, AuthUserDeleteRequest { name: "root".into() }).await;
    root.call("root deletes its role", ROLE_DELETE, AuthRoleDeleteRequest { role: "root".into() }).await;
    let request = AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() };
    root.call("root resigns", USER_REVOKE_ROLE, request).await;
}

async fn disable(side: &Side) {
    let root = log_in(side, "root", "r").await;
    let alice = log_in(side, "alice", "a").await;
    alice.call("alice disables", AUTH_DISABLE, AuthDisableRequest {}).await;
    side.call("nobody disables", AUTH_DISABLE, AuthDisableRequest {}).await;
    root.call("root disables", AUTH_DISABLE, AuthDisableRequest {}).await;
    callers::some(side, "nobody, with auth off again").await;
    callers::some(&alice, "alice, with auth off again").await;
    side.call("auth is off again", AUTH_STATUS, AuthStatusRequest {}).await;
}
