//! The oldest Kubernetes that we promise to work with: its API server takes our kinds by the same rules, and the chart finds
//! by itself that it has to ask the operator for sidecars.

#[path = "../cluster/containers.rs"]
mod containers;
#[allow(dead_code)]
#[path = "../cluster/control_plane.rs"]
mod control_plane;
#[path = "../cluster/definitions.rs"]
mod definitions;
#[allow(dead_code)]
#[path = "../helm/helm.rs"]
mod helm;
#[allow(dead_code)]
#[path = "../helm/stand_ins.rs"]
mod stand_ins;
#[allow(dead_code)]
#[path = "../helm/webhook.rs"]
mod webhook;

use control_plane::ControlPlane;
use helm::Helm;

#[test]
fn the_oldest_kubernetes_takes_the_kinds_and_the_webhook() {
    let cluster = ControlPlane::start_of("kubernetes-1.33");
    let served = cluster.kubectl(&["get", "--raw=/apis/admissionregistration.k8s.io/v1"]);
    assert!(!served.contains("mutatingadmissionpolicies"), "else this would show little: {served}");
    let _nodes = stand_ins::nodes(&cluster);
    cluster.apply_file("deploy/crds/etcdproxy.dev.yaml");
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
    definitions::the_server_accepts_good_objects_and_refuses_bad_ones_by_field(&cluster);
    let helm = Helm::new("helm-4", &cluster.kubeconfig());
    webhook::a_release_with_a_webhook_serves_pods_and_leaves_nothing(&cluster, &helm, "auto");
}
