//! From the command line, the environment and the config file to `Flags`: cobra's and pflag's spelling, etcd's error texts.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use clap::Arg;
use clap::error::{ContextKind, ContextValue};

use super::commands::{Command, Door, Tool};
use super::environment::env_name;
use super::file::{self, FileValue};
use super::refusal::Refusal;
use super::scan::{Wrong, scan, usage_error};
use super::table::{Table, kind, takes_any_bytes};
use super::{Flags, gateway, help, http_proxy, tools};
use crate::go;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Invocation {
    /// Run the proxy. The warnings are for the log, once there is one.
    Start { flags: Box<Flags>, warnings: Vec<String> },
    /// Run the gateway.
    StartGateway { flags: Box<gateway::Flags>, warnings: Vec<String> },
    /// Run the HTTP proxy.
    StartHttpProxy { flags: Box<http_proxy::Flags>, warnings: Vec<String> },
    /// Try what a start would need.
    Check { flags: Box<tools::CheckFlags>, warnings: Vec<String> },
    /// Show how a running proxy is doing.
    Top { flags: Box<tools::TopFlags>, warnings: Vec<String> },
    /// Print this to stdout and exit with 0.
    Print(String),
}

/// Reads the arguments (without the name of the program), then the environment, then the config file that they name.
///
/// Does not check how the values fit together: `Flags::check` does.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &BTreeMap<String, OsString>,
) -> Result<Invocation, Refusal> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Flags may stand before the words that say whose they are. A flag of one name takes a value in every command or in
    // none, so that the words are found without knowing the command.
    let words = scan(&Command::Root.table(), arguments.clone()).words;
    let command = match words.split_first() {
        Some((first, rest)) if first == "help" => return Ok(Invocation::Print(help::page(Command::find(rest)?))),
        _ => Command::find(&words)?,
    };
    let table = command.table();
    let scan = scan(&table, arguments);
    if let Some(Wrong { message, hint }) = scan.wrong {
        return Err(usage_error(command, &message, hint.as_deref()));
    }
    if scan.help {
        return Ok(Invocation::Print(help::page(command)));
    }
    if command == Command::Version || (command == Command::Root && scan.version) {
        return Ok(Invocation::Print(help::version()));
    }
    if scan.version {
        return Err(usage_error(command, "unknown flag: --version", None));
    }
    let (Command::Start(_) | Command::Tool(_)) = command else {
        // Flags of `start` without it mean nothing; without any flag either, the page says what there is.
        return match scan.given.first() {
            Some((flag, _)) => Err(usage_error(command, &format!("unknown flag: --{flag}"), None)),
            None => Ok(Invocation::Print(help::page(command))),
        };
    };
    let own_words = command.path().split(' ').count() - 1;
    let mut warnings: Vec<String> = scan.words.iter().skip(own_words).map(|word| unused_argument(word)).collect();
    warnings.extend(environment.keys().filter_map(|name| table.misspelt_variable(name)));
    let sources = Sources { command, table: &table, given: scan.given, environment };
    Ok(match command {
        Command::Start(Door::GrpcProxy) => {
            let flags = Box::new(sources.merge(&mut warnings)?);
            Invocation::Start { flags, warnings }
        }
        Command::Start(Door::Gateway) => {
            let flags = Box::new(sources.merge(&mut warnings)?);
            Invocation::StartGateway { flags, warnings }
        }
        Command::Start(Door::HttpProxy) => {
            let flags = Box::new(sources.merge(&mut warnings)?);
            Invocation::StartHttpProxy { flags, warnings }
        }
        Command::Tool(Tool::Check) => {
            let flags = Box::new(sources.merge(&mut warnings)?);
            Invocation::Check { flags, warnings }
        }
        Command::Tool(Tool::Top) => {
            let flags = Box::new(sources.merge(&mut warnings)?);
            Invocation::Top { flags, warnings }
        }
        Command::Root | Command::Group(_) | Command::Version => Invocation::Print(help::page(command)),
    })
}

/// The flags of one command, as the parser fills them.
pub(super) trait Settings: clap::Parser {
    /// The lists in which blanks and empty items mean nothing.
    fn lists(&mut self) -> Vec<(&'static str, &mut Vec<String>)>;
}

/// cobra drops surplus arguments without a word, so they must not stop a start; `--debug false` is how most come about.
fn unused_argument(word: &OsStr) -> String {
    let word = go::quote(&word.to_string_lossy());
    format!(
        "the argument {word} is not used; the value of a boolean flag is written with an equals sign: --debug=false"
    )
}

// === the sources ===

/// Where a value comes from, to say so when it is refused.
enum Origin {
    Flag,
    Variable(String),
    File(PathBuf),
}

impl Origin {
    fn refuse(&self, command: Command, flag: &str, value: &str, cause: &str) -> Refusal {
        let value = go::quote(value);
        match self {
            Origin::Flag => {
                let message = format!("invalid argument {value} for \"--{flag}\" flag: {cause}");
                usage_error(command, &message, None)
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

/// Where the values of one command come from.
struct Sources<'a> {
    command: Command,
    table: &'a Table,
    given: Vec<(String, OsString)>,
    environment: &'a BTreeMap<String, OsString>,
}

impl Sources<'_> {
    /// Lays the sources over each other (flag, then variable, then file, then default) and lets the table read the values.
    fn merge<F: Settings>(self, warnings: &mut Vec<String>) -> Result<F, Refusal> {
        let Sources { command, table, given, environment } = self;
        let mut values: Vec<(String, OsString)> = given;
        let mut origins: HashMap<String, Origin> =
            values.iter().map(|(name, _)| (name.clone(), Origin::Flag)).collect();
        for flag in table.names() {
            let name = env_name(flag);
            // An empty variable is an unset one, as in etcd's own reading of its environment: manifests leave them behind.
            if let Some(value) = environment.get(&name).filter(|value| !value.is_empty() && !origins.contains_key(flag))
            {
                values.push((flag.to_owned(), value.clone()));
                origins.insert(flag.to_owned(), Origin::Variable(name));
            }
        }
        let path = values.iter().rev().find(|(name, value)| name == "config-file" && !value.is_empty());
        if let Some(path) = path.map(|(_, value)| PathBuf::from(value)) {
            for (flag, value) in read_file(table, &path)? {
                if let Entry::Vacant(origin) = origins.entry(flag) {
                    let text = match value {
                        FileValue::Text(text) => text,
                        FileValue::List(items) => go::write_csv(&items),
                    };
                    values.push((origin.key().clone(), text.into()));
                    origin.insert(Origin::File(path.clone()));
                }
            }
        }
        for (name, value) in &values {
            let (Some(flag), Some(origin)) = (table.find(name), origins.get(name)) else { continue };
            check_text(flag, value).map_err(|cause| origin.refuse(command, name, &value.to_string_lossy(), &cause))?;
            if kind(flag) == "duration" && value.as_bytes().starts_with(b"-") {
                warnings.push(format!("{} is negative, which means the same as 0", origin.named(name)));
            }
        }
        let mut flags: F = read_values(command, &join_slices(table, values), &origins)?;
        for (name, list) in flags.lists() {
            trim(name, list, warnings);
        }
        Ok(flags)
    }
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

fn read_values<F: Settings>(
    command: Command,
    values: &[(String, OsString)],
    origins: &HashMap<String, Origin>,
) -> Result<F, Refusal> {
    let arguments = values.iter().map(|(name, value)| {
        let mut argument = format!("--{name}=").into_bytes();
        argument.extend_from_slice(value.as_bytes());
        OsString::from_vec(argument)
    });
    F::try_parse_from(arguments).map_err(|error| {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.as_str(),
            _ => "",
        };
        let flag = text(ContextKind::InvalidArg).split(' ').next().unwrap_or_default().trim_start_matches("--");
        let cause = std::error::Error::source(&error).map_or_else(|| error.kind().to_string(), ToString::to_string);
        match origins.get(flag) {
            Some(origin) => origin.refuse(command, flag, text(ContextKind::InvalidValue), &cause),
            None => usage_error(command, &cause, None),
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
