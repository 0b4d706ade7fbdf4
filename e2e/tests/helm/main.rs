//! The chart, with Helm 3 and Helm 4, on a real control plane: what it renders is what the server takes, and releases
//! come, change, go back and go without taking anything along. Nodes are objects only; the operator, and in `helm test`
//! the proxies and the pod of the test, run here as the programs that their pods name. One control plane serves all.

#[path = "../cluster/containers.rs"]
mod containers;
// The control plane is the cluster tests' own, and they use more of it.
#[allow(dead_code)]
#[path = "../cluster/control_plane.rs"]
mod control_plane;
mod documents;
mod helm;
mod lifecycle;
mod render;
mod rights;
mod schemas;
mod stand_ins;
mod webhook;

use control_plane::ControlPlane;
use helm::Helm;

#[test]
fn releases_come_change_and_go_on_a_real_control_plane() {
    let cluster = ControlPlane::start();
    let _nodes = stand_ins::nodes(&cluster);
    // In this order: kubeconform and the dry runs need kinds that a release has brought, and the documents bring their own.
    lifecycle::a_release_with_helm_4_comes_changes_goes_back_and_goes(&cluster);
    lifecycle::a_chart_of_yesterday_is_upgraded_with_helm_3(&cluster);
    rights::a_release_for_one_namespace_serves_it_and_has_no_rights_elsewhere(&cluster);
    rights::a_release_for_backends_puts_no_secret_beside_tenants(&cluster);
    let helm = Helm::new("helm-3", &cluster.kubeconfig());
    webhook::a_release_with_a_webhook_serves_pods_and_leaves_nothing(&cluster, &helm, "webhook");
    render::what_is_rendered_satisfies_the_servers_own_schemas_and_the_server(&cluster);
    documents::the_commands_of_the_documents_work_as_pasted(&cluster);
}

#[test]
fn the_chart_is_clean_and_renders_the_same_bytes_twice() {
    for helm in Helm::both() {
        render::lint_has_nothing_to_say(&helm);
        render::rendering_twice_gives_the_same_bytes(&helm);
        render::a_typo_in_the_values_is_refused_by_name(&helm);
        render::what_cannot_work_is_refused_with_what_would_be_right(&helm);
        webhook::each_mode_makes_what_it_says(&helm);
    }
    render::both_helms_render_the_same_objects();
    render::every_value_is_known_to_the_schema_and_every_other_is_not();
    render::policies_are_named_after_their_release_and_each_binding_has_its_policy();
    webhook::the_webhook_leads_to_the_operator_and_to_nothing_else();
    render::profiles_keep_secrets_and_workloads_where_they_belong();
    render::every_container_is_restricted_and_every_object_is_labelled();
}
