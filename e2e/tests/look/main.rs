//! What people look at: `etcd-proxy check`, the status page in a real browser, `etcd-proxy top`, and the dashboard and
//! alerts in a real Prometheus.

mod browser;
mod check;
mod page;
mod prometheus;

use std::path::Path;
use std::process::Command;

use etcd_proxy_e2e::{Outcome, Process, programs};

/// Our program with these words, without a variable that would change what they mean.
fn ours(words: &[String]) -> Process {
    let mut command = Command::new(programs::etcd_proxy());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD") {
            command.env_remove(name);
        }
    }
    command.args(words);
    Process::spawn(format!("etcd-proxy {}", words.first().map_or("", String::as_str)), &mut command, b"")
}

/// The same, to its end.
fn run(words: &[String]) -> Outcome {
    let mut process = ours(words);
    let code = process.wait();
    process.stdout.wait_for_end();
    process.stderr.wait_for_end();
    Outcome { stdout: process.stdout.text(), stderr: process.stderr.text(), code }
}

/// A program of Debian's, which `tools/prerequisites.sh` installs.
fn program(name: &str, package: &str) -> Command {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()));
    assert!(found, "no {name} on the path; tools/prerequisites.sh installs it (Debian: apt install {package})");
    Command::new(name)
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
