//! What the quick start tells people to paste, run as it stands there; the tables for those who come from etcd's own
//! proxies, made from etcd's help and from our page of flags; and that what the pages name exists.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::process::Command;

use etcd_proxy_e2e::docs::Session;
use etcd_proxy_e2e::{Version, programs};

#[test]
fn the_quick_start_on_a_laptop_works_as_pasted() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let session = Session::read("docs/quick-start.md", "On a laptop");
    session.run(folder.path(), Version::default(), &HashMap::new());
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
