//! What the kernel knows of this process, under the names that Prometheus' clients share.

use std::{fs, path::Path, sync::OnceLock};

use prometheus::proto::MetricFamily;

use super::family::{
    MEMORY_LIMIT, PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RESIDENT, PROCESS_START, PROCESS_THREADS,
    PROCESS_VIRTUAL, PROCESS_VIRTUAL_MAX,
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
    families.extend(MEMORY_LIMIT.single(memory_limit(Path::new("/")).map_or(-1.0, |limit| limit as f64)));
    families
}

/// What the process uses, for who shows it to people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub threads: u64,
    pub descriptors: u64,
    pub max_descriptors: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
}

impl Usage {
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse);
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        Self {
            cpu_seconds: stat.as_ref().map_or(0.0, |stat| stat.cpu_seconds),
            resident_bytes: stat.as_ref().map_or(0, |stat| stat.resident_bytes as u64),
            threads: stat.as_ref().map_or(0, |stat| stat.threads as u64),
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64),
            max_descriptors: limit(&limits, "Max open files").filter(|limit| *limit >= 0.0).map(|limit| limit as u64),
            memory_limit_bytes: memory_limit(Path::new("/")),
        }
    }
}

/// The least limit among the control groups that the process is in, by version 2 of their files or by version 1. In a
/// container its own group is the root of what it sees.
fn memory_limit(root: &Path) -> Option<u64> {
    // What version 1 says for no limit: the largest whole number of pages in an i64, or nearly.
    const NONE: u64 = 1 << 62;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let own = |controller: &str| {
        let line = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|one| one == controller).then_some(path)
        });
        line.unwrap_or("/").trim_start_matches('/').to_owned()
    };
    let limits = [("sys/fs/cgroup", "", "memory.max"), ("sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes")];
    let limits = limits.into_iter().flat_map(|(mount, controller, file)| {
        let (mount, own) = (root.join(mount), own(controller));
        let folders: Vec<_> = mount.join(&own).ancestors().map(Path::to_owned).collect();
        folders.into_iter().take_while(move |folder| folder.starts_with(&mount)).map(move |folder| folder.join(file))
    });
    let read = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    limits.filter_map(|path| read(&path)).filter(|limit| *limit < NONE).min()
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
    fn the_limit_of_memory_is_the_least_of_all_groups_around() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        };
        assert_eq!(memory_limit(root.path()), None);
        write("proc/self/cgroup", "0::/pod/container\n");
        write("sys/fs/cgroup/pod/container/memory.max", "max\n");
        assert_eq!(memory_limit(root.path()), None);
        write("sys/fs/cgroup/pod/memory.max", "1000\n");
        assert_eq!(memory_limit(root.path()), Some(1000));
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory_limit(root.path()), Some(1000));
        write("proc/self/cgroup", "3:cpu,memory:/a\n0::/\n");
        write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "700\n");
        assert_eq!(memory_limit(root.path()), Some(700));
    }

    #[test]
    fn limits_are_numbers_or_minus_one() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files   1024   4096   files\nMax address space  unlimited unlimited bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(limit(limits, "Max address space"), Some(-1.0));
        assert_eq!(limit(limits, "Max nice priority"), None);
    }
}
