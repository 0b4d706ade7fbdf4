//! From the command line, the environment and the config file to `Flags`: cobra's and pflag's spelling, etcd's error texts.

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, CommandFactory, FromArgMatches};

use super::file::{self, FileValue};
use super::{Flags, help};
use crate::go;

const ENV_PREFIX: &str = "ETCD_PROXY_";

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Invocation {
    /// Run the proxy. The warnings are for the log, once there is one.
    Start { flags: Box<Flags>, warnings: Vec<String> },
    /// Print this to stdout and exit with 0.
    Print(String),
}

/// Why the command line cannot be obeyed: to be printed to stderr as it is, before an exit with `Refusal::EXIT_CODE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// etcd exits with 1 for everything; service units and scripts know no other code of its proxy.
    pub const EXIT_CODE: i32 = 1;

    pub(super) fn new(message: impl Into<String>) -> Self {
        let mut message = message.into();
        if !message.ends_with('\n') {
            message.push('\n');
        }
        Refusal(message)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// The variables of this process that could be meant for the proxy.
pub fn process_env() -> BTreeMap<String, OsString> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(ENV_PREFIX))
        .collect()
}

/// The environment variable that stands for a flag.
pub fn env_name(flag: &str) -> String {
    format!("{ENV_PREFIX}{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// Reads the arguments (without the name of the program), then the environment, then the config file that they name.
///
/// Does not check how the values fit together: `Flags::check` does.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &BTreeMap<String, OsString>,
) -> Result<Invocation, Refusal> {
    let table = Table::new();
    let scan = scan(&table, arguments.into_iter().collect());
    let words = match scan.words.split_first() {
        Some((first, rest)) if first == "help" => return Ok(Invocation::Print(help::page(Command::find(rest)?))),
        _ => &scan.words,
    };
    let command = Command::find(words)?;
    match (command, scan.stop) {
        (Command::Version, None | Some(Stop::Version)) | (Command::Root, Some(Stop::Version)) => {
            return Ok(Invocation::Print(help::version()));
        }
        (_, Some(Stop::Version)) => return Err(usage_error(command, "unknown flag: --version", None)),
        (_, Some(Stop::Error(message, hint))) => return Err(usage_error(command, &message, hint.as_deref())),
        (_, Some(Stop::Help)) => return Ok(Invocation::Print(help::page(command))),
        (Command::Start, None) => {}
        (_, None) => {
            return match scan.given.first() {
                Some((flag, _)) => Err(usage_error(command, &format!("unknown flag: --{flag}"), None)),
                None => Ok(Invocation::Print(help::page(command))),
            };
        }
    }
    let mut warnings: Vec<String> = words.iter().skip(2).map(|word| unused_argument(word)).collect();
    warnings.extend(environment.keys().filter_map(|name| table.misspelt_variable(name)));
    let (flags, more) = merge(&table, scan.given, environment)?;
    warnings.extend(more);
    Ok(Invocation::Start { flags: Box::new(flags), warnings })
}

/// cobra drops surplus arguments without a word, so they must not stop a start; `--debug false` is how most come about.
fn unused_argument(word: &OsStr) -> String {
    let word = go::quote(&word.to_string_lossy());
    format!(
        "the argument {word} is not used; the value of a boolean flag is written with an equals sign: --debug=false"
    )
}

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
    fn find(words: &[OsString]) -> Result<Command, Refusal> {
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
fn usage_error(command: Command, message: &str, hint: Option<&str>) -> Refusal {
    let hint = hint.map(|name| format!(" (did you mean --{name}?)")).unwrap_or_default();
    Refusal::new(format!("Error: {message}\n{}\n{message}{hint}", help::usage(command)))
}

// === the arguments ===

/// What one flag is, as far as reading a command line goes.
struct Table {
    command: clap::Command,
}

impl Table {
    fn new() -> Self {
        let mut command = Flags::command();
        command.build();
        Table { command }
    }

    fn flags(&self) -> impl Iterator<Item = &Arg> {
        self.command.get_arguments()
    }

    fn find(&self, name: &str) -> Option<&Arg> {
        self.flags().find(|flag| flag.get_long() == Some(name))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.flags().filter_map(Arg::get_long)
    }

    /// A variable that is one or two letters away from one of ours is a mistake that would otherwise stay unseen.
    ///
    /// Kubernetes gives every Pod `ETCD_PROXY_SERVICE_HOST`, `ETCD_PROXY_PORT` and their like when a Service is named
    /// etcd-proxy: these are nobody's mistake.
    fn misspelt_variable(&self, name: &str) -> Option<String> {
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
fn takes_any_bytes(flag: &Arg) -> bool {
    let of = flag.get_value_parser().type_id();
    of == TypeId::of::<Vec<u8>>() || of == TypeId::of::<PathBuf>() || of == TypeId::of::<Option<PathBuf>>()
}

/// The arguments sorted into words and flags. The first thing that ends the reading is kept; words are gathered
/// to the end, since they say whose usage is to be shown.
struct Scan {
    words: Vec<OsString>,
    given: Vec<(String, OsString)>,
    stop: Option<Stop>,
}

enum Stop {
    Help,
    Version,
    Error(String, Option<String>),
}

fn scan(table: &Table, arguments: Vec<OsString>) -> Scan {
    let mut scan = Scan { words: Vec::new(), given: Vec::new(), stop: None };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            scan.words.extend(arguments);
            break;
        }
        let stop = if let Some(long) = bytes.strip_prefix(b"--") {
            scan_long(table, long, &mut arguments, &mut scan.given)
        } else if let Some(short) = bytes.strip_prefix(b"-").filter(|short| !short.is_empty()) {
            Err(scan_short(table, short))
        } else {
            scan.words.push(argument);
            Ok(())
        };
        if let Err(stop) = stop {
            scan.stop.get_or_insert(stop);
        }
    }
    scan
}

fn scan_long(
    table: &Table,
    long: &[u8],
    arguments: &mut std::vec::IntoIter<OsString>,
    given: &mut Vec<(String, OsString)>,
) -> Result<(), Stop> {
    if long.starts_with(b"-") || long.starts_with(b"=") {
        return Err(Stop::Error(format!("bad flag syntax: --{}", String::from_utf8_lossy(long)), None));
    }
    let (name, attached) = match long.iter().position(|byte| *byte == b'=') {
        Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]).to_owned())),
        None => (long, None),
    };
    let name = String::from_utf8_lossy(name).into_owned();
    let value = match (table.find(&name), attached) {
        (None, _) if name == "help" => return Err(Stop::Help),
        (None, None) if name == "version" => return Err(Stop::Version),
        (None, _) => {
            let hint = nearest(&name, table.names()).map(str::to_owned);
            return Err(Stop::Error(format!("unknown flag: --{name}"), hint));
        }
        (Some(_), Some(value)) => value,
        // A boolean never takes the next argument.
        (Some(flag), None) if kind(flag) == "bool" => OsString::from("true"),
        (Some(_), None) => match arguments.next() {
            Some(value) => value,
            None => return Err(Stop::Error(format!("flag needs an argument: --{name}"), None)),
        },
    };
    given.push((name, value));
    Ok(())
}

/// There is no flag of one letter but `-h`; pflag reads letter by letter.
fn scan_short(table: &Table, letters: &[u8]) -> Stop {
    let letters = String::from_utf8_lossy(letters);
    match letters.chars().next() {
        Some('h') => Stop::Help,
        first => {
            let first = first.unwrap_or_default();
            let name = letters.split('=').next().unwrap_or_default();
            let hint = table.find(name).map(|_| name.to_owned());
            Stop::Error(format!("unknown shorthand flag: {} in -{letters}", quote_char(first)), hint)
        }
    }
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

// === the sources ===

/// Where a value comes from, to say so when it is refused.
enum Origin {
    Flag,
    Variable(String),
    File(PathBuf),
}

impl Origin {
    fn refuse(&self, flag: &str, value: &str, cause: &str) -> Refusal {
        let value = go::quote(value);
        match self {
            Origin::Flag => {
                let message = format!("invalid argument {value} for \"--{flag}\" flag: {cause}");
                usage_error(Command::Start, &message, None)
            }
            Origin::Variable(name) => {
                Refusal::new(format!("invalid argument {value} for environment variable {name}: {cause}"))
            }
            Origin::File(path) => Refusal::new(format!(
                "invalid argument {value} for {flag} in config file {}: {cause}",
                go::quote(&path.to_string_lossy())
            )),
        }
    }

    fn named(&self, flag: &str) -> String {
        match self {
            Origin::Flag => format!("--{flag}"),
            Origin::Variable(name) => name.clone(),
            Origin::File(path) => format!("{flag} in config file {}", go::quote(&path.to_string_lossy())),
        }
    }
}

/// Lays the sources over each other (flag, then variable, then file, then default) and lets the table read the values.
fn merge(
    table: &Table,
    given: Vec<(String, OsString)>,
    environment: &BTreeMap<String, OsString>,
) -> Result<(Flags, Vec<String>), Refusal> {
    let mut values: Vec<(String, OsString)> = given;
    let mut origins: HashMap<String, Origin> = values.iter().map(|(name, _)| (name.clone(), Origin::Flag)).collect();
    for flag in table.names() {
        let name = env_name(flag);
        // An empty variable is an unset one, as in etcd's own reading of its environment: manifests leave them behind.
        if let Some(value) = environment.get(&name).filter(|value| !value.is_empty() && !origins.contains_key(flag)) {
            values.push((flag.to_owned(), value.clone()));
            origins.insert(flag.to_owned(), Origin::Variable(name));
        }
    }
    let path = values.iter().rev().find(|(name, value)| name == "config-file" && !value.is_empty());
    if let Some(path) = path.map(|(_, value)| PathBuf::from(value)) {
        for (flag, value) in read_file(table, &path)? {
            if !origins.contains_key(&flag) {
                let text = match value {
                    FileValue::Text(text) => text,
                    FileValue::List(items) => go::write_csv(&items),
                };
                values.push((flag.clone(), text.into()));
                origins.insert(flag, Origin::File(path.clone()));
            }
        }
    }
    let mut warnings = Vec::new();
    for (name, value) in &values {
        let (Some(flag), Some(origin)) = (table.find(name), origins.get(name)) else { continue };
        check_text(flag, value).map_err(|cause| origin.refuse(name, &value.to_string_lossy(), &cause))?;
        if kind(flag) == "duration" && value.as_bytes().starts_with(b"-") {
            warnings.push(format!("{} is negative, which means the same as 0", origin.named(name)));
        }
    }
    let mut flags = read_values(&join_slices(table, values), &origins)?;
    trim("endpoints", &mut flags.endpoints, &mut warnings);
    trim("metrics-addr", &mut flags.metrics_addr, &mut warnings);
    Ok((flags, warnings))
}

fn read_file(table: &Table, path: &Path) -> Result<Vec<(String, FileValue)>, Refusal> {
    let kinds: BTreeMap<&str, &str> = table.flags().filter_map(|flag| Some((flag.get_long()?, kind(flag)))).collect();
    file::read(path, &kinds).map_err(|cause| {
        Refusal::new(format!("cannot use config file {}: {cause}", go::quote(&path.to_string_lossy())))
    })
}

/// What must hold of each single value before values of one flag are joined.
fn check_text(flag: &Arg, value: &OsStr) -> Result<(), String> {
    match value.to_str() {
        Some(text) if kind(flag) == "strings" => go::read_csv(text).map(drop),
        None if !takes_any_bytes(flag) => Err("not valid UTF-8".to_owned()),
        _ => Ok(()),
    }
}

/// Repeated slices add up, so one value that holds all of them takes their place.
fn join_slices(table: &Table, values: Vec<(String, OsString)>) -> Vec<(String, OsString)> {
    let mut joined: Vec<(String, OsString)> = Vec::with_capacity(values.len());
    let mut slices: Vec<(String, Vec<String>)> = Vec::new();
    for (name, value) in values {
        if table.find(&name).is_none_or(|flag| kind(flag) != "strings") {
            joined.push((name, value));
            continue;
        }
        let items = value.to_str().and_then(|text| go::read_csv(text).ok()).unwrap_or_default();
        match slices.iter_mut().find(|(earlier, _)| *earlier == name) {
            Some((_, earlier)) => earlier.extend(items),
            None => slices.push((name, items)),
        }
    }
    joined.extend(slices.into_iter().map(|(name, items)| (name, go::write_csv(&items).into())));
    joined
}

fn read_values(values: &[(String, OsString)], origins: &HashMap<String, Origin>) -> Result<Flags, Refusal> {
    let arguments = values.iter().map(|(name, value)| {
        let mut argument = format!("--{name}=").into_bytes();
        argument.extend_from_slice(value.as_bytes());
        OsString::from_vec(argument)
    });
    let read = Flags::command()
        .try_get_matches_from(arguments)
        .and_then(|mut matches| Flags::from_arg_matches_mut(&mut matches));
    read.map_err(|error| {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.as_str(),
            _ => "",
        };
        let flag = text(ContextKind::InvalidArg).split(' ').next().unwrap_or_default().trim_start_matches("--");
        let cause = std::error::Error::source(&error).map_or_else(|| error.kind().to_string(), ToString::to_string);
        match origins.get(flag) {
            Some(origin) => origin.refuse(flag, text(ContextKind::InvalidValue), &cause),
            None => usage_error(Command::Start, &cause, None),
        }
    })
}

/// A blank after a comma, or a comma too many, spoils one endpoint of etcd's proxy and leaves the others; so it must
/// not stop a start here.
fn trim(flag: &str, items: &mut Vec<String>, warnings: &mut Vec<String>) {
    let trimmed: Vec<String> =
        items.iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect();
    if trimmed != *items {
        warnings.push(format!("{flag} has blanks or empty items, which are dropped: {items:?}"));
        *items = trimmed;
    }
}

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
