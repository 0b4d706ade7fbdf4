//! Who is asking: clients that their certificates tell apart, the users of etcd as whom the proxy asks for them, and the
//! proxy's own user. Tokens run out within a second here, whether they are used or not.

use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, http};

/// The proxy's own user.
mod own;
/// Rights that etcd withdraws.
mod rights;
/// The users of tenants.
mod users;

/// What etcd answers to whoever shows a token for a second.
fn short_tokens(authority: &Authority) -> String {
    let key = authority.client("tokens", "tokens").key;
    format!("--auth-token=jwt,priv-key={},sign-method=ES256,ttl=1s", key.display())
}

/// Turns auth on, with root's password "root".
fn enable_auth(etcdctl: &Etcdctl) {
    etcdctl.ok(&["user", "add", "root:root"]);
    etcdctl.ok(&["user", "grant-role", "root", "root"]);
    etcdctl.ok(&["auth", "enable"]);
}

/// A user who may do everything below a prefix.
fn add_user(etcdctl: &Etcdctl, name: &str, secret: &[&str], prefix: &str) {
    let arguments: Vec<&str> = ["user", "add"].iter().chain(secret).copied().collect();
    etcdctl.ok(&arguments);
    etcdctl.ok(&["role", "add", name]);
    etcdctl.ok(&["role", "grant-permission", name, "readwrite", prefix, "--prefix=true"]);
    etcdctl.ok(&["user", "grant-role", name, name]);
}

/// Passwords of tests need no protection.
fn etcd(authority: &Authority) -> etcd_proxy_e2e::etcd::Builder {
    Etcd::builder().flag("--bcrypt-cost=4").flag(short_tokens(authority))
}

/// How many logins there have been, by what the proxy's metrics say.
fn logins(metrics: &str, result: &str) -> f64 {
    let answer = http::get(metrics, "/proxy/metrics").expect("metrics");
    answer.metric(&format!("etcd_proxy_logins_total{{result=\"{result}\"}}")).unwrap_or_default()
}
