//! A log that nobody can write: a full disk, a pipe whose reader is gone, no stderr at all.

use std::process::Command;
use std::time::Instant;

use etcd_proxy_e2e::{Etcd, Etcdctl, Process, Version, http, ports, programs};

use crate::POLL;
use crate::wire::PATIENCE;

#[test]
fn a_log_that_cannot_be_written_does_not_keep_the_proxy_from_serving() {
    let etcd = Etcd::start();
    for redirection in ["2>/dev/full", "2>&-", "2> >(exec sleep 0)", "2> >(exec sleep 1000)"] {
        let address = ports::free_address();
        let script = format!(
            "exec {} grpc-proxy start --listen-addr={address} --advertise-client-url={address} --endpoints={} \
             --debug {redirection}",
            programs::etcd_proxy().display(),
            etcd.endpoints()
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script]);
        let mut proxy = Process::spawn(format!("proxy with {redirection}"), &mut command, b"");
        let deadline = Instant::now() + PATIENCE;
        while http::get(&address, "/proxy/metrics").is_err() {
            assert!(Instant::now() < deadline, "it does not serve with {redirection}");
            std::thread::sleep(POLL);
        }
        let etcdctl = Etcdctl::new(Version::default(), &address);
        for number in 0..20 {
            etcdctl.ok(&["put", "key", &number.to_string()]);
        }
        assert_eq!(etcdctl.ok(&["get", "key", "--print-value-only"]), "19", "with {redirection}");
        assert_eq!(proxy.exit(), None, "with {redirection}");
        proxy.signal(libc::SIGTERM);
        assert_eq!(proxy.wait(), 0, "with {redirection}");
    }
}
