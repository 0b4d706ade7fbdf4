//! Puts the sidecar into the pods that ask for it by the label `etcdproxy.dev/inject`. Pure but for the reading of files:
//! YAML in, YAML out, no cluster needed.

pub mod review;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kube::ResourceExt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{EtcdProxy, SidecarStatus};
use crate::plan::{self, Fetched, Found, Settings};
use crate::render::{self, container};

/// The label of a pod that asks; its value is the name of an EtcdProxy in the pod's namespace.
pub const LABEL: &str = "etcdproxy.dev/inject";
/// Which version of the sidecar a pod has.
pub const HASH: &str = "etcdproxy.dev/config-hash";

/// Reads all documents of some YAML files.
pub fn read(text: &str) -> Result<Vec<Value>, String> {
    let documents = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
    let documents: Result<Vec<Value>, _> = documents.collect();
    Ok(documents.map_err(|error| format!("not YAML: {error}"))?.into_iter().filter(|one| !one.is_null()).collect())
}

/// Reads all documents of these files; `-` is stdin.
pub fn read_files(files: &[PathBuf]) -> Result<Vec<Value>, String> {
    let mut documents = Vec::new();
    for file in files {
        let text = if file.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(file)
        };
        let text = text.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        documents.extend(read(&text).map_err(|error| format!("{}: {error}", file.display()))?);
    }
    Ok(documents)
}

/// The EtcdProxies that pods ask for and that are not among the documents: namespace, if the pod names one, and name.
pub fn missing(documents: &[Value]) -> BTreeSet<(Option<String>, String)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let place = |document: &Value| text(&document["metadata"]["namespace"]);
    let given: BTreeSet<_> = documents
        .iter()
        .filter(|document| document["kind"] == "EtcdProxy")
        .filter_map(|document| Some((place(document), text(&document["metadata"]["name"])?)))
        .collect();
    let wanted = documents.iter().filter_map(|document| {
        let pod = document.pointer(template_path(document)?)?;
        Some((place(document), text(&pod["metadata"]["labels"][LABEL])?))
    });
    wanted
        .filter(|(place, name)| {
            !given.contains(&(place.clone(), name.clone())) && !given.contains(&(None, name.clone()))
        })
        .collect()
}

/// Injects into every pod that asks; the EtcdProxies are looked for among the documents too. An EtcdProxy without a
/// namespace is taken for the namespace of the pod.
pub fn inject(documents: &mut [Value], settings: &Settings) -> Result<usize, String> {
    let mut sidecars = BTreeMap::new();
    for document in documents.iter().filter(|document| document["kind"] == "EtcdProxy") {
        let proxy: EtcdProxy = serde_json::from_value(document.clone())
            .map_err(|error| format!("EtcdProxy {}: {error}", document["metadata"]["name"]))?;
        sidecars.insert((proxy.namespace(), proxy.name_any()), sidecar(&proxy, settings)?);
    }
    let mut injected = 0;
    for document in documents.iter_mut() {
        let namespace = document["metadata"]["namespace"].as_str().map(str::to_owned);
        let what = format!("{} {}", document["kind"], document["metadata"]["name"]).replace('"', "");
        let Some(pod) = template(document) else { continue };
        let Some(wanted) = pod["metadata"]["labels"][LABEL].as_str().map(str::to_owned) else { continue };
        let found = sidecars.get(&(namespace, wanted.clone())).or_else(|| sidecars.get(&(None, wanted.clone())));
        let Some(sidecar) = found else {
            return Err(format!(
                "{what} asks for EtcdProxy {wanted} by the label {LABEL}; give it too, with -f, in the same namespace"
            ));
        };
        if let Some(why) = unsuitable(&pod["spec"]) {
            return Err(format!("{what} asks for EtcdProxy {wanted} by the label {LABEL}, but {why}"));
        }
        put(pod, sidecar);
        injected += 1;
    }
    Ok(injected)
}

/// The sidecar that an EtcdProxy offers: what the operator has put into its status, or else what it would.
fn sidecar(proxy: &EtcdProxy, settings: &Settings) -> Result<SidecarStatus, String> {
    if let Some(sidecar) = proxy.status.as_ref().and_then(|status| status.sidecar.clone()) {
        return Ok(sidecar);
    }
    let name = proxy.name_any();
    if proxy.spec.backend_ref.is_some() {
        return Err(format!(
            "EtcdProxy {name} has a backendRef, so its sidecar is known only to the operator; give it as \
             `kubectl get etcdproxy {name} -o yaml` prints it"
        ));
    }
    let objects = plan::references(proxy, None).into_iter().map(|key| (key, Found::NotReadable)).collect();
    let fetched = Fetched { objects, ..Fetched::default() };
    let plan =
        plan::check(proxy, &fetched, settings).map_err(|refusal| format!("EtcdProxy {name}: {}", refusal.message))?;
    render::sidecar(&plan).ok_or_else(|| format!("EtcdProxy {name} has spec.mode {:?}; want Sidecar", plan.mode))
}

/// Why a pod of this spec can have no sidecar; nothing if it can. The admission policies in deploy/ say the same.
pub fn unsuitable(spec: &Value) -> Option<&'static str> {
    if spec["hostNetwork"] == true {
        // Its loopback is the node's, where others would find a proxy that takes them for the application.
        return Some(
            "a proxy beside a pod with hostNetwork would serve the whole node; connect to the Service of an EtcdProxy with \
             mode Deployment or DaemonSet",
        );
    }
    let windows = spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows";
    windows.then_some(
        "the proxy runs on Linux only, and the pod asks for Windows; connect to the Service of an EtcdProxy with mode \
         Deployment or DaemonSet",
    )
}

/// The pod in a document, or the template of the pods that it makes.
fn template(document: &mut Value) -> Option<&mut Value> {
    let path = template_path(document)?;
    document.pointer_mut(path)
}

fn template_path(document: &Value) -> Option<&'static str> {
    match document["kind"].as_str()? {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// Puts one sidecar into one pod, in place of an older one if there is one.
pub fn put(pod: &mut Value, sidecar: &SidecarStatus) {
    let containers = &mut pod["spec"]["initContainers"];
    if !containers.is_array() {
        *containers = json!([]);
    }
    let containers = containers.as_array_mut().expect("it was made an array");
    containers.retain(|one| one["name"] != container::NAME);
    let at = if sidecar.position == "Last" { containers.len() } else { 0 };
    containers.insert(at, sidecar.container.clone());

    let volumes = &mut pod["spec"]["volumes"];
    if !volumes.is_array() {
        *volumes = json!([]);
    }
    let volumes = volumes.as_array_mut().expect("it was made an array");
    volumes.retain(|one| !one["name"].as_str().is_some_and(|name| name.starts_with("etcd-proxy-")));
    volumes.extend(sidecar.volumes.iter().cloned());
    pod["metadata"]["annotations"][HASH] = json!(sidecar.config_hash);
}

/// The documents as one YAML file.
pub fn write(documents: &[Value]) -> String {
    let texts = documents.iter().map(|one| serde_yaml::to_string(one).expect("what was YAML is YAML"));
    texts.map(|text| format!("---\n{text}")).collect()
}
