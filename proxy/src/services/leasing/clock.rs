//! The time since this machine was started, the time that it slept included: a lease does not wait for a laptop to wake
//! up, while the monotonic clock does.

use std::time::Duration;

/// Now. It never goes back, and runs at a rate that NTP bends by at most one part in two thousand.
pub fn now() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec, which the call fills.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    assert_eq!(outcome, 0, "every Linux since 2.6.39 has this clock");
    let seconds = u64::try_from(now.tv_sec).expect("a machine was started before now");
    Duration::new(seconds, u32::try_from(now.tv_nsec).expect("nanoseconds are below a billion"))
}
