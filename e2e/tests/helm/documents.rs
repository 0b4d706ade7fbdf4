//! What the documents tell people to paste into a terminal that has a cluster, run as it stands there: the page of the chart,
//! the quick start, and the way without Helm.

use std::collections::HashMap;

use etcd_proxy_e2e::docs::Session;
use etcd_proxy_e2e::{Authority, Version, programs};

use crate::control_plane::ControlPlane;
use crate::helm::Helm;
use crate::stand_ins;

const SYSTEM: &str = "etcd-proxy-system";
/// What readers put in place of the word in the documents.
const REGISTRY: &str = "registry.example";

/// Where a person sits: a folder with the repository's `deploy`, and the certificates that an administrator of etcd has.
struct Desk<'a> {
    cluster: &'a ControlPlane,
    folder: tempfile::TempDir,
}

impl Desk<'_> {
    fn new(cluster: &ControlPlane) -> Desk<'_> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let link = folder.path().join("deploy");
        std::os::unix::fs::symlink(programs::repository().join("deploy"), link).expect("a link can be made");
        let authority = Authority::new(folder.path());
        let client = authority.client("client", "");
        for (from, to) in
            [(authority.ca(), "etcd-ca.crt"), (client.cert, "etcd-client.crt"), (client.key, "etcd-client.key")]
        {
            std::fs::copy(from, folder.path().join(to)).expect("a file can be copied");
        }
        Desk { cluster, folder }
    }

    fn boxes(&self, page: &str, heading: &str) -> Vec<Session> {
        let boxes: Vec<Session> =
            Session::all(page).into_iter().filter(|(above, _)| above == heading).map(|(_, session)| session).collect();
        assert!(!boxes.is_empty(), "{page} has no box under {heading:?}");
        boxes
    }

    fn run(&self, session: Session) {
        let folders = ["helm-4", "kubernetes"].map(|name| programs::tool(name).display().to_string()).join(":");
        let kubeconfig = self.cluster.kubeconfig().display().to_string();
        let home = self.folder.path().display().to_string();
        let typed = session.map(|line| {
            let line = line.replace("REGISTRY", REGISTRY);
            format!("export PATH={folders}:$PATH KUBECONFIG={kubeconfig} HOME={home}; {line}")
        });
        typed.run(self.folder.path(), Version::default(), &HashMap::new());
    }
}

pub fn the_commands_of_the_documents_work_as_pasted(cluster: &ControlPlane) {
    let desk = Desk::new(cluster);
    let helm = Helm::new("helm-4", &cluster.kubeconfig());
    // The kinds of releases before belong to these.
    let all =
        ["customresourcedefinition/etcdproxies.etcdproxy.dev", "customresourcedefinition/etcdbackends.etcdproxy.dev"];
    cluster.kubectl(&["delete", all[0], all[1], "--ignore-not-found", "--timeout=60s"]);
    cluster.kubectl(&["delete", "namespace", SYSTEM, "--ignore-not-found", "--timeout=60s"]);

    let quick = desk.boxes("docs/quick-start.md", "On a cluster");
    let [install, proxy] = <[Session; 2]>::try_from(quick).expect("one box installs and one makes proxies");
    assert_eq!(desk.boxes("docs/helm.md", "The Helm chart"), std::slice::from_ref(&install), "two pages, one command");
    desk.run(install);
    let mut operator = stand_ins::operator(cluster, SYSTEM, "etcd-proxy");
    desk.run(proxy);
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0);
    helm.release("uninstall", SYSTEM, &["etcd-proxy"]);
    cluster.kubectl(&["delete", "etcdproxy/etcd", "--timeout=60s"]);
    cluster.kubectl(&["delete", "namespace", SYSTEM, "--timeout=60s"]);

    for session in desk.boxes("deploy/README.md", "On Kubernetes") {
        // The operator's program is started here when its Deployment is there.
        let (before, after) = session.split_after("rollout status");
        desk.run(before);
        let mut operator = stand_ins::operator(cluster, SYSTEM, "etcd-proxy-operator");
        desk.run(after);
        operator.signal(libc::SIGTERM);
        assert_eq!(operator.wait(), 0);
    }
    cluster.kubectl(&["delete", "etcdproxy/etcd", "--wait=false"]);
    let manifest = programs::repository().join("deploy/operator.yaml").display().to_string();
    cluster.kubectl(&["delete", "-f", &manifest, "--timeout=60s"]);
    let rights = programs::repository().join("deploy/rbac").display().to_string();
    cluster.kubectl(&["delete", "--ignore-not-found", "-f", &rights]);
}
