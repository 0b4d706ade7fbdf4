//! What the documents tell people to paste, run as it stands there, so that it goes on working.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use crate::process::Process;
use crate::programs::{self, Version};
use crate::{Outcome, ports};

/// The console block after a heading of a document: commands behind `$ `, and what they print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    commands: Vec<String>,
    /// Lines that must appear in this order.
    prints: Vec<String>,
}

impl Session {
    /// The first block under `heading`, which is written without its number signs, in a document of the repository.
    pub fn read(document: &str, heading: &str) -> Session {
        let found = Session::all(document).into_iter().find(|(above, _)| above == heading);
        found.unwrap_or_else(|| panic!("{document} has no console block under {heading:?}")).1
    }

    /// All blocks of a document, each with the heading that it stands under.
    pub fn all(document: &str) -> Vec<(String, Session)> {
        let path = programs::repository().join(document);
        let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("no {}: {error}", path.display()));
        let mut sessions = Vec::new();
        let (mut heading, mut lines) = (String::new(), page.lines());
        while let Some(line) = lines.next() {
            if line.starts_with('#') {
                heading = line.trim_start_matches('#').trim().to_owned();
            } else if line == "```console" {
                let mut session = Session { commands: Vec::new(), prints: Vec::new() };
                for line in lines.by_ref().take_while(|line| *line != "```") {
                    match line.strip_prefix("$ ").or_else(|| line.strip_prefix("> ")) {
                        Some(command) => session.commands.push(command.to_owned()),
                        None => session.prints.push(line.to_owned()),
                    }
                }
                sessions.push((heading.clone(), session));
            } else if line.starts_with("```") {
                // What is in other boxes is no heading, whatever it begins with.
                lines.by_ref().take_while(|line| *line != "```").for_each(drop);
            }
        }
        sessions
    }

    /// The same with each command changed.
    pub fn map(mut self, change: impl Fn(&str) -> String) -> Session {
        for command in &mut self.commands {
            *command = change(command);
        }
        self
    }

    /// What is typed up to the first command with these words, and what is typed after it, which prints all that is printed.
    pub fn split_after(mut self, words: &str) -> (Session, Session) {
        let place = self.commands.iter().position(|command| command.contains(words));
        let place = place.unwrap_or_else(|| panic!("no command has {words:?}: {self:?}"));
        let rest = self.commands.split_off(place + 1);
        (Session { commands: self.commands, prints: Vec::new() }, Session { commands: rest, prints: self.prints })
    }

    /// The commands, and the lines that they must print in this order.
    pub fn parts(&self) -> (&[String], &[String]) {
        (&self.commands, &self.prints)
    }

    /// Runs it in `folder` with our program and etcd's on the path, every port of this machine replaced by a free one
    /// unless `ports` has one for it. Whatever it left running ends before this returns.
    pub fn run(&self, folder: &Path, version: Version, known: &HashMap<u16, u16>) -> Outcome {
        let mut known = known.clone();
        let commands: Vec<String> = self.commands.iter().map(|line| with_free_ports(line, &mut known)).collect();
        let script = format!("set -eu\n{}\n", commands.join("\n"));
        let (ours, etcds) = (programs::etcd_proxy(), version.etcd());
        let folders = [ours.parent(), etcds.parent()].map(|folder| folder.expect("a program lies in a folder"));
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        command.arg("-c").arg(&script).current_dir(folder);
        command.env("PATH", format!("{}:{}:{path}", folders[0].display(), folders[1].display()));
        let mut process = Process::spawn("what the document says", &mut command, b"");
        let code = process.wait();
        // The commands share its process group, and hold its pipes open for as long as they run.
        process.end_group();
        process.stdout.wait_for_end();
        process.stderr.wait_for_end();
        let outcome = Outcome { stdout: process.stdout.text(), stderr: process.stderr.text(), code };
        assert_eq!(outcome.code, 0, "{script}\n{outcome:#?}");
        let mut printed = outcome.stdout.lines();
        for line in &self.prints {
            let line = with_free_ports(line, &mut known);
            assert!(printed.any(|found| found.trim() == line.trim()), "{line:?} is missing: {script}\n{outcome:#?}");
        }
        outcome
    }
}

/// The line with each `127.0.0.1:port` replaced, always the same one by the same.
fn with_free_ports(line: &str, known: &mut HashMap<u16, u16>) -> String {
    const HOST: &str = "127.0.0.1:";
    let mut parts = line.split(HOST);
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|character: char| !character.is_ascii_digit()).unwrap_or(part.len());
        let port: u16 = part[..end].parse().expect("a port stands behind the address");
        let free = *known.entry(port).or_insert_with(ports::free);
        replaced += &format!("{HOST}{free}{}", &part[end..]);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_replaced_each_by_one_of_its_own() {
        let mut known = HashMap::from([(2379, 5)]);
        assert_eq!(
            with_free_ports("a 127.0.0.1:2379,http://127.0.0.1:2379/x b", &mut known),
            "a 127.0.0.1:5,http://127.0.0.1:5/x b"
        );
        let first = with_free_ports("127.0.0.1:1 127.0.0.1:2", &mut known);
        assert_eq!(first, with_free_ports("127.0.0.1:1 127.0.0.1:2", &mut known));
        assert_ne!(known[&1], known[&2]);
    }
}
