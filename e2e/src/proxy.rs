//! A proxy as a user runs it: our `etcd-proxy`, or the original `etcd grpc-proxy start` with the same interface, for
//! tests that compare the two.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::etcdctl::{Etcdctl, Outcome};
use crate::process::Process;
use crate::{Version, http, ports, programs};

/// The line that a proxy logs when it serves, whosever it is; unit files and etcd's own suites wait for it.
const STARTED: &str = "started gRPC proxy";
const GATEWAY_STARTED: &str = "ready to proxy client requests";

/// Which program a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Program {
    #[default]
    Ours,
    /// The original, of this version.
    Etcd(Version),
}

impl Program {
    fn path(self) -> PathBuf {
        match self {
            Program::Ours => programs::etcd_proxy(),
            Program::Etcd(version) => version.etcd(),
        }
    }
}

/// What a proxy shall be; `start` makes it so.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    program: Program,
    /// Whether it is the gateway, and not the gRPC proxy.
    is_gateway: bool,
    arguments: Vec<String>,
    environment: Vec<(String, OsString)>,
    descriptors: Option<u64>,
}

impl Builder {
    pub fn program(mut self, program: Program) -> Builder {
        self.program = program;
        self
    }

    /// `gateway start` instead of `grpc-proxy start`.
    pub fn gateway(mut self) -> Builder {
        self.is_gateway = true;
        self
    }

    /// A further flag, `--name=value`.
    pub fn flag(mut self, flag: impl Into<String>) -> Builder {
        self.arguments.push(flag.into());
        self
    }

    pub fn flags<'a>(self, flags: impl IntoIterator<Item = &'a str>) -> Builder {
        flags.into_iter().fold(self, Builder::flag)
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Builder {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// The file descriptors that it may have at most.
    pub fn descriptors(mut self, limit: u64) -> Builder {
        self.descriptors = Some(limit);
        self
    }

    /// Starts it and waits until it says that it serves. It listens on and advertises a free port unless the flags
    /// say otherwise.
    pub fn start(mut self) -> Proxy {
        let address = match self.value_of("--listen-addr") {
            Some(address) => address,
            None => {
                let address = ports::free_address();
                self.arguments.push(format!("--listen-addr={address}"));
                address
            }
        };
        if self.value_of("--advertise-client-url").is_none() && !self.is_gateway {
            self.arguments.push(format!("--advertise-client-url={address}"));
        }
        let process = self.spawn();
        process.expect_stderr(if self.is_gateway { GATEWAY_STARTED } else { STARTED });
        Proxy { process, address }
    }

    /// Runs it to its end: for flags that it must refuse, and for `--version` and `--help`.
    pub fn run(&self) -> Outcome {
        let mut process = self.spawn();
        let code = process.wait();
        process.stdout.wait_for_end();
        process.stderr.wait_for_end();
        Outcome { stdout: process.stdout.text(), stderr: process.stderr.text(), code }
    }

    /// Starts it without waiting for anything.
    pub fn spawn(&self) -> Process {
        let mut command = Command::new(self.program.path());
        for (name, _) in std::env::vars_os() {
            // A variable of the caller would override what the test asked for.
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        let group = if self.is_gateway { "gateway" } else { "grpc-proxy" };
        command.args([group, "start"]).args(&self.arguments).envs(self.environment.iter().cloned());
        if let Some(limit) = self.descriptors {
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            // SAFETY: between fork and exec the closure makes one system call on a value that it owns.
            unsafe {
                command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                })
            };
        }
        Process::spawn(format!("proxy ({:?})", self.program), &mut command, b"")
    }

    fn value_of(&self, flag: &str) -> Option<String> {
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == flag {
                return arguments.next().cloned();
            }
            if let Some(value) = argument.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
                return Some(value.to_owned());
            }
        }
        None
    }
}

/// A proxy that serves.
pub struct Proxy {
    pub process: Process,
    address: String,
}

impl Proxy {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Ours, in front of `endpoints`.
    pub fn start(endpoints: &str) -> Proxy {
        Proxy::builder().flag(format!("--endpoints={endpoints}")).start()
    }

    /// The original of the newest version, in front of `endpoints`.
    pub fn original(endpoints: &str) -> Proxy {
        let program = Program::Etcd(Version::default());
        Proxy::builder().program(program).flag(format!("--endpoints={endpoints}")).start()
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// An etcdctl of the newest version that talks through this proxy, in plaintext.
    pub fn etcdctl(&self) -> Etcdctl {
        Etcdctl::new(Version::default(), &self.address)
    }

    /// GET on the client port, in plaintext.
    pub fn get(&self, path: &str) -> http::Answer {
        http::get(&self.address, path).unwrap_or_else(|error| panic!("GET {path} from {}: {error}", self.address))
    }

    /// One series of its own metrics, labels included in its spelling.
    pub fn metric(&self, series: &str) -> Option<f64> {
        self.get("/proxy/metrics").metric(series)
    }

    /// The log lines so far that are JSON objects, as all of ours are.
    pub fn log(&self) -> Vec<Value> {
        self.process.stderr.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a log line with this message, after those that were waited for before.
    pub fn expect_log(&self, message: &str) -> Value {
        let line = self.process.expect_stderr(message);
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("no JSON on the log: {line}: {error}"))
    }

    /// Ends it with SIGTERM and returns its exit code as a shell has it.
    pub fn terminate(&mut self) -> i32 {
        self.process.signal(libc::SIGTERM);
        self.process.wait()
    }
}
