//! The commands that docs/operations.md gives for the gateway, run as they stand there.

use std::collections::HashMap;

use etcd_proxy_e2e::Version;
use etcd_proxy_e2e::docs::Session;

#[test]
fn the_documents_commands_for_the_gateway_work_as_pasted() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    Session::read("docs/operations.md", "The gateway").run(folder.path(), Version::default(), &HashMap::new());
}
