//! What is shown of flags: the start-up log and the page.

use super::{each::one_of_each, *};

#[test]
fn the_effective_flags_name_each_flag_and_hide_passwords() {
    let flags = start(&[
        "--endpoints=https://user:hidden@a:1,b:2",
        "--metrics-addr=http://me:hidden@m:1",
        "--advertise-client-url=hidden@c:3",
        "--namespace=it's here/",
        "--user=me:hidden",
    ]);
    let line = flags.effective();
    assert!(!line.contains("hidden"), "{line}");
    for part in [
        "--endpoints='https://***@a:1,b:2' ",
        "--advertise-client-url='***@c:3' ",
        "--namespace='it'\\''s here/' ",
        "--grpc-keepalive-interval=2h0m0s ",
        "--log-level=info ",
        "--user='me:***' ",
        "--cert= ",
        "--debug=false ",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    for name in names() {
        assert_eq!(line.matches(&format!("--{name}=")).count(), 1, "{name}: {line}");
    }
}

#[test]
fn a_shell_reads_the_effective_flags_back() {
    let mut flags = Flags::default();
    for (_, _, change) in one_of_each() {
        change(&mut flags);
    }
    flags.config_file = None;
    flags.endpoints = vec!["a,b".into(), "\"".into(), "$(c) 'd'".into()];
    flags.namespace = "a b\nc'd\\é".into();
    for flags in [flags, Flags::default(), Flags { endpoints: vec![], ..Flags::default() }] {
        let print_words = format!("printf '%s\\0' {}", flags.effective());
        let output = std::process::Command::new("sh").args(["-c", &print_words]).output().expect("a shell");
        let words = String::from_utf8(output.stdout).expect("the flags are UTF-8");
        let words: Vec<&str> = words.split_terminator('\0').collect();
        assert_eq!(start(&words), flags);
    }
}

#[test]
fn the_page_of_flags_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/flags.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, markdown()).expect("a docs folder that can be written to");
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(page == markdown(), "docs/flags.md is stale; UPDATE_DOCS=1 cargo test writes it anew");
    for line in page.lines().filter(|line| line.starts_with("| `--")) {
        assert_eq!(line.replace("\\|", "").matches('|').count(), 7, "{line}");
    }
}
