//! The proxy's own user: with auth on it registers, stays registered and tells the truth about etcd's health.

use std::fs;
use std::time::Instant;

use etcd_proxy_e2e::process::PATIENCE;
use etcd_proxy_e2e::{Authority, Proxy, Version, grpc, http};
use etcd_proxy_proto::etcdserverpb::{
    AlarmRequest, AlarmType, AuthenticateRequest, alarm_request::AlarmAction, auth_client::AuthClient,
    maintenance_client::MaintenanceClient,
};

use crate::{add_user, enable_auth, etcd, logins};

/// Asks for the health until the proxy has logged in so often, and sees that it is good all the while.
fn stays_healthy_until_logged_in(proxy: &Proxy, times: f64) {
    let deadline = Instant::now() + PATIENCE;
    while logins(proxy.address(), "success") < times {
        for path in ["/health", "/proxy/health"] {
            let answer = proxy.get(path);
            assert_eq!((answer.status, answer.body.trim()), (200, r#"{"health":"true","reason":""}"#), "{path}");
        }
        assert!(Instant::now() < deadline, "the proxy has not logged in {times} times");
    }
}

async fn check(version: Version) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let etcd = etcd(&Authority::new(folder.path())).version(version).start();
    let etcdctl = etcd.etcdctl();
    let password = folder.path().join("password");
    fs::write(&password, "first\n").expect("the file can be written");
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flags(["--user=proxy", "--resolver-prefix=proxies", "--resolver-ttl=6", "--endpoints-auto-sync-interval=1s"])
        .flag(format!("--password-file={}", password.display()))
        .start();
    // While auth is off nobody needs a login, and when it is turned on, one is made.
    proxy.process.expect_stderr("registered session with lease");
    add_user(&etcdctl, "proxy", &["proxy:first"], "proxies/");
    enable_auth(&etcdctl);
    let root = etcdctl.clone().user("root:root");
    let before = logins(proxy.address(), "success");
    stays_healthy_until_logged_in(&proxy, before + 3.0);

    let never = |trouble: &str| {
        assert!(!proxy.process.stderr.text().contains(trouble), "{version:?}: {trouble}");
    };
    never("Auto sync endpoints failed");

    // A new password is taken from the file, without a restart. For a moment there is no such user, and whatever the
    // proxy asks for just then fails.
    root.clone().ok(&["user", "delete", "proxy"]);
    fs::write(&password, "second").expect("the file can be written");
    root.ok(&["user", "add", "proxy:second"]);
    root.ok(&["user", "grant-role", "proxy", "proxy"]);
    let before = logins(proxy.address(), "success");
    stays_healthy_until_logged_in(&proxy, before + 2.0);

    let registered = root.ok(&["get", "--prefix", "proxies/", "--keys-only"]);
    assert!(registered.contains(&format!("proxies/{}", proxy.address())), "{registered}");
    never("session expired");
    never("failed to create a session");

    // etcd tells nobody of its alarms who has no name, in its newest versions.
    let channel = grpc::channel(etcd.address()).await;
    let login = AuthenticateRequest { name: "root".into(), password: "root".into() };
    let token = AuthClient::new(channel.clone()).authenticate(login).await.expect("a login").into_inner().token;
    let raise = AlarmRequest { action: AlarmAction::Activate as i32, member_id: 0, alarm: AlarmType::Nospace as i32 };
    let mut request = tonic::Request::new(raise);
    request.metadata_mut().insert("token", token.parse().expect("a token is ASCII"));
    MaintenanceClient::new(channel).alarm(request).await.expect("etcd takes the alarm");
    let answer = proxy.get("/health");
    assert_eq!((answer.status, answer.body.trim()), (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_user_the_proxy_is_registered_and_healthy_where_auth_is_on() {
    for version in Version::ALL {
        check(version).await;
    }
}

#[test]
fn a_password_that_is_wrong_is_told_to_operators_and_harms_no_client() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let etcd = etcd(&Authority::new(folder.path())).start();
    enable_auth(&etcd.etcdctl());
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flags(["--user=root:wrong", "--resolver-prefix=proxies", "--resolver-ttl=6"])
        .start();
    proxy.process.expect_stderr("cannot log in to etcd; are the user's name and password right?");
    assert!(logins(proxy.address(), "refused") >= 1.0);
    assert!(!proxy.process.stderr.text().contains("root:wrong"), "the password is in the log");
    assert!(proxy.process.stderr.text().contains("--user='root:***'"), "the flag is in the log");
    // It is no reason to take the proxy out of service: clients have users of their own.
    assert_eq!(proxy.get("/health").status, 200);
    proxy.etcdctl().user("root:root").ok(&["put", "k", "v"]);
    let refused = proxy.etcdctl().run(&["get", "k"]);
    assert!(refused.code != 0 && refused.stderr.contains("user name is empty"), "{refused:?}");
}

#[test]
fn the_proxys_own_rights_are_nobody_elses() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let etcd = etcd(&Authority::new(folder.path())).start();
    enable_auth(&etcd.etcdctl());
    for more in ["--namespace=", "--namespace=a/", "--namespace=a/ --api-profile=tenant"] {
        let flags = more.split(' ').chain(["--user=root:root"]);
        let proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flags(flags).start();
        // The proxy itself has logged in.
        assert_eq!(proxy.get("/health").status, 200);
        assert!(logins(proxy.address(), "success") >= 1.0);
        for call in [
            &["get", "k"][..],
            &["put", "k", "v"],
            &["del", "k"],
            &["txn"],
            &["lease", "list"],
            &["lease", "grant", "60"],
            &["user", "list"],
            &["compact", "1"],
        ] {
            const TXN: &str = "value(\"k\") = \"v\"\n\nget k\n\n\n";
            // Some things etcd lets everyone do.
            if etcd.etcdctl().run_with(call, TXN).code == 0 {
                continue;
            }
            let refused = proxy.etcdctl().flag("--command-timeout=5s").run_with(call, TXN);
            let words = ["user name is empty", "permission denied"];
            assert!(
                refused.code != 0 && words.iter().any(|words| refused.stderr.contains(words)),
                "{more} {call:?}: {refused:?}"
            );
        }
        let range = http::post(proxy.address(), "/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#);
        assert_eq!(range.expect("an answer").status, 400);
    }
}
