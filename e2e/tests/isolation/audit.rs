//! The audit log of the running program: who asked what of which keys, over real TLS, and what becomes of its file.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use etcd_proxy_e2e::process::PATIENCE;
use serde_json::Value;
use tempfile::TempDir;

use crate::port::Port;

const RULES: &str = "
client-identity:
- name: team-a
  identities: [{common-name: alice}]
  namespace: /a/
";

/// The lines of a file, as soon as one of them is as wanted.
fn lines(path: &Path, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        assert!(!text.contains("secret"), "{text}");
        // The last line may be half written.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        if lines.iter().any(&wanted) {
            return lines;
        }
        assert!(Instant::now() < deadline, "{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_asked_what_of_which_keys_is_written_down_and_no_value() {
    let log_in = |folder: &TempDir| folder.path().join("audit.log");
    let mut port = Port::open(RULES, |folder| vec![format!("--audit-log={}", log_in(folder).display())]);
    let audit = log_in(&port.folder);
    let etcdctl = port.etcdctl(&port.authority.client("alice", "alice")).flag("--command-timeout=5s");
    etcdctl.ok(&["put", "k", "secret"]);
    etcdctl.ok(&["get", "k", "z"]);
    assert_ne!(etcdctl.run(&["user", "add", "bob:secret"]).code, 0);
    let is = |line: &Value, method: &str| line["method"].as_str().is_some_and(|path| path.ends_with(method));
    let written = lines(&audit, |line| is(line, "/UserAdd"));
    let of = |method: &str| written.iter().find(|line| is(line, method)).unwrap_or_else(|| panic!("{written:#?}"));
    for line in &written {
        assert_eq!((&line["tenant"], &line["identity"]), (&"team-a".into(), &"alice".into()), "{line}");
        assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
    }
    assert_eq!((&of("KV/Put")["keys"][0]["key"], &of("KV/Put")["status"]), (&"k".into(), &"OK".into()));
    let range = &of("KV/Range")["keys"][0];
    assert_eq!((&range["key"], &range["range_end"]), (&"k".into(), &"z".into()));
    assert_eq!(of("/UserAdd")["status"], "PermissionDenied");

    // As logrotate does.
    fs::rename(&audit, port.folder.path().join("audit.log.1")).expect("it can be moved");
    port.proxy.process.signal(libc::SIGHUP);
    let deadline = Instant::now() + PATIENCE;
    while !audit.exists() {
        assert!(Instant::now() < deadline, "the file was not made anew");
        std::thread::sleep(Duration::from_millis(20));
    }
    let watched = etcdctl.spawn(&["watch", "w"]);
    lines(&audit, |line| is(line, "/Watch") && line["keys"][0]["key"] == "w");
    drop(watched);
    etcdctl.ok(&["del", "last"]);
    // What was asked before the end is written before it.
    assert_eq!(port.proxy.terminate(), 0);
    let last = fs::read_to_string(&audit).expect("the file is there");
    assert!(last.lines().any(|line| line.contains("DeleteRange")), "{last}");
}
