//! What the README and the quick start tell people to paste, run as it stands there; the tables for those who come from
//! etcd's own proxies, made from etcd's help and from our page of flags; and that what the pages name exists.
//!
//! The boxes for a cluster are run by the tests of the chart, that for a host by those of the package, and the walk-through
//! by those on a real node.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::process::Command;

use etcd_proxy_e2e::docs::Session;
use etcd_proxy_e2e::{Etcd, Version, programs};

#[test]
fn the_quick_start_on_a_laptop_works_as_pasted() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let session = Session::read("docs/quick-start.md", "On a laptop");
    session.run(folder.path(), Version::default(), &HashMap::new());
}

/// A line of the README as somebody types it who has an etcd on this machine, and a terminal for each program that does
/// not end. What `make` does is a matter of the run that this is a part of, or of a release; that there is such a target,
/// of this.
fn as_typed(line: &str) -> String {
    if let Some(target) = line.strip_prefix("make ") {
        return format!("make -n -C '{}' {target} >/dev/null", programs::repository().display());
    }
    let line =
        ["10.0.0.1", "10.0.0.2", "10.0.0.3"].iter().fold(line.to_owned(), |line, one| line.replace(one, "127.0.0.1"));
    if line.contains(" top ") {
        return format!("{line} --once");
    }
    if !line.contains(" start ") {
        return line;
    }
    let flags = ["--listen-addr=", "--listen-client-urls=http://"];
    let address = flags.iter().find_map(|flag| line.split_once(flag)).expect("it says where it listens").1;
    let address = address.split_whitespace().next().expect("an address follows");
    format!("{line} 2>>log &\nat={address}\nuntil (exec 3<>\"/dev/tcp/${{at/:/\\/}}\") 2>/dev/null; do sleep 0.1; done")
}

/// Runs the boxes of the README under a heading, in a folder that has the program where `make build` puts it.
fn readme_works(heading: &str, version: Version, known: &HashMap<u16, u16>) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let release = folder.path().join("target/release");
    std::fs::create_dir_all(&release).expect("a folder can be made");
    std::os::unix::fs::symlink(programs::etcd_proxy(), release.join("etcd-proxy")).expect("a link can be made");
    let boxes: Vec<Session> = Session::all("README.md")
        .into_iter()
        .filter(|(above, _)| above == heading)
        .map(|(_, session)| session)
        .collect();
    assert!(!boxes.is_empty(), "README.md has no box under {heading:?}");
    for session in boxes {
        session.map(as_typed).run(folder.path(), version, known);
    }
}

fn port(address: &str) -> u16 {
    address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address ends with its port")
}

#[test]
fn the_readmes_commands_work_as_typed() {
    let etcd = Etcd::start();
    let known = HashMap::from([(2379, port(etcd.address()))]);
    for heading in ["etcd-proxy", "Use it", "The gateway", "Look at it"] {
        readme_works(heading, Version::default(), &known);
    }
    let etcd = Etcd::builder().version(Version::V3_5).flag("--enable-v2").start();
    let known = HashMap::from([(2380, port(etcd.members()[0].peer_url()))]);
    readme_works("The HTTP proxy", Version::V3_5, &known);
}

#[test]
fn a_proxy_is_exchanged_as_the_page_about_upgrades_says() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    Session::read("docs/upgrade.md", "A proxy").run(folder.path(), Version::default(), &HashMap::new());
}

#[test]
fn every_box_of_commands_is_one_that_a_test_runs() {
    // Who runs the boxes of which page, by heading; the walk-through and the pages of single features run all of theirs.
    let pages: [(&str, &[&str]); 5] = [
        ("README.md", &["etcd-proxy", "Use it", "The gateway", "The HTTP proxy", "Look at it"]),
        ("docs/quick-start.md", &["On a laptop", "On a host", "On a cluster"]),
        ("docs/helm.md", &["The Helm chart"]),
        ("docs/upgrade.md", &["A proxy"]),
        ("deploy/README.md", &["On Kubernetes"]),
    ];
    for (page, run) in pages {
        let text = std::fs::read_to_string(programs::repository().join(page)).expect("the page is there");
        for line in text.lines() {
            assert!(!["```sh", "```bash", "```shell"].contains(&line), "{page}: a box whose commands no test runs");
        }
        for (heading, _) in Session::all(page) {
            assert!(run.contains(&heading.as_str()), "{page}: no test runs the box under {heading:?}");
        }
    }
}

#[test]
fn every_metric_of_the_page_about_incidents_exists() {
    let read = |name: &str| std::fs::read_to_string(programs::repository().join(name)).expect("the page is there");
    let known = read("docs/metrics.md");
    let page = read("docs/incidents.md") + &read("docs/sizing.md");
    let words = page.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    let names: Vec<&str> =
        words.filter(|word| ["etcd_", "process_"].iter().any(|start| word.starts_with(start))).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(known.contains(&format!("| `{name}` |")), "docs/metrics.md has no {name}");
    }
}

/// The flags that etcd's help names, and what it says of their defaults.
fn flags_of_etcd(command: &str) -> Vec<String> {
    let output = Command::new(Version::default().etcd()).args([command, "start", "--help"]).output();
    let help = String::from_utf8_lossy(&output.expect("etcd can be started").stdout).into_owned();
    let names = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let names: Vec<String> =
        names.map(|line| line.split_whitespace().next().expect("a flag has a name").to_owned()).collect();
    assert!(names.len() > 5, "{help}");
    names
}

/// The rows of our page of flags for one command: a flag's default, and what differs from etcd.
fn our_flags(command: &str) -> BTreeMap<String, (String, String)> {
    let page = std::fs::read_to_string(programs::repository().join("docs/flags.md")).expect("the page is there");
    // The page begins with grpc-proxy; each other command has a chapter of its own.
    let mut chapter = "grpc-proxy";
    let mut flags = BTreeMap::new();
    for line in page.lines() {
        for other in ["gateway", "http-proxy"] {
            if line == format!("## `etcd-proxy {other} start`") {
                chapter = other;
            }
        }
        let Some(row) = line.strip_prefix("| `--").filter(|_| chapter == command) else { continue };
        let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").collect();
        let name = cells[0].trim_end_matches('`').to_owned();
        flags.insert(name, (cells[3].trim().to_owned(), cells.get(5).unwrap_or(&"").trim().to_owned()));
    }
    flags
}

#[test]
fn whoever_comes_from_etcds_proxies_finds_every_flag() {
    let path = programs::repository().join("docs/migration.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let mut wanted = page.clone();
    for command in ["grpc-proxy", "gateway"] {
        let ours = our_flags(command);
        let mut table = String::from("\n| Flag | Default | What differs |\n|---|---|---|\n");
        for name in flags_of_etcd(command) {
            let (default, remark) =
                ours.get(&name).unwrap_or_else(|| panic!("{command} start: docs/flags.md has no --{name}"));
            let remark = if remark.is_empty() { "nothing" } else { remark };
            writeln!(table, "| `--{name}` | {default} | {remark} |").expect("a String can be written to");
        }
        let begin = wanted.find(&format!("<!-- {command}:")).expect("the page has a place for the table");
        let begin = begin + wanted[begin..].find("-->").expect("the comment ends") + "-->".len();
        let end = begin + wanted[begin..].find("<!-- end -->").expect("the place ends");
        wanted.replace_range(begin..end, &format!("\n{table}\n"));
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("the page can be written");
        return;
    }
    // Remarks belong to the page of flags and are only repeated here; what must not be missing is a flag.
    let rows = |page: &str| -> Vec<String> {
        let rows = page.lines().filter(|line| line.starts_with("| `--"));
        rows.map(|line| line.split(" | ").take(2).collect::<Vec<_>>().join(" | ")).collect()
    };
    let (found, wanted) = (rows(&page), rows(&wanted));
    assert_eq!(found, wanted, "stale; UPDATE_DOCS=1 cargo test -p etcd-proxy-e2e --test documents");
}
