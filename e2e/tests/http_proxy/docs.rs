//! The commands that docs/operations.md gives for the HTTP proxy, run as they stand there.

use std::collections::HashMap;

use etcd_proxy_e2e::Version;
use etcd_proxy_e2e::docs::Session;

fn works(heading: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    Session::read("docs/operations.md", heading).run(folder.path(), Version::V3_5, &HashMap::new());
}

#[test]
fn the_documents_commands_for_the_http_proxy_work_as_pasted() {
    works("The HTTP proxy");
}

#[test]
fn a_proxy_is_promoted_to_a_member_as_the_document_says() {
    works("Make a proxy's machine a member");
}

#[test]
fn a_machine_for_which_the_cluster_has_no_room_runs_a_proxy_as_the_document_says() {
    works("A proxy where the cluster is full");
}
