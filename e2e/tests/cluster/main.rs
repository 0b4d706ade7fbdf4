//! The operator on a real control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler of the pinned
//! Kubernetes, and the operator under its own account with exactly the committed roles. Nodes are objects only; what a
//! kubelet would report of pods is reported by a stand-in. One control plane serves all, since it takes longer to start
//! than to use.

mod attacks;
mod brought;
mod containers;
mod control_plane;
mod credentials;
mod definitions;
mod injection;
mod kubelets;
mod lifecycle;
mod outage;
mod profiles;
mod scale;
mod tenants;

use control_plane::ControlPlane;
use kubelets::Kubelets;

/// Nodes at first; the test of many objects adds more.
const NODES: usize = 2;

#[test]
fn the_operator_serves_all_modes_on_a_real_control_plane() {
    let cluster = ControlPlane::start();
    cluster.apply_file("deploy/crds/etcdproxy.dev.yaml");
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
    definitions::the_server_accepts_good_objects_and_refuses_bad_ones_by_field(&cluster);

    cluster.prepare_operator();
    let first = cluster.start_operator("first", "example/etcd-proxy:1");
    first.expect_stderr("this process leads");
    let second = cluster.start_operator("second", "example/etcd-proxy:1");
    kubelets::add_nodes(&cluster, 0..NODES);
    let kubelets = Kubelets::start(&cluster);
    lifecycle::a_deployment_becomes_ready_scales_and_is_put_right(&cluster);
    lifecycle::an_autoscaler_is_set_on_an_object(&cluster);
    lifecycle::a_paused_object_is_left_as_it_is(&cluster);
    lifecycle::a_daemonset_takes_the_place_of_a_deployment(&cluster);
    lifecycle::a_missing_secret_is_named_and_its_arrival_helps(&cluster);
    lifecycle::what_belongs_to_someone_else_is_never_touched(&cluster);
    lifecycle::a_sidecar_is_offered_that_the_server_takes(&cluster);
    injection::a_webhook_does_what_policies_do(&cluster);
    injection::pods_that_ask_get_their_proxy_or_are_refused(&cluster);
    lifecycle::the_plugin_shows_what_is_there_and_what_is_wrong(&cluster);
    lifecycle::an_autoscaler_has_kept_an_object_within_its_bounds(&cluster);
    injection::a_backend_can_ask_for_the_verb_use(&cluster);
    tenants::a_tenant_gets_proxies_but_never_the_credential(&cluster);
    credentials::rendered_proxies_prove_themselves_to_etcd_and_check_its_name(&cluster);
    brought::certificates_of_all_kinds_are_served_and_renewed_in_the_running_proxy(&cluster);
    tenants::keys_that_are_anothers_are_not_served(&cluster);
    tenants::keys_are_purged_if_the_backend_says_so(&cluster);
    tenants::of_overlapping_grants_one_wins(&cluster);
    tenants::a_namespace_that_may_not_is_told_so(&cluster);
    attacks::an_object_that_is_made_anew_takes_over_what_it_left(&cluster);
    attacks::proxies_never_outlive_their_object(&cluster);
    attacks::what_is_no_longer_allowed_no_longer_serves(&cluster);
    tenants::namespaces_go_although_the_backend_is_going(&cluster);
    outage::some_proxies_that_will_be_upgraded(&cluster);
    let third = outage::the_work_goes_on(&cluster, first, second);
    lifecycle::deleting_an_object_deletes_its_children(&cluster);
    lifecycle::the_account_can_do_no_more_than_it_must(&cluster);
    scale::two_hundred_objects_on_fifty_nodes(&cluster, &third, NODES);
    outage::the_lease_is_given_back(&cluster, third);
    scale::the_operator_kept_to_itself(&cluster);
    profiles::an_operator_for_backends_needs_no_secrets_of_tenants(&cluster);
    profiles::an_operator_for_a_namespace_needs_no_rights_elsewhere(&cluster);
    drop(kubelets);
}
