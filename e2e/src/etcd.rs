//! A real etcd cluster of one or more members on free ports of 127.0.0.1, whose members can be paused, killed and
//! restarted on their own ports and data.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::etcdctl::Etcdctl;
use crate::process::{PATIENCE, Process};
use crate::{Forwarder, Pair, Version, http, ports};

/// How often a starting member is asked whether it is healthy; etcd offers no event for it.
const HEALTH_POLL: Duration = Duration::from_millis(20);

/// TLS between clients and etcd.
#[derive(Clone, Debug)]
pub struct Tls {
    pub server: Pair,
    pub ca: PathBuf,
    /// Clients must show a certificate of the same CA.
    pub client_cert_auth: bool,
}

/// What a cluster shall be; `start` makes it so.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    version: Version,
    members: usize,
    flags: Vec<String>,
    tls: Option<Tls>,
    partitionable: bool,
}

impl Builder {
    pub fn version(mut self, version: Version) -> Builder {
        self.version = version;
        self
    }

    pub fn members(mut self, members: usize) -> Builder {
        self.members = members;
        self
    }

    /// A further flag for every member, `--name=value`.
    pub fn flag(mut self, flag: impl Into<String>) -> Builder {
        self.flags.push(flag.into());
        self
    }

    pub fn tls(mut self, tls: Tls) -> Builder {
        self.tls = Some(tls);
        self
    }

    /// Members reach each other over hops that `isolate` can cut.
    pub fn partitionable(mut self) -> Builder {
        self.partitionable = true;
        self
    }

    /// Starts all members and waits until each of them is healthy.
    pub fn start(self) -> Etcd {
        let folder = TempDir::with_prefix("etcd-proxy-e2e-").expect("a temporary folder can be made");
        let names: Vec<String> = (0..self.members).map(|index| format!("m{index}")).collect();
        let listen: Vec<String> = names.iter().map(|_| ports::free_address()).collect();
        let hops: Vec<Forwarder> =
            if self.partitionable { listen.iter().map(|peer| Forwarder::start(peer)).collect() } else { Vec::new() };
        let reached = |index: usize| hops.get(index).map_or(listen[index].as_str(), Forwarder::address);
        let peers: Vec<String> = (0..self.members).map(|index| format!("http://{}", reached(index))).collect();
        let initial: Vec<String> = names.iter().zip(&peers).map(|(name, peer)| format!("{name}={peer}")).collect();
        let scheme = if self.tls.is_some() { "https" } else { "http" };

        let members = names.iter().zip(listen.iter().zip(&peers)).map(|(name, (listen_peer, peer))| {
            let (client, metrics) = (ports::free_address(), ports::free_address());
            let mut flags = vec![
                format!("--name={name}"),
                format!("--data-dir={}", folder.path().join(name).display()),
                format!("--listen-client-urls={scheme}://{client}"),
                format!("--advertise-client-urls={scheme}://{client}"),
                format!("--listen-peer-urls=http://{listen_peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", initial.join(",")),
                // Health is asked for here, so that TLS for clients does not stand in its way.
                format!("--listen-metrics-urls=http://{metrics}"),
                // Tests outlive no power cut, and fsync is the slowest thing on a shared machine.
                "--unsafe-no-fsync".to_owned(),
            ];
            if self.members == 1 {
                // Nobody is there to vote against it, so it need not wait a second before it leads. Leases may then be
                // as short as one second instead of two.
                flags.extend(["--heartbeat-interval=20".to_owned(), "--election-timeout=200".to_owned()]);
            }
            if let Some(tls) = &self.tls {
                flags.push(format!("--cert-file={}", tls.server.cert.display()));
                flags.push(format!("--key-file={}", tls.server.key.display()));
                flags.push(format!("--trusted-ca-file={}", tls.ca.display()));
                flags.push(format!("--client-cert-auth={}", tls.client_cert_auth));
            }
            flags.extend(self.flags.iter().cloned());
            let mut member = Member {
                name: name.clone(),
                program: self.version.etcd(),
                flags,
                data: folder.path().join(name),
                client_address: client,
                metrics_address: metrics,
                process: None,
            };
            member.launch();
            member
        });
        let mut etcd = Etcd { members: members.collect(), hops, version: self.version, scheme, folder };
        for member in &mut etcd.members {
            member.wait_until_healthy();
        }
        etcd
    }
}

/// A running cluster.
pub struct Etcd {
    members: Vec<Member>,
    /// One before each member's peer port, if the cluster was to be partitionable.
    hops: Vec<Forwarder>,
    version: Version,
    scheme: &'static str,
    folder: TempDir,
}

impl Etcd {
    pub fn builder() -> Builder {
        Builder { members: 1, ..Builder::default() }
    }

    /// One member of the newest version.
    pub fn start() -> Etcd {
        Etcd::builder().start()
    }

    pub fn member(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// `127.0.0.1:port` of the first member, for the generated clients.
    pub fn address(&self) -> &str {
        &self.members[0].client_address
    }

    /// All client URLs, comma separated, as `--endpoints` takes them.
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> = (0..self.members.len()).map(|index| self.endpoint(index)).collect();
        urls.join(",")
    }

    /// The client URL of one member.
    pub fn endpoint(&self, index: usize) -> String {
        format!("{}://{}", self.scheme, self.members[index].client_address)
    }

    /// An etcdctl of the same version that talks to all members directly.
    pub fn etcdctl(&self) -> Etcdctl {
        Etcdctl::new(self.version, self.endpoints())
    }

    /// The folder that goes away with the cluster; tests may keep files of their own in it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Cuts one member of a partitionable cluster off from the others; clients still reach it.
    pub fn isolate(&self, index: usize) {
        let id = self.members[index].id();
        for (other, hop) in self.hops.iter().enumerate() {
            if other == index { hop.close() } else { hop.refuse(&id) }
        }
    }

    /// Lets all members reach each other again.
    pub fn heal(&self) {
        self.hops.iter().for_each(Forwarder::reopen);
    }

    /// The index of the member that leads, as the members themselves tell it.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leads = |member: &Member| member.metric("etcd_server_is_leader") == Some(1.0);
            if let Some(index) = self.members.iter().position(leads) {
                return index;
            }
            assert!(Instant::now() < deadline, "no member leads");
            std::thread::sleep(HEALTH_POLL);
        }
    }
}

/// One member of a cluster, running or not.
pub struct Member {
    name: String,
    program: PathBuf,
    flags: Vec<String>,
    data: PathBuf,
    client_address: String,
    metrics_address: String,
    process: Option<Process>,
}

impl Member {
    /// `127.0.0.1:port` for clients.
    pub fn address(&self) -> &str {
        &self.client_address
    }

    /// The URL by which other members reach it.
    pub fn peer_url(&self) -> &str {
        let url = self.flags.iter().find_map(|flag| flag.strip_prefix("--initial-advertise-peer-urls="));
        url.expect("every member is given one")
    }

    /// `127.0.0.1:port` where /metrics and /health are plain HTTP whatever the clients use.
    pub fn metrics_address(&self) -> &str {
        &self.metrics_address
    }

    /// One series of the member's own metrics, labels included in its spelling.
    pub fn metric(&self, series: &str) -> Option<f64> {
        http::get(&self.metrics_address, "/metrics").ok()?.metric(series)
    }

    /// The id by which its peers know it, in hexadecimal. Waits for a member that is about to start.
    pub fn id(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = http::get(&self.metrics_address, "/metrics");
            let lines = answer.iter().flat_map(|answer| answer.body.lines());
            let label = { lines }.find_map(|line| line.strip_prefix("etcd_server_id{server_id=\""));
            if let Some(id) = label.and_then(|rest| rest.split('"').next()) {
                return id.to_owned();
            }
            assert!(Instant::now() < deadline, "etcd {} does not tell its id: {answer:?}", self.name);
            std::thread::sleep(HEALTH_POLL);
        }
    }

    /// From its next start on it is of another version.
    pub fn upgrade(&mut self, version: Version) {
        self.program = version.etcd();
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the member was started and not stopped")
    }

    /// Ends it as an operator would, with SIGTERM.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(libc::SIGTERM);
            process.wait();
        }
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it in its tracks: the kernel still accepts connections for it, and nothing answers.
    pub fn pause(&mut self) {
        self.process().signal(libc::SIGSTOP);
    }

    pub fn resume(&mut self) {
        self.process().signal(libc::SIGCONT);
    }

    /// Starts it again on the same ports and data, without waiting for health, which it may not reach by itself.
    pub fn launch(&mut self) {
        self.kill();
        let mut command = Command::new(&self.program);
        command.args(&self.flags);
        // An ETCD_ variable of the caller would override what the test asked for.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        self.process = Some(Process::spawn(format!("etcd {}", self.name), &mut command, b""));
    }

    /// Starts it again on the same ports and data, and waits until it is healthy.
    pub fn restart(&mut self) {
        self.launch();
        self.wait_until_healthy();
    }

    /// Keeps a copy of its data as they are now, for which it stands still.
    pub fn back_up(&mut self) {
        self.stop();
        copy(&self.data, &self.data.with_extension("backup"));
        self.restart();
    }

    /// Begins anew with the data of the backup.
    pub fn put_back(&mut self) {
        self.stop();
        std::fs::remove_dir_all(&self.data).expect("the data are there");
        copy(&self.data.with_extension("backup"), &self.data);
        self.restart();
    }

    pub fn wait_until_healthy(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = http::get(&self.metrics_address, "/health");
            if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
                return;
            }
            let exit = self.process().exit();
            assert!(exit.is_none(), "etcd {} ended while it started: {exit:?}", self.name);
            assert!(Instant::now() < deadline, "etcd {} is not healthy: {answer:?}", self.name);
            std::thread::sleep(HEALTH_POLL);
        }
    }
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a folder can be made");
    for entry in std::fs::read_dir(from).expect("the folder is there") {
        let entry = entry.expect("the folder can be read");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("it is of some type").is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("it can be copied")),
        }
    }
}
