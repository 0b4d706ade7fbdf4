//! Answers the API server's question about a pod that is being made: with the sidecar as a patch, or with a refusal in
//! the words that the admission policies have. Pure.

#[cfg(test)]
mod tests;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{LABEL, put, unsuitable};
use crate::api::SidecarStatus;
use crate::render::container;

/// What an `AdmissionReview` asks.
#[derive(Debug)]
pub struct Question {
    uid: String,
    pub namespace: String,
    pod: Value,
}

impl Question {
    pub fn read(text: &[u8]) -> Result<Question, String> {
        let review: Value = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
        let request = &review["request"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let uid = text(&request["uid"]).ok_or("an AdmissionReview without request.uid")?;
        let pod = request["object"].clone();
        // Whoever writes into a pod relies on these.
        let annotations = &pod["metadata"]["annotations"];
        if !pod["metadata"].is_object()
            || !pod["spec"].is_object()
            || !(annotations.is_null() || annotations.is_object())
        {
            return Err("an AdmissionReview whose request.object is no pod".to_owned());
        }
        Ok(Question { uid, namespace: text(&request["namespace"]).unwrap_or_default(), pod })
    }

    /// The EtcdProxy whose sidecar the pod asks for and has not got yet.
    pub fn wanted(&self) -> Option<&str> {
        let containers = self.pod["spec"]["initContainers"].as_array();
        let has_it = containers.is_some_and(|all| all.iter().any(|one| one["name"] == container::NAME));
        self.pod["metadata"]["labels"][LABEL].as_str().filter(|_| !has_it)
    }

    /// Why the pod can have no sidecar, though it asks for one.
    pub fn unsuitable(&self) -> Option<&'static str> {
        self.pod["metadata"]["labels"][LABEL].as_str().and_then(|_| unsuitable(&self.pod["spec"]))
    }

    /// Lets the pod through as it is.
    pub fn allow(&self) -> Value {
        self.answer(json!({"allowed": true}))
    }

    /// Puts the sidecar in.
    pub fn patch(&self, sidecar: &SidecarStatus) -> Value {
        let mut pod = self.pod.clone();
        put(&mut pod, sidecar);
        // Each of the three is written whole, which adds it where there was none.
        let operations: Vec<Value> = ["/spec/initContainers", "/spec/volumes", "/metadata/annotations"]
            .into_iter()
            .map(|path| json!({"op": "add", "path": path, "value": pod.pointer(path)}))
            .collect();
        let patch = ByteString(json!(operations).to_string().into_bytes());
        self.answer(json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
    }

    /// There can be no sidecar in such a pod.
    pub fn cannot(&self, why: &str) -> Value {
        let name = self.pod["metadata"]["labels"][LABEL].as_str().unwrap_or_default();
        self.deny(403, &format!("the label {LABEL} asks for EtcdProxy {name}, but {why}"))
    }

    /// There is no such EtcdProxy, or none that offers a sidecar.
    pub fn refuse(&self) -> Value {
        let (name, namespace) = (self.wanted().unwrap_or_default(), &self.namespace);
        self.deny(
            403,
            &format!(
                "the label {LABEL} asks for EtcdProxy {name}, but namespace {namespace} has none of that name with \
                 spec.mode Sidecar that is accepted (kubectl get etcdproxies)"
            ),
        )
    }

    /// Nobody knows now whether there is one; a pod never starts without the proxy that it asked for.
    pub fn fail(&self, why: &str) -> Value {
        self.deny(
            503,
            &format!("the operator cannot read the EtcdProxy that the label {LABEL} names: {why}; try again"),
        )
    }

    fn deny(&self, code: u16, message: &str) -> Value {
        self.answer(json!({"allowed": false, "status": {"code": code, "message": message}}))
    }

    fn answer(&self, mut response: Value) -> Value {
        response["uid"] = json!(self.uid);
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}
