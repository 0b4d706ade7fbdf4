//! The page about it: every attack with what came of it, through this proxy and through etcd's own.

use std::fmt::Write as _;

use etcd_proxy_e2e::programs;

use crate::siege::Verdict;

const BEGIN: &str = "<!-- made by the isolation suite -->\n";
const END: &str = "<!-- end -->\n";

/// Holds the page against these verdicts, or writes them into it when `UPDATE_DOCS` is set.
pub fn check(ours: &[(&'static str, Verdict)], original: &[(&'static str, Verdict)]) {
    let path = programs::repository().join("docs/security.md");
    let page = std::fs::read_to_string(&path).expect("docs/security.md can be read");
    let (before, rest) = page.split_once(BEGIN).expect("the page has a place for the table");
    let (_, after) = rest.split_once(END).expect("the table has an end");
    let current = format!("{before}{BEGIN}{}{END}{after}", table(ours, original));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(&path, current).expect("docs/security.md can be written");
    }
    let found: Vec<&str> = current.lines().filter(|line| !page.lines().any(|old| old == *line)).collect();
    assert!(page == current, "docs/security.md says otherwise than {found:#?}; UPDATE_DOCS=1 writes it anew");
}

fn table(ours: &[(&'static str, Verdict)], original: &[(&'static str, Verdict)]) -> String {
    let mut table = "| the attacker tries to | `etcd-proxy --api-profile=tenant` | `etcd grpc-proxy` |\n".to_owned();
    table.push_str("|---|---|---|\n");
    for ((title, ours), (_, original)) in ours.iter().zip(original) {
        writeln!(table, "| {title} | {} | {} |", shown(ours), shown(original)).expect("a text takes what is written");
    }
    table
}

fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Kept => "kept".to_owned(),
        Verdict::Leaks(what) => format!("**{what}**"),
    }
}
