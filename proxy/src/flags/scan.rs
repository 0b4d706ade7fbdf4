//! The words of the command line: which command they name and which flags they give, spelt as cobra and pflag allow.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::commands::Command;
use super::help;
use super::nearest::nearest;
use super::refusal::Refusal;
use super::table::{Table, kind};
use crate::go;

/// etcd prints the error above the usage, as cobra does, and once more below it, where it is seen.
pub(super) fn usage_error(command: Command, message: &str, hint: Option<&str>) -> Refusal {
    let hint = hint.map(|name| format!(" (did you mean --{name}?)")).unwrap_or_default();
    Refusal::new(format!("Error: {message}\n{}\n{message}{hint}", help::usage(command)))
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
