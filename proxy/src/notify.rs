//! Tells the init daemon when the proxy is ready, reloads or stops: systemd's sd_notify protocol, with etcd's log lines.

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tracing::{error, info};

/// systemd reads its socket at once; one that does not must not hold up the proxy.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The socket of the init daemon, if the process was started by one that wants to know.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    socket: Option<OsString>,
}

impl Notifier {
    /// The socket that the environment names.
    pub fn from_env() -> Self {
        Notifier { socket: std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) }
    }

    /// A socket at a path, or with an `@` before it an abstract one.
    pub fn to(socket: impl Into<OsString>) -> Self {
        Notifier { socket: Some(socket.into()) }
    }

    /// Start-up has finished: clients are served. Logs what etcd logs here, whether or not there is a daemon to tell.
    pub fn ready(&self) {
        info!("notifying init daemon");
        match self.send("READY=1") {
            Ok(_) => info!("successfully notified init daemon"),
            Err(error) => error!(error = %error, "failed to notify systemd for readiness"),
        }
    }

    /// The proxy drains and will exit.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Files are read anew. A unit of type notify-reload waits for `reloaded` after it.
    pub fn reloading(&self) {
        let mut state = "RELOADING=1".to_owned();
        if let Some(microseconds) = monotonic_microseconds() {
            // Writing to a String does not fail.
            let _ = write!(state, "\nMONOTONIC_USEC={microseconds}");
        }
        self.tell(&state);
    }

    /// Reloading has finished.
    pub fn reloaded(&self) {
        self.tell("READY=1");
    }

    fn tell(&self, state: &str) {
        if let Err(error) = self.send(state) {
            error!(error = %error, state, "failed to notify systemd");
        }
    }

    /// Whether there was a daemon to tell.
    fn send(&self, state: &str) -> io::Result<bool> {
        let Some(name) = &self.socket else { return Ok(false) };
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => {
                let problem = format!("NOTIFY_SOCKET {name:?} is neither a path nor an abstract socket");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        socket.send_to_addr(state.as_bytes(), &address)?;
        Ok(true)
    }
}

/// systemd compares it with its own clock, to tell this reload from an earlier one.
fn monotonic_microseconds() -> Option<i64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec, which the call fills.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    (outcome == 0).then(|| now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that waits for a message no longer than the test should take.
    fn daemon(socket: UnixDatagram) -> impl Fn() -> String {
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket takes a timeout");
        move || {
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer).expect("a message within the timeout");
            String::from_utf8(buffer[..length].to_vec()).expect("a message is a text")
        }
    }

    fn check(notifier: &Notifier, received: impl Fn() -> String) {
        notifier.ready();
        assert_eq!(received(), "READY=1");
        notifier.reloading();
        let reloading = received();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        assert!(time.parse::<u64>().is_ok_and(|time| time > 0), "{time}");
        notifier.reloaded();
        assert_eq!(received(), "READY=1");
        notifier.stopping();
        assert_eq!(received(), "STOPPING=1");
    }

    #[test]
    fn a_daemon_at_a_path_is_told_of_each_state() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        check(&Notifier::to(&path), daemon(UnixDatagram::bind(&path).expect("a socket at a fresh path")));
    }

    #[test]
    fn a_daemon_at_an_abstract_socket_is_told_of_each_state() {
        let name = format!("etcd-proxy-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let socket = UnixDatagram::bind_addr(&address).expect("a fresh name");
        check(&Notifier::to(format!("@{name}")), daemon(socket));
    }

    #[test]
    fn no_daemon_is_no_error_and_a_wrong_one_is_an_error_but_no_panic() {
        assert!(!Notifier::default().send("READY=1").expect("nothing to do"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let absent = folder.path().join("absent");
        for socket in [absent.into_os_string(), "vsock:2:1234".into(), "relative".into(), "/".repeat(200).into()] {
            let notifier = Notifier::to(socket);
            assert!(notifier.send("READY=1").is_err(), "{notifier:?}");
            notifier.ready();
            notifier.stopping();
        }
    }

    #[test]
    fn a_daemon_that_does_not_read_holds_nothing_up() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket at a fresh path");
        let notifier = Notifier::to(&path);
        // More messages than the kernel keeps for one reader; the bound ends the test should it keep them all.
        let refused = (0..100_000).find(|_| notifier.send("READY=1").is_err());
        assert!(refused.is_some());
        drop(socket);
    }
}
