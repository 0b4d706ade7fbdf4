//! The proxy and the operator on a real node: kubelet, containerd, CNI, kube-proxy and DNS on this machine, images from
//! the project's own recipe. The walk-through in the documents brings the cluster up, makes two tenants and takes all of
//! it away; between, what only a real node can show. One cluster serves all, since it takes longer to start than to use.

mod chart;
mod cluster;
mod jobs;
mod members;
mod rotation;
mod tenants;
mod traces;
mod walk_through;

use cluster::Cluster;
use traces::Traces;
use walk_through::WalkThrough;

/// The section that takes the cluster away.
const END: &str = "Away with it";

#[test]
fn the_walk_through_holds_and_what_it_makes_is_right() {
    let before = Traces::now();
    let cluster = Cluster::new();
    let walk = WalkThrough::read(&cluster);
    walk.until(END);

    tenants::pods_are_ready_by_their_probes_under_restricted_rules(&cluster);
    tenants::one_tenants_certificate_opens_nothing_of_the_others(&cluster);
    rotation::a_watch_loses_nothing_while_certificates_and_endpoints_change(&cluster);
    jobs::a_sidecar_is_ready_before_its_application_and_lets_the_job_complete(&cluster);
    chart::the_charts_own_test_passes_and_the_api_server_puts_sidecars_into_pods(&cluster);
    members::a_deleted_proxy_leaves_the_list_at_once_and_a_killed_one_after_its_ttl(&cluster);

    walk.from(END);
    before.compare(&cluster);
}
