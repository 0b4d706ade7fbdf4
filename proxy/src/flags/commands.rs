//! The commands of the program.

use std::ffi::OsString;

use clap::CommandFactory;

use super::{Flags, gateway, http_proxy, nearest::nearest, refusal::Refusal, table::Table, tools};
use crate::go;

/// The commands of the program, as the words of the command line name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Root,
    /// A word under which commands stand, which does nothing by itself.
    Group(Door),
    Start(Door),
    /// A command that looks and serves nobody.
    Tool(Tool),
    Version,
}

/// A kind of proxy, each with a group of commands of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    GrpcProxy,
    Gateway,
    HttpProxy,
}

/// What looks at a proxy, or at what one would need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Check,
    Top,
}

impl Tool {
    pub(super) const ALL: [Tool; 2] = [Tool::Check, Tool::Top];

    /// The word on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Tool::Check => "check",
            Tool::Top => "top",
        }
    }

    /// What it does, as help has it.
    pub(super) fn about(self) -> &'static str {
        match self {
            Tool::Check => "try what grpc-proxy start would need, and say what is wrong",
            Tool::Top => "show how a running proxy is doing",
        }
    }

    pub(super) fn flags(self) -> clap::Command {
        match self {
            Tool::Check => tools::CheckFlags::command(),
            Tool::Top => tools::TopFlags::command(),
        }
    }
}

impl Door {
    pub(super) const ALL: [Door; 3] = [Door::Gateway, Door::GrpcProxy, Door::HttpProxy];

    /// The word on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Door::GrpcProxy => "grpc-proxy",
            Door::Gateway => "gateway",
            Door::HttpProxy => "http-proxy",
        }
    }

    /// What `start` does, as help has it.
    pub(super) fn about_start(self) -> &'static str {
        match self {
            Door::GrpcProxy => "start the grpc proxy",
            Door::Gateway => "start the gateway",
            Door::HttpProxy => "start the http proxy",
        }
    }

    /// The flags of its `start`.
    pub(super) fn flags(self) -> clap::Command {
        match self {
            Door::GrpcProxy => Flags::command(),
            Door::Gateway => gateway::Flags::command(),
            Door::HttpProxy => http_proxy::Flags::command(),
        }
    }
}

impl Command {
    pub(super) fn find(words: &[OsString]) -> Result<Command, Refusal> {
        let texts: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let (first, rest) = match texts.split_first() {
            None => return Ok(Command::Root),
            Some((&"version", _)) => return Ok(Command::Version),
            Some((first, rest)) => (*first, rest),
        };
        if let Some(tool) = Tool::ALL.into_iter().find(|tool| tool.word() == first) {
            return Ok(Command::Tool(tool));
        }
        let Some(door) = Door::ALL.into_iter().find(|door| door.word() == first) else {
            return Err(unknown_command(first, Command::Root));
        };
        match rest.first() {
            None => Ok(Command::Group(door)),
            Some(&"start") => Ok(Command::Start(door)),
            Some(unknown) => Err(unknown_command(unknown, Command::Group(door))),
        }
    }

    pub(super) fn path(self) -> String {
        match self {
            Command::Root => "etcd-proxy".to_owned(),
            Command::Group(door) => format!("etcd-proxy {}", door.word()),
            Command::Start(door) => format!("etcd-proxy {} start", door.word()),
            Command::Tool(tool) => format!("etcd-proxy {}", tool.word()),
            Command::Version => "etcd-proxy version".to_owned(),
        }
    }

    fn children(self) -> &'static [&'static str] {
        match self {
            Command::Root => &["check", "gateway", "grpc-proxy", "help", "http-proxy", "top", "version"],
            Command::Group(_) => &["start"],
            Command::Start(_) | Command::Tool(_) | Command::Version => &[],
        }
    }

    /// Every flag that its command line may hold. A command that takes none knows those of all others, to say that they
    /// are not its own.
    pub(super) fn table(self) -> Table {
        match self {
            Command::Start(door) => Table::of([door.flags()]),
            Command::Tool(tool) => Table::of([tool.flags()]),
            Command::Root | Command::Group(_) | Command::Version => {
                Table::of(Door::ALL.map(Door::flags).into_iter().chain(Tool::ALL.map(Tool::flags)))
            }
        }
    }
}

fn unknown_command(unknown: &str, parent: Command) -> Refusal {
    let path = parent.path();
    let message = format!("unknown command {} for {}", go::quote(unknown), go::quote(&path));
    let hint = nearest(unknown, parent.children().iter().copied())
        .map(|name| format!("\n\nDid you mean this?\n\t{name}\n"))
        .unwrap_or_default();
    Refusal::new(format!("Error: {message}{hint}\nRun '{path} --help' for usage.\n{message}"))
}
