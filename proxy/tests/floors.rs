//! The walls of the house: a room imports only rooms that stand below it, so that there is no circle among rooms.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The rooms of the proxy, top floor first. A new room takes its place here before anyone can import it.
const FLOORS: [&str; 33] = [
    "main",
    "check",
    "top",
    "config",
    "app",
    "gateway",
    "http_proxy",
    "keyspace",
    "doors",
    "pages",
    "server",
    "json",
    "admin",
    "router",
    "services",
    "resolver",
    "upstream",
    "exchange",
    "audit",
    "admission",
    "metrics",
    "rules", // The ground: imported by many, importing next to nothing of ours.
    "tls",
    "backoff",
    "dial",
    "drain",
    "logging",
    "notify",
    "footprint",
    "flags",
    "go",
    "lib",
    "foreign",
];

#[test]
fn rooms_import_only_what_stands_below_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in rust_files(&source) {
        let room = room_of(&source, &file);
        let Some(floor) = FLOORS.iter().position(|known| *known == room) else {
            wrong.push(format!("{} belongs to the room {room:?}, which FLOORS does not have", file.display()));
            continue;
        };
        for import in imports(&fs::read_to_string(&file).expect("the source can be read")) {
            match FLOORS.iter().position(|known| *known == import) {
                Some(below) if below >= floor => (),
                Some(_) => wrong.push(format!("{} imports {import}, which stands above it", file.display())),
                None => wrong.push(format!("{} imports {import}, which FLOORS does not have", file.display())),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rules_wait_for_nothing() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rules");
    for file in rust_files(&rules) {
        let text = fs::read_to_string(&file).expect("the source can be read");
        for forbidden in ["async fn", ".await", "Instant::now", "SystemTime::now", "Mutex", "tracing::"] {
            let found = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(forbidden));
            assert!(!found, "{} has {forbidden}: rules take values and give values", file.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in
        ["proxy/src", "proxy/tests", "proxy/benches", "proto/src/lib.rs", "operator/src", "e2e/src", "e2e/tests"]
    {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands in the workspace");
        for file in rust_files(&root.join(folder)) {
            let text = fs::read_to_string(&file).expect("the source can be read");
            assert!(text.starts_with("//! "), "{} does not begin with //! and what it is for", file.display());
        }
    }
}

fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    paths
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .collect()
}

/// The first part of a file's path under `src`: `services/watch/log.rs` is in `services`.
fn room_of(source: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(source).expect("the file is under src");
    let first = relative.components().next().expect("a file has a name");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The rooms after `crate::`, also those in braces over several lines.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("crate::") {
        rest = &rest[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.extend(first_name(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (index, character) in group.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ if start && character.is_alphabetic() => {
                            found.extend(first_name(&group[index..]));
                            start = false;
                        }
                        _ => (),
                    }
                }
            }
        }
    }
    found
}

fn first_name(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect();
    (!name.is_empty()).then_some(name)
}
