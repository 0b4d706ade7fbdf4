//! The words of the command line: which command they name and which flags they give, spelt as cobra and pflag allow.

use std::any::TypeId;
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Arg, CommandFactory};

use super::parse::{ENV_PREFIX, Refusal, env_name};
use super::{Flags, help};
use crate::go;

// === the commands ===

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

/// etcd prints the error above the usage, as cobra does, and once more below it, where it is seen.
pub(super) fn usage_error(command: Command, message: &str, hint: Option<&str>) -> Refusal {
    let hint = hint.map(|name| format!(" (did you mean --{name}?)")).unwrap_or_default();
    Refusal::new(format!("Error: {message}\n{}\n{message}{hint}", help::usage(command)))
}

// === the arguments ===

/// What one flag is, as far as reading a command line goes.
pub(super) struct Table {
    command: clap::Command,
}

impl Table {
    pub(super) fn new() -> Self {
        let mut command = Flags::command();
        command.build();
        Table { command }
    }

    pub(super) fn flags(&self) -> impl Iterator<Item = &Arg> {
        self.command.get_arguments()
    }

    pub(super) fn find(&self, name: &str) -> Option<&Arg> {
        self.flags().find(|flag| flag.get_long() == Some(name))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.flags().filter_map(Arg::get_long)
    }

    /// A variable that is one or two letters away from one of ours is a mistake that would otherwise stay unseen.
    ///
    /// Kubernetes gives every Pod `ETCD_PROXY_SERVICE_HOST`, `ETCD_PROXY_PORT` and their like when a Service is named
    /// etcd-proxy: these are nobody's mistake.
    pub(super) fn misspelt_variable(&self, name: &str) -> Option<String> {
        let flag = name.strip_prefix(ENV_PREFIX)?.to_ascii_lowercase().replace('_', "-");
        if self.find(&flag).is_some() || flag.contains("port") || flag.contains("service") {
            return None;
        }
        let meant = env_name(nearest(&flag, self.names())?);
        Some(format!("the environment variable {name} is not used; did you mean {meant}?"))
    }
}

/// The type that help shows for a flag, which is pflag's name of it.
pub(super) fn kind(flag: &Arg) -> &str {
    flag.get_value_names().and_then(|names| names.first()).map_or("string", |name| name.as_str())
}

/// Whether a value may be any bytes, as Go's strings may: paths and the namespace.
pub(super) fn takes_any_bytes(flag: &Arg) -> bool {
    let of = flag.get_value_parser().type_id();
    of == TypeId::of::<Vec<u8>>() || of == TypeId::of::<PathBuf>() || of == TypeId::of::<Option<PathBuf>>()
}

/// The arguments sorted into words and flags. They are read to the end even if one is wrong, since the words say whose
/// usage is to be shown; the first wrong one is what is reported.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) words: Vec<OsString>,
    pub(super) given: Vec<(String, OsString)>,
    pub(super) help: bool,
    pub(super) version: bool,
    pub(super) wrong: Option<Wrong>,
}

pub(super) struct Wrong {
    pub(super) message: String,
    /// The flag that was probably meant.
    pub(super) hint: Option<String>,
}

impl Wrong {
    fn new(message: String) -> Self {
        Wrong { message, hint: None }
    }
}

pub(super) fn scan(table: &Table, arguments: Vec<OsString>) -> Scan {
    let mut scan = Scan::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            scan.words.extend(arguments);
            break;
        }
        let outcome = if let Some(long) = bytes.strip_prefix(b"--") {
            scan_long(table, long, &mut arguments, &mut scan)
        } else if let Some(short) = bytes.strip_prefix(b"-").filter(|short| !short.is_empty()) {
            scan_short(table, short, &mut scan)
        } else {
            scan.words.push(argument);
            Ok(())
        };
        if let Err(wrong) = outcome {
            scan.wrong.get_or_insert(wrong);
        }
    }
    scan
}

fn scan_long(
    table: &Table,
    long: &[u8],
    arguments: &mut std::vec::IntoIter<OsString>,
    scan: &mut Scan,
) -> Result<(), Wrong> {
    if long.starts_with(b"-") || long.starts_with(b"=") {
        return Err(Wrong::new(format!("bad flag syntax: --{}", String::from_utf8_lossy(long))));
    }
    let (name, attached) = match long.iter().position(|byte| *byte == b'=') {
        Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]).to_owned())),
        None => (long, None),
    };
    let name = String::from_utf8_lossy(name).into_owned();
    let value = match (table.find(&name), attached) {
        (None, attached) if name == "help" => {
            scan.help = help_value(attached.as_ref().map_or(Cow::Borrowed("true"), |value| value.to_string_lossy()))?;
            return Ok(());
        }
        (None, None) if name == "version" => {
            scan.version = true;
            return Ok(());
        }
        (None, _) => {
            let hint = nearest(&name, table.names()).map(str::to_owned);
            return Err(Wrong { message: format!("unknown flag: --{name}"), hint });
        }
        (Some(_), Some(value)) => value,
        // A boolean never takes the next argument.
        (Some(flag), None) if kind(flag) == "bool" => OsString::from("true"),
        (Some(_), None) => match arguments.next() {
            Some(value) => value,
            None => return Err(Wrong::new(format!("flag needs an argument: --{name}"))),
        },
    };
    scan.given.push((name, value));
    Ok(())
}

/// There is no flag of one letter but `-h`; pflag reads letter by letter.
fn scan_short(table: &Table, letters: &[u8], scan: &mut Scan) -> Result<(), Wrong> {
    let letters = String::from_utf8_lossy(letters);
    let mut rest = letters.as_ref();
    while let Some(after) = rest.strip_prefix('h') {
        if let Some(value) = after.strip_prefix('=').filter(|value| !value.is_empty()) {
            scan.help = help_value(value.into())?;
            return Ok(());
        }
        scan.help = true;
        rest = after;
    }
    let Some(first) = rest.chars().next() else { return Ok(()) };
    let name = rest.split('=').next().unwrap_or_default();
    let hint = table.find(name).map(|_| name.to_owned());
    Err(Wrong { message: format!("unknown shorthand flag: {} in -{rest}", quote_char(first)), hint })
}

fn help_value(text: Cow<'_, str>) -> Result<bool, Wrong> {
    go::parse_bool(&text)
        .map_err(|cause| Wrong::new(format!("invalid argument {} for \"-h, --help\" flag: {cause}", go::quote(&text))))
}

fn quote_char(c: char) -> String {
    match c {
        '\'' => "'\\''".to_owned(),
        '"' => "'\"'".to_owned(),
        c => {
            let quoted = go::quote(c.encode_utf8(&mut [0; 4]));
            format!("'{}'", &quoted[1..quoted.len() - 1])
        }
    }
}

// === what was meant ===

/// The name that a mistyped one most likely stands for.
pub(super) fn nearest<'a>(mistyped: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Two typing errors; in short names, where two letters are half of it, only one.
    let tolerance = if mistyped.chars().count() < 5 { 1 } else { 2 };
    names
        .map(|name| (distance(mistyped, name), name))
        .filter(|(distance, _)| *distance <= tolerance)
        .min()
        .map(|(_, name)| name)
}

/// How many letters must be put in, taken out or changed to make one text of the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    // Names of flags are short; a longer text is none of them, and must not cost the square of its length.
    const LONGEST: usize = 64;
    if left.len() > LONGEST || right.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let changed = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
