//! Flags as a shell reads them, for the start-up log.

use clap::CommandFactory;
use serde::Serialize;
use serde_json::Value;

use super::Flags;
use crate::go;

impl Flags {
    /// All flags with their values, for the start-up log: a command line that a shell reads back.
    ///
    /// No flag holds a secret by itself, only files that do; but a URL may carry a user and a password, and these are
    /// masked.
    pub fn effective(&self) -> String {
        let mut shown = self.clone();
        let urls = shown.endpoints.iter_mut().chain(&mut shown.metrics_addr);
        for url in urls.chain([&mut shown.advertise_client_url, &mut shown.listen_addr]) {
            *url = without_userinfo(url);
        }
        command_line(&shown)
    }
}

/// All flags of a command with their values, as a shell reads them.
pub fn command_line<F: CommandFactory + Serialize>(flags: &F) -> String {
    let values = serde_json::to_value(flags).expect("a struct of texts, numbers and lists has a JSON form");
    let names = F::command();
    let names = names.get_arguments().filter_map(|flag| flag.get_long());
    names.map(|name| format!("--{name}={}", shell_word(&plain(&values[name])))).collect::<Vec<_>>().join(" ")
}

/// A value as its flag is given it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            let simple = !items.is_empty()
                && items.iter().all(|item| !item.is_empty() && !item.contains([',', '"', '\n', '\r']));
            if simple { items.join(",") } else { go::write_csv(&items) }
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn shell_word(text: &str) -> String {
    let simple = |c: char| c.is_alphanumeric() || "-_./:,@%+=".contains(c);
    if text.chars().all(simple) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

pub fn without_userinfo(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (&url[..scheme.len() + 3], rest));
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    match authority.rfind('@') {
        Some(at) => format!("{scheme}***{}", &rest[at..]),
        None => url.to_owned(),
    }
}
