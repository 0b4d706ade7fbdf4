//! Where the programs are: ours as cargo built it, etcd's as `tools/build.sh` built it. etcd is built on first use, so
//! that a plain `cargo test` works on a machine that has Go and nothing else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// The versions of etcd that we promise to work with; `tools/etcd-*/go.mod` pin the patch release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Version {
    V3_5,
    V3_6,
    #[default]
    V3_7,
}

impl Version {
    pub const ALL: [Version; 3] = [Version::V3_5, Version::V3_6, Version::V3_7];

    fn tool(self) -> &'static str {
        match self {
            Version::V3_5 => "etcd-3.5",
            Version::V3_6 => "etcd-3.6",
            Version::V3_7 => "etcd-3.7",
        }
    }

    pub fn etcd(self) -> PathBuf {
        tool(self.tool()).join("etcd")
    }

    pub fn etcdctl(self) -> PathBuf {
        tool(self.tool()).join("etcdctl")
    }
}

/// The folder that holds a tool of `tools/build.sh`, built if need be.
pub fn tool(name: &'static str) -> PathBuf {
    // Guards the folders found so far; held during a build, so that one process asks for each tool once.
    static FOUND: Mutex<Option<HashMap<&'static str, PathBuf>>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let found = found.get_or_insert_with(HashMap::new);
    found.entry(name).or_insert_with(|| build(name)).clone()
}

fn build(name: &str) -> PathBuf {
    let script = repository().join("tools/build.sh");
    // Its progress goes to our stderr, which cargo shows when a test fails, and nextest or --nocapture at once.
    let output = Command::new(&script)
        .arg(name)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", script.display()));
    assert!(output.status.success(), "{} {name} failed; it said why above", script.display());
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// The proxy that cargo built beside the running test, unless `ETCD_PROXY_BIN` names another.
pub fn etcd_proxy() -> PathBuf {
    if let Some(path) = std::env::var_os("ETCD_PROXY_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a running test has a path");
    // A test runs as target/<profile>/deps/<name>-<hash>, an example as target/<profile>/examples/<name>.
    let profile = test.parent().and_then(Path::parent).expect("cargo runs tests two folders below target");
    let others = profile.parent().into_iter().flat_map(|target| [target.join("debug"), target.join("release")]);
    std::iter::once(profile.to_path_buf())
        .chain(others)
        .map(|folder| folder.join("etcd-proxy"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("no etcd-proxy in {}; run `cargo build -p etcd-proxy` or set ETCD_PROXY_BIN", profile.display())
        })
}

/// The repository that this crate was compiled in.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies one folder below the repository")
}
