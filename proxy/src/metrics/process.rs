//! What the kernel knows of this process, under the names that Prometheus' clients share.

use std::{fs, sync::OnceLock};

use prometheus::proto::MetricFamily;

use super::family::{
    PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RESIDENT, PROCESS_START, PROCESS_THREADS, PROCESS_VIRTUAL,
    PROCESS_VIRTUAL_MAX,
};

/// Families for what can be read; in a sandbox without `/proc` there are fewer.
pub fn gather() -> Vec<MetricFamily> {
    let mut families = Vec::new();
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
        families.extend(PROCESS_CPU.single(stat.cpu_seconds));
        families.extend(PROCESS_RESIDENT.single(stat.resident_bytes));
        families.extend(PROCESS_VIRTUAL.single(stat.virtual_bytes));
        families.extend(PROCESS_THREADS.single(stat.threads));
        families.extend(boot_time().and_then(|boot| PROCESS_START.single(boot + stat.started_after_boot)));
    }
    // The folder that is being read is open as well, as it is in Go's count.
    families.extend(fs::read_dir("/proc/self/fd").ok().and_then(|fds| PROCESS_OPEN_FDS.single(fds.count() as f64)));
    if let Ok(limits) = fs::read_to_string("/proc/self/limits") {
        families.extend(limit(&limits, "Max open files").and_then(|limit| PROCESS_MAX_FDS.single(limit)));
        families.extend(limit(&limits, "Max address space").and_then(|limit| PROCESS_VIRTUAL_MAX.single(limit)));
    }
    families
}

struct Stat {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    threads: f64,
    started_after_boot: f64,
}

impl Stat {
    /// Reads `/proc/self/stat`, whose second field is a name that may hold anything, so that only what follows its
    /// last parenthesis is counted.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // The manual counts from one and the state, which comes first here, is its third.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let ticks = system_constant(libc::_SC_CLK_TCK)?;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            threads: field(20)?,
            started_after_boot: field(22)? / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * system_constant(libc::_SC_PAGESIZE)?,
        })
    }
}

fn system_constant(name: libc::c_int) -> Option<f64> {
    // SAFETY: sysconf takes any number and touches no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    (value > 0).then_some(value as f64)
}

/// When the machine was started, in seconds since 1970.
fn boot_time() -> Option<f64> {
    static BOOT: OnceLock<Option<f64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    })
}

/// The soft limit of `/proc/self/limits`; -1 for none, as Go's client has it.
fn limit(limits: &str, name: &str) -> Option<f64> {
    let soft = limits.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?;
    if soft == "unlimited" { Some(-1.0) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) ) S 1 7 7 0 -1 4194304 1 0 0 0 150 50 0 0 20 0 9 0 1000 4096000 100 18446744073709551615";
        let stat = Stat::parse(text).expect("it is well-formed");
        let ticks = system_constant(libc::_SC_CLK_TCK).expect("Linux has it");
        assert_eq!((stat.cpu_seconds, stat.threads), (200.0 / ticks, 9.0));
        assert_eq!((stat.started_after_boot, stat.virtual_bytes), (1000.0 / ticks, 4_096_000.0));
    }

    #[test]
    fn limits_are_numbers_or_minus_one() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files   1024   4096   files\nMax address space  unlimited unlimited bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(limit(limits, "Max address space"), Some(-1.0));
        assert_eq!(limit(limits, "Max nice priority"), None);
    }
}
