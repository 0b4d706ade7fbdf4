//! File descriptors: as many as the system allows, and some kept back for the way to etcd.

/// What the proxy needs besides clients: connections to etcd on each shard, files, timers.
const RESERVED: usize = 128;

/// Raises the soft limit to the hard one, as Go programs do when they start, and says how many clients that is for.
pub fn affordable_connections() -> usize {
    let limit = raise().unwrap_or(usize::MAX);
    // Under a tiny limit half of it is for clients, since some must be served.
    limit.saturating_sub(RESERVED).max(limit / 2).max(1)
}

/// The limit that holds from now on; `None` if there is none or the system does not tell.
fn raise() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole rlimit, which the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return None;
    }
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        // SAFETY: the pointer is to a whole rlimit, which the call reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
            limit = raised;
        }
    }
    usize::try_from(limit.rlim_cur).ok().filter(|_| limit.rlim_cur != libc::RLIM_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_are_kept_back_and_the_soft_limit_is_raised() {
        let affordable = affordable_connections();
        let limit = raise().unwrap_or(usize::MAX);
        assert!(affordable < limit || limit == usize::MAX, "{affordable} of {limit}");
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a whole rlimit, which the call fills.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut now) }, 0);
        assert_eq!(now.rlim_cur, now.rlim_max);
    }
}
