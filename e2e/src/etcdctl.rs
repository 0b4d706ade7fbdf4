//! A real etcdctl, aimed at a cluster or at a proxy.

use std::path::Path;
use std::process::Command;

use crate::process::Process;
use crate::{Pair, Version};

/// An etcdctl with its endpoints and identity; commands are added per call.
#[derive(Clone, Debug)]
pub struct Etcdctl {
    version: Version,
    flags: Vec<String>,
}

/// What a finished etcdctl left behind.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Etcdctl {
    /// `endpoints` as the flag takes them: comma separated, with or without a scheme.
    pub fn new(version: Version, endpoints: impl AsRef<str>) -> Etcdctl {
        Etcdctl { version, flags: vec![format!("--endpoints={}", endpoints.as_ref())] }
    }

    /// A further global flag, `--name=value`.
    pub fn flag(mut self, flag: impl Into<String>) -> Etcdctl {
        self.flags.push(flag.into());
        self
    }

    /// `name:password`, for clusters with auth.
    pub fn user(self, name_and_password: &str) -> Etcdctl {
        self.flag(format!("--user={name_and_password}"))
    }

    /// Trusts `ca`, and shows `client` where there is one.
    pub fn tls(self, ca: &Path, client: Option<&Pair>) -> Etcdctl {
        let trusting = self.flag(format!("--cacert={}", ca.display()));
        match client {
            Some(pair) => {
                trusting.flag(format!("--cert={}", pair.cert.display())).flag(format!("--key={}", pair.key.display()))
            }
            None => trusting,
        }
    }

    /// Runs a command to its end, whatever that is.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, "")
    }

    /// The same with something on stdin, as `txn` and `put` take it.
    pub fn run_with(&self, arguments: &[&str], stdin: &str) -> Outcome {
        let mut process = self.start(arguments, stdin);
        let code = process.wait();
        process.stdout.wait_for_end();
        process.stderr.wait_for_end();
        Outcome { stdout: process.stdout.text(), stderr: process.stderr.text(), code }
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let outcome = self.run(arguments);
        assert!(outcome.code == 0, "etcdctl {arguments:?} with {:?}: {outcome:#?}", self.flags);
        outcome.stdout
    }

    /// Starts a command that goes on, such as `watch`, `lock`, `elect` or `lease keep-alive`; await its lines with
    /// `expect_stdout`.
    pub fn spawn(&self, arguments: &[&str]) -> Process {
        self.start(arguments, "")
    }

    fn start(&self, arguments: &[&str], stdin: &str) -> Process {
        let mut command = Command::new(self.version.etcdctl());
        // An ETCDCTL_ variable of the caller would override what the test asked for.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCDCTL_") {
                command.env_remove(name);
            }
        }
        command.args(&self.flags).args(arguments);
        Process::spawn(format!("etcdctl {}", arguments.join(" ")), &mut command, stdin.as_bytes())
    }
}
