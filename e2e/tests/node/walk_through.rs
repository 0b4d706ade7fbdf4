//! docs/walk-through.md, section by section, as it stands there.

use std::process::Command;

use etcd_proxy_e2e::docs::Session;
use etcd_proxy_e2e::programs;

use crate::cluster::Cluster;

const DOCUMENT: &str = "docs/walk-through.md";
/// Where the document's cluster is; the test's own is elsewhere.
const FOLDER: &str = "target/cluster";
/// The longest section brings the cluster up, and that waits for each of its parts for up to three minutes.
const BOUND: &str = "600";

pub struct WalkThrough {
    sections: Vec<(String, Session)>,
    folder: String,
}

impl WalkThrough {
    pub fn read(cluster: &Cluster) -> WalkThrough {
        WalkThrough { sections: Session::all(DOCUMENT), folder: cluster.folder().display().to_string() }
    }

    /// Everything before a section.
    pub fn until(&self, end: &str) {
        self.run(self.sections.iter().take_while(|(heading, _)| heading != end));
    }

    /// A section and all that comes after it.
    pub fn from(&self, begin: &str) {
        self.run(self.sections.iter().skip_while(|(heading, _)| heading != begin));
    }

    fn run<'a>(&self, sections: impl Iterator<Item = &'a (String, Session)>) {
        let mut count = 0;
        for (heading, session) in sections {
            self.run_one(heading, session);
            count += 1;
        }
        assert!(count > 0, "{DOCUMENT} has no such section");
    }

    fn run_one(&self, heading: &str, session: &Session) {
        let (commands, prints) = session.parts();
        // A shell whose person has sourced the file once has it for good; ours is a new one for each box.
        let mut script = format!("set -eu\n[ ! -e {0}/env ] || source {0}/env\n", self.folder);
        for command in commands {
            let command = command.replace(FOLDER, &self.folder);
            script += &match command.strip_prefix("! ") {
                // A shell does not end by what is negated.
                Some(refused) => format!("if {refused}; then echo 'this should have failed'; exit 1; fi\n"),
                None => format!("{command}\n"),
            };
        }
        eprintln!("walk-through: {heading}");
        let mut command = Command::new("timeout");
        command.args([BOUND, "bash", "-c", &script]).current_dir(programs::repository());
        command.env("ETCD_PROXY_CLUSTER", &self.folder).env("PROGRAMS", Cluster::programs());
        // Those of a make that runs this test are not for the one in the document.
        for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "KUBECONFIG", "IMAGE"] {
            command.env_remove(name);
        }
        let output = command.output().expect("coreutils has timeout");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {script}\n{stdout}\n{stderr}", output.status);
        let mut printed = stdout.lines();
        for line in prints {
            let found =
                printed.any(|one| one.split_whitespace().next() == Some(line.trim()) || one.trim() == line.trim());
            assert!(found, "{line:?} is missing: {script}\n{stdout}");
        }
    }
}
