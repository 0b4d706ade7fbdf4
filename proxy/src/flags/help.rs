//! What a reader sees of the flags: the help pages in cobra's form, and the table in `docs/flags.md`.

use std::fmt::Write;

use clap::Arg;

use super::commands::{Command, Door, Tool};
use super::environment::env_name;
use super::table::kind;
use super::{GROUPS, OURS};
use crate::go;

/// What `--help` prints for a command.
pub(super) fn page(command: Command) -> String {
    let about = match command {
        Command::Root => "a gRPC proxy for etcd".to_owned(),
        Command::Group(door) => format!("{} related command", door.word()),
        Command::Start(door) => door.about_start().to_owned(),
        Command::Tool(tool) => tool.about().to_owned(),
        Command::Version => "print the version".to_owned(),
    };
    format!("{about}\n\n{}", usage(command))
}

/// The usage of `grpc-proxy start`, for who wants to show it with an error of their own.
pub fn start_usage() -> String {
    usage(Command::Start(Door::GrpcProxy))
}

pub(super) fn usage(command: Command) -> String {
    let path = command.path();
    match command {
        Command::Root => format!(
            "Usage:\n  {path} [command]\n\nAvailable Commands:\n  check       {}\n  \
             gateway     gateway related command\n  grpc-proxy  grpc-proxy related command\n  \
             help        Help about any command\n  http-proxy  http-proxy related command\n  \
             top         {}\n  version     print the version\n\nFlags:\n  \
             -h, --help      help for etcd-proxy\n      --version   print the version\n\n\
             Use \"{path} [command] --help\" for more information about a command.\n",
            Tool::Check.about(),
            Tool::Top.about(),
        ),
        Command::Group(door) => format!(
            "Usage:\n  {path} [command]\n\nAvailable Commands:\n  start       {}\n\nFlags:\n  \
             -h, --help   help for {}\n\n\
             Use \"{path} [command] --help\" for more information about a command.\n",
            door.about_start(),
            door.word()
        ),
        Command::Version => {
            format!("Usage:\n  {path} [flags]\n\nFlags:\n  -h, --help   help for version\n")
        }
        Command::Start(door) => flags_page(&door.flags(), &path),
        Command::Tool(tool) => flags_page(&tool.flags(), &path),
    }
}

pub(super) fn version() -> String {
    let (os, arch) = (std::env::consts::OS, go_arch());
    format!("etcd-proxy Version: {}\nOS/Arch: {os}/{arch}\n", env!("CARGO_PKG_VERSION"))
}

/// The name of the processor as Go and container images have it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The one flag that is not in the table.
const HELP_FLAG: &str = "  -h, --help";

fn flags_page(command: &clap::Command, path: &str) -> String {
    let width = command.get_arguments().map(|flag| left_column(flag).len()).max().unwrap_or(0);
    let mut page = format!("Usage:\n  {path} [flags]\n");
    for group in groups(command) {
        let _ = write!(page, "\n{group}:\n");
        for flag in in_group(command, group) {
            let _ = writeln!(page, "{:width$}   {}{}", left_column(flag), meaning(flag), shown_default(flag));
        }
    }
    let _ = writeln!(page, "\n{HELP_FLAG:width$}   help for {}\n", command.get_name());
    let flag = command.get_arguments().next().map_or("listen-addr", name);
    let variable = env_name(flag);
    let _ = writeln!(
        page,
        "Each flag can also be given as an environment variable (--{flag} as {variable}) or as a key of the\n\
         config file. A flag counts more than a variable, a variable more than the file."
    );
    page
}

/// The groups that have flags in this command.
fn groups(command: &clap::Command) -> impl Iterator<Item = &'static str> {
    GROUPS.into_iter().filter(|group| in_group(command, group).next().is_some())
}

fn in_group<'a>(command: &'a clap::Command, group: &'a str) -> impl Iterator<Item = &'a Arg> {
    command.get_arguments().filter(move |flag| flag.get_help_heading() == Some(group))
}

fn left_column(flag: &Arg) -> String {
    match kind(flag) {
        "bool" => format!("      --{}", name(flag)),
        kind => format!("      --{} {kind}", name(flag)),
    }
}

fn name(flag: &Arg) -> &str {
    flag.get_long().expect("every flag of the table has a long name, which a test reads")
}

fn meaning(flag: &Arg) -> String {
    flag.get_help().map(ToString::to_string).unwrap_or_default()
}

/// The paragraphs of the doc comment after the first.
fn remark(flag: &Arg) -> String {
    let long = flag.get_long_help().map(ToString::to_string).unwrap_or_default();
    long.split_once("\n\n").map(|(_, remark)| remark.replace('\n', " ")).unwrap_or_default()
}

fn default(flag: &Arg) -> String {
    flag.get_default_values().first().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
}

/// pflag shows a default unless it is the zero of its type.
fn shown_default(flag: &Arg) -> String {
    match (kind(flag), default(flag).as_str()) {
        (_, "" | "0" | "0s" | "false") => String::new(),
        ("string", text) => format!(" (default {})", go::quote(text)),
        ("strings", text) => format!(" (default [{text}])"),
        (_, text) => format!(" (default {text})"),
    }
}

/// `docs/flags.md`.
pub fn markdown() -> String {
    let mut page = String::from(INTRODUCTION);
    write_tables(&mut page, &Door::GrpcProxy.flags(), "##");
    for (door, introduction) in [(Door::Gateway, GATEWAY), (Door::HttpProxy, HTTP_PROXY)] {
        let _ = write!(page, "\n## `{}`\n\n{introduction}", Command::Start(door).path());
        write_tables(&mut page, &door.flags(), "###");
    }
    let only_output = Tool::Check.flags().mut_args(|flag| match flag.get_long() {
        Some("output") => flag,
        _ => flag.help_heading(None),
    });
    for (tool, introduction, flags) in [(Tool::Check, CHECK, only_output), (Tool::Top, TOP, Tool::Top.flags())] {
        let _ = write!(page, "\n## `{}`\n\n{introduction}", Command::Tool(tool).path());
        write_tables(&mut page, &flags, "###");
    }
    page
}

fn write_tables(page: &mut String, command: &clap::Command, heading: &str) {
    for group in groups(command) {
        let last = if group == OURS { "Why this default" } else { "What differs from etcd" };
        let _ = write!(
            page,
            "\n{heading} {group}\n\n| Flag | Variable | Type | Default | Meaning | {last} |\n|---|---|---|---|---|---|\n"
        );
        for flag in in_group(command, group) {
            let cells = [
                format!("`--{}`", name(flag)),
                format!("`{}`", env_name(name(flag))),
                kind(flag).to_owned(),
                match default(flag).as_str() {
                    "" => "empty".to_owned(),
                    text => format!("`{text}`"),
                },
                cell(&meaning(flag)),
                cell(&remark(flag)),
            ];
            let _ = writeln!(page, "| {} |", cells.join(" | "));
        }
    }
}

const GATEWAY: &str = "\
It takes every flag of `etcd gateway start`, with the same name, default and meaning, and some of its own. Values come
from the same four places.
";

const CHECK: &str = "\
It tries what `grpc-proxy start` would need, and takes every flag of it with the same meaning, from the same four places.
It ends with 0 if a start would work, with 2 if something failed, and with 1 if the command line is wrong.
";

const TOP: &str = "\
It shows in a terminal what the status page at `/` of a metrics address shows. Values come from the same places, but for
the config file.
";

const HTTP_PROXY: &str = "\
It takes the flags of `etcd` 3.5 that its `--proxy` mode reads, with the same names, defaults and units. Values come
from the same four places; etcd's own variables (`ETCD_INITIAL_CLUSTER`) are not read.
";

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

const INTRODUCTION: &str = "\
<!-- Made from the tables in proxy/src/flags.rs and proxy/src/flags/; `UPDATE_DOCS=1 cargo test -p etcd-proxy --lib flags` writes it anew. -->

# Flags

`etcd-proxy grpc-proxy start` takes every flag of `etcd grpc-proxy start`, with the same name, default and meaning, and
some of its own.

A value may come from four places. The first that has it counts:

1. the flag: `--listen-addr=0.0.0.0:2379` or `--listen-addr 0.0.0.0:2379`. Booleans are `--debug`, or `--debug=false`
   with an equals sign. Lists hold commas, or the flag is repeated;
2. the environment variable; an empty one counts as unset;
3. the config file that `--config-file` names: YAML with the names of flags as keys. A list may be written as a YAML
   list. Unknown keys, keys given twice and keys below keys are refused;
4. the default.

Durations are written as in Go: `1h2m3.5s`, `100ms`, `0`. One below zero means the same as `0`. Whole numbers may be
decimal, `0x1f`, `0o17`, `0b101`, with underscores between digits.

A wrong command line ends the process with exit code 1 and a message on stderr, before any port is bound. Where etcd
has a text for it, the text is etcd's. What has no effect is logged as a warning and does not stop a start.

Besides what the tables say, the command line differs from etcd's in this:

- flags may stand before `start` in every spelling; etcd takes `--flag=value` there but not `--flag`;
- `grpc-proxy`, `gateway` or `http-proxy` followed by an unknown command is an error; etcd prints its help and exits with
  0;
- an argument that is no flag is reported in the log; etcd drops it without a word.
";
