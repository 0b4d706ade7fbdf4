//! Where children live and what they are called.

use kube::ResourceExt;

use crate::api::{EtcdBackend, EtcdProxy, GROUP};

/// The longest name of a Service in a backend's namespace, so that "-pods" still fits behind it.
const MAX_BASE: usize = 58;

/// Labels by which a child leads back to its object, whatever namespace it lives in.
pub const HOME_LABEL_NAMESPACE: &str = "etcdproxy.dev/namespace";
pub const HOME_LABEL_NAME: &str = "etcdproxy.dev/name";
/// Whose child it is; nothing without it is ever touched.
pub const HOME_LABEL_OWNER: &str = "etcdproxy.dev/owner-uid";

/// An EtcdProxy, as its children need to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Object {
    pub fn of(proxy: &EtcdProxy) -> Object {
        Object {
            namespace: proxy.namespace().unwrap_or_default(),
            name: proxy.name_any(),
            uid: proxy.uid().unwrap_or_default(),
        }
    }

    /// The Secret that applications bind to, in the object's own namespace.
    pub fn binding(&self) -> String {
        format!("{}-client", self.name)
    }
}

/// The namespace that holds the upstream credential, and so the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    pub namespace: String,
    /// What the names of children begin with.
    pub base: String,
    /// The EtcdBackend that owns children outside the object's namespace: name and uid.
    pub backend: Option<(String, String)>,
}

impl Home {
    pub fn of(object: &Object, backend: Option<&EtcdBackend>) -> Home {
        match backend {
            None => Home { namespace: object.namespace.clone(), base: object.name.clone(), backend: None },
            Some(backend) => Home {
                namespace: backend.spec.namespace.clone(),
                base: base_abroad(object),
                backend: Some((backend.name_any(), backend.uid().unwrap_or_default())),
            },
        }
    }

    /// The home of an object whose backend is gone, as far as its status remembers it.
    pub fn remembered(object: &Object, namespace: String) -> Home {
        Home { namespace, base: base_abroad(object), backend: None }
    }

    pub fn ca_secret(&self) -> String {
        format!("{}-ca", self.base)
    }

    pub fn serving_secret(&self) -> String {
        format!("{}-serving", self.base)
    }

    pub fn headless_service(&self) -> String {
        format!("{}-pods", self.base)
    }

    /// Below it the cluster's DNS has a name for each pod, its address with dashes. Without the cluster's own domain, as
    /// certificates have it.
    pub fn pod_domain(&self) -> String {
        format!("{}.{}.svc", self.headless_service(), self.namespace)
    }

    /// Every name by which a client may reach the proxies.
    pub fn server_names(&self, object: &Object, domain: &str, further: Vec<String>) -> Vec<String> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let mut service = |name: &str, namespace: &str| {
            names.push(name.to_owned());
            names.push(format!("{name}.{namespace}"));
            names.push(format!("{name}.{namespace}.svc"));
            names.push(format!("{name}.{namespace}.svc.{domain}"));
        };
        service(&object.name, &object.namespace);
        if (self.base.as_str(), self.namespace.as_str()) != (object.name.as_str(), object.namespace.as_str()) {
            service(&self.base, &self.namespace);
        }
        names.push(format!("*.{}", self.pod_domain()));
        names.extend(further);
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

/// Unique for each namespace and name by its hash, and readable as far as there is room. It begins with a letter, as the
/// name of a Service must and that of a namespace need not.
fn base_abroad(object: &Object) -> String {
    let hash = short_hash(&format!("{}/{}", object.namespace, object.name));
    let mut readable = format!("p-{}-{}", object.namespace, object.name);
    readable.truncate(MAX_BASE - hash.len() - 1);
    format!("{}-{hash}", readable.trim_end_matches('-'))
}

/// Whether the API server can have a Secret, ConfigMap or EtcdBackend of this name. Others must not get into a request's
/// path, where `?` would end it and `/` lead to another object.
pub fn is_object_name(name: &str) -> bool {
    /// The longest name that the API server takes.
    const MAX: usize = 253;
    let known = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let is_label = |label: &str| {
        label.starts_with(known) && label.ends_with(known) && label.chars().all(|letter| known(letter) || letter == '-')
    };
    name.len() <= MAX && name.split('.').all(is_label)
}

/// Ten hexadecimal digits of FNV-1a: it names and compares, it does not protect.
pub fn short_hash(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{:010x}", hash & 0xff_ffff_ffff)
}

/// The finalizer of objects whose children live in another namespace, where no garbage collector finds them.
pub fn finalizer() -> String {
    format!("{GROUP}/cleanup")
}
