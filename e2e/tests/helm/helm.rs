//! One Helm of a pinned version, and what it prints.

use std::path::{Path, PathBuf};
use std::process::Command;

use etcd_proxy_e2e::programs;
use serde::Deserialize as _;
use serde_json::Value;

/// How long Helm may wait for what a release brings; a loaded machine takes its time.
const WAIT: &str = "--timeout=180s";

pub struct Helm {
    pub name: &'static str,
    program: PathBuf,
    kubeconfig: PathBuf,
    /// Helm keeps what it finds out about servers and plugins in a home; ours begins empty.
    home: tempfile::TempDir,
}

impl Helm {
    pub fn new(name: &'static str, kubeconfig: &Path) -> Helm {
        let home = tempfile::TempDir::with_prefix("etcd-proxy-helm-").expect("a temporary folder can be made");
        Helm { name, program: programs::tool(name).join("helm"), kubeconfig: kubeconfig.to_owned(), home }
    }

    /// Both, for what needs no cluster.
    pub fn both() -> [Helm; 2] {
        ["helm-4", "helm-3"].map(|name| Helm::new(name, Path::new("/dev/null")))
    }

    pub fn chart() -> PathBuf {
        programs::repository().join("deploy/helm/etcd-proxy")
    }

    /// Runs it; answers with its output, or with all that it said when it failed.
    pub fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        for folder in ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, self.home.path());
        }
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        let output = command.output().expect("helm can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stdout) + &text(&output.stderr))
        }
    }

    pub fn expect(&self, arguments: &[&str]) -> String {
        self.run(arguments).unwrap_or_else(|error| panic!("{} {arguments:?}: {error}", self.name))
    }

    /// `install`, `upgrade` and the like of one release, waiting for what it brings.
    pub fn release(&self, verb: &str, namespace: &str, arguments: &[&str]) -> String {
        let mut all = vec![verb, "-n", namespace, "--wait", WAIT];
        all.extend_from_slice(arguments);
        self.expect(&all)
    }

    /// What the chart renders without a cluster.
    pub fn template(&self, values: &[&str]) -> Result<String, String> {
        let chart = Helm::chart().display().to_string();
        let mut all = vec!["template", "etcd-proxy", &chart, "-n", "etcd-proxy-system"];
        all.extend_from_slice(values);
        self.run(&all)
    }

    /// The same as objects.
    pub fn objects(&self, values: &[&str]) -> Vec<Value> {
        let text = self.template(values).unwrap_or_else(|error| panic!("{} template {values:?}: {error}", self.name));
        let documents = serde_yaml::Deserializer::from_str(&text);
        let read = |one| Value::deserialize(one).unwrap_or_else(|error| panic!("not YAML: {error}: {text}"));
        documents.map(read).filter(|one| !one.is_null()).collect()
    }
}

/// The files of values that the chart is tried with.
pub fn values_files() -> Vec<String> {
    let folder = Helm::chart().join("ci");
    let entries = std::fs::read_dir(&folder).expect("the chart has a folder ci");
    let mut files: Vec<String> =
        entries.map(|entry| entry.expect("the folder can be read").path().display().to_string()).collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    files
}
