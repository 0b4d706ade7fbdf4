//! The commands of the program.

use std::ffi::OsString;

use super::{nearest::nearest, refusal::Refusal};
use crate::go;

/// The commands of the program, as the words of the command line name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Root,
    Group,
    Start,
    Version,
}

impl Command {
    pub(super) fn find(words: &[OsString]) -> Result<Command, Refusal> {
        let texts: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        match texts.as_slice() {
            [] => Ok(Command::Root),
            ["version", ..] => Ok(Command::Version),
            ["grpc-proxy"] => Ok(Command::Group),
            ["grpc-proxy", "start", ..] => Ok(Command::Start),
            ["grpc-proxy", unknown, ..] => Err(unknown_command(unknown, Command::Group)),
            [unknown, ..] => Err(unknown_command(unknown, Command::Root)),
        }
    }

    pub(super) fn path(self) -> &'static str {
        match self {
            Command::Root => "etcd-proxy",
            Command::Group => "etcd-proxy grpc-proxy",
            Command::Start => "etcd-proxy grpc-proxy start",
            Command::Version => "etcd-proxy version",
        }
    }

    fn children(self) -> &'static [&'static str] {
        match self {
            Command::Root => &["grpc-proxy", "help", "version"],
            Command::Group => &["start"],
            Command::Start | Command::Version => &[],
        }
    }
}

fn unknown_command(unknown: &str, parent: Command) -> Refusal {
    let message = format!("unknown command {} for {}", go::quote(unknown), go::quote(parent.path()));
    let hint = nearest(unknown, parent.children().iter().copied())
        .map(|name| format!("\n\nDid you mean this?\n\t{name}\n"))
        .unwrap_or_default();
    Refusal::new(format!("Error: {message}{hint}\nRun '{} --help' for usage.\n{message}", parent.path()))
}
