//! What a process costs, as the kernel counts it.

use std::{fs, time::Duration};

/// CPU time of all threads of a process so far.
pub fn cpu(process: u32) -> Duration {
    let nanoseconds = |stat: String| stat.split_whitespace().next().and_then(|first| first.parse::<u64>().ok());
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("the process is running");
    let stats = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    Duration::from_nanos(stats.filter_map(nanoseconds).sum())
}

/// Resident memory in bytes that is the process's own. The pages of its program come and go, and are not memory of what it
/// keeps.
pub fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process is running");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a running process has memory");
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("RssAnon is a number") * 1024
}
