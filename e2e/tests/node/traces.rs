//! What a cluster could leave on a machine.

use std::path::Path;
use std::process::Command;

use crate::cluster::Cluster;

#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    interfaces: Vec<String>,
    routes: String,
    filters: String,
    mounts: String,
    cgroups: Vec<String>,
}

impl Traces {
    pub fn now() -> Traces {
        let print = |words: &[&str]| {
            let output = Command::new(words[0]).args(&words[1..]).output().expect("the node's prerequisites have it");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // Counters and times of iptables-save are no traces.
        let filters = print(&["iptables-save"]);
        let filters = filters.lines().filter(|line| !line.starts_with(['#', ':'])).collect::<Vec<_>>().join("\n");
        let mut cgroups: Vec<String> = names(Path::new("/sys/fs/cgroup"));
        for hierarchy in cgroups.clone() {
            cgroups.extend(names(&Path::new("/sys/fs/cgroup").join(hierarchy)));
        }
        // Other clusters may come and go beside this one.
        cgroups.retain(|name| name.starts_with("kubepods"));
        Traces {
            interfaces: names(Path::new("/sys/class/net"))
                .into_iter()
                .filter(|name| !name.starts_with("epx"))
                .collect(),
            routes: print(&["ip", "route", "show", "table", "main"])
                .lines()
                .filter(|line| !line.contains("dev epx"))
                .collect::<Vec<_>>()
                .join("\n"),
            filters,
            mounts: std::fs::read_to_string("/proc/self/mounts").expect("a process has mounts"),
            cgroups,
        }
    }

    /// Compares with now, when the cluster is gone.
    pub fn compare(&self, cluster: &Cluster) {
        assert_eq!(&Traces::now(), self);
        let folder = cluster.folder();
        assert!(!folder.exists(), "{} is left", folder.display());
        let folder = folder.display().to_string();
        for process in names(Path::new("/proc")).iter().filter(|name| name.parse::<u32>().is_ok()) {
            // One that has just ended has no words any more.
            let words = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            assert!(!words.contains(&folder), "process {process} is left: {words}");
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}
