//! The flags as a whole: every source of values, every text that scripts may match on, and the page made of the table.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use proptest::prelude::*;

use super::table::kind;
use super::*;

mod any;
mod command_line;
mod each;
mod fitting;
mod shown;
mod sources;

const START: [&str; 2] = ["grpc-proxy", "start"];

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, OsString> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect()
}

fn arguments(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn run(words: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, Refusal> {
    parse(arguments(words), &environment(variables))
}

fn started(words: &[&str], variables: &[(&str, &str)]) -> (Flags, Vec<String>) {
    match run(words, variables) {
        Ok(Invocation::Start { flags, warnings }) => (*flags, warnings),
        other => panic!("{words:?} and {variables:?} gave {other:?}"),
    }
}

fn start(words: &[&str]) -> Flags {
    let words: Vec<&str> = START.iter().chain(words).copied().collect();
    let (flags, warnings) = started(&words, &[]);
    assert_eq!(warnings, Vec::<String>::new(), "{words:?}");
    flags
}

fn refused(words: &[&str], variables: &[(&str, &str)]) -> String {
    match run(words, variables) {
        Err(refusal) => refusal.to_string(),
        Ok(other) => panic!("{words:?} gave {other:?}"),
    }
}

fn start_refused(words: &[&str]) -> String {
    refused(&START.iter().chain(words).copied().collect::<Vec<_>>(), &[])
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("a written file");
    file
}

fn with_file(text: &str) -> Result<(Flags, Vec<String>), String> {
    let file = file(text);
    let path = file.path().to_str().expect("temporary paths are UTF-8");
    match run(&["grpc-proxy", "start", "--config-file", path], &[]) {
        Ok(Invocation::Start { flags, warnings }) => Ok((Flags { config_file: None, ..*flags }, warnings)),
        Ok(other) => panic!("{text} gave {other:?}"),
        Err(refusal) => Err(refusal.to_string().replace(path, "FILE")),
    }
}

/// A change to one field.
type Change = fn(&mut Flags);

fn names() -> Vec<String> {
    Flags::command().get_arguments().filter_map(|flag| flag.get_long().map(str::to_owned)).collect()
}
