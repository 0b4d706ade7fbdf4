//! The operator on a real control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler of the pinned
//! Kubernetes, and the operator under its own account with exactly the committed roles. Nodes are objects only; what a
//! kubelet would report of pods is reported by a stand-in. One control plane serves all, since it takes longer to start
//! than to use.

mod control_plane;
mod definitions;
mod lifecycle;
mod tenants;

use control_plane::ControlPlane;

#[test]
fn the_operator_serves_all_modes_on_a_real_control_plane() {
    let cluster = ControlPlane::start();
    cluster.apply_file("deploy/crds/etcdproxy.dev.yaml");
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
    definitions::the_server_accepts_good_objects_and_refuses_bad_ones_by_field(&cluster);

    cluster.prepare_operator();
    let mut operator = cluster.start_operator("first");
    operator.expect_stderr("this process leads");
    let mut standby = cluster.start_operator("second");
    let nodes = cluster.nodes(2);
    lifecycle::a_deployment_becomes_ready_scales_and_is_put_right(&cluster);
    lifecycle::a_daemonset_takes_the_place_of_a_deployment(&cluster);
    lifecycle::a_missing_secret_is_named_and_its_arrival_helps(&cluster);
    lifecycle::what_belongs_to_someone_else_is_never_touched(&cluster);
    lifecycle::a_sidecar_is_offered_that_the_server_takes(&cluster);
    tenants::a_tenant_gets_proxies_but_never_the_credential(&cluster);
    tenants::a_namespace_that_may_not_is_told_so(&cluster);
    tenants::namespaces_go_although_the_backend_is_going(&cluster);
    lifecycle::deleting_an_object_deletes_its_children(&cluster);
    lifecycle::the_account_can_do_no_more_than_it_must(&cluster);
    drop(nodes);

    let lease = cluster.get("etcd-proxy-system", "lease/etcd-proxy-operator");
    assert_eq!(lease["spec"]["holderIdentity"], "first", "one works at a time");
    operator.signal(libc::SIGTERM);
    assert_eq!(operator.wait(), 0, "the operator ends well");
    standby.expect_stderr("this process leads");
    standby.signal(libc::SIGTERM);
    assert_eq!(standby.wait(), 0, "the operator ends well");
    let lease = cluster.get("etcd-proxy-system", "lease/etcd-proxy-operator");
    assert!(lease["spec"]["holderIdentity"].is_null(), "the lease is given back: {lease}");
}
