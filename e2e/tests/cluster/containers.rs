//! What a kubelet would start of a pod, started here as the programs that its containers name: Secrets and ConfigMaps as
//! files, and variables with their values.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::control_plane::ControlPlane;

/// The arguments of a pod's container, what it mounts made files below `folder`.
pub fn arguments(
    cluster: &ControlPlane,
    namespace: &str,
    pod: &Value,
    container: &Value,
    folder: &Path,
) -> Vec<String> {
    let mut places: Vec<(String, String)> = Vec::new();
    let mut variables: Vec<(String, String)> = Vec::new();
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let path = mount["mountPath"].as_str().expect("a mount has a path");
        let volume = pod["volumes"].as_array().into_iter().flatten().find(|volume| volume["name"] == mount["name"]);
        let volume = volume.expect("a mount has a volume");
        let at = folder.join(path.trim_start_matches('/'));
        unpack(cluster, namespace, volume, &at);
        places.push((path.to_owned(), at.display().to_string()));
    }
    // A path may be the beginning of another, and an argument holds one.
    places.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    for variable in container["env"].as_array().into_iter().flatten() {
        let reference = &variable["valueFrom"]["secretKeyRef"];
        if let (Some(name), Some(secret), Some(key)) =
            (variable["name"].as_str(), reference["name"].as_str(), reference["key"].as_str())
        {
            let secret = cluster.get(namespace, &format!("secret/{secret}"));
            let value = base64(secret["data"][key].as_str().expect("the Secret has what a variable is made of"));
            variables.push((format!("$({name})"), String::from_utf8(value).expect("a variable is text")));
        }
    }
    let replace = |argument: String| {
        let argument = match places.iter().find(|(path, _)| argument.contains(path.as_str())) {
            Some((path, at)) => argument.replace(path, at),
            None => argument,
        };
        variables.iter().fold(argument, |argument, (name, value)| argument.replace(name, value))
    };
    texts(&container["args"]).into_iter().map(replace).collect()
}

/// Writes what a volume holds, as files named like its keys.
fn unpack(cluster: &ControlPlane, namespace: &str, volume: &Value, at: &Path) {
    let (object, is_secret) = match (volume["secret"]["secretName"].as_str(), volume["configMap"]["name"].as_str()) {
        (Some(secret), _) => (format!("secret/{secret}"), true),
        (None, Some(map)) => (format!("configmap/{map}"), false),
        (None, None) => panic!("only Secrets and ConfigMaps are mounted: {volume}"),
    };
    std::fs::create_dir_all(at).expect("the folder can be made");
    let found = cluster.until(namespace, &object, "it is there", |found| !found.is_null());
    let source = if is_secret { &volume["secret"] } else { &volume["configMap"] };
    let wanted = |key: &str| {
        let items = source["items"].as_array();
        items.is_none_or(|items| items.iter().any(|item| item["key"] == key))
    };
    // As kubelet does it: all files change at once, when one link leads to another folder.
    let version = found["metadata"]["resourceVersion"].as_str().expect("an object has a version");
    let (folder, data_link, next) = (at.join(format!("..{version}")), at.join("..data"), at.join("..data_tmp"));
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    for (name, data) in found["data"].as_object().expect("it has data").iter().filter(|(name, _)| wanted(name)) {
        let data = data.as_str().expect("data is text");
        let bytes = if is_secret { base64(data) } else { data.as_bytes().to_vec() };
        std::fs::write(folder.join(name), bytes).expect("the file can be written");
        if !at.join(name).is_symlink() {
            symlink(format!("..data/{name}"), at.join(name)).expect("a link can be made");
        }
    }
    symlink(format!("..{version}"), &next).expect("a link can be made");
    std::fs::rename(next, data_link).expect("a link takes the place of another");
}

/// The elements of a list of texts.
pub fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|one| one.as_str().expect("a text").to_owned()).collect()
}

fn base64(text: &str) -> Vec<u8> {
    let mut child = Command::new("base64");
    let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(file.path(), text).expect("the file can be written");
    let output = child.arg("-d").arg(file.path()).output().expect("base64 can be started");
    assert!(output.status.success(), "a Secret's data is base64");
    output.stdout
}
