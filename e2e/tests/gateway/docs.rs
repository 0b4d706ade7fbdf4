//! The commands that docs/operations.md gives for the gateway, and for a proxy on one machine, run as they stand there.

use std::collections::HashMap;

use etcd_proxy_e2e::Version;
use etcd_proxy_e2e::docs::Session;

fn works(document: &str, heading: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    Session::read(document, heading).run(folder.path(), Version::default(), &HashMap::new());
}

#[test]
fn the_documents_commands_for_the_gateway_work_as_pasted() {
    works("docs/operations.md", "The gateway");
}

#[test]
fn the_documents_commands_for_a_socket_file_and_a_certificate_of_its_own_work_as_pasted() {
    works("docs/operations.md", "A proxy for one machine: a socket file, a certificate of its own");
}

#[test]
fn the_documents_commands_for_ordered_reads_work_as_pasted() {
    works("docs/operations.md", "Reads that do not go back");
}

#[test]
fn the_documents_commands_for_leasing_work_as_pasted() {
    works("docs/leasing.md", "Leasing: linearizable reads from memory");
}
